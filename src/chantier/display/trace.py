# SPDX-License-Identifier: Apache-2.0
"""A build's trace for people: a tree of spans with their times; and for collectors: OTLP in JSON.

It is read in the form that builders keep (protocol.md 4.6): JSON objects one after the other, each a span as the SDK for Go
writes it (`tracetest.SpanStub`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from chantier.errors import IntegrityError

_BAR = 32
_NAME = 90
_ERROR = (1, "Error")  # the SDK reads either, and writes the number


def read_spans(data: bytes) -> list[dict[str, Any]]:
    """Raises IntegrityError for what is no trace."""
    decoder, text, at = json.JSONDecoder(), data.decode("utf-8", "replace"), 0
    spans = []
    try:
        while at < len(text):
            if text[at].isspace():
                at += 1
                continue
            found, at = decoder.raw_decode(text, at)
            _ = found["Name"], found["SpanContext"]["SpanID"], _ns(found["StartTime"]), _ns(found["EndTime"])
            spans.append(found)
    except (ValueError, KeyError, TypeError) as err:
        raise IntegrityError(f"not a trace: span {len(spans) + 1} cannot be read: {err}") from err
    return spans


def tree(spans: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each span: when it began (seconds after the first), how long it took, a bar, its name below its parent's."""
    if not spans:
        return
    first = min(_ns(span["StartTime"]) for span in spans)
    whole = max(max(_ns(span["EndTime"]) for span in spans) - first, 1)
    for depth, span in _walk(spans):
        started, ended = _ns(span["StartTime"]), _ns(span["EndTime"])
        bar = _bar((started - first) / whole, (ended - first) / whole)
        name = _line(span["Name"])
        name = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
        yield f"{(started - first) / 1e9:9.3f}s {(ended - started) / 1e9:9.3f}s  {bar}  {'  ' * depth}{name}{_notes(span)}\n"


def _walk(spans: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Parents before their children, these by their start; a span whose parent is not there stands at the top."""
    children: dict[str, list[Mapping[str, Any]]] = {}
    known = {span["SpanContext"]["SpanID"] for span in spans}
    for span in sorted(spans, key=lambda span: (_ns(span["StartTime"]), _ns(span["EndTime"]))):
        parent = (span.get("Parent") or {}).get("SpanID", "")
        children.setdefault(parent if parent in known and parent != span["SpanContext"]["SpanID"] else "", []).append(span)
    stack = [(0, span) for span in reversed(children.pop("", []))]
    while stack:
        depth, span = stack.pop()
        yield depth, span
        stack += [(depth + 1, child) for child in reversed(children.pop(span["SpanContext"]["SpanID"], []))]


def _line(text: object) -> str:
    """In one line, and harmless to a terminal: names come from Dockerfiles, and traces from other people's builders."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(str(text).split()))


def _bar(started: float, ended: float) -> str:
    left = min(int(started * _BAR), _BAR - 1)
    width = max(1, min(round((ended - started) * _BAR), _BAR - left))
    return ("·" * left + "█" * width).ljust(_BAR, "·")


def _notes(span: Mapping[str, Any]) -> str:
    """What a name does not tell: that nothing had to be done, that it failed."""
    notes = ["CACHED"] if _attributes(span).get("cached") is True else []
    status = span.get("Status") or {}
    if status.get("Code") in _ERROR:
        text = _line(status.get("Description") or "")
        notes.append(f"ERROR: {text}" if text else "ERROR")
    return f"  {'; '.join(notes)}" if notes else ""


def _attributes(span: Mapping[str, Any]) -> dict[str, Any]:
    return {one["Key"]: one["Value"].get("Value") for one in span.get("Attributes") or ()}


def otlp(spans: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """As `POST /v1/traces` of a collector takes it, and the page of a trace viewer (OTLP 1.0, JSON)."""
    groups: dict[str, dict[str, Any]] = {}
    for span in spans:
        scope = span.get("InstrumentationScope") or span.get("InstrumentationLibrary") or {}
        name = {"name": scope.get("Name", ""), "version": scope.get("Version", "")}
        resource = {"attributes": list(_values(span.get("Resource")))}
        group = groups.setdefault(
            json.dumps([resource, name], sort_keys=True),
            {"resource": resource, "scopeSpans": [{"scope": name, "spans": []}]},
        )
        group["scopeSpans"][0]["spans"].append(_otlp_span(span))
    return {"resourceSpans": list(groups.values())}


_CODES = {"Ok": 1, 2: 1, "Error": 2, 1: 2}  # of the SDK, by name or number, to those of OTLP


def _otlp_span(span: Mapping[str, Any]) -> dict[str, Any]:
    status = span.get("Status") or {}
    parent = (span.get("Parent") or {}).get("SpanID", "")
    made = {
        "traceId": span["SpanContext"]["TraceID"],
        "spanId": span["SpanContext"]["SpanID"],
        "parentSpanId": parent if parent.strip("0") else "",
        "name": span["Name"],
        "kind": span.get("SpanKind") or 1,
        "startTimeUnixNano": str(_ns(span["StartTime"])),
        "endTimeUnixNano": str(_ns(span["EndTime"])),
        "attributes": list(_values(span.get("Attributes"))),
        "events": [
            {"name": one["Name"], "timeUnixNano": str(_ns(one["Time"])), "attributes": list(_values(one.get("Attributes")))}
            for one in span.get("Events") or ()
        ],
        "links": [
            {
                "traceId": one["SpanContext"]["TraceID"],
                "spanId": one["SpanContext"]["SpanID"],
                "attributes": list(_values(one.get("Attributes"))),
            }
            for one in span.get("Links") or ()
        ],
        "status": {"code": _CODES.get(status.get("Code", 0), 0)},
    }
    if status.get("Description"):
        made["status"]["message"] = status["Description"]
    return made


def _values(attributes: Iterable[Mapping[str, Any]] | None) -> Iterator[dict[str, Any]]:
    for one in attributes or ():
        yield {"key": one["Key"], "value": _value(one["Value"]["Type"], one["Value"].get("Value"))}


def _value(kind: str, value: Any) -> dict[str, Any]:
    if kind.endswith("SLICE"):
        return {"arrayValue": {"values": [_value(kind.removesuffix("SLICE"), each) for each in value or ()]}}
    if kind == "INT64":
        return {"intValue": str(value)}
    return {{"BOOL": "boolValue", "FLOAT64": "doubleValue"}.get(kind, "stringValue"): value}


def _ns(text: str) -> int:
    """RFC 3339 as nanoseconds since the epoch, without rounding."""
    whole, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789")
    seconds = int(datetime.fromisoformat(whole + zone).timestamp())
    return seconds * 1_000_000_000 + int(rest[: len(rest) - len(zone)][:9].ljust(9, "0"))


__all__ = ["otlp", "read_spans", "tree"]
