# SPDX-License-Identifier: Apache-2.0
"""Traces as people and collectors read them, whoever wrote them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chantier.display.trace import otlp, read_spans, tree
from chantier.errors import IntegrityError


def span(id: str, name: str, start: str, end: str, *, parent: str = "0000000000000000", **more: Any) -> dict[str, Any]:
    context = {"TraceID": "4bf92f3577b34da6a3ce929d0e0e4736", "SpanID": id, "TraceFlags": "01", "TraceState": "", "Remote": False}
    above = {**context, "SpanID": parent}
    return {"Name": name, "SpanContext": context, "Parent": above, "SpanKind": 1, "StartTime": start, "EndTime": end, **more}


SPANS = [
    span("00f067aa0ba902b7", "build", "2026-01-02T03:04:05Z", "2026-01-02T03:04:09.000000000Z"),
    span(
        "00f067aa0ba902b8",
        "RUN\nfalse",
        "2026-01-02T05:04:06.5+02:00",
        "2026-01-02T03:04:08.500000000Z",
        parent="00f067aa0ba902b7",
        Status={"Code": "Error", "Description": "exit code: 1"},
        Attributes=[
            {"Key": "vertex", "Value": {"Type": "STRING", "Value": "sha256:x"}},
            {"Key": "n", "Value": {"Type": "INT64", "Value": 7}},
            {"Key": "many", "Value": {"Type": "STRINGSLICE", "Value": ["a", "b"]}},
        ],
        Events=[{"Name": "happened", "Time": "2026-01-02T03:04:07Z", "Attributes": None}],
        Links=[{"SpanContext": {"TraceID": "4bf92f3577b34da6a3ce929d0e0e4736", "SpanID": "00f067aa0ba902b7"}}],
        Resource=[{"Key": "service.name", "Value": {"Type": "STRING", "Value": "buildkitd"}}],
        InstrumentationScope={"Name": "scope", "Version": "1"},
    ),
    span(
        "00f067aa0ba902b9",
        "COPY",
        "2026-01-02T03:04:05.25Z",
        "2026-01-02T03:04:05.25Z",
        parent="00f067aa0ba902b7",
        Attributes=[{"Key": "cached", "Value": {"Type": "BOOL", "Value": True}}],
    ),
    span("00f067aa0ba902ba", "of elsewhere", "2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z", parent="00f067aa0ba902ff"),
]


def stream(spans: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(one, indent=2) + "\n" for one in spans).encode()


def test_a_tree_by_time() -> None:
    assert list(tree(read_spans(stream(SPANS)))) == [
        "    0.000s     1.000s  ████████························  of elsewhere\n",
        "    0.000s     4.000s  ████████████████████████████████  build\n",
        "    0.250s     0.000s  ··█·····························    COPY  CACHED\n",
        "    1.500s     2.000s  ············████████████████····    RUN false  ERROR: exit code: 1\n",
    ]
    assert list(tree([])) == []


@pytest.mark.parametrize(
    ("code", "kept", "shown"), [(0, 0, False), ("Unset", 0, False), (1, 2, True), ("Error", 2, True), (2, 1, False)]
)
def test_codes_are_those_of_the_sdk(code: int | str, kept: int, shown: bool) -> None:
    spans = [span("00f067aa0ba902b7", "x", "2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z", Status={"Code": code})]
    assert ("ERROR" in "".join(tree(spans))) is shown
    assert otlp(spans)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["status"] == {"code": kept}


def test_a_chain_of_any_depth() -> None:
    times = ("2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z")
    chain = [span(f"{n:016x}", f"s{n}", *times, parent=f"{n - 1:016x}") for n in range(2, 3000)]
    assert next(reversed(list(tree(chain)))).rstrip().endswith("s2999")
    loop = [span("00000000000000aa", "own parent", *times, parent="00000000000000aa")]
    assert len(list(tree(loop))) == 1


def test_names_do_nothing_to_a_terminal() -> None:
    times = ("2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z")
    status = {"Code": 1, "Description": "\x1b]0;mine\x07"}
    (line,) = tree([span("00f067aa0ba902b7", "RUN \x1b[2Jécho", *times, Status=status)])
    assert "RUN \N{REPLACEMENT CHARACTER}[2Jécho  ERROR" in line
    assert line.rstrip("\n").isprintable()


def test_what_collectors_take() -> None:
    found = otlp(read_spans(stream(SPANS)))["resourceSpans"]
    assert len(found) == 2  # by who made them
    theirs = next(one for one in found if one["resource"]["attributes"])
    assert theirs["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "buildkitd"}}]
    assert theirs["scopeSpans"][0]["scope"] == {"name": "scope", "version": "1"}
    (made,) = theirs["scopeSpans"][0]["spans"]
    assert made == {
        "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
        "spanId": "00f067aa0ba902b8",
        "parentSpanId": "00f067aa0ba902b7",
        "name": "RUN\nfalse",
        "kind": 1,
        "startTimeUnixNano": "1767323046500000000",
        "endTimeUnixNano": "1767323048500000000",
        "attributes": [
            {"key": "vertex", "value": {"stringValue": "sha256:x"}},
            {"key": "n", "value": {"intValue": "7"}},
            {"key": "many", "value": {"arrayValue": {"values": [{"stringValue": "a"}, {"stringValue": "b"}]}}},
        ],
        "events": [{"name": "happened", "timeUnixNano": "1767323047000000000", "attributes": []}],
        "links": [{"traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "spanId": "00f067aa0ba902b7", "attributes": []}],
        "status": {"code": 2, "message": "exit code: 1"},
    }
    ours = next(one for one in found if not one["resource"]["attributes"])
    assert [one["parentSpanId"] for one in ours["scopeSpans"][0]["spans"]] == ["", "00f067aa0ba902b7", "00f067aa0ba902ff"]


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b'{"Name": "x"}', stream(SPANS)[:-3], stream(SPANS).replace(b"2026-", b"xxxx-", 1)]
)
def test_what_is_no_trace_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a trace: span"):
        read_spans(data)
