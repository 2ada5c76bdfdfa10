# SPDX-License-Identifier: Apache-2.0
"""Who uses what: rows that keep records, snapshots and blobs from being deleted as long as their process lives."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

from chantier.spec import new_id

from .db import Db

SCHEMA = """
CREATE TABLE IF NOT EXISTS store_hold (
  process TEXT NOT NULL, owner TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
  PRIMARY KEY (process, owner, kind, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS store_hold_key ON store_hold (kind, key)
"""

_lease: ContextVar[Lease | None] = ContextVar("chantier_lease", default=None)


class Holds:
    """The holds of one process. Every method is one short transaction, or joins the caller's."""

    def __init__(self, db: Db, process: str) -> None:
        self._db = db
        self.process = process

    def add(self, kind: str, key: str, *, owner: str = "") -> None:
        with self._db.write() as cursor:
            cursor.execute("INSERT OR IGNORE INTO store_hold VALUES (?, ?, ?, ?)", (self.process, owner, kind, key))

    def remove(self, kind: str, key: str, *, owner: str = "") -> None:
        with self._db.write() as cursor:
            cursor.execute(
                "DELETE FROM store_hold WHERE process = ? AND owner = ? AND kind = ? AND key = ?",
                (self.process, owner, kind, key),
            )

    def remove_owner(self, owner: str) -> None:
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM store_hold WHERE process = ? AND owner = ?", (self.process, owner))

    def keys(self, kind: str) -> set[str]:
        """What any process holds. Dead processes count until `Root.reap` has noticed them."""
        return {row[0] for row in self._db.read("SELECT DISTINCT key FROM store_hold WHERE kind = ?", (kind,))}

    def held(self, kind: str, key: str) -> bool:
        return bool(self._db.read("SELECT 1 FROM store_hold WHERE kind = ? AND key = ? LIMIT 1", (kind, key)))

    def any(self) -> bool:
        """Whether anybody holds anything: a build is running somewhere."""
        return bool(self._db.read("SELECT 1 FROM store_hold LIMIT 1"))

    def processes(self) -> list[str]:
        return [row[0] for row in self._db.read("SELECT DISTINCT process FROM store_hold")]

    def forget(self, processes: Iterable[str]) -> None:
        """Drop all holds of processes that are dead."""
        with self._db.write() as cursor:
            cursor.executemany("DELETE FROM store_hold WHERE process = ?", [(process,) for process in processes])


class Lease:
    """What one piece of work (a build, an import) needs until it ends. Used as a context manager.

    Inside its block, every blob that the store finds or commits is held by it: in this thread, and in threads and tasks that
    run with a copy of this context (asyncio.to_thread does). Elsewhere `hold` does the same by hand.
    """

    def __init__(self, holds: Holds) -> None:
        self._holds = holds
        self.id = new_id()
        self._token: Token[Lease | None] | None = None
        self._held: set[tuple[str, str]] = set()

    def hold(self, kind: str, key: str) -> bool:
        """Whether it was not held by this lease before."""
        if (kind, key) in self._held:
            return False
        self._holds.add(kind, key, owner=self.id)
        self._held.add((kind, key))
        return True

    def release(self) -> None:
        self._held.clear()
        self._holds.remove_owner(self.id)

    def __enter__(self) -> Self:
        self._token = _lease.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        if self._token is not None:
            _lease.reset(self._token)
        self.release()


def hold_for_lease(kind: str, key: str) -> bool:
    """Hold something for the lease of the current context, if there is one; whether that is new."""
    lease = _lease.get()
    return lease is not None and lease.hold(kind, key)


__all__ = ["SCHEMA", "Holds", "Lease", "hold_for_lease"]
