# SPDX-License-Identifier: Apache-2.0
"""The state directory: its layout, who is alive in it, and how it is made whole again after a crash.

Every process that opens a root keeps a locked file in processes/ as long as it lives; what it holds (records, snapshots,
blobs) is noted in the database under that file's name. When the lock is gone the process is dead, and so are its holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from chantier.errors import StoreError
from chantier.kernel.mounts import remove_unmounted
from chantier.kernel.trace import point
from chantier.spec import new_id

from .blobs import BlobStore
from .db import Db
from .gc import disk_of
from .holds import SCHEMA as HOLDS_SCHEMA
from .holds import Holds, Lease
from .locks import FileLock, lock, try_lock
from .settle import Settler
from .types import Disk
from .unsettled import Unsettled
from .writer import translated

_log = logging.getLogger(__name__)
_DIRECTORIES = ("blobs", "ingest", "processes", "locks", "tmp", "snapshots")
_SCRATCH = ("tmp", "executor")  # emptied, mounts and all, when nobody else is alive


class Root:
    """An open state directory. Made by `open`; `close` it, or use it as a context manager."""

    def __init__(self, path: Path, db: Db, process: str, registration: int) -> None:
        self.path = path
        self.db = db
        self.process = process
        self.holds = Holds(db, process)
        self.blobs = BlobStore(path, db)
        self.unsettled = Unsettled(db)
        self.settler = Settler(self.unsettled, self.blobs, path)
        self.warnings: tuple[str, ...] = ()
        self.unclean = False  # a process died here since, or the database was lost: what depends on files is to be checked
        self._registration = registration

    @classmethod
    def open(cls, path: Path, *, warn: Callable[[str], None] | None = None) -> Root:
        """Open, and create or repair what is needed. `warn` is told, in one line each, what had to be given up.

        Raises StoreError if the directory cannot be used, or the database is damaged while another process has it open.
        """
        path = Path(os.path.abspath(path))
        try:
            _make_layout(path)
            with lock(path / "open.lock"):
                return cls._open(path, warn or _log.warning)
        except OSError as err:
            raise translated(err, f"open the state directory {path}") from err

    @classmethod
    def _open(cls, path: Path, warn: Callable[[str], None]) -> Root:
        alive, dead = _processes(path)
        database = path / "chantier.db"
        known = database.exists()
        warnings = []
        trouble = database_trouble(database, thorough=bool(dead) and not alive)
        if trouble is not None:
            if alive:
                raise StoreError(
                    f"the database {database} is damaged: {trouble}", hint="stop the other chantier processes on this root"
                )
            kept = _set_aside(database)
            warnings.append(f"the database {database} is damaged ({trouble}); it is kept as {kept.name}, the cache starts empty")
            known = False
        elif not known and any((path / "blobs").iterdir()):
            warnings.append(f"the database {database} is gone; the cache starts empty")
        db = Db(database)
        db.ensure(HOLDS_SCHEMA)
        process = new_id()
        registration = _register(path, process)
        root = cls(path, db, process, registration)
        root._forget(dead)
        clean = known and not dead
        root._empty_scratch(alone=not alive)
        root.blobs.recover(alone=not alive and not clean)
        if not alive and (damaged := root.blobs.check_lost()):
            warnings.append(f"{len(damaged)} blobs had not reached the disk when the machine went down; they are forgotten")
            clean = False
        if not alive:
            for name in os.listdir(path / "locks"):
                with contextlib.suppress(OSError):
                    os.unlink(path / "locks" / name)
        for text in warnings:
            warn(text)
        root.warnings = tuple(warnings)
        root.unclean = not clean
        return root

    def close(self) -> None:
        """End this process's part: its holds, its scratch, its file."""
        if self._registration < 0:
            return
        with contextlib.suppress(StoreError):
            self.holds.forget([self.process])
        with contextlib.suppress(StoreError):
            self.settler.close()
        _remove_unmounted(self.path / "tmp" / self.process)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path / "processes" / self.process)
        os.close(self._registration)
        self._registration = -1
        self.db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def snapshots_dir(self) -> Path:
        return self.path / "snapshots"

    def disk(self) -> Disk:
        return disk_of(self.path)

    def scratch(self) -> Path:
        """A directory of this process's own, below tmp/, gone some time after the process is."""
        path = self.path / "tmp" / self.process
        path.mkdir(mode=0o711, exist_ok=True)
        return path

    def lease(self) -> Lease:
        """Something to hold what a build needs until it ends: `with root.lease(): …`."""
        return Lease(self.holds)

    def lock(self, name: str, *, shared: bool = False, cancelled: Callable[[], bool] | None = None) -> FileLock:
        """Wait for a lock that processes and threads on this root share. Raises CancelledError_."""
        return lock(self._lock_path(name), shared=shared, cancelled=cancelled)

    def try_lock(self, name: str, *, shared: bool = False) -> FileLock | None:
        """The lock if it can be had at once. A holder that died does not count."""
        return try_lock(self._lock_path(name), shared=shared)

    def _lock_path(self, name: str) -> Path:
        return self.path / "locks" / name

    @contextmanager
    def recovering(self) -> Iterator[bool]:
        """Keep others from opening the root meanwhile; gives whether nobody else is alive."""
        with lock(self.path / "open.lock"):
            alive, dead = _processes(self.path, but=self.process)
            self._forget(dead)
            yield not alive

    def alive(self) -> list[str]:
        """Ids of the other live processes on this root."""
        return _processes(self.path, but=self.process)[0]

    def reap(self) -> list[str]:
        """Notice who died since: their holds end. Returns their ids."""
        with lock(self.path / "open.lock"):
            _, dead = _processes(self.path, but=self.process)
            return self._forget(dead)

    def _forget(self, dead: list[str]) -> list[str]:
        here = set(os.listdir(self.path / "processes")) - set(dead)
        gone = [process for process in self.holds.processes() if process not in here]
        if gone:
            self.holds.forget(gone)
        for process in dead:
            _remove_unmounted(self.path / "tmp" / process)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path / "processes" / process)
        return sorted({*dead, *gone})

    def _empty_scratch(self, *, alone: bool) -> None:
        if not alone:
            return
        for name in _SCRATCH:
            directory = self.path / name
            if not directory.is_dir():
                continue
            for entry in os.scandir(directory):
                if entry.name != self.process:
                    _remove_unmounted(Path(entry.path))


