# SPDX-License-Identifier: Apache-2.0
"""A job: one build's view of the solver. It keeps what it built alive until it ends, and sees all that it waits for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from chantier.errors import CancelledError_
from chantier.progress import Reporter

from .combined import KeySource
from .edge import ActiveEdge
from .explain import Explanation
from .export import ExportKey, walk_keys
from .flight import Flight, Waiter, settle, wait
from .status import VertexStatus, vertex_status
from .types import CacheRecord, Edge, ResultStore

if TYPE_CHECKING:
    from .solver import Solver
    from .vertex import ActiveVertex


class Built:
    """The result of one edge, held by the caller: `release` it (or use `with`)."""

    def __init__(self, job: Job, edge: ActiveEdge, value: Any) -> None:
        self.value = value  # None for an empty result
        self.edge = edge
        self._job = job
        self._keys = edge.lasting_keys

    @property
    def vertex(self) -> str:
        """The digest it is reported by."""
        return self.edge.vertex.digest

    def take(self, edge: ActiveEdge) -> None:
        """Hold what the edge has now instead of the value before, which is released."""
        old, self.value = self.value, None if edge.result is None else edge.result.clone()
        self._keys = edge.lasting_keys
        if old is not None:
            old.release()

    @property
    def keys(self) -> tuple[str, ...]:
        """The stored keys it can be found by; none if an input has no lasting key."""
        return self._keys

    @property
    def explanation(self) -> Explanation | None:
        return self.edge.vertex.explanation

    async def walk(self) -> list[ExportKey]:
        """All keys and records that led here, inputs first. While the job lives."""
        return await self._job.walk(self._keys)

    def results_of(self, record: CacheRecord) -> ResultStore[Any]:
        """The store that loads the result of a record that `walk` gave."""
        return self._job.results_of(record)

    def clone(self) -> Built:
        return Built(self._job, self.edge, None if self.value is None else self.value.clone())

    def release(self) -> None:
        value, self.value = self.value, None
        if value is not None:
            value.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Job:
    """Made by `Solver.job`; an async context manager. On exit nothing runs for it any more."""

    def __init__(
        self,
        solver: Solver,
        id: str,
        reporter: Reporter,
        sessions: Sequence[Any],
        imports: Sequence[KeySource],
    ) -> None:
        self.id = id
        self.reporter = reporter
        self.sessions = tuple(sessions)
        self.imports = tuple(imports)
        self.vertices: dict[ActiveVertex, None] = {}
        self.closed = False
        self.keep_failed = False  # operations that fail put what they had made so far into `failures`, for the job's owner
        self.failures: list[Any] = []
        self.resolved: dict[str, Any] = {}  # operations keep here what the world outside told this job, to ask but once
        self._solver = solver
        self._waiters: set[Waiter] = set()

    def add_import(self, source: KeySource) -> None:
        """Let what is built from now on also be found in this cache."""
        self.imports = (*self.imports, source)

    async def build(self, edge: Edge) -> Built:
        """Solve one edge. The caller releases what it gets.

        Raises what the failing vertex raised (`.vertex` says which), CancelledError_ if the job was cancelled. If the
        calling task is cancelled, whatever nobody else waits for has ended when this returns.
        """
        return (await self.build_many((edge,)))[0]

    async def build_many(self, edges: Iterable[Edge]) -> list[Built]:
        """Solve several edges at the same time: all of them or the first error."""
        if self.closed:
            raise CancelledError_
        active = self._solver.load_graph(self, edges)
        await self._land([edge.done for edge in active])
        built = [Built(self, edge, None if edge.result is None else edge.result.clone()) for edge in active]
        try:
            await self._solver.writer.flush()
        except BaseException:
            for one in built:
                one.release()
            raise
        return built

    async def renew(self, built: Built) -> bool:
        """Make a result anew if its data turned out to be damaged or gone; False if it is sound, or that was done already.

        Raises what the work raises.
        """
        edge = built.edge
        if built.value is None:
            return False
        if edge.result.id == built.value.id:
            why = await self._solver.lost(built.value)
            flight = edge.renewal(why) if why else None
            if flight is None:
                return False
            await self._land([flight])
        await self._solver.writer.flush()
        built.take(edge)
        return True

    async def _land(self, flights: Sequence[Flight]) -> None:
        """Wait for flights; raises the first error."""
        waiter: Waiter | None = None
        for flight in flights:
            if not flight.finished:
                waiter = waiter or Waiter()
                flight.enter(waiter)
        try:
            if waiter is not None:
                self._waiters.add(waiter)
                await wait(waiter)
        except BaseException:
            await self._settle()
            raise
        finally:
            if waiter is not None:
                self._waiters.discard(waiter)
        for flight in flights:
            if flight.error is not None:
                raise flight.error.with_traceback(flight.trace)

    def cancel(self) -> None:
        """End all builds of this job with `context canceled`."""
        for waiter in self._waiters:
            waiter.fail(CancelledError_())

    def explain(self) -> list[Explanation]:
        """Why each vertex was cached or ran, inputs first; those for which nothing was decided have outcome ""."""
        return [
            vertex.explanation or Explanation(vertex=vertex.digest, name=vertex.name, outcome="", reason="")
            for vertex in self.vertices
        ]

    def status(self) -> list[VertexStatus]:
        """What each vertex of this job does and waits for."""
        return [vertex_status(vertex) for vertex in self.vertices]

    @property
    def export_cache(self) -> dict[str, bool]:
        """What the build said about exporting single vertices, by key id."""
        return {
            key: vertex.vertex.export_cache
            for vertex in self.vertices
            if vertex.vertex.export_cache is not None
            for edge in vertex.edges.values()
            for key in edge.lasting_keys
        }

    async def walk(self, keys: Iterable[str]) -> list[ExportKey]:
        """What leads to these keys, records of imports included."""
        await self._solver.writer.flush()
        return await self._solver.in_thread(walk_keys, self._solver.combined((self,)), tuple(keys), self.export_cache)

    def results_of(self, record: CacheRecord) -> ResultStore[Any]:
        """The store that loads the result of a record that `walk` gave."""
        return self._solver.combined((self,)).sources[record.source].results

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closed = True
        self.cancel()
        try:
            for vertex in self.vertices:
                if len(vertex.jobs) == 1:
                    for flight in vertex.flights():
                        flight.cancel()
            await self._settle()
        finally:
            self._solver.end_job(self)
        if error is None:
            await self._solver.writer.flush()

    async def _settle(self) -> None:
        """Wait until all that was cancelled under this job is over; an end may give up more below it."""
        leaving = self._solver.leaving
        while tasks := [task for task, vertex in leaving.items() if self in vertex.jobs and not task.done()]:
            await settle(tasks)


__all__ = ["Built", "Job"]
