# SPDX-License-Identifier: Apache-2.0
"""One JSON object a line, as the Go client writes StatusResponse (builders.md 6.5)."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any, TextIO

from chantier.progress import Event, Log, Status, Vertex

from .model import Model

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RawJson:
    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.model = Model()  # for the warnings at the end

    def update(self, event: Event) -> None:
        self.model.update(event)
        self.out.write(json.dumps(event_to_json(event), separators=(",", ":")) + "\n")

    def draw(self, *, final: bool = False) -> None:
        self.out.flush()

    def close(self) -> None:
        self.out.flush()


def event_to_json(event: Event) -> dict[str, Any]:
    if isinstance(event, Vertex):
        vertex: dict[str, Any] = {"digest": event.digest}
        if event.inputs:
            vertex["inputs"] = list(event.inputs)
        vertex["name"] = event.name
        if event.started is not None:
            vertex["started"] = _time(event.started)
        if event.completed is not None:
            vertex["completed"] = _time(event.completed)
        if event.cached:
            vertex["cached"] = True
        if event.error:
            vertex["error"] = event.error
        if event.group is not None:
            vertex["progressGroup"] = {"id": event.group.id, "name": event.group.name} | (
                {"weak": True} if event.group.weak else {}
            )
        if event.reason:
            vertex["reason"] = event.reason
        return {"vertexes": [vertex]}
    if isinstance(event, Status):
        status: dict[str, Any] = {"id": event.id, "vertex": event.vertex}
        if event.name:
            status["name"] = event.name
        if event.total:
            status["total"] = event.total
        status |= {"current": event.current, "timestamp": _time(event.timestamp)}
        if event.started is not None:
            status["started"] = _time(event.started)
        if event.completed is not None:
            status["completed"] = _time(event.completed)
        return {"statuses": [status]}
    if isinstance(event, Log):
        data = base64.b64encode(event.data).decode()
        return {"logs": [{"vertex": event.vertex, "stream": event.stream, "data": data, "timestamp": _time(event.timestamp)}]}
    warning: dict[str, Any] = {"vertex": event.vertex, "level": event.level, "short": base64.b64encode(event.short).decode()}
    if event.detail:
        warning["detail"] = [base64.b64encode(d).decode() for d in event.detail]
    if event.url:
        warning["url"] = event.url
    if event.source is not None:
        warning["sourceInfo"] = {
            "filename": event.source.filename,
            "data": base64.b64encode(event.source.data).decode(),
            "language": event.source.language,
        }
        warning["range"] = [{"start": {"line": r.start}, "end": {"line": r.end}} for r in event.source.ranges]
    return {"warnings": [warning]}


def _time(nanoseconds: int) -> str:
    whole, rest = divmod(nanoseconds, 1_000_000_000)
    text = (_EPOCH + timedelta(seconds=whole)).strftime("%Y-%m-%dT%H:%M:%S")
    return text + (f".{rest:09d}".rstrip("0") if rest else "") + "Z"
