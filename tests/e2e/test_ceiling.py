# SPDX-License-Identifier: Apache-2.0
"""The hard limit of the state directory: builds that each add more than fits in the long run."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import Command

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

MB = 1_000_000


def du(root: Path) -> int:
    """All of a directory on its own file system, by a tool that is not ours."""
    done = subprocess.run(["du", "-sx", "-B1", str(root)], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[0])


class Watch:
    """The most that a directory took while it was looked at."""

    def __init__(self, root: Path) -> None:
        self.most = 0
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
            time.sleep(0.05)


def step(number: int) -> str:
    return f"FROM alpine\nRUN dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null # {number}\n"


def test_many_builds_stay_below_the_limit(make_command: Callable[..., Command]) -> None:
    limit, added = 60 * MB, 22 * MB
    command = make_command(f"[chantier]\nmaxBytes = {limit}\n")
    with Watch(command.root) as watch:
        for number in range(6):
            command.build(step(number)).ok()
    assert limit * 0.5 < watch.most < limit + added, watch.most
    assert du(command.root) <= limit
    # What was used last is still there.
    assert "CACHED" in command.build(step(5)).ok().step("RUN dd")


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
