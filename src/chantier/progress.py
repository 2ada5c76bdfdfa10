# SPDX-License-Identifier: Apache-2.0
"""What happened in a build, as values; nothing here draws or sends.

The four events are those of BuildKit's StatusResponse (api/services/control: Vertex, VertexStatus, VertexLog,
VertexWarning), so that a terminal, a JSON stream, the history and the wire are all views of one sequence. Times are
nanoseconds since the epoch. A vertex is known before anything else is said of it; each (started, completed) pair is one
interval, and the event that ends an interval repeats its `started` exactly.

`Reporter.emit` never blocks and never raises; it may be called from any thread.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from chantier.values import dataclass, replace

from .errors import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Vertices shown as one line: hidden until a member that is not weak starts."""

    id: str
    name: str
    weak: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Vertex:
    digest: str
    name: str
    inputs: tuple[str, ...] = ()
    started: int | None = None
    completed: int | None = None
    cached: bool = False
    error: str = ""
    group: Group | None = None
    reason: str = ""  # why it was cached or had to run; shown by --explain, not on BuildKit's wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Progress of one part of a vertex: bytes of a blob, a one-off action. `id` is the text shown."""

    id: str
    vertex: str
    name: str = ""
    current: int = 0
    total: int = 0
    timestamp: int = 0
    started: int | None = None
    completed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Raw output of a vertex, not aligned to lines. `stream` is 1 for stdout, 2 for stderr."""

    vertex: str
    stream: int
    data: bytes
    timestamp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Warning:
    vertex: str
    level: int
    short: bytes
    detail: tuple[bytes, ...] = ()
    url: str = ""
    source: Source | None = None


Event = Vertex | Status | Log | Warning


class Reporter(Protocol):
    def emit(self, event: Event, /) -> None: ...


class Silent:
    """A reporter that drops everything."""

    def emit(self, event: Event, /) -> None:
        return None


class Recorder:
    """A reporter that keeps everything, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event, /) -> None:
        self.events.append(event)


class LastLines:
    """A reporter that passes everything on and keeps the end of what each vertex wrote: `of(digest)` are its last lines."""

    LINES = 10
    BYTES = 4096  # kept of one vertex

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._kept: dict[str, bytes] = {}

    def emit(self, event: Event, /) -> None:
        if isinstance(event, Log):
            self._kept[event.vertex] = (self._kept.get(event.vertex, b"") + event.data)[-self.BYTES :]
        elif isinstance(event, Vertex) and event.completed and not event.error:
            self._kept.pop(event.digest, None)
        self._reporter.emit(event)

    def of(self, vertex: str) -> tuple[str, ...]:
        """Without line ends; empty for a vertex that wrote nothing, or that ended well."""
        return tuple(self._kept.get(vertex, b"").decode(errors="replace").splitlines()[-self.LINES :])


def now() -> int:
    """Nanoseconds since the epoch."""
    return time.time_ns()


class Step:
    """One vertex being reported: start, statuses, logs, end. Made by `step()` and by the solver for each vertex."""

    def __init__(self, reporter: Reporter, vertex: Vertex) -> None:
        self.reporter = reporter
        self.vertex = vertex

    @property
    def digest(self) -> str:
        return self.vertex.digest

    def start(self) -> None:
        self.vertex = replace(self.vertex, started=now(), completed=None, error="")
        self.reporter.emit(self.vertex)

    def complete(self, error: str = "", *, cached: bool = False, reason: str = "") -> None:
        end = now()
        self.vertex = replace(
            self.vertex,
            started=self.vertex.started if self.vertex.started is not None else end,
            completed=end,
            error=error,
            cached=cached,
            reason=reason or self.vertex.reason,
        )
        self.reporter.emit(self.vertex)

    def log(self, data: bytes, stream: int = 1) -> None:
        self.reporter.emit(Log(vertex=self.digest, stream=stream, data=data, timestamp=now()))

    def warn(self, warning: Warning) -> None:
        self.reporter.emit(warning)

    def status(
        self, id: str, *, name: str = "", current: int = 0, total: int = 0, started: int | None = None, done: bool = False
    ) -> int:
        """Report a part; returns its start time, to be passed back with the updates that follow."""
        at = now()
        started = started if started is not None else at
        self.reporter.emit(
            Status(
                id=id,
                vertex=self.digest,
                name=name,
                current=current,
                total=total,
                timestamp=at,
                started=started,
                completed=at if done else None,
            )
        )
        return started

    @contextmanager
    def action(self, id: str, *, name: str = "") -> Iterator[None]:
        """A one-off part such as `exporting layers`, timed; left open if it raises."""
        started = self.status(id, name=name)
        yield
        self.status(id, name=name, started=started, done=True)


@contextmanager
def step(
    reporter: Reporter, name: str, *, digest: str | None = None, inputs: tuple[str, ...] = (), group: Group | None = None
) -> Iterator[Step]:
    """Report a vertex that is not an operation of the graph: `[internal] load metadata for …`, `exporting to image`.

    The digest is that of the name unless given. An exception ends the vertex with its text and goes on.
    """
    digest = digest or "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    made = Step(reporter, Vertex(digest=digest, name=name, inputs=inputs, group=group))
    made.start()
    try:
        yield made
    except BaseException as err:
        made.complete(str(err) or "context canceled")
        raise
    made.complete()


__all__ = ["Event", "Group", "Log", "Recorder", "Reporter", "Silent", "Status", "Step", "Vertex", "Warning", "now", "step"]
