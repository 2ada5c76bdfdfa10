# SPDX-License-Identifier: Apache-2.0
"""Who descends from whom, and who was started with which words, by proc(5)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress

_DEAD_S = 20.0
_PAUSE_S = 0.01


def parent_of(pid: int) -> int:
    """OSError for a process that has ended."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def descendants(*pids: int) -> list[int]:
    """Every process below these: for containers that share our pid namespace. The runtime adopts orphans (PR_SET_CHILD_SUBREAPER)."""
    parents: dict[int, list[int]] = {}
    for pid in _all():
        with suppress(OSError, ValueError, IndexError):  # it has just ended
            parents.setdefault(parent_of(pid), []).append(pid)
    out: list[int] = []
    todo = list(pids)
    while todo:
        children = parents.get(todo.pop(), [])
        out += children
        todo += children
    return out


def kill_those(what: str, words: Collection[bytes]) -> None:
    """SIGKILL for every process that has one of `words` among the strings of /proc/PID/`what` (cmdline or environ), and for all
    below it; returns when they are gone, or after some seconds at the latest."""
    found = []
    for pid in _all():
        with suppress(OSError):  # it has just ended, or is somebody else's
            with open(f"/proc/{pid}/{what}", "rb") as file:
                if not set(words).isdisjoint(file.read().split(b"\0")):
                    found.append(pid)
    if not found:
        return
    victims = {*found, *descendants(*found)}
    for pid in victims:
        with suppress(OSError):  # ended, or somebody else's that only looks like one of ours
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + _DEAD_S
    while any(_lives(pid) for pid in victims) and time.monotonic() < end:
        time.sleep(_PAUSE_S)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def _all() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


__all__ = ["descendants", "kill_those", "parent_of"]
