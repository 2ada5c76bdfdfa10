# SPDX-License-Identifier: Apache-2.0
"""Trees laid on top of each other (`pb.MergeOp`, semantics.md 3.7). Lazy: nothing is applied until something mounts it."""

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


class MergeOp:
    """Implements `solver.types.Op`."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        self._worker = worker
        self._name = vertex.name
        self._op = vertex.op.merge
        self._inputs = len(vertex.inputs)
        self._order = [one.input for one in vertex.op.merge.inputs]

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        digest, also, detail = digests(lambda struct: {"Type": "buildkit.merge.v0", "Merge": struct(self._op)})
        return CacheMap(digest=digest, also=also, deps=tuple(Dep() for _ in range(self._inputs)), detail=detail), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        refs = []
        for index in self._order:
            if not 0 <= index < len(inputs):
                raise UsageError(f"failed to merge: invalid input index {index}")
            ref = inputs[index]
            if ref is not None:
                refs.append(ref)
        if not refs:
            return [None]
        if len(refs) == 1:
            return [refs[0].clone()]
        cache = self._worker.cache
        made = await self._worker.threaded(lambda _: cache.merge(refs, description=self._name), lambda ref: ref.release())
        return [made]


__all__ = ["MergeOp"]
