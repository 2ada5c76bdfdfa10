# SPDX-License-Identifier: Apache-2.0
"""A daemon's Status stream as events (protocol.md 4.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from chantier.errors import Source, SourceRange
from chantier.pb import control_pb2 as pb
from chantier.progress import Event, Group, Log, Status, Vertex, Warning
from chantier.values import replace


def events_of(message: pb.StatusResponse) -> Iterator[Event]:
    """What one message tells: nothing is said of a vertex that is not known yet, or of one that has ended.

    A message may hold the whole of a short step. Who draws between two events would take the step for over at its end.
    """
    more = {each.vertex for part in (message.statuses, message.logs, message.warnings) for each in part}
    ends: list[Vertex] = []
    for sent in message.vertexes:
        vertex = _vertex(sent)
        if vertex.completed is not None and vertex.digest in more:
            ends.append(vertex)
            vertex = replace(vertex, completed=None, cached=False, error="")
        yield vertex
    for status in message.statuses:
        yield Status(
            id=status.ID,
            vertex=status.vertex,
            name=status.name,
            current=status.current,
            total=status.total,
            timestamp=_time(status, "timestamp") or 0,
            started=_time(status, "started"),
            completed=_time(status, "completed"),
        )
    for log in message.logs:
        yield Log(vertex=log.vertex, stream=log.stream, data=log.msg, timestamp=_time(log, "timestamp") or 0)
    for warning in message.warnings:
        yield _warning(warning)
    yield from ends


def _vertex(sent: pb.Vertex) -> Vertex:
    group = None
    if sent.HasField("progressGroup"):
        group = Group(id=sent.progressGroup.id, name=sent.progressGroup.name, weak=sent.progressGroup.weak)
    return Vertex(
        digest=sent.digest,
        name=sent.name,
        inputs=tuple(sent.inputs),
        started=_time(sent, "started"),
        completed=_time(sent, "completed"),
        cached=sent.cached,
        error=sent.error,
        group=group,
    )


def _warning(sent: pb.VertexWarning) -> Warning:
    source = None
    if sent.HasField("info"):
        source = Source(sent.info.filename, sent.info.data, ranges_of(sent.ranges), sent.info.language or "Dockerfile")
    return Warning(vertex=sent.vertex, level=sent.level, short=sent.short, detail=tuple(sent.detail), url=sent.url, source=source)


def ranges_of(ranges: Iterable[Any]) -> tuple[SourceRange, ...]:
    """Ranges of the pb module as ours."""
    return tuple(SourceRange(r.start.line, r.end.line, r.start.character, r.end.character) for r in ranges)


def _time(message: Any, field: str) -> int | None:
    """Nanoseconds since the epoch; None where the field is not set."""
    return getattr(message, field).ToNanoseconds() if message.HasField(field) else None


__all__ = ["events_of", "ranges_of"]
