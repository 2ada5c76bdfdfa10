# SPDX-License-Identifier: Apache-2.0
"""Progress events as lines of JSON, and back: the log of a build in history."""

from __future__ import annotations

import base64
import json
from typing import Any

from chantier.errors import Source, SourceRange
from chantier.progress import Event, Group, Log, Status, Vertex, Warning


def dump(event: Event) -> bytes:
    """One line, without its end."""
    if isinstance(event, Vertex):
        body: dict[str, Any] = {"digest": event.digest, "name": event.name}
        for key in ("started", "completed", "error", "reason"):
            if getattr(event, key):
                body[key] = getattr(event, key)
        if event.inputs:
            body["inputs"] = list(event.inputs)
        if event.cached:
            body["cached"] = True
        if event.group is not None:
            body["group"] = [event.group.id, event.group.name, event.group.weak]
        return _line("vertex", body)
    if isinstance(event, Status):
        keys = ("id", "vertex", "name", "current", "total", "timestamp", "started", "completed")
        return _line("status", {key: value for key in keys if (value := getattr(event, key))})
    if isinstance(event, Log):
        return _line(
            "log", {"vertex": event.vertex, "stream": event.stream, "timestamp": event.timestamp, "data": _text(event.data)}
        )
    source = None
    if event.source is not None:
        ranges = [[r.start, r.end, r.start_column, r.end_column] for r in event.source.ranges]
        source = {"filename": event.source.filename, "data": _text(event.source.data), "ranges": ranges}
    return _line(
        "warning",
        {
            "vertex": event.vertex,
            "level": event.level,
            "short": _text(event.short),
            "detail": [_text(detail) for detail in event.detail],
            "url": event.url,
            "source": source,
        },
    )


def load(line: bytes) -> Event | None:
    """None for a line that is torn, or of a kind that this version does not know."""
    try:
        kind, body = json.loads(line)
        event: Event = _LOADERS[kind](body)
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return event


def _vertex(body: dict[str, Any]) -> Vertex:
    group = body.get("group")
    return Vertex(
        digest=body["digest"],
        name=body["name"],
        inputs=tuple(body.get("inputs", ())),
        started=body.get("started"),
        completed=body.get("completed"),
        cached=body.get("cached", False),
        error=body.get("error", ""),
        group=Group(id=group[0], name=group[1], weak=group[2]) if group else None,
        reason=body.get("reason", ""),
    )


def _status(body: dict[str, Any]) -> Status:
    return Status(**body)


def _log(body: dict[str, Any]) -> Log:
    return Log(vertex=body["vertex"], stream=body["stream"], timestamp=body["timestamp"], data=_bytes(body["data"]))


def _warning(body: dict[str, Any]) -> Warning:
    source = body.get("source")
    return Warning(
        vertex=body["vertex"],
        level=body["level"],
        short=_bytes(body["short"]),
        detail=tuple(_bytes(detail) for detail in body["detail"]),
        url=body["url"],
        source=Source(source["filename"], _bytes(source["data"]), tuple(SourceRange(*r) for r in source["ranges"]))
        if source
        else None,
    )


_LOADERS: dict[str, Any] = {"vertex": _vertex, "status": _status, "log": _log, "warning": _warning}


def _line(kind: str, body: dict[str, Any]) -> bytes:
    return json.dumps([kind, body], separators=(",", ":"), ensure_ascii=True).encode()


def _text(data: bytes) -> str | list[str]:
    """Text as it is where it is text, else base64 in a list."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return [base64.b64encode(data).decode()]


def _bytes(value: str | list[str]) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value[0])


__all__ = ["dump", "load"]
