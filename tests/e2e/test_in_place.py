# SPDX-License-Identifier: Apache-2.0
"""`chantier build` beside a chantierd of the same machine: the daemon reads directories where they lie, and says so in its log."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import Command, Done, RealRegistry, tree_of
from ..daemon.conftest import Chantierd, _starter, _stop_all

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]

TEXT = """FROM alpine
COPY . /ctx
COPY --from=more . /more
RUN --mount=type=secret,id=s --mount=type=bind,target=/b sh -c 'cat /run/secrets/s /b/d/x > /out'
"""


@pytest.fixture
def daemon(tmp_path: Path, registry: RealRegistry, base: str) -> Iterator[Chantierd]:
    start, started = _starter(tmp_path, registry)
    yield start("", "--debug")
    _stop_all(started)


@pytest.fixture
def command(tmp_path: Path, daemon: Chantierd) -> Command:
    return Command(root=tmp_path / "state", config=daemon.config)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "ctx"
    (root / "d").mkdir(parents=True)
    (root / "Dockerfile").write_text(TEXT)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/m").write_text("m")
    (root / "d/x").write_text("x")
    (root / "ignored").write_text("i")
    (root / ".dockerignore").write_text("ignored\n")
    (root / "d/l").symlink_to("x")
    os.link(root / "d/x", root / "hard")
    (root / "d/x").chmod(0o640)
    os.utime(root / "d/x", (1_000_000_000, 1_000_000_000))
    return root


def build(command: Command, context: Path, out: Path, builder: str) -> Done:
    more = context.parent / "more"
    return command(
        "build", "--progress=plain", "--builder", builder, "--secret", "id=s,env=S", "--build-context", f"more={more}",
        "-o", f"type=local,dest={out}", str(context), env={"S": "secret"},
    ).ok()  # fmt: skip


def ways(daemon: Chantierd, name: str, since: int) -> set[str]:
    lines = [line for line in daemon.log[since:].splitlines() if f"directory {name} " in line]
    return {"in place" if "is read in place" in line else "session" for line in lines}


def all_cached(done: Done) -> bool:
    return all("CACHED" in done.step(text) for text in ("COPY . /ctx", "COPY --from=more", "RUN --mount"))


def told(root: Path) -> dict[str, tuple[object, ...]]:
    """All but what the step wrote, which has its own time."""
    return {path: row for path, row in tree_of(root).items() if path.startswith(("ctx", "more"))}


def test_in_place_and_over_the_session_come_to_the_same(
    command: Command, daemon: Chantierd, context: Path, tmp_path: Path
) -> None:
    run = command
    build(run, context, tmp_path / "embedded", "embedded")
    build(run, context, tmp_path / "first", daemon.address)
    for name in ("context", "dockerfile", "more"):
        assert ways(daemon, name, 0) == {"in place"}
    expected = told(tmp_path / "embedded")
    assert told(tmp_path / "first") == expected
    assert (tmp_path / "first/out").read_text() == "secretx"
    assert not (tmp_path / "first/ctx/ignored").exists()

    text = daemon.config.read_text()
    daemon.config.write_text(text + "\n[chantier]\nreadInPlace = false\n")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("the config was loaded anew")
    since = len(daemon.log)
    again = build(run, context, tmp_path / "second", daemon.address)
    assert ways(daemon, "context", since) == {"session"}
    assert "the config says readInPlace = false" in daemon.log[since:]
    assert all_cached(again)
    assert told(tmp_path / "second") == expected

    (context / "d/x").write_text("y")
    build(run, context, tmp_path / "third", daemon.address)
    assert (tmp_path / "third/out").read_text() == "secrety"
    daemon.config.write_text(text)
    daemon.signal(signal.SIGHUP)
    for _ in range(2):
        since = len(daemon.log)
        done = build(run, context, tmp_path / "fourth", daemon.address)
        assert all_cached(done)
    assert ways(daemon, "context", since) == {"in place"}
    assert (tmp_path / "fourth/out").read_text() == "secrety"


def test_a_client_that_dies_while_its_directory_is_read(
    command: Command, daemon: Chantierd, context: Path, tmp_path: Path
) -> None:
    for i in range(3000):
        (context / f"f{i}").write_text(str(i))
    argv = command.argv("build", "--progress=plain", "--builder", daemon.address, "-f", "-", str(context))
    with subprocess.Popen(
        argv, env=command.environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as client:
        assert client.stdin is not None
        client.stdin.write(b"FROM scratch\nCOPY . /\n")
        client.stdin.close()
        try:
            daemon.wait_for("directory context is read in place", 60)
        finally:
            client.kill()
    (context / "f7").write_text("changed")
    out = tmp_path / "out"
    command.build("FROM scratch\nCOPY . /\n", "--builder", daemon.address, "-o", f"type=local,dest={out}", context=context).ok()
    expected = tree_of(context)
    del expected["ignored"]
    assert tree_of(out) == expected
    assert "Traceback" not in daemon.log
