# SPDX-License-Identifier: Apache-2.0
"""Inputs handed on as outputs under an identity of their own (`pb.PassthroughOp`)."""

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


class PassthroughOp:
    """Implements `solver.types.Op`."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        self._op = vertex.op.passthrough
        self._inputs = len(vertex.inputs)
        self._id = vertex.op.passthrough.id
        self._outputs = list(vertex.op.passthrough.outputs)

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        digest, also, detail = digests(lambda struct: {"Type": "buildkit.passthrough.v0", "Passthrough": struct(self._op)})
        return CacheMap(digest=digest, also=also, deps=tuple(Dep() for _ in range(self._inputs)), detail=detail), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        if any(not 0 <= index < len(inputs) for index in self._outputs):
            raise UsageError("invalid passthrough op with invalid outputs")
        made: list[Ref | None] = []
        for index in self._outputs:
            ref = inputs[index]
            made.append(ref.clone() if ref is not None else None)
        return made


__all__ = ["PassthroughOp"]
