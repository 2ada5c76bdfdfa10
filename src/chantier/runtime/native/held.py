# SPDX-License-Identifier: Apache-2.0
"""The groups that engines have for themselves, flock'ed as long as these live: of one that was killed any other can tell.

What a container had is ended by the next engine on the same state (`runtime.places`); it has no such lock.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from chantier.spec import new_id

_ENGINE = "engine-"


def engine_name() -> str:
    """A name for the groups of one engine."""
    return f"{_ENGINE}{new_id()[:12]}"


def make_held(group: Path) -> int:
    """Make a group; the descriptor that holds it."""
    while True:
        group.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another engine took it for a dead one's before we held it
            fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if group.exists():
                return fd
            os.close(fd)


def remove_unheld(parent: Path) -> None:
    """Remove the groups of dead engines. One in which something runs still resists: the next engine tries it again."""
    for group in parent.glob(f"{_ENGINE}*"):
        with suppress(OSError):  # just gone, or its owner lives
            fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                group.rmdir()
            finally:
                os.close(fd)


__all__ = ["engine_name", "make_held", "remove_unheld"]
