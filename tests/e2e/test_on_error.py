# SPDX-License-Identifier: Apache-2.0
"""A step that failed can be looked into: from Python, and by a shell on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import chantier
from chantier.errors import SolveError, StepError

from ..conftest import Command
from ..daemon.conftest import _starter, _stop_all

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]

FAILING = """FROM alpine
ENV WHO=me
WORKDIR /home/app
USER app
RUN echo kept > left && exit 7
"""


@pytest.fixture(params=["embedded", "daemon"])
def door(request: pytest.FixtureRequest, tmp_path: Path, chantier: Command) -> Iterator[dict[str, Any]]:
    """Where the build runs, as the library's options: in this process, or in a chantierd."""
    if request.param == "embedded":
        yield {"root": chantier.root, "config": chantier.config}
        return
    start, started = _starter(tmp_path, request.getfixturevalue("registry"))
    try:
        yield {"builder": start().address}
    finally:
        _stop_all(started)


def build(door: dict[str, Any], context: Path, text: str, on_error: Any, **options: Any) -> SolveError:
    context.mkdir(exist_ok=True)
    (context / "given").write_text("from the context")
    with pytest.raises(SolveError) as caught:
        chantier.build(context, dockerfile_text=text, on_error=on_error, **door, **options)
    return caught.value


def test_the_state_of_a_failed_step(door: dict[str, Any], tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def look(failed: Any) -> None:
        seen["argv"] = failed.argv
        seen["error"] = str(failed.error)
        seen["state"] = failed.run(["sh", "-c", "cat left; id -u; pwd; echo $WHO; cat >&2; exit 3"], input=b"typed")
        seen["again"] = failed.run(["sh", "-c", "echo more >> left; cat left"])
        seen["fresh"] = failed.run(["cat", "left"])

    err = build(door, tmp_path / "context", FAILING, look)
    assert isinstance(err.__cause__, StepError)
    assert err.__cause__.exit_status == 7
    assert seen["argv"] == ("/bin/sh", "-c", "echo kept > left && exit 7")
    assert "did not complete successfully: exit code: 7" in seen["error"]
    assert (seen["state"].code, seen["state"].out, seen["state"].err) == (3, b"kept\n1000\n/home/app\nme\n", b"typed")
    assert seen["again"].out == b"kept\nmore\n"
    assert seen["fresh"].out == b"kept\n"  # what was written in a look is thrown away


def test_mounts_of_a_failed_step(door: dict[str, Any], tmp_path: Path) -> None:
    text = """FROM alpine
RUN --mount=type=bind,target=/ctx,rw --mount=type=cache,target=/c --mount=type=secret,id=s --mount=type=tmpfs,target=/t \\
    echo dropped > /ctx/new && echo cached > /c/f && echo gone > /t/f && false
"""
    seen = []

    def look(failed: Any) -> None:
        seen.append(failed.run(["sh", "-c", "cat /ctx/given /ctx/new /c/f /run/secrets/s; ls /t"]))

    build(door, tmp_path / "context", text, look, secrets={"s": "hidden"})
    assert seen[0].out.decode() == "from the contextdropped\ncached\nhidden"


def test_nothing_is_kept_afterwards(chantier: Command, tmp_path: Path) -> None:
    held: list[Any] = []
    build({"root": chantier.root, "config": chantier.config}, tmp_path / "context", FAILING, held.append)
    done = chantier("du")
    if done.code == 0:  # where the command lists what is kept
        assert "mount / from exec" not in done.out
    assert subprocess.run(["findmnt", "-n", "-o", "TARGET", "--submounts", str(chantier.root)], capture_output=True).stdout == b""


def test_no_call_for_errors_that_are_no_step(door: dict[str, Any], tmp_path: Path) -> None:
    called: list[Any] = []
    build(door, tmp_path / "context", "FROM alpine\nCOPY missing /\n", called.append)
    assert called == []


def test_a_coroutine_is_given_a_container(door: dict[str, Any], tmp_path: Path) -> None:
    seen = []

    async def look(failed: Any) -> None:
        container = await failed.open()
        try:
            out: list[bytes] = []
            first = await container.run(["cat", "left"], output=lambda _stream, data: out.append(data))
            seen.append((first.code, b"".join(out), await container.shell()))
        finally:
            await container.close()

    build(door, tmp_path / "context", FAILING, look)
    assert seen == [(0, b"kept\n", ("/bin/sh",))]


class Screen:
    """A command on a terminal of its own."""

    def __init__(self, command: Command, *args: str) -> None:
        self.master, slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.process = subprocess.Popen(
            command.argv(*args),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=command.environment({"TERM": "xterm"}),
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def until(self, pattern: str, seconds: float = 120) -> str:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.shown):
            assert time.monotonic() < end, f"no {pattern!r} in {self.shown!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the other side is closed
                    assert re.search(pattern, self.shown), self.shown
        return self.shown

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        os.close(self.master)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def test_an_error_of_the_look_is_raised(door: dict[str, Any], tmp_path: Path) -> None:
    def look(failed: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        build(door, tmp_path / "context", FAILING, look)


def test_a_shell_on_a_terminal(door: dict[str, Any], chantier: Command, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "ctx").mkdir()
    (tmp_path / "ctx/Dockerfile").write_text(FAILING)
    where = ["--builder", door["builder"]] if "builder" in door else []
    screen = Screen(chantier, "build", "--on-error=shell", *where, str(tmp_path / "ctx"))
    request.addfinalizer(screen.close)
    shown = screen.until(r"(?s)Opening a shell.*\$ ")
    assert "exit code: 7" in shown
    assert "Dockerfile:5" in shown
    screen.type("cat left; tty; stty size\r")
    screen.until(r"kept\r\n/dev/pts/\d+")
    screen.type("echo a$((40+2))z; exit 5\r")
    screen.until("a42z")
    assert screen.process.wait(60) == 1  # the build's own end, whatever the shell did


def test_a_shell_needs_a_terminal(chantier: Command) -> None:
    done = chantier.build("FROM alpine\n", "--on-error=shell")
    assert done.code == 1
    assert "--on-error=shell needs a terminal" in done.err
    assert "invalid value 'stop'" in chantier.build("FROM alpine\n", "--on-error=stop").err


def test_an_image_without_a_shell(door: dict[str, Any], tmp_path: Path) -> None:
    seen: list[str] = []

    async def look(failed: Any) -> None:
        container = await failed.open()
        try:
            await container.shell()
        except Exception as err:
            seen.append(str(err))
        finally:
            await container.close()

    build(
        door,
        tmp_path / "context",
        'FROM scratch\nCOPY --from=alpine /bin/busybox /bin/busybox\nRUN ["/bin/busybox", "false"]\n',
        look,
    )
    assert seen == ["the failed step's image has no shell"]
