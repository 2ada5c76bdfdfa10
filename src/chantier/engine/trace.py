# SPDX-License-Identifier: Apache-2.0
"""What a build did when, as spans of OpenTelemetry: the build, below it its steps, below these their downloads and the like.

Made of the events that a build has reported, once somebody asks for it. A span links to those of the inputs that it used, and
says why its step ran. Ids follow from the build: the same trace however often it is made.

As a document it is what BuildKit keeps (protocol.md 4.6): one JSON object after another, each a span as the SDK for Go
writes it (`tracetest.SpanStub`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from chantier import __version__
from chantier.progress import Event, Status, Vertex
from chantier.record import BuildRecord
from chantier.values import dataclass

_INTERNAL = 1  # trace.SpanKindInternal
_UNSET, _ERROR = 0, 1  # codes.Code of the SDK; OTLP counts otherwise
_SAMPLED = "01"
_NEVER_ENDED = "it had not ended when the build did"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Times in nanoseconds since the epoch. `links` are ids of other spans of the same trace."""

    name: str
    id: str
    parent: str = ""
    started: int
    completed: int
    attributes: tuple[tuple[str, str | int | bool], ...] = ()
    error: str | None = None
    links: tuple[str, ...] = ()


def spans_of(record: BuildRecord, events: Iterable[Event]) -> list[Span]:
    """The build's own first, then by their start. `record` is of a build that has ended."""
    steps: dict[tuple[str, int], Vertex] = {}
    parts: dict[tuple[str, str], Status] = {}
    for event in events:
        if isinstance(event, Vertex) and event.started is not None:
            steps[event.digest, event.started] = event
        elif isinstance(event, Status) and event.started is not None:
            parts[event.vertex, event.id] = event
    last = {digest: _id(record, digest, started) for digest, started in sorted(steps, key=lambda key: key[1])}
    reasons = {step.vertex: step.reason for step in record.steps}
    root = _id(record)
    spans = [_step(record, vertex, root, last, reasons) for vertex in steps.values()]
    spans += [span for part in parts.values() if (span := _part(record, part, steps, root)) is not None]
    return [_whole(record, root), *sorted(spans, key=lambda span: (span.started, span.completed, span.id))]


def _whole(record: BuildRecord, id: str) -> Span:
    attributes = (
        ("ref", record.ref),
        ("frontend", record.frontend),
        ("status", record.status),
        ("steps", record.total),
        ("cached", record.cached),
    )
    return Span(
        name=f"build {record.name}",
        id=id,
        started=record.started,
        completed=record.completed,
        attributes=attributes,
        error=record.error or None,
    )


def _step(record: BuildRecord, vertex: Vertex, root: str, last: dict[str, str], reasons: dict[str, str]) -> Span:
    assert vertex.started is not None
    reason = vertex.reason or reasons.get(vertex.digest, "")
    attributes: list[tuple[str, str | int | bool]] = [("vertex", vertex.digest), ("cached", vertex.cached)]
    if reason:
        attributes.append(("reason", reason))
    return Span(
        name=vertex.name,
        id=_id(record, vertex.digest, vertex.started),
        parent=root,
        started=vertex.started,
        completed=vertex.completed or record.completed,
        attributes=tuple(attributes),
        error=vertex.error or (None if vertex.completed else _NEVER_ENDED),
        links=tuple(last[digest] for digest in vertex.inputs if digest in last),
    )


def _part(record: BuildRecord, part: Status, steps: dict[tuple[str, int], Vertex], root: str) -> Span | None:
    """Something within a step: of the interval in which it began."""
    assert part.started is not None
    owners = [started for digest, started in steps if digest == part.vertex and started <= part.started]
    parent = _id(record, part.vertex, max(owners)) if owners else root
    attributes: list[tuple[str, str | int | bool]] = [("vertex", part.vertex)]
    if part.total or part.current:
        attributes += [("current", part.current), ("total", part.total)]
    return Span(
        name=part.name or part.id,
        id=_id(record, part.vertex, part.id),
        parent=parent,
        started=part.started,
        completed=part.completed or part.timestamp or record.completed,
        attributes=tuple(attributes),
    )


def _id(record: BuildRecord, *of: object) -> str:
    """Eight bytes, never all zero (W3C Trace Context)."""
    return hashlib.sha256("\0".join((record.ref, *(str(one) for one in of))).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def encode(record: BuildRecord, spans: Sequence[Span]) -> bytes:
    """The document."""
    trace = hashlib.sha256(record.ref.encode()).hexdigest()[:32]
    children: dict[str, int] = {}
    for span in spans:
        children[span.parent] = children.get(span.parent, 0) + 1
    return "".join(
        json.dumps(_stub(span, trace, children.get(span.id, 0)), indent=2, ensure_ascii=False) + "\n" for span in spans
    ).encode("utf-8", "replace")


def _stub(span: Span, trace: str, children: int) -> dict[str, Any]:
    scope = {"Name": "chantier", "Version": __version__, "SchemaURL": "", "Attributes": {}}
    return {
        "Name": span.name,
        "SpanContext": _context(trace, span.id),
        "Parent": _context(trace, span.parent) if span.parent else _context("0" * 32, "0" * 16, "00"),
        "SpanKind": _INTERNAL,
        "StartTime": _time(span.started),
        "EndTime": _time(max(span.completed, span.started)),
        "Attributes": list(_attributes(span.attributes)),
        "Events": None,
        "Links": [
            {"SpanContext": _context(trace, id), "Attributes": None, "DroppedAttributeCount": 0} for id in span.links
        ] or None,
        "Status": {"Code": _UNSET if span.error is None else _ERROR, "Description": span.error or ""},
        "DroppedAttributes": 0,
        "DroppedEvents": 0,
        "DroppedLinks": 0,
        "ChildSpanCount": children,
        "Resource": list(_attributes((("service.name", "chantier"), ("service.version", __version__)))),
        "InstrumentationScope": scope,
        "InstrumentationLibrary": scope,
    }  # fmt: skip


def _context(trace: str, span: str, flags: str = _SAMPLED) -> dict[str, Any]:
    return {"TraceID": trace, "SpanID": span, "TraceFlags": flags, "TraceState": "", "Remote": False}


_TYPES = {str: "STRING", bool: "BOOL", int: "INT64"}


def _attributes(pairs: Iterable[tuple[str, str | int | bool]]) -> Iterator[dict[str, Any]]:
    for key, value in pairs:
        yield {"Key": key, "Value": {"Type": _TYPES[type(value)], "Value": value}}


def _time(ns: int) -> str:
    """RFC 3339, with all nine digits of a second's fraction."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


__all__ = ["Span", "encode", "spans_of"]
