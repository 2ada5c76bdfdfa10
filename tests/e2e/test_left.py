# SPDX-License-Identifier: Apache-2.0
"""What a build that is killed leaves outside the state: gone with the next build of the same user, on whatever state."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

_LIMIT_S = 120.0


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def running(text: str) -> list[int]:
    """Ids of the processes whose command line has a text in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if text.encode() in line:
                found.append(int(entry.name))
    return found


@contextmanager
def started(command: Command, *args: str, dockerfile: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command.argv("build", "--progress=plain", "-f", "-", *args, str(command.root.parent / "empty")),
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=command.environment(), start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(dockerfile.encode())
    process.stdin.close()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_what_is_left_outside_the_state(make_command: Callable[..., Command], tmp_path: Path, registry: RealRegistry) -> None:
    (tmp_path / "empty").mkdir()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    archive, key = tmp_path / "base.tar", tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    command = make_command()
    command.env["TMPDIR"] = str(temporary)
    command.build("FROM alpine\n", "-o", f"type=oci,dest={archive}").ok()
    assert os.listdir(temporary) == []
    # A Dockerfile that is no file, an image from an archive, and a key for an agent: each is laid down somewhere.
    extra = ("--build-context", f"base=oci-archive:{archive}", "--ssh", f"default={key}")
    with started(command, *extra, dockerfile="FROM base\nRUN --mount=type=ssh echo begun$((1)) && sleep 300\n") as process:
        assert process.stderr is not None
        assert any(b"begun1" in line for line in process.stderr)
        assert sorted(entry.name.split("-")[0] for entry in temporary.glob("chantier-*/*")) == ["image", "session", "ssh"]
        assert running(f"{temporary}/")
    until(lambda: not running(f"{temporary}/"), "the agent that held the key has outlived the build")
    other = make_command()
    other.env["TMPDIR"] = str(temporary)
    other.build("FROM alpine\nRUN true\n").ok()
    assert os.listdir(temporary) == []
    command.build("FROM alpine\nRUN true\n").ok()  # ends what the killed one ran


@pytest.mark.parametrize("kind", ["oci", "tar"])
def test_an_output_that_is_not_finished_is_no_file(chantier: Command, tmp_path: Path, kind: str) -> None:
    """Killed when all is written but the name."""
    out = tmp_path / "out"
    out.mkdir()
    text = "FROM alpine\nRUN echo 1 > /1\n"
    done = chantier.build(text, "-o", f"type={kind},dest={out}/image.tar", env={"CHANTIER_CRASH_AT": "output.written"})
    assert done.code == -signal.SIGKILL, done.err
    assert os.listdir(out) == []
    chantier.build(text, "-o", f"type={kind},dest={out}/image.tar").ok()
    assert os.listdir(out) == ["image.tar"]
