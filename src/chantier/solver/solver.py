# SPDX-License-Identifier: Apache-2.0
"""The solver: all active vertices of the process, and the jobs that want them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from chantier.errors import ChantierError, UsageError
from chantier.progress import Reporter, Silent, now

from .combined import CombinedKeyStore, KeySource
from .edge import ActiveEdge
from .explain import Explanation
from .flight import settle
from .index import ActiveIndex
from .job import Job
from .keys import Drop, KeyStore
from .status import VertexStatus, vertex_status
from .types import CacheRecord, Edge, Resolve, ResultStore, Vertex
from .vertex import ActiveVertex
from .writer import Writer

T = TypeVar("T")


class Solver:
    """Solves graphs of vertices. One for a process; lives on one event loop.

    `resolve` turns a vertex into its operation, `keys` remembers how results were made, `results` keeps and finds them.
    Calls of the stores that may wait for a disk are made in threads of its own.
    """

    def __init__(
        self,
        resolve: Resolve,
        keys: KeyStore,
        results: ResultStore[Any],
        *,
        clock: Callable[[], int] = now,
        describe: Callable[[Explanation], Explanation] = lambda found: found,
    ) -> None:
        self.resolve = resolve
        self.describe = describe  # adds to an explanation what the details of keys mean; quick
        self.clock = clock
        self.store = CombinedKeyStore((KeySource(keys=keys, results=results),))
        self.index = ActiveIndex()
        self._executor = ThreadPoolExecutor(4, thread_name_prefix="solver")
        self.writer = Writer(keys, results, self._executor)
        self.leaving: dict[asyncio.Future[None], ActiveVertex] = {}  # cancelled tasks that are not over
        self._active: dict[str, ActiveVertex] = {}
        self._jobs: dict[str, Job] = {}
        self._combined: dict[tuple[KeySource, ...], CombinedKeyStore] = {}

    def job(
        self,
        id: str,
        reporter: Reporter | None = None,
        *,
        sessions: Sequence[Any] = (),
        imports: Sequence[KeySource] = (),
    ) -> Job:
        """A new job, to be used as `async with solver.job(...) as job`. Raises UsageError if the id is taken."""
        if id in self._jobs:
            raise UsageError(f"job {id} already exists")
        job = self._jobs[id] = Job(self, id, reporter or Silent(), sessions, imports)
        return job

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(self._jobs.values())

    def dump(self) -> list[VertexStatus]:
        """What each active vertex does and waits for; `status.render` makes it text."""
        return [vertex_status(vertex) for vertex in self._active.values()]

    async def aclose(self) -> None:
        """Write what is left and end the threads. No job may be open."""
        await self.writer.flush()
        self._executor.shutdown()

    # Loading

    def load_graph(self, job: Job, edges: Iterable[Edge]) -> list[ActiveEdge]:
        """Make the vertices of a graph active, or join those that are."""
        edges = list(edges)
        loaded: dict[Vertex, ActiveVertex] = {}
        stack = [(edge.vertex, False) for edge in reversed(edges)]
        while stack:
            vertex, ready = stack.pop()
            if vertex in loaded:
                continue
            if ready:
                inputs = tuple(self._edge(loaded[edge.vertex], edge.index) for edge in vertex.inputs)
                loaded[vertex] = self._activate(job, vertex, inputs)
            else:
                stack.append((vertex, True))
                stack += [(edge.vertex, False) for edge in reversed(vertex.inputs) if edge.vertex not in loaded]
        return [self._edge(loaded[edge.vertex], edge.index) for edge in edges]

    def _activate(self, job: Job, vertex: Vertex, inputs: tuple[ActiveEdge, ...]) -> ActiveVertex:
        digest = vertex.digest
        if any(edge.vertex.digest != asked.vertex.digest for edge, asked in zip(inputs, vertex.inputs, strict=True)):
            digest = _ignoring_digest(digest)  # it stands on a variant, so it is one
        active = self._active.get(digest)
        if active is not None and vertex.ignore_cache and not active.ignoring:
            digest = _ignoring_digest(digest)
            active = self._active.get(digest)
        if active is None:
            active = self._active[digest] = ActiveVertex(self, vertex, digest, inputs)
        self.join(job, active)
        return active

    def _edge(self, vertex: ActiveVertex, index: int) -> ActiveEdge:
        edge = vertex.edges.get(index)
        if edge is None:
            edge = vertex.edges[index] = ActiveEdge(vertex, index)
        return edge

    def join(self, job: Job, vertex: ActiveVertex) -> None:
        """Let a job see a vertex and all that it may wait for."""
        stack = [(vertex, False)]
        while stack:
            current, ready = stack.pop()
            if current in job.vertices:
                continue
            if ready:
                job.vertices[current] = None
                current.join(job)
            else:
                stack.append((current, True))
                stack += [(edge.vertex, False) for edge in current.inputs if edge.vertex not in job.vertices]
                stack += [(other, False) for other in current.merged if other not in job.vertices]

    def combined(self, jobs: Iterable[Job]) -> CombinedKeyStore:
        """The main store with the imports of these jobs."""
        sources = tuple(dict.fromkeys(source for job in jobs for source in job.imports))
        if not sources:
            return self.store
        store = self._combined.get(sources)
        if store is None:
            store = self._combined[sources] = CombinedKeyStore((*self.store.sources, *sources))
        return store

    # What vertices and edges ask for

    def skip_inputs(self, vertex: ActiveVertex) -> None:
        """Report what need not run because this vertex did not, inputs first."""
        reason = f"not needed: {vertex.name} did not run"
        stack = [(edge.vertex, False) for edge in vertex.inputs]
        seen: set[ActiveVertex] = set()
        while stack:
            current, ready = stack.pop()
            if ready:
                if current.explanation is None:
                    current.explain("skipped", reason)
                current.cached(reason)
            elif current not in seen and not current.reported and not any(edge.wanted for edge in current.edges.values()):
                seen.add(current)
                stack.append((current, True))
                stack += [(edge.vertex, False) for edge in current.inputs]

    async def load(self, store: CombinedKeyStore, record: CacheRecord) -> tuple[bool, Any]:
        """Whether the record's result is there, and it. A record whose result is gone is dropped."""
        if not record.result:
            return True, None
        results = store.sources[record.source].results
        future = asyncio.get_running_loop().run_in_executor(self._executor, results.load, record.result)
        try:
            value = await asyncio.shield(future)
        except asyncio.CancelledError:
            await settle([future])
            if not future.cancelled() and future.exception() is None and (late := future.result()) is not None:
                late.release()
            raise
        except (ChantierError, OSError):
            return False, None  # it is there and cannot be had: another record or a run will do
        if value is None and record.source == 0:
            self.writer.add(Drop(key=record.key, result=record.result))
        return value is not None, value

    async def lost(self, value: Any) -> str:
        """Why a result can no longer be used, as a try has shown; "" if it can."""
        return "" if value is None else str(await self.in_thread(self.store.sources[0].results.lost, value))

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)

    # End of jobs

    def end_job(self, job: Job) -> None:
        """Take a job out of all vertices, and discard those that nobody else wants."""
        self._jobs.pop(job.id, None)
        for vertex in job.vertices:
            vertex.part(job)
            if not vertex.jobs:
                if self._active.get(vertex.digest) is vertex:
                    del self._active[vertex.digest]
                vertex.release()
        job.vertices.clear()
        if not self._jobs:
            self._combined.clear()


def _ignoring_digest(digest: str) -> str:
    return "sha256:" + hashlib.sha256(f"{digest}-ignorecache".encode()).hexdigest()


__all__ = ["Solver"]
