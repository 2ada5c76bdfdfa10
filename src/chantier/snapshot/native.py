# SPDX-License-Identifier: Apache-2.0
"""Snapshots as full copies, for machines without overlayfs. Slow, but needs nothing from the kernel but bind mounts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from chantier import kernel
from chantier.errors import StoreError, UnsupportedError
from chantier.store.db import Db

from .mount import Mount
from .names import KEEP, Names
from .overlay import make_root
from .types import Info, Usage


class Native:
    """Every snapshot is a whole tree; a child starts as a copy of its parent (blocks are shared on XFS and Btrfs)."""

    stacked = False

    def __init__(self, root: Path, db: Db) -> None:
        self._names = Names(root, db)

    def prepare(self, key: str, parent: str | None = None) -> None:
        with self._names.making(key, parent) as (place, above):
            make_root(place / "fs", like=None)
            if above is not None:
                clone_tree(above, place / "fs")

    def commit(self, key: str, name: str, *, parent: str | None = KEEP) -> None:
        if parent != KEEP:
            raise UnsupportedError(f"cannot give snapshot {key!r} another parent: it is a copy of its own")
        self._names.commit(key, name, KEEP)

    def mounts(self, name: str, *, readonly: bool = True, durable: bool = True) -> tuple[Mount, ...]:
        row = self._names.chain(name)[0]
        if not readonly and row.committed:
            raise StoreError(f"cannot mount snapshot {name!r} for writing: it is committed")
        return (Mount("bind", os.fspath(self._names.fs(row)), ("rbind", "ro" if readonly else "rw")),)

    def remove(self, name: str) -> None:
        self._names.remove(name)

    def usage(self, name: str) -> Usage:
        return self._names.usage(name)

    def layers(self, name: str) -> tuple[Path, ...]:
        return (self.upper(name),)

    def upper(self, name: str) -> Path:
        return self._names.fs(self._names.chain(name)[0])

    def info(self, name: str) -> Info:
        row = self._names.chain(name)[0]
        return Info(name=row.name, parent=row.parent, committed=row.committed, created_ns=row.created_ns)

    def walk(self) -> Iterator[Info]:
        return self._names.walk()

    def note(self, name: str) -> None:
        self._names.note(name)

    def drop_lost(self) -> list[str]:
        return self._names.drop_lost()

    def recover(self) -> list[str]:
        """Clean up after crashes; returns what was removed. Leaves alone what a live process owns."""
        return self._names.recover()


def clone_tree(source: Path, target: Path) -> None:
    """Copy a tree onto an empty directory: owners, modes, times, xattrs, hard links, devices; sockets too, as names."""
    links: dict[tuple[int, int], str] = {}
    directories: list[tuple[str, os.stat_result]] = []
    todo = [(os.fspath(source), os.fspath(target))]
    while todo:
        here, there = todo.pop()
        directories.append((there, os.lstat(here)))
        for entry in os.scandir(here):
            goal = os.path.join(there, entry.name)
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                os.mkdir(goal)
                todo.append((entry.path, goal))
                continue
            if info.st_nlink > 1:
                first = links.setdefault((info.st_dev, info.st_ino), goal)
                if first != goal:
                    os.link(first, goal, follow_symlinks=False)
                    continue
            kernel.copy_node(entry.path, info, goal)
            _clone_metadata(entry.path, goal, info)
    # Children first: making them touched their parents' times.
    for there, info in reversed(directories):
        _clone_metadata(os.path.join(source, os.path.relpath(there, target)), there, info)


def _clone_metadata(source: str, goal: str, info: os.stat_result) -> None:
    os.chown(goal, info.st_uid, info.st_gid, follow_symlinks=False)
    for name in kernel.list_xattrs(source):
        value = kernel.get_xattr(source, name)
        if value is not None:
            kernel.set_xattr(goal, name, value)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(goal, stat.S_IMODE(info.st_mode))
    kernel.utimens(goal, info.st_atime_ns, info.st_mtime_ns)
