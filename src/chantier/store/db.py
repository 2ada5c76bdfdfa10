# SPDX-License-Identifier: Apache-2.0
"""One SQLite database (WAL) for all metadata under a root. Safe for several threads and several processes.

Each thread has its own connection. Writers take the database's write lock at once (BEGIN IMMEDIATE), so a transaction
never fails half-way for lack of it; a second process waits up to `busy_s` seconds.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chantier.errors import DiskFullError, StoreError
from chantier.kernel.trace import point


class Db:
    """Rooms create their own tables with `ensure(schema)`; a table's name starts with its room's noun."""

    def __init__(self, path: Path, *, busy_s: float = 60.0) -> None:
        self.path = path
        self._busy_s = busy_s
        self._local = threading.local()
        self._idle: deque[sqlite3.Connection] = deque()  # of threads that have ended
        self._connections: set[sqlite3.Connection] = set()
        self._lock = threading.Lock()

    def ensure(self, schema: str) -> None:
        """Run `CREATE TABLE IF NOT EXISTS …` statements."""
        with self.write() as cursor:
            for statement in schema.split(";"):
                if statement.strip():
                    cursor.execute(statement)
                    point("db.migrating")

    def read(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query, seen as of now."""
        with _translated(self.path):
            return self._connection().execute(sql, params).fetchall()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Cursor]:
        """A transaction: committed when the block ends, rolled back if it raises. May be nested in one thread (joins the outer)."""
        connection = self._connection()
        if connection.in_transaction:
            yield connection.cursor()
            return
        with _translated(self.path):
            cursor = connection.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                point("db.committing")
                connection.commit()
            except BaseException:
                if connection.in_transaction:  # SQLite itself rolls back after some errors, a full disk among them
                    connection.rollback()
                raise
        point("db.committed")

    def close(self) -> None:
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._idle.clear()
        self._local = threading.local()

    def _connection(self) -> sqlite3.Connection:
        lent: _Lent | None = getattr(self._local, "lent", None)
        if lent is None:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._open()
            lent = self._local.lent = _Lent(self._idle, connection)
        return lent.connection

    def _open(self) -> sqlite3.Connection:
        with _translated(self.path):
            connection = sqlite3.connect(
                self.path, timeout=self._busy_s, isolation_level=None, check_same_thread=False, cached_statements=32
            )
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA foreign_keys=ON")
            # Each thread's connection has a page cache: 2 MB of it by default, and a daemon has dozens. The kernel's is enough.
            connection.execute("PRAGMA cache_size=-64")
        with self._lock:
            self._connections.add(connection)
        return connection


class _Lent:
    """A thread's connection; when the thread ends it goes to whoever needs one next. No lock is taken: this may run anywhere."""

    def __init__(self, idle: deque[sqlite3.Connection], connection: sqlite3.Connection) -> None:
        self._idle = idle
        self.connection = connection

    def __del__(self) -> None:
        self._idle.append(self.connection)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as err:
        if "full" in str(err):
            raise DiskFullError(
                f"failed to write {path}: no space left on device", hint="free some space or prune the cache"
            ) from err
        raise StoreError(f"failed to use the database {path}: {err}") from err
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # a mistake of the caller's, not the file's
    except sqlite3.DatabaseError as err:
        raise StoreError(f"the database {path} is damaged: {err}", hint="run `chantier fsck --repair`") from err
