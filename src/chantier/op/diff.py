# SPDX-License-Identifier: Apache-2.0
"""What one tree changes on another (`pb.DiffOp`, semantics.md 3.8). Lazy, as a merge is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING

from chantier.errors import UsageError
from chantier.llb.definition import LoadedVertex
from chantier.solver.types import CacheMap, Dep

from .key_json import digests
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import Ref
    from chantier.solver.types import JobContext


class DiffOp:
    """Implements `solver.types.Op`."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        self._worker = worker
        self._name = vertex.name
        self._op = vertex.op.diff
        self._inputs = len(vertex.inputs)
        self._lower = vertex.op.diff.lower.input
        self._upper = vertex.op.diff.upper.input

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        digest, also, detail = digests(lambda struct: {"Type": "buildkit.diff.v0", "Diff": struct(self._op)})
        return CacheMap(digest=digest, also=also, deps=tuple(Dep() for _ in range(self._inputs)), detail=detail), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        lower, upper = self._input(inputs, self._lower, "lower"), self._input(inputs, self._upper, "upper")
        if lower is None and upper is None:
            return [None]
        if lower is None and upper is not None:
            return [upper.clone()]
        cache = self._worker.cache
        made = await self._worker.threaded(
            lambda _: cache.diff(lower, upper, description=self._name), lambda ref: ref.release() if ref is not None else None
        )
        return [made]

    def _input(self, inputs: Sequence[Ref | None], index: int, which: str) -> Ref | None:
        if index == -1:
            return None
        if not 0 <= index < len(inputs):
            raise UsageError(f"failed to diff: invalid {which} input index {index}")
        return inputs[index]


__all__ = ["DiffOp"]
