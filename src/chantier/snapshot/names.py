# SPDX-License-Identifier: Apache-2.0
"""The names of snapshots in the database and their directories on disk; what both snapshotters share."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chantier import kernel
from chantier.errors import NotFoundError, StoreError
from chantier.kernel.trace import point
from chantier.spec import new_id
from chantier.store.db import Db
from chantier.store.unsettled import Unsettled
from chantier.values import dataclass

from .types import Info, Usage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshot (
    name TEXT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    parent TEXT REFERENCES snapshot (name) ON UPDATE CASCADE ON DELETE RESTRICT,
    committed INTEGER NOT NULL DEFAULT 0,
    created_ns INTEGER NOT NULL,
    bytes INTEGER,
    inodes INTEGER
);
CREATE INDEX IF NOT EXISTS snapshot_parent ON snapshot (parent)
"""

_CHAIN = """
WITH RECURSIVE chain (name, id, parent, committed, created_ns, depth) AS (
    SELECT name, id, parent, committed, created_ns, 0 FROM snapshot WHERE name = ?
    UNION ALL
    SELECT s.name, s.id, s.parent, s.committed, s.created_ns, c.depth + 1
    FROM snapshot s JOIN chain c ON s.name = c.parent
) SELECT name, id, parent, committed, created_ns FROM chain ORDER BY depth
"""

_ABOVE = """
WITH RECURSIVE above (id, name, depth) AS (
    SELECT id, name, 0 FROM snapshot WHERE id = ?
    UNION ALL
    SELECT s.id, s.name, a.depth + 1 FROM snapshot s JOIN above a ON s.parent = a.name
) SELECT id, name FROM above ORDER BY depth
"""

_LOCK = "lock"
KEEP = "\0keep"  # "no other parent": a name no caller can give


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    id: str
    parent: str | None
    committed: bool
    created_ns: int


