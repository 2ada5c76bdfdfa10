# SPDX-License-Identifier: Apache-2.0
"""A definition that lies in a file of an input, solved in place of this vertex (`pb.BuildOp`).

How a definition is solved inside a running build is the engine's: it puts `solve(job, definition) -> Ref | None` into the
worker as `extra["solve"]`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING

from chantier.errors import ChantierError, NotFoundError, UnsupportedError, UsageError
from chantier.kernel import open_in_root
from chantier.llb.definition import LoadedVertex
from chantier.pb import ops_pb2 as pb
from chantier.solver.types import CacheMap, Dep

from .key_json import digests
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import Ref
    from chantier.solver.types import JobContext

DEFINITION_INPUT = "buildkit.llb.definition"
DEFINITION_FILE = "buildkit.llb.definition"
_LIMIT = 64 << 20

Solve = Callable[["JobContext", pb.Definition], Awaitable["Ref | None"]]


class BuildOp:
    """Implements `solver.types.Op`."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        self._worker = worker
        self._op = vertex.op.build
        self._inputs = len(vertex.inputs)

    def acquire(self) -> AbstractAsyncContextManager[None]:
        """None: what it solves takes places of its own, and would wait for this one."""
        return nullcontext()

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        # The name `Exec` is BuildKit's own slip, and part of its keys.
        digest, also, detail = digests(lambda struct: {"Type": "buildkit.build.v0", "Exec": struct(self._op)})
        return CacheMap(digest=digest, also=also, deps=tuple(Dep() for _ in range(self._inputs)), detail=detail), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        if self._op.builder != -1:
            raise UsageError("invalid build op: only the LLB builder is supported")
        if DEFINITION_INPUT not in self._op.inputs:
            raise UsageError(f"no llb definition input {DEFINITION_INPUT} found")
        index = self._op.inputs[DEFINITION_INPUT].input
        if not 0 <= index < len(inputs):
            raise UsageError(f"invalid index {index}")
        solve: Solve | None = self._worker.extra.get("solve")
        if solve is None:
            raise UnsupportedError("this engine cannot solve a definition inside another")
        ref = inputs[index]
        name = self._op.attrs.get("llbbuild.filename") or DEFINITION_FILE
        data = await self._worker.threaded(lambda _cancelled: _read(ref, name))
        definition = pb.Definition()
        try:
            definition.ParseFromString(data)
        except Exception as err:  # upb raises DecodeError, whose class differs between protobuf implementations
            raise UsageError(f"failed to parse llb definition in {name}") from err
        return [await solve(job, definition)]


def _read(ref: Ref | None, name: str) -> bytes:
    if ref is None:
        raise NotFoundError(f"failed to open {name}: no such file or directory")
    with ref.mounted() as root:
        try:
            fd = open_in_root(root, name, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as err:
            raise NotFoundError(f"failed to open {name}: {(err.strerror or '').lower()}") from err
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ChantierError(f"failed to open {name}: not a regular file")
        with open(fd, "rb") as file:
            data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise ChantierError(f"failed to read {name}: larger than {_LIMIT} bytes")
    return data


__all__ = ["BuildOp", "Solve"]