def _make_layout(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in _DIRECTORIES:
        (path / name).mkdir(mode=0o700, exist_ok=True)


def _register(path: Path, process: str) -> int:
    """Make our file in processes/, locked before anybody can see it."""
    partial = path / "processes" / f".{process}"
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, json.dumps({"pid": os.getpid(), "started": time.time_ns()}).encode())
        os.rename(partial, path / "processes" / process)
    except BaseException:
        os.close(fd)
        raise
    point("process.registered")
    return fd


def _processes(path: Path, *, but: str | None = None) -> tuple[list[str], list[str]]:
    """Ids of live and of dead processes."""
    alive, dead = [], []
    for name in sorted(os.listdir(path / "processes")):
        if name == but:
            continue
        try:
            fd = os.open(path / "processes" / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            dead.append(name)
        except BlockingIOError:
            alive.append(name)
        finally:
            os.close(fd)
    return alive, dead


def database_trouble(path: Path, *, thorough: bool) -> str | None:
    """What is wrong with a database file, or None. Looks at all of it only if `thorough`."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    wal = path.with_name(path.name + "-wal")
    has_wal = wal.exists() and wal.stat().st_size > 0
    if size == 0:
        return "it is empty" if not has_wal else None
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return "it has no SQLite header"
    page = int.from_bytes(header[16:18], "big")
    page = 65536 if page == 1 else page
    pages = int.from_bytes(header[28:32], "big")
    if not has_wal and size < page * pages:
        return f"it has {size} bytes, want {page * pages}"
    return _quick_check(path) if thorough else None


def _quick_check(path: Path) -> str | None:
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        first = connection.execute("PRAGMA quick_check(1)").fetchone()
        return None if first and first[0] == "ok" else str(first[0] if first else "no answer").splitlines()[-1]
    except sqlite3.OperationalError as err:
        if "full" in str(err) or "locked" in str(err) or "unable to open" in str(err):
            raise StoreError(f"failed to check the database {path}: {err}") from err
        return str(err)
    except sqlite3.DatabaseError as err:
        return str(err)
    finally:
        if connection is not None:
            connection.close()


def _set_aside(database: Path) -> Path:
    """Rename a damaged database and its logs; the logs first, so that a crash leaves no log without its database."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    kept = database.with_name(f"{database.name}.damaged-{stamp}-{new_id()[:4]}")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{database}{suffix}", f"{kept}{suffix}")
        point("db.set-aside")
    return kept


def _remove_unmounted(path: Path) -> None:
    if not remove_unmounted(path):
        _log.warning("%s is kept: something is still mounted below it", path)


__all__ = ["Lease", "Root", "database_trouble"]