class Names:
    """Rows and directories of one root."""

    def __init__(self, root: Path, db: Db) -> None:
        self.directory = root / "snapshots"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = self.directory / _LOCK
        self._db = db
        self._unsettled = Unsettled(db)
        db.ensure(_SCHEMA)

    def chain(self, name: str) -> list[Row]:
        """The snapshot and its parents, itself first. NotFoundError if there is none."""
        rows = self._db.read(_CHAIN, (name,))
        if not rows:
            raise NotFoundError(f"no snapshot {name!r}")
        return [Row(name=r[0], id=r[1], parent=r[2], committed=bool(r[3]), created_ns=r[4]) for r in rows]

    def fs(self, row: Row) -> Path:
        return self.directory / row.id / "fs"

    @contextmanager
    def making(self, key: str, parent: str | None) -> Iterator[tuple[Path, Path | None]]:
        """A new directory for the block to fill, given with the parent's; named when the block ends, gone if it raises."""
        above = self.chain(parent)[0] if parent is not None else None
        if above is not None and not above.committed:
            raise StoreError(f"cannot use snapshot {parent!r} as a parent: it is not committed")
        with _locked(self._lock, fcntl.LOCK_SH):
            identity = new_id()[:12]
            place = self.directory / identity
            place.mkdir(mode=0o700)
            try:
                yield place, None if above is None else self.fs(above)
                point("snapshot.made")
                self._insert(key, identity, parent)
            except BaseException:
                delete_tree(place)
                raise
        point("snapshot.named")

    def _insert(self, key: str, identity: str, parent: str | None) -> None:
        with self._db.write() as cursor:
            if cursor.execute("SELECT 1 FROM snapshot WHERE name = ?", (key,)).fetchone():
                raise StoreError(f"snapshot {key!r} exists already")
            # The parent may have gone since we looked.
            if parent is not None and not cursor.execute("SELECT 1 FROM snapshot WHERE name = ?", (parent,)).fetchone():
                raise NotFoundError(f"no snapshot {parent!r}")
            cursor.execute(
                "INSERT INTO snapshot (name, id, parent, created_ns) VALUES (?, ?, ?, ?)",
                (key, identity, parent, time.time_ns()),
            )

    def commit(self, key: str, name: str, parent: str | None) -> None:
        with self._db.write() as cursor:
            row = cursor.execute("SELECT committed, id FROM snapshot WHERE name = ?", (key,)).fetchone()
            if row is None:
                raise NotFoundError(f"no snapshot {key!r}")
            if row[0]:
                raise StoreError(f"cannot commit snapshot {key!r}: it is committed already")
            if name != key and cursor.execute("SELECT 1 FROM snapshot WHERE name = ?", (name,)).fetchone():
                raise StoreError(f"cannot commit snapshot {key!r}: {name!r} exists already")
            if parent not in (None, KEEP):
                above = cursor.execute("SELECT committed FROM snapshot WHERE name = ?", (parent,)).fetchone()
                if above is None or not above[0]:
                    raise NotFoundError(f"cannot commit snapshot {key!r}: no committed snapshot {parent!r}")
            cursor.execute("UPDATE snapshot SET name = ?, committed = 1 WHERE name = ?", (name, key))
            self._unsettled.note("snapshot", row[1])
            if parent != KEEP:
                cursor.execute("UPDATE snapshot SET parent = ? WHERE name = ?", (parent, name))
        point("snapshot.committed")

    def remove(self, name: str) -> None:
        with self._db.write() as cursor:
            row = cursor.execute("SELECT id FROM snapshot WHERE name = ?", (name,)).fetchone()
            if row is None:
                return
            child = cursor.execute("SELECT name FROM snapshot WHERE parent = ? LIMIT 1", (name,)).fetchone()
            if child is not None:
                raise StoreError(f"cannot remove snapshot {name!r}: it is the parent of {child[0]!r}")
            cursor.execute("DELETE FROM snapshot WHERE name = ?", (name,))
            self._unsettled.forget("snapshot", row[0])
        point("snapshot.removed")
        self._discard(str(row[0]))

    def note(self, name: str) -> None:
        with self._db.write():
            self._unsettled.note("snapshot", self.chain(name)[0].id)

    def drop_lost(self) -> list[str]:
        """Forget the snapshots that may not have reached the disk before the machine went down, and all on top of them.

        Only while nobody else is alive. Returns their names.
        """
        doomed: dict[str, str] = {}  # id -> name, parents before children
        for identity in self._unsettled.lost("snapshot"):
            doomed |= {row[0]: row[1] for row in self._db.read(_ABOVE, (identity,)) if row[0] not in doomed}
        with self._db.write() as cursor:
            for identity in reversed(doomed):
                cursor.execute("DELETE FROM snapshot WHERE id = ?", (identity,))
            for identity in (*doomed, *self._unsettled.lost("snapshot")):
                self._unsettled.forget("snapshot", identity)
        for identity in doomed:
            self._discard(identity)
        return list(doomed.values())

    def _discard(self, identity: str) -> None:
        """Delete a directory that has no row. It is renamed first, so that nobody meets it half deleted."""
        doomed = self.directory / f".rm-{identity}"
        try:
            (self.directory / identity).rename(doomed)
        except FileNotFoundError:  # another process's recover() was quicker
            return
        point("snapshot.discarding")
        delete_tree(doomed)
        point("snapshot.discarded")

    def usage(self, name: str) -> Usage:
        rows = self._db.read("SELECT id, committed, bytes, inodes FROM snapshot WHERE name = ?", (name,))
        if not rows:
            raise NotFoundError(f"no snapshot {name!r}")
        identity, committed, size, inodes = rows[0]
        if size is not None:
            return Usage(bytes=size, inodes=inodes)
        usage = measure(self.directory / identity / "fs")
        if committed:
            with self._db.write() as cursor:
                cursor.execute("UPDATE snapshot SET bytes = ?, inodes = ? WHERE id = ?", (usage.bytes, usage.inodes, identity))
        return usage

    def walk(self) -> Iterator[Info]:
        rows = self._db.read("SELECT name, parent, committed, created_ns FROM snapshot ORDER BY created_ns, name")
        waiting = {row[0]: row for row in rows}
        for row in rows:
            line = []
            name = row[0]
            while name in waiting:
                line.append(waiting.pop(name))
                name = line[-1][1]
            for name, parent, committed, created_ns in reversed(line):
                yield Info(name=name, parent=parent, committed=bool(committed), created_ns=created_ns)

    def recover(self) -> list[str]:
        """Delete directories without a row; returns their names. Waits for those that are being made just now."""
        with _locked(self._lock, fcntl.LOCK_EX):
            named = {row[0] for row in self._db.read("SELECT id FROM snapshot")}
            orphans = sorted(entry.name for entry in os.scandir(self.directory) if entry.is_dir() and entry.name not in named)
            for orphan in orphans:
                if not orphan.startswith(".rm-"):
                    with _gone_is_fine():
                        (self.directory / orphan).rename(self.directory / f".rm-{orphan}")
        for orphan in orphans:
            delete_tree(self.directory / (orphan if orphan.startswith(".rm-") else f".rm-{orphan}"))
        return orphans


@contextmanager
def _locked(lock: Path, kind: int) -> Iterator[None]:
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)


@contextmanager
def probe_directory(directory: Path) -> Iterator[str]:
    """A place among snapshots to try mounts in, gone afterwards. The recovery of another process waits for the end of it."""
    with (
        _locked(directory / _LOCK, fcntl.LOCK_SH),
        tempfile.TemporaryDirectory(dir=directory, prefix=".probe-", ignore_cleanup_errors=True) as name,
    ):
        yield name


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        return


def delete_tree(path: Path) -> None:
    """Delete a tree that another process may be deleting too; what cannot be deleted now stays for the next recover()."""
    with suppress(OSError):
        kernel.remove_tree(path)


def measure(directory: Path) -> Usage:
    """What a tree takes: 512-byte blocks as the file system counts them, hard links once."""
    size = inodes = 0
    linked: set[tuple[int, int]] = set()
    todo = [os.fspath(directory)]
    while todo:
        here = todo.pop()
        try:
            entries = list(os.scandir(here))
            infos = [os.lstat(here), *(entry.stat(follow_symlinks=False) for entry in entries if not _is_dir(entry))]
        except FileNotFoundError:  # an active snapshot changes while we count
            continue
        todo.extend(entry.path for entry in entries if _is_dir(entry))
        for info in infos:
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                key = (info.st_dev, info.st_ino)
                if key in linked:
                    continue
                linked.add(key)
            size += info.st_blocks * 512
            inodes += 1
    return Usage(bytes=size, inodes=inodes)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)
