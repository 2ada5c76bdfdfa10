# SPDX-License-Identifier: Apache-2.0
"""Spans of a build: made of its events, the same each time, and as a document that the command reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from chantier.display.trace import read_spans
from chantier.engine import SolveRequest, SolveResult
from chantier.engine.history import History
from chantier.engine.trace import encode, spans_of
from chantier.errors import NotFoundError, UsageError
from chantier.progress import Event, Log, Silent, Status, Vertex
from chantier.record import TRACE_TYPE, BuildRecord, StepRecord

RECORD = BuildRecord(
    ref="r1",
    status="error",
    started=1_000_000_000,
    completed=9_000_000_009,
    frontend="dockerfile.v0",
    attrs={"filename": "Dockerfile"},
    error="it broke",
    total=3,
    cached=1,
    steps=(StepRecord(vertex="sha256:run", name="RUN x", outcome="miss", reason="nothing like it was built"),),
)
EVENTS: list[Event] = [
    Vertex(digest="sha256:image", name="FROM x"),
    Vertex(digest="sha256:image", name="FROM x", started=2_000_000_000),
    Vertex(digest="sha256:image", name="FROM x", started=2_000_000_000, completed=2_500_000_000),
    Vertex(digest="sha256:image", name="FROM x", started=3_000_000_000),
    Status(id="layer", vertex="sha256:image", current=0, total=10, started=3_100_000_000, timestamp=3_100_000_000),
    Status(id="layer", vertex="sha256:image", current=10, total=10, started=3_100_000_000, completed=3_200_000_000),
    Status(id="seen", vertex="sha256:image"),  # it has not begun
    Vertex(digest="sha256:image", name="FROM x", started=3_000_000_000, completed=4_000_000_000),
    Vertex(
        digest="sha256:c", name="COPY a", inputs=("sha256:image",), started=4_000_000_001, completed=4_000_000_001, cached=True
    ),
    Log(vertex="sha256:run", stream=1, data=b"not a span", timestamp=5),
    Vertex(digest="sha256:run", name="RUN x", inputs=("sha256:c", "sha256:unknown"), started=5_000_000_000),
    Vertex(digest="sha256:bad", name="RUN bad", started=5_000_000_001, completed=6_000_000_000, error="exit code: 1"),
]


def test_a_step_is_a_span_for_each_time_it_worked() -> None:
    whole, *rest = spans_of(RECORD, EVENTS)
    assert (whole.name, whole.parent, whole.started, whole.completed) == ("build Dockerfile", "", 1_000_000_000, 9_000_000_009)
    assert whole.error == "it broke"
    assert dict(whole.attributes) == {"ref": "r1", "frontend": "dockerfile.v0", "status": "error", "steps": 3, "cached": 1}
    assert [(span.name, span.started, span.completed) for span in rest] == [
        ("FROM x", 2_000_000_000, 2_500_000_000),
        ("FROM x", 3_000_000_000, 4_000_000_000),
        ("layer", 3_100_000_000, 3_200_000_000),
        ("COPY a", 4_000_000_001, 4_000_000_001),
        ("RUN x", 5_000_000_000, 9_000_000_009),
        ("RUN bad", 5_000_000_001, 6_000_000_000),
    ]
    first, second, layer, copied, ran, bad = rest
    assert {span.parent for span in (first, second, copied, ran, bad)} == {whole.id}
    assert layer.parent == second.id  # of the interval in which it began
    assert dict(layer.attributes) == {"vertex": "sha256:image", "current": 10, "total": 10}
    assert copied.links == (second.id,)
    assert ran.links == (copied.id,)
    assert dict(copied.attributes)["cached"] is True
    assert dict(ran.attributes)["reason"] == "nothing like it was built"
    assert ran.error == "it had not ended when the build did"
    assert bad.error == "exit code: 1"
    assert len({span.id for span in (whole, *rest)}) == 7


def test_the_document_is_of_whole_spans() -> None:
    data = encode(RECORD, spans_of(RECORD, EVENTS))
    assert data == encode(RECORD, spans_of(RECORD, iter(EVENTS)))
    whole, *rest = read_spans(data)
    assert whole["Parent"]["SpanID"] == "0" * 16
    assert whole["ChildSpanCount"] == 5
    assert {span["SpanContext"]["TraceID"] for span in (whole, *rest)} == {whole["SpanContext"]["TraceID"]}
    assert len(whole["SpanContext"]["TraceID"]) == 32
    assert whole["StartTime"] == "1970-01-01T00:00:01.000000000Z"
    assert whole["EndTime"] == "1970-01-01T00:00:09.000000009Z"
    assert whole["Status"] == {"Code": 1, "Description": "it broke"}
    assert rest[0]["Status"] == {"Code": 0, "Description": ""}
    assert rest[0]["Attributes"] == [
        {"Key": "vertex", "Value": {"Type": "STRING", "Value": "sha256:image"}},
        {"Key": "cached", "Value": {"Type": "BOOL", "Value": False}},
    ]
    assert rest[3]["Links"][0]["SpanContext"]["SpanID"] == rest[1]["SpanContext"]["SpanID"]
    assert whole["Attributes"][3] == {"Key": "steps", "Value": {"Type": "INT64", "Value": 3}}


def test_text_that_is_no_text_does_not_break_it() -> None:
    odd = Vertex(digest="sha256:o", name="COPY \udcff /", started=1, completed=2)
    assert read_spans(encode(RECORD, spans_of(RECORD, [odd])))[1]["Name"] == "COPY ? /"


def test_a_trace_is_made_once_of_a_build_that_has_ended(tmp_path: Path) -> None:
    history = History(tmp_path)
    recording = history.begin(SolveRequest(ref="r1", frontend="dockerfile.v0"), Silent())
    with pytest.raises(UsageError, match="it is running"):
        history.trace("r1")
    for event in EVENTS:
        recording.emit(event)
    recording.end(SolveResult(ref="r1", response={}), None)
    made = history.trace().attached(TRACE_TYPE)
    assert made is not None
    assert made in history.trace("r1").attachments
    assert [one.media_type for one in history.get("r1").attachments] == [TRACE_TYPE]
    assert not history.get("r1").shown_attachments()
    assert [span["Name"] for span in read_spans(history.blob("r1", made.digest))][2] == "FROM x"
    with pytest.raises(NotFoundError):
        history.trace("r2")
