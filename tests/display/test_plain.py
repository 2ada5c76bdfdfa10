# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json

import pytest

from chantier.display import excerpt, open_display, print_error, print_warnings
from chantier.display.plain import Plain
from chantier.display.rawjson import event_to_json
from chantier.display.tty import Tty, colours
from chantier.display.units import log_time, progress_size
from chantier.errors import ChantierError, Source, SourceRange, UsageError
from chantier.progress import Group, Log, Status, Vertex, Warning

T0 = 1_700_000_000_000_000_000
S = 1_000_000_000


def _vertex(digest: str, **more: object) -> Vertex:
    return Vertex(digest=digest, name=f"step {digest}", **more)  # type: ignore[arg-type]


def _plain(*events: object) -> str:
    out = io.StringIO()
    printer = Plain(out)
    for event in events:
        printer.update(event)  # type: ignore[arg-type]
    printer.draw()
    printer.close()
    return out.getvalue()


def test_a_step_with_output() -> None:
    text = _plain(
        _vertex("a"),
        _vertex("a", started=T0),
        Log(vertex="a", stream=1, data=b"one\ntw", timestamp=T0 + S // 20),
        Log(vertex="a", stream=1, data=b"o\n", timestamp=T0 + S),
        _vertex("a", started=T0, completed=T0 + 2 * S),
    )
    assert text == "#1 step a\n#1 0.050 one\n#1 0.050 two\n#1 DONE 2.0s\n"


def test_cached_failed_and_cancelled() -> None:
    text = _plain(
        _vertex("a", started=T0, completed=T0, cached=True),
        _vertex("b", started=T0 + 1),
        Log(vertex="b", stream=2, data=b"oops\n", timestamp=T0 + 2),
        _vertex("b", started=T0 + 1, completed=T0 + S, error="exit code: 1"),
        _vertex("c", started=T0 + 1, completed=T0 + S + 1, error="x: context canceled"),
    )
    assert text == (
        "#1 step a\n#1 CACHED\n\n#2 step b\n#2 0.000 oops\n#2 ERROR: exit code: 1\n\n#3 step c\n#3 CANCELED\n"
        "------\n > step b:\n0.000 oops\n------\n"
    )


def test_switching_away_says_so() -> None:
    out = io.StringIO()
    printer = Plain(out)
    printer.update(_vertex("a", started=T0))
    printer.draw()
    printer.update(_vertex("b", started=T0, completed=T0 + S))
    printer.draw()
    printer.update(_vertex("a", started=T0, completed=T0 + S))
    printer.close()
    assert out.getvalue() == "#1 step a\n#1 ...\n\n#2 step b\n#2 DONE 1.0s\n\n#1 step a\n#1 DONE 1.0s\n"


def test_statuses_and_warnings() -> None:
    text = _plain(
        _vertex("a", started=T0),
        Status(id="transferring context:", vertex="a", current=1_980_000, started=T0, completed=T0 + S // 10, timestamp=T0),
        Status(id="blob", vertex="a", current=26, total=52, started=T0, completed=T0, timestamp=T0),
        Warning(vertex="a", level=1, short=b"Rule: text (line 1)"),
        _vertex("a", started=T0, completed=T0 + S),
    )
    assert "#1 transferring context: 1.98MB 0.1s done\n" in text
    assert "#1 blob 26B / 52B done\n" in text
    assert "#1 WARN: Rule: text (line 1)\n" in text


def test_a_group_is_one_line_once_a_strong_member_starts() -> None:
    weak, strong = Group(id="g", name="COPY --link", weak=True), Group(id="g", name="COPY --link")
    out = io.StringIO()
    printer = Plain(out)
    printer.update(Vertex(digest="a", name="copy", group=weak, started=T0, completed=T0 + 1))
    printer.draw()
    assert out.getvalue() == ""
    printer.update(Vertex(digest="b", name="merge", group=strong, started=T0, completed=T0 + 1))
    printer.close()
    assert out.getvalue() == "#1 COPY --link\n#1 DONE 0.0s\n"


def test_unknown_vertices_are_ignored() -> None:
    assert _plain(Log(vertex="x", stream=1, data=b"a\n", timestamp=T0)) == ""


def test_numbers() -> None:
    assert progress_size(999) == "999B"
    assert progress_size(1_980_000) == "1.98MB"
    assert (log_time(49_000_000), log_time(12 * S), log_time(120 * S)) == ("0.049", "12.00", "120.0")


def test_rawjson() -> None:
    assert event_to_json(_vertex("a", started=T0, inputs=("b",))) == {
        "vertexes": [{"digest": "a", "inputs": ["b"], "name": "step a", "started": "2023-11-14T22:13:20Z"}]
    }
    assert event_to_json(Log(vertex="a", stream=1, data=b"hi\n", timestamp=T0 + 5))["logs"][0] == {
        "vertex": "a",
        "stream": 1,
        "data": "aGkK",
        "timestamp": "2023-11-14T22:13:20.000000005Z",
    }


def test_displays_draw_from_a_thread() -> None:
    out = io.StringIO()
    display = open_display("rawjson", out)
    for number in range(100):
        display.emit(_vertex(str(number)))
    display.close()
    assert [json.loads(line)["vertexes"][0]["digest"] for line in out.getvalue().splitlines()] == [str(n) for n in range(100)]


def test_modes_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="invalid progress mode foo"):
        open_display("foo", io.StringIO())
    with pytest.raises(UsageError, match="failed to get console"):
        open_display("tty", io.StringIO())


def test_tty_frames_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    printer = Tty(out, title="embedded")
    for number in range(30):
        printer.update(Vertex(digest=str(number), name="x" * 200, started=T0, completed=T0 + S if number % 2 else None))
    printer.update(Log(vertex="0", stream=1, data=b"\x1b[31mred\x1b[0m\rshown\n", timestamp=T0))
    printer.draw()
    frame = out.getvalue()
    lines = [line.replace("\x1b[K", "") for line in frame.split("\n")]
    assert len(lines) <= 11
    assert "[+] Building" in lines[0]
    assert all(len(line) <= 60 for line in lines[1:-1] if "\x1b" not in line)


def test_colours_can_be_chosen() -> None:
    assert colours({"NO_COLOR": ""}) == {}
    assert colours({"BUILDKIT_COLORS": "run=light-green:error=1,2,3:what=ever"})["run"] == "92"
    assert colours({"BUILDKIT_COLORS": "error=1,2,3"})["error"] == "38;2;1;2;3"


def test_excerpt_is_that_of_buildkit() -> None:
    data = b"FROM base\nRUN a\nENV a=b\nENV foo bar\nFROM base\nCOPY nofile /x\nMAINTAINER me\n"
    assert excerpt(Source("Dockerfile", data, (SourceRange(6, 6),))) == (
        "Dockerfile:6\n--------------------\n   4 |     ENV foo bar\n   5 |     FROM base\n   6 | >>> COPY nofile /x\n"
        "   7 |     MAINTAINER me\n   8 |     \n--------------------\n"
    )
    assert excerpt(Source("Dockerfile", b"FROM x", (SourceRange(1, 1),))).count("\n") == 4


def test_errors_show_place_cause_and_hint() -> None:
    err = ChantierError("failed to solve: it broke", hint="mend it")
    err.sources.append(Source("Dockerfile", b"FROM x\nRUN y\n", (SourceRange(2, 2),)))
    out = io.StringIO()
    print_error(err, out, prefix="failed to build: ")
    text = out.getvalue()
    assert ">>> RUN y" in text
    assert text.endswith("ERROR: failed to build: failed to solve: it broke\nhint: mend it\n")
    assert "Traceback" not in text


def test_warnings_are_listed_once() -> None:
    out = io.StringIO()
    warning = Warning(vertex="a", level=1, short=b"Rule: x (line 1)", url="u")
    print_warnings([warning, warning], out)
    assert out.getvalue() == "\n 1 warning found (use --debug to expand):\n - Rule: x (line 1)\n"
