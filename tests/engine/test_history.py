# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chantier.engine import SolveRequest, SolveResult
from chantier.engine.events import dump, load
from chantier.engine.history import History
from chantier.errors import ChantierError, NotFoundError, Source, SourceRange, UsageError
from chantier.progress import Event, Group, Log, Recorder, Silent, Status, Vertex, Warning
from chantier.record import CANCELED, COMPLETED, ERROR, INTERRUPTED, RUNNING
from chantier.solver import Explanation

EVENTS: list[Event] = [
    Vertex(
        digest="sha256:1", name="[1/2] FROM x", inputs=("a",), started=1, completed=2, cached=True, group=Group(id="g", name="n")
    ),
    Vertex(digest="sha256:2", name="RUN é", error="boom", reason="new", started=3, completed=4),
    Status(id="extracting", vertex="sha256:1", current=5, total=9, timestamp=1, started=1, completed=2),
    Log(vertex="sha256:2", stream=2, data=b"caf\xc3\xa9 \n", timestamp=3),
    Log(vertex="sha256:2", stream=1, data=b"\xff\x00", timestamp=4),
    Warning(
        vertex="sha256:2", level=1, short=b"s", detail=(b"d", b"\xfe"), url="u", source=Source("f", b"FROM", (SourceRange(1, 2),))
    ),
]


@pytest.fixture
def clock() -> Iterator[int]:
    return iter(range(10**9, 10**15, 10**9))


@pytest.fixture
def history(tmp_path: Path, clock: Iterator[int]) -> History:
    return History(tmp_path, clock=lambda: next(clock))


def request(ref: str, **more: object) -> SolveRequest:
    return SolveRequest(ref=ref, frontend="dockerfile.v0", attrs={"target": "t", "build-arg:API_TOKEN": "hunter2"}, **more)  # type: ignore[arg-type]


def build(history: History, ref: str, error: BaseException | None = None) -> None:
    recording = history.begin(request(ref), Silent())
    recording.emit(EVENTS[0])
    recording.end(SolveResult(ref=ref, response={"a": "b"}) if error is None else None, error)


@pytest.mark.parametrize("event", EVENTS)
def test_events_come_back_as_they_were(event: Event) -> None:
    assert load(dump(event)) == event


@pytest.mark.parametrize("line", [b"", b"{", b'["vertex",{}]', b'["other",{}]', b"[]", b'["log",3]'])
def test_torn_lines_are_passed_over(line: bytes) -> None:
    assert load(line) is None


def test_a_build_is_recorded_whole(history: History) -> None:
    seen = Recorder()
    recording = history.begin(request("r1"), seen)
    assert history.get("r1").status == RUNNING
    for event in EVENTS:
        recording.emit(event)
    assert seen.events == EVENTS
    recording.note([Explanation(vertex="sha256:2", name="RUN é", outcome="miss", reason="new", differences=("x",))], {})
    made = {"buildDefinition": {"buildType": "t"}}
    recording.end(SolveResult(ref="r1", response={"containerimage.digest": "sha256:d"}, provenance={"": made}), None)
    record = history.get()
    assert (record.ref, record.status, record.total, record.cached, record.warnings) == ("r1", COMPLETED, 2, 1, 1)
    assert record.response == {"containerimage.digest": "sha256:d"}
    assert record.steps[0].differences == ("x",)
    assert record.provenance == made
    assert list(history.events("r1")) == EVENTS
    kept = (path for path in (history.directory / "r1").rglob("*") if path.is_file())
    assert "hunter2" not in "".join(path.read_text() for path in kept)


def test_how_builds_end(history: History) -> None:
    build(history, "ok")
    build(history, "bad", ChantierError("it broke"))
    build(history, "stopped", asyncio.CancelledError())
    assert [(record.ref, record.status, record.error) for record in history.records()] == [
        ("stopped", CANCELED, "CancelledError"),
        ("bad", ERROR, "it broke"),
        ("ok", COMPLETED, ""),
    ]


def test_a_build_whose_process_died_is_interrupted_and_its_log_is_there(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from chantier.engine import SolveRequest
from chantier.engine.history import History
from chantier.progress import Log, Silent
recording = History(Path(sys.argv[1])).begin(SolveRequest(ref="dead"), Silent())
recording.emit(Log(vertex="v", stream=1, data=b"last words", timestamp=1))
recording._events.flush()
recording._events.write(b'["log",{"ver')
recording._events.flush()
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    history = History(tmp_path)
    assert history.get("dead").status == INTERRUPTED
    assert [event.data for event in history.events("dead") if isinstance(event, Log)] == [b"last words"]
    history.remove("dead")
    assert history.records() == []


def test_finding(history: History) -> None:
    for ref in ("abc1", "abd2", "x"):
        build(history, ref)
    assert [history.get(ref).ref for ref in ("", "^0", "^2", "abc", "x", "b/n/abd2")] == ["x", "x", "abc1", "abc1", "x", "abd2"]
    for ref, error in (("ab", UsageError), ("^9", NotFoundError), ("^x", UsageError), ("q", NotFoundError)):
        with pytest.raises(error):
            history.get(ref)
    with pytest.raises(NotFoundError):
        History(history.directory / "nothing").get()


def test_bounds(tmp_path: Path) -> None:
    now = [10**9]
    history = History(tmp_path, max_age_s=100, max_entries=3, clock=lambda: now[0])
    for number in range(6):
        now[0] += 10**9
        build(history, f"r{number}")
    assert len(history.records()) == 6  # all younger than the age
    history.pin("r0", pinned=True)
    now[0] += 200 * 10**9
    build(history, "last")
    assert [record.ref for record in history.records()] == ["last", "r5", "r4", "r0"]


def test_what_runs_is_not_removed(history: History) -> None:
    recording = history.begin(request("r"), Silent())
    with pytest.raises(UsageError, match="it is running"):
        history.remove("r")
    with pytest.raises(UsageError, match="it is running"):
        history.export(["r"], io.BytesIO())
    with pytest.raises(UsageError, match="it is running"):
        history.pin("r", pinned=True)
    recording.end(None, None)
    history.remove("r")


def test_export_and_import(history: History, tmp_path: Path) -> None:
    for ref in ("one", "two"):
        build(history, ref)
    out = io.BytesIO()
    history.export(["one", "two"], out)
    other = History(tmp_path / "other")
    assert other.import_(io.BytesIO(out.getvalue())) == ["one", "two"]
    assert other.records() == history.records()
    assert list(other.events("one")) == [EVENTS[0]]
    assert other.import_(io.BytesIO(out.getvalue())) == []  # they are there


@pytest.mark.parametrize("name", ["../x/record.json", "/etc/passwd", "r/other", "r", "r/../record.json"])
def test_foreign_tars_are_refused(history: History, name: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    with pytest.raises(UsageError, match="not a build history"):
        history.import_(io.BytesIO(out.getvalue()))
    for data in (b"", b"junk", out.getvalue()[:30]):
        with pytest.raises(UsageError):
            history.import_(io.BytesIO(data))
    assert not history.directory.exists() or not os.listdir(history.directory)


def test_a_full_disk_ends_the_log_and_not_the_build(history: History) -> None:
    recording = history.begin(request("r"), Silent())
    assert recording._events is not None
    recording._events.close()
    recording._events = open("/dev/full", "wb", buffering=0)
    recording.emit(EVENTS[0])
    recording.emit(EVENTS[1])
    recording.end(None, None)
    assert history.get("r").status == COMPLETED
    assert json.loads((history.directory / "r/record.json").read_text())["total"] == 2
