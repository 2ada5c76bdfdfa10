# SPDX-License-Identifier: Apache-2.0
"""What a state directory takes on its disk, all of it: trees, blobs, the database, what is being written just now.

Trees that are finished were weighed when they were made, and blobs are in the database: only the rest is looked at, so that
this may be asked every second. What is mounted below the root (running steps) belongs to other file systems and is not
counted twice.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from chantier.values import dataclass

from .db import Db

_COUNTED = ("blobs", "snapshots")
_BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """In bytes on disk."""

    trees: int  # finished ones
    blobs: int
    running: int  # trees that may still grow
    database: int
    other: int  # partial blobs, scratch, history, logs

    @property
    def total(self) -> int:
        return self.trees + self.blobs + self.running + self.database + self.other


def weigh(root: Path, db: Db) -> Weight:
    """Trees that nobody weighed yet are weighed now; their numbers are kept by whoever asks for their usage."""
    trees = running = 0
    device = os.stat(root).st_dev
    for identity, committed, size in db.read("SELECT id, committed, bytes FROM snapshot"):
        if size is not None:
            trees += size
            continue
        found = size_of(root / "snapshots" / identity, device)
        if committed:
            trees += found
        else:
            running += found
    blobs = int(db.read("SELECT COALESCE(SUM((size + ?) / ? * ?), 0) FROM blob", (_BLOCK - 1, _BLOCK, _BLOCK))[0][0])
    database = other = 0
    for entry in os.scandir(root):
        if entry.name.startswith("chantier.db"):
            database += _file(entry.path)
        elif entry.name not in _COUNTED:
            other += size_of(Path(entry.path), device)
    for entry in os.scandir(root / "snapshots"):
        if entry.name.startswith(".rm-"):  # being deleted
            other += size_of(Path(entry.path), device)
    return Weight(trees=trees, blobs=blobs, running=running, database=database, other=other)


def size_of(path: Path, device: int | None = None) -> int:
    """Bytes on disk of a file or a tree on one device, hard links once. What vanishes meanwhile counts as nothing."""
    total = 0
    linked: set[int] = set()
    todo = [os.fspath(path)]
    while todo:
        here = todo.pop()
        try:
            info = os.lstat(here)
            if device is not None and info.st_dev != device:
                continue
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                if info.st_ino in linked:
                    continue
                linked.add(info.st_ino)
            total += info.st_blocks * 512
            if stat.S_ISDIR(info.st_mode):
                todo += [entry.path for entry in os.scandir(here)]
        except (FileNotFoundError, NotADirectoryError):
            continue
    return total


def _file(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


__all__ = ["Weight", "size_of", "weigh"]
