# SPDX-License-Identifier: Apache-2.0
"""What a display knows of a build: vertices with their intervals, statuses and log lines, built up from events."""

from __future__ import annotations

from collections import deque

from chantier.progress import Event, Log, Status, Vertex, Warning, now
from chantier.values import dataclass, field

_KEPT_LINES = 1000


@dataclass(slots=True)
class Line:
    """One line of output: nanoseconds since the vertex started, and its bytes without the line feed."""

    at: int
    text: bytes
    complete: bool


@dataclass(slots=True)
class Row:
    """A vertex, or a progress group shown as one."""

    digest: str
    name: str
    index: int = 0  # assigned when it is first printed
    intervals: dict[int, int | None] = field(default_factory=dict)  # started -> completed
    cached: bool = False
    error: str = ""
    reason: str = ""
    statuses: dict[str, Status] = field(default_factory=dict)
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    warnings: list[Warning] = field(default_factory=list)
    hidden: bool = False
    members: dict[str, Vertex] = field(default_factory=dict)  # of a group
    # for printers: what has not been printed yet
    fresh_lines: list[Line] = field(default_factory=list)
    fresh_statuses: dict[str, None] = field(default_factory=dict)
    fresh_warnings: list[Warning] = field(default_factory=list)
    events: int = 0
    last_event: int = 0

    @property
    def started(self) -> int | None:
        return min(self.intervals, default=None)

    @property
    def latest_start(self) -> int | None:
        return max(self.intervals, default=None)

    @property
    def completed(self) -> int | None:
        """When it ended, None while any interval is open."""
        if not self.intervals or any(end is None for end in self.intervals.values()):
            return None
        return max(end or 0 for end in self.intervals.values())

    @property
    def cancelled(self) -> bool:
        return self.error.endswith("context canceled")

    def elapsed(self) -> int:
        """Nanoseconds of work: overlapping intervals count once."""
        total, reached = 0, 0
        for start, end in sorted(self.intervals.items()):
            stop = end if end is not None else now()
            total += max(0, stop - max(start, reached))
            reached = max(reached, stop)
        return total


class Model:
    """Feed it events with `update`; rows stay in the order in which they were first seen."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.warnings: list[Warning] = []
        self._group_of: dict[str, str] = {}

    def update(self, event: Event) -> Row | None:
        """The row the event changed; None if it concerns a vertex nobody has announced."""
        row: Row | None
        if isinstance(event, Vertex):
            row = self._vertex(event)
        else:
            row = self.rows.get(self._group_of.get(event.vertex, event.vertex))
            if row is None:
                return None
            if isinstance(event, Status):
                row.statuses[event.id] = event
                row.fresh_statuses[event.id] = None
            elif isinstance(event, Log):
                self._log(row, event)
            else:
                row.warnings.append(event)
                row.fresh_warnings.append(event)
                self.warnings.append(event)
        row.events += 1
        row.last_event = now()
        return row

    def _vertex(self, event: Vertex) -> Row:
        if event.group is not None:
            return self._member(event)
        row = self.rows.get(event.digest)
        if row is None:
            row = self.rows[event.digest] = Row(event.digest, event.name)
        row.name = event.name or row.name
        _merge(row, event)
        return row

    def _member(self, event: Vertex) -> Row:
        group = event.group
        if group is None:
            raise ValueError("not a member of a group")
        row = self.rows.get(group.id)
        if row is None:
            row = self.rows[group.id] = Row(group.id, group.name, hidden=True)
        self._group_of[event.digest] = group.id
        row.members[event.digest] = event
        if event.started is not None:
            row.intervals[event.started] = event.completed
        row.cached = all(m.cached for m in row.members.values())
        if event.error and not row.error:
            row.error = event.error
        if (not group.weak and event.started is not None) or event.error:
            row.hidden = False
        return row

    def _log(self, row: Row, event: Log) -> None:
        at = event.timestamp - (row.latest_start if row.latest_start is not None else event.timestamp)
        pieces = event.data.split(b"\n")
        if row.lines and not row.lines[-1].complete:
            open_line = row.lines[-1]
            first = Line(open_line.at, pieces[0], len(pieces) > 1)
            open_line.text += pieces[0]
            open_line.complete = first.complete
            row.fresh_lines.append(first)
            pieces = pieces[1:]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            if last and not piece:
                break
            row.lines.append(Line(at, piece, not last))
            row.fresh_lines.append(Line(at, piece, not last))


def _merge(row: Row, event: Vertex) -> None:
    if event.started is not None:
        row.intervals[event.started] = event.completed
    row.cached = event.cached or (row.cached and event.started is None)
    row.error = event.error or row.error
    row.reason = event.reason or row.reason
