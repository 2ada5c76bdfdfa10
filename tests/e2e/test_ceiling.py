# SPDX-License-Identifier: Apache-2.0
"""The hard limit of the state directory: builds that each add more than fits in the long run."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import chantier
from chantier.progress import Recorder, Vertex

from ..conftest import Command
from ..daemon.conftest import Start, start_daemon

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

__all__ = ["start_daemon"]

MB = 1_000_000
BUILDS, ADDED, LIMIT = (int(part) for part in os.environ.get("CHANTIER_CEILING", "6,20,60").split(","))
"""How many builds, the MB that each adds, the limit in MB. The full form is 200,200,2000; it writes 40 GB twice."""


def du(root: Path) -> int:
    """All of a directory on its own file system, by a tool that is not ours."""
    done = subprocess.run(["du", "-sx", "-B1", str(root)], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[0])


class Watch:
    """The most that a directory took while it was looked at."""

    def __init__(self, root: Path) -> None:
        self.most = self.looks = 0
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._root.exists():
                self.most = max(self.most, du(self._root))
                self.looks += 1
            time.sleep(0.1)


def step(number: int) -> str:
    """Adds ADDED MB that no compression makes smaller; cheaper to make than as much of /dev/urandom."""
    block = "dd if=/dev/urandom of=/block bs=1MB count=1 2>/dev/null"
    return f"FROM alpine\nRUN {block} && for i in $(seq {ADDED - 1}); do cat /block; done > /big # {number}\n"


@pytest.mark.timeout(0 if "CHANTIER_CEILING" in os.environ else 900)
@pytest.mark.parametrize("engine", ["embedded", "daemon"])
def test_many_builds_stay_below_the_limit(
    make_command: Callable[..., Command], start_daemon: Start, tmp_path: Path, engine: str
) -> None:
    limit, added = LIMIT * MB, ADDED * MB
    config = f"[chantier]\nmaxBytes = {limit}\n"
    context = tmp_path / "context"
    context.mkdir()
    if engine == "daemon":
        daemon = start_daemon(config)
        root, builder = daemon.root, chantier.Builder(builder=daemon.address)
    else:
        command = make_command(config)
        root, builder = command.root, chantier.Builder(root=command.root, config=command.config)
    with Watch(root) as watch, builder:
        for number in range(BUILDS):
            builder.build(context, dockerfile_text=step(number).encode())
            if number % 20 == 19:
                print(f"{engine}: {number + 1} builds, at most {watch.most / MB:.0f} MB", flush=True)
    print(f"{engine}: at most {watch.most / MB:.0f} MB of {watch.looks} looks, {du(root) / MB:.0f} MB at the end")
    # What a step writes, and a tenth for the directories, logs and the database that grow meanwhile.
    assert limit * 0.5 < watch.most < limit + added * 1.1, watch.most
    assert du(root) <= limit
    # What was used last is still there.
    events = Recorder()
    with (
        chantier.Builder(builder=daemon.address)
        if engine == "daemon"
        else chantier.Builder(root=root, config=command.config) as again
    ):
        again.build(context, dockerfile_text=step(BUILDS - 1).encode(), on_event=events.emit)
    assert [e.cached for e in events.events if isinstance(e, Vertex) and "RUN dd if" in e.name][-1]


def test_what_a_build_holds_is_never_removed(make_command: Callable[..., Command]) -> None:
    command = make_command(f"[chantier]\nmaxBytes = {60 * MB}\n")
    text = "FROM alpine\n" + "".join(f"RUN dd if=/dev/urandom of=/big{n} bs=1M count=20 2>/dev/null\n" for n in range(5))
    done = command.build(text)
    assert done.code != 0
    assert "over its limit of 60MB" in done.err
    assert "raise [chantier] maxBytes" in done.err
    command.build("FROM alpine\nRUN echo small\n").ok()
    assert du(command.root) <= 60 * MB


def test_a_limit_that_is_too_small_for_anything(make_command: Callable[..., Command]) -> None:
    done = make_command("[chantier]\nmaxBytes = 1000\n").build("FROM alpine\nRUN true\n")
    assert done.code != 0
    assert "over its limit" in done.err
