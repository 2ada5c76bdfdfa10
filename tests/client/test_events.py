# SPDX-License-Identifier: Apache-2.0
"""A daemon's messages as events, in an order in which nothing is lost on who draws between two of them."""

from __future__ import annotations

import io

from chantier.client.events import events_of
from chantier.display.plain import Plain
from chantier.pb import control_pb2 as pb
from chantier.progress import Log, Status, Vertex


def message(error: str = "") -> pb.StatusResponse:
    """All of a short step in one message, as a daemon under load sends it."""
    made = pb.StatusResponse()
    vertex = made.vertexes.add(digest="sha256:a", name="RUN echo hello", error=error)
    vertex.started.FromNanoseconds(1_000_000_000)
    vertex.completed.FromNanoseconds(1_200_000_000)
    other = made.vertexes.add(digest="sha256:b", name="RUN true")
    other.started.FromNanoseconds(1_000_000_000)
    other.completed.FromNanoseconds(1_100_000_000)
    log = made.logs.add(vertex="sha256:a", stream=1, msg=b"hello\n")
    log.timestamp.FromNanoseconds(1_100_000_000)
    status = made.statuses.add(vertex="sha256:a", ID="copying")
    status.timestamp.FromNanoseconds(1_050_000_000)
    return made


def test_a_vertex_ends_after_all_that_is_said_of_it() -> None:
    found = list(events_of(message("exit code: 1")))
    of_a = [event for event in found if (event.digest if isinstance(event, Vertex) else event.vertex) == "sha256:a"]
    first, *middle, last = of_a
    assert isinstance(first, Vertex) and first.started == 1_000_000_000 and first.completed is None and not first.error
    assert [type(event) for event in middle] == [Status, Log]
    assert isinstance(last, Vertex) and last.completed == 1_200_000_000 and last.error == "exit code: 1"
    assert len([event for event in found if isinstance(event, Vertex) and event.digest == "sha256:b"]) == 1


def test_output_is_shown_however_often_it_is_drawn() -> None:
    out = io.StringIO()
    plain = Plain(out)
    for event in events_of(message()):
        plain.update(event)
        plain.draw()
    plain.close()
    lines = out.getvalue().splitlines()
    (shown,) = [line for line in lines if line.endswith(" 0.100 hello")]
    assert lines.index(f"{shown.split()[0]} DONE 0.2s") > lines.index(shown)
