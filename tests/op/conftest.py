# SPDX-License-Identifier: Apache-2.0
"""A worker on a real cache, and a job that records, for tests of single operations."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from chantier.cache import Cache, Ref
from chantier.config import Config
from chantier.llb.definition import LoadedVertex
from chantier.op import Worker
from chantier.pb import ops_pb2 as pb
from chantier.progress import Recorder, Status, Step, Vertex
from chantier.registry import Registries, RetryPolicy
from chantier.snapshot import Overlay
from chantier.solver.types import CacheMap
from chantier.store import Root

T = TypeVar("T")


@dataclass
class Job:
    """The part of a solver's job that operations use."""

    sessions: list[Any] = field(default_factory=list)
    recorder: Recorder = field(default_factory=Recorder)
    jobs: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step = Step(self.recorder, Vertex(digest="sha256:" + "1" * 64, name="test"))

    def statuses(self) -> list[Status]:
        return [event for event in self.recorder.events if isinstance(event, Status)]


@dataclass
class Bench:
    """Runs operations and looks at what they made. `keep` is released at the end. `attached` may put a session behind a wire while
    an operation runs.
    """

    worker: Worker
    keep: list[Ref] = field(default_factory=list)
    attached: Callable[[Any], AbstractAsyncContextManager[Any]] = nullcontext

    @property
    def cache(self) -> Cache:
        return self.worker.cache

    def vertex(self, op: pb.Op, inputs: int = 0) -> LoadedVertex:
        op.inputs.extend(pb.Input(digest=f"sha256:{i:064x}") for i in range(len(op.inputs), inputs))
        edges = tuple((f"sha256:{i:064x}", 0) for i in range(inputs))
        return LoadedVertex("sha256:" + "0" * 64, op, edges, pb.OpMetadata(), "sha256:" + "0" * 64)

    def wait(self, made: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(made)

    def map_of(self, op: Any, index: int = 0, job: Job | None = None) -> CacheMap:
        found, _ = asyncio.run(op.cache_map(job or Job(), index))
        return found  # type: ignore[no-any-return]

    def run(self, op: Any, inputs: Sequence[Ref | None] = (), job: Job | None = None) -> list[Ref | None]:
        made = list(asyncio.run(self._run(op, inputs, job or Job())))
        self.keep += [ref for ref in made if ref is not None]
        return made

    async def _run(self, op: Any, inputs: Sequence[Ref | None], job: Job) -> Sequence[Ref | None]:
        if self.attached is nullcontext:
            return await op.run(job, inputs)  # type: ignore[no-any-return]
        async with AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(self.attached(session)) for session in job.sessions]
            return await op.run(replace(job, sessions=sessions), inputs)  # type: ignore[no-any-return]

    def content(self, op: Any, input: int, ref: Ref | None) -> str:
        key = self.map_of(op).deps[input].content
        assert key is not None
        return asyncio.run(key(Job(), ref))  # type: ignore[arg-type]

    def tree(self, fill: Callable[[Path], None]) -> Ref:
        """A result whose files `fill` writes."""
        made = self.cache.new(None, description="test")
        with made.mounted() as root:
            fill(root)
        ref = made.commit()
        self.keep.append(ref)
        return ref

    def files(self, ref: Ref | None) -> dict[str, str]:
        """path -> content, `-> target` or `/`, with mode and owner where they are not the usual ones."""
        assert ref is not None
        found = {}
        with ref.mounted() as root:
            for base, names, others in os.walk(root):
                for name in names + others:
                    path = os.path.join(base, name)
                    info = os.lstat(path)
                    if os.path.islink(path):
                        text = "-> " + os.readlink(path)
                    else:
                        usual = 0o755 if os.path.isdir(path) else 0o644
                        text = "/" if os.path.isdir(path) else Path(path).read_text()
                        text += f" {info.st_mode & 0o7777:o}" if info.st_mode & 0o7777 != usual else ""
                    text += f" {info.st_uid}:{info.st_gid}" if (info.st_uid, info.st_gid) != (0, 0) else ""
                    found[os.path.relpath(path, root)] = text
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    root = Root.open(tmp_path / "state")
    snapshots = Overlay(root.snapshots_dir, root.db)
    cache = Cache(root, root.db, root.blobs, snapshots)
    registries = Registries(retry=RetryPolicy(base_s=0.01, cap_s=0.05))
    made = Bench(Worker(root=tmp_path / "state", cache=cache, config=Config(), registries=registries))
    yield made
    registries.close()
    for ref in made.keep:
        ref.release()
    made.worker.threads.shutdown()
    root.close()


@pytest.fixture
def job() -> Job:
    return Job()
