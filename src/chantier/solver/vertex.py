# SPDX-License-Identifier: Apache-2.0
"""Active vertices: the one place in the process where a vertex's work happens, shared by all jobs that want it.

It owns what happens once a vertex (cache maps, content keys, the run) as flights, the handles of what the run made, and
the vertex's progress: each event goes to every job that wants the vertex, and to those that join later from the start.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from chantier import progress
from chantier.errors import ChantierError, SolveError
from chantier.values import replace

from .combined import CombinedKeyStore
from .explain import Explanation
from .flight import Flight, gather
from .types import CacheMap, Op, Result, Vertex

if TYPE_CHECKING:
    from .edge import ActiveEdge
    from .job import Job
    from .solver import Solver

REPLAY_BYTES = 8 << 20
"""How much of a vertex's output is kept for jobs that join later; of more, the earliest is left out."""


class Context:
    """The JobContext that operations are given."""

    def __init__(self, vertex: ActiveVertex) -> None:
        self._vertex = vertex
        self.step = progress.Step(vertex, vertex.event)  # for statuses and logs; the vertex itself is started and ended for it

    @property
    def sessions(self) -> Sequence[Any]:
        """Of all builds that want the vertex just now, first asked first."""
        return tuple(dict.fromkeys(session for job in list(self._vertex.jobs) for session in job.sessions))

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs themselves, for operations that solve more (first asked first)."""
        return tuple(self._vertex.jobs)

    @property
    def vertex(self) -> str:
        """The digest it is reported by."""
        return self._vertex.digest


class ActiveVertex:
    """A vertex somebody wants. Made and discarded by the solver."""

    __slots__ = (
        "_closed",
        "_contents",
        "_context",
        "_exec",
        "_history",
        "_lock",
        "_log_bytes",
        "_map_flights",
        "_op",
        "_statuses",
        "content_keys",
        "digest",
        "edges",
        "event",
        "explanation",
        "inputs",
        "jobs",
        "maps",
        "maps_done",
        "merged",
        "name",
        "opened",
        "outputs",
        "outworn",
        "phase",
        "reported",
        "solver",
        "store",
        "vertex",
    )

    def __init__(self, solver: Solver, vertex: Vertex, digest: str, inputs: tuple[ActiveEdge, ...]) -> None:
        self.solver = solver
        self.vertex = vertex
        self.digest = digest  # differs from the vertex's for a variant that ignores the cache
        self.name = vertex.name
        self.inputs = inputs
        self.jobs: dict[Job, None] = {}
        self.merged: list[ActiveVertex] = []  # vertices whose result stands for one of ours
        self.edges: dict[int, ActiveEdge] = {}
        self.maps: list[CacheMap] = []
        self.maps_done = False
        self.content_keys: dict[int, str] = {}
        self.outputs: list[Result | None] | None = None
        self.outworn: list[Result | None] = []  # results that were renewed; who was given them may still use them
        self.store: CombinedKeyStore = solver.store
        self.explanation: Explanation | None = None
        self.event: progress.Vertex = progress.Vertex(
            digest=digest,
            name=vertex.name,
            inputs=tuple(dict.fromkeys(edge.vertex.digest for edge in inputs)),
            group=vertex.group,
        )
        self.opened: progress.Vertex | None = None  # the interval that is under way
        self.reported = False  # something with an end was said of it
        self.phase = ""
        self._op: Op[Any] | None = None
        self._context: Context | None = None
        self._map_flights: list[Flight] = []
        self._contents: dict[int, Flight] = {}
        self._exec: Flight | None = None
        self._lock = threading.Lock()
        self._history: list[progress.Event] = [self.event]
        self._statuses: dict[str, int] = {}
        self._log_bytes = 0
        self._closed = False

    @property
    def ignoring(self) -> bool:
        return self.vertex.ignore_cache

    # What is done once

    @property
    def context(self) -> Context:
        if self._context is None:
            self._context = Context(self)
        return self._context

    @property
    def op(self) -> Op[Any]:
        if self._op is None:
            self._op = self.solver.resolve(self.vertex)
        return self._op

    def map_flight(self, index: int) -> Flight:
        """The index-th cache map. Ask for them in turn."""
        while len(self._map_flights) <= index:
            number = len(self._map_flights)
            self._map_flights.append(Flight(self, f"cache map {number}", partial(self._cache_map, number)))
        return self._map_flights[index]

    def content_flight(self, index: int) -> Flight:
        """The content key of an input, once its result is there; then in `content_keys`."""
        flight = self._contents.get(index)
        if flight is None:
            flight = self._contents[index] = Flight(self, f"content of input {index}", partial(self._content, index))
        return flight

    @property
    def exec_flight(self) -> Flight:
        """The run; then `outputs` is there. The results of all inputs must be."""
        if self._exec is None:
            self._exec = Flight(self, "run", self._run)
        return self._exec

    def flights(self) -> Iterator[Flight]:
        yield from self._map_flights
        yield from self._contents.values()
        if self._exec is not None:
            yield self._exec
        for edge in self.edges.values():
            yield from edge.flights()

    def left(self, task: asyncio.Task[None], /) -> None:
        leaving = self.solver.leaving
        leaving[task] = self
        task.add_done_callback(leaving.pop)

    async def _cache_map(self, index: int) -> None:
        source = not self.inputs
        if source:  # only these ask others, and so take time
            self.begin()
        try:
            found, last = await self.op.cache_map(self.context, index)
            if len(found.deps) not in {0, len(self.inputs)}:
                raise ChantierError(f"cache map of {self.name} has {len(found.deps)} inputs, the vertex {len(self.inputs)}")
        except asyncio.CancelledError:
            self.end("context canceled")
            raise
        except Exception as err:
            raise self.failed(err, "failed to load cache key: ")
        self.end()
        if len(self.maps) == index:
            self.maps.append(found)
            self.maps_done = last or not source

    async def _content(self, index: int) -> None:
        edge = self.inputs[index]
        await gather((edge.done,), self._contents[index])
        content = self.maps[0].deps[index].content
        while content is not None:
            value = edge.result
            try:
                self.content_keys[index] = await content(self.context, value)
                return
            except asyncio.CancelledError:
                raise
            except Exception as err:
                if not await self.renew(((edge, value),), self._contents[index]):
                    failed = self.failed(err, "failed to compute cache key: ")
                    failed.subject = failed.subject or ("cache", index)
                    raise failed

    async def _run(self) -> None:
        while True:
            inputs = [edge.result for edge in self.inputs]
            try:
                await self._try(inputs)
                return
            except asyncio.CancelledError:
                self.end("context canceled")
                raise
            except Exception as err:
                if not await self.renew(tuple(zip(self.inputs, inputs, strict=True)), self._exec):
                    raise self.failed(err)

    async def renew(self, used: Sequence[tuple[ActiveEdge, Any]], by: Flight | None) -> bool:
        """Make those of these results anew that turned out to be of no use; False if there is nothing to try again with.

        A lazy result may be found in a cache, and its data be damaged or gone when something needs it: then the step runs after
        all. Each runs once for that reason.
        """
        again = False
        flights = []
        for edge, value in used:
            if edge.result is not value:  # somebody else was quicker
                again = True
            elif (why := await self.solver.lost(value)) and (flight := edge.renewal(why)) is not None:
                flights.append(flight)
        await gather(flights, by)
        return again or bool(flights)

    async def _try(self, inputs: Sequence[Any]) -> None:
        reason = self.explanation.reason if self.explanation else ""
        try:
            prepare = [
                dep.prepare(self.context, value)
                for dep, value in zip(self.maps[0].deps, inputs, strict=False)
                if dep.prepare is not None
            ]
            if prepare:
                self.phase = "preparing inputs"
                await _all(prepare)
            self.phase = "waiting for a slot"
            async with self.op.acquire():
                self.phase = "running"
                if self.opened is None:
                    self.begin(reason)
                self.outputs = list(await self.op.run(self.context, inputs))
                self.end()
        finally:
            self.phase = ""

    def forget_run(self) -> None:
        """Let the work be done once more."""
        self.outworn += self.outputs or ()
        self.outputs = None
        self._exec = None

    def failed(self, error: Exception, prefix: str = "") -> ChantierError:
        """Report the error on this vertex, and return what its dependants and the build see of it."""
        self.end(str(error), force=True)
        if isinstance(error, ChantierError) and not prefix:
            error.vertex = error.vertex or self.digest
            return error
        text = str(error) or type(error).__name__
        wrapped = SolveError(prefix + text, error, name=self.name)
        wrapped.vertex = wrapped.vertex or self.digest
        return wrapped

    # Progress

    def emit(self, event: progress.Event, /) -> None:
        """To all jobs that want this vertex; from any thread. The Reporter of this vertex's Step."""
        with self._lock:
            if self._closed:
                return
            self._remember(event)
            for job in self.jobs:
                job.reporter.emit(event)

    def join(self, job: Job) -> None:
        """Let a job see this vertex, its past included."""
        with self._lock:
            if job in self.jobs:
                return
            for event in self._history:
                job.reporter.emit(event)
            self.jobs = {**self.jobs, job: None}
        if job.imports or len(self.store.sources) > 1:
            self.store = self.solver.combined(self.jobs)

    def part(self, job: Job) -> None:
        """End a job's view; what goes on without it is `context canceled` to it."""
        with self._lock:
            if job not in self.jobs:
                return
            self.jobs = {other: None for other in self.jobs if other is not job}
            opened = self.opened
        if opened is not None:
            job.reporter.emit(replace(opened, completed=self.solver.clock(), error="context canceled"))

    def begin(self, reason: str = "") -> None:
        self.opened = replace(self.event, started=self.solver.clock(), reason=reason)
        self.emit(self.opened)

    def end(self, error: str = "", *, force: bool = False) -> None:
        """End the interval under way; with `force` report an error even if there is none."""
        opened, self.opened = self.opened, None
        at = self.solver.clock()
        if opened is None:
            if not force:
                return
            opened = replace(self.event, started=at)
        self.reported = True
        self.emit(replace(opened, completed=at, error=error))

    def cached(self, reason: str) -> None:
        """Report once that it need not run."""
        if not self.reported or not self.inputs:
            at = self.solver.clock()
            self.emit(replace(self.event, started=at, completed=at, cached=True, reason=reason))
        self.reported = True

    def explain(self, outcome: str, reason: str, **more: Any) -> None:
        self.explanation = Explanation(vertex=self.digest, name=self.name, outcome=outcome, reason=reason, **more)

    def _remember(self, event: progress.Event) -> None:
        if isinstance(event, progress.Status):
            place = self._statuses.setdefault(event.id, len(self._history))
            if place < len(self._history):  # only the latest of each matters to who comes later
                self._history[place] = event
                return
        self._history.append(event)
        if isinstance(event, progress.Log):
            self._log_bytes += len(event.data)
            if self._log_bytes > REPLAY_BYTES:
                self._shorten()

    def _shorten(self) -> None:
        kept: list[progress.Event] = []
        for event in self._history:
            if isinstance(event, progress.Log) and self._log_bytes > REPLAY_BYTES // 2:
                self._log_bytes -= len(event.data)
            else:
                kept.append(event)
        self._history = kept
        self._statuses = {event.id: place for place, event in enumerate(kept) if isinstance(event, progress.Status)}

    # End of life

    def release(self) -> None:
        """Give back all handles. Nothing may fly."""
        with self._lock:
            self._closed = True
        for edge in self.edges.values():
            edge.release()
        for output in (*self.outworn, *(self.outputs or ())):
            if output is not None:
                output.release()
        self.outworn.clear()
        self.outputs = None


async def _all(works: Sequence[Awaitable[None]]) -> None:
    """Do all at the same time; the first error ends the others and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


__all__ = ["ActiveVertex", "Context"]
