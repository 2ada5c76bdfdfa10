# SPDX-License-Identifier: Apache-2.0
"""Cache keys in the database under a root: the solver's KeyStore that survives the process.

    key_link     parent --(input, op, selector)--> child      read from both ends
    key_record   key -> result, when it was made
    key_info     what a key was made for: its operation, the vertex's name and digest, what the operation's digest was made of

One transaction a batch; a batch that was cut off by a crash is absent as a whole. Nothing here says that a result is
there: the cache does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice

from chantier.kernel.trace import point
from chantier.solver.keys import Change, Drop, Keep, KeyInfo, Link, Swept
from chantier.solver.types import CacheRecord
from chantier.store.db import Db

_SCHEMA = """
CREATE TABLE IF NOT EXISTS key_link (
  parent TEXT NOT NULL, input INTEGER NOT NULL, op TEXT NOT NULL, selector TEXT NOT NULL, child TEXT NOT NULL,
  PRIMARY KEY (parent, input, op, selector, child)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS key_link_child ON key_link (child);
CREATE TABLE IF NOT EXISTS key_record (
  key TEXT NOT NULL, result TEXT NOT NULL, created_at INTEGER NOT NULL, priority INTEGER NOT NULL,
  PRIMARY KEY (key, result)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS key_record_result ON key_record (result);
CREATE TABLE IF NOT EXISTS key_info (
  id TEXT PRIMARY KEY, op TEXT NOT NULL, name TEXT NOT NULL, vertex TEXT NOT NULL, created_at INTEGER NOT NULL,
  detail BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS key_info_op ON key_info (op, created_at)
"""
_INFO = "SELECT id, op, name, vertex, created_at, detail FROM key_info"
_USELESS = """
SELECT id FROM (SELECT id FROM key_info UNION SELECT child FROM key_link) AS keys
WHERE NOT EXISTS (SELECT 1 FROM key_record WHERE key = keys.id) AND NOT EXISTS (SELECT 1 FROM key_link WHERE parent = keys.id)
"""
_CHUNK = 500  # parameters of one statement


class SqliteKeyStore:
    """The KeyStore of one root; safe for several threads and processes."""

    def __init__(self, db: Db) -> None:
        self._db = db
        db.ensure(_SCHEMA)

    def children(self, parents: Collection[str], link: Link) -> set[str]:
        found: set[str] = set()
        for chunk in _chunks(parents):
            rows = self._db.read(
                f"SELECT child FROM key_link WHERE parent IN ({_marks(chunk)}) AND input = ? AND op = ? AND selector = ?",
                (*chunk, link.input, link.op, link.selector),
            )
            found.update(child for (child,) in rows)
        return found

    def records(self, keys: Collection[str]) -> list[CacheRecord]:
        return [
            CacheRecord(key=key, result=result, created_at=created_at, priority=priority)
            for chunk in _chunks(keys)
            for key, result, created_at, priority in self._db.read(
                f"SELECT key, result, created_at, priority FROM key_record WHERE key IN ({_marks(chunk)})", chunk
            )
        ]

    def parents(self, key: str) -> list[tuple[str, Link]]:
        rows = self._db.read("SELECT parent, input, op, selector FROM key_link WHERE child = ?", (key,))
        return [(parent, Link(index, op, selector)) for parent, index, op, selector in rows]

    def links(self, parent: str, limit: int = 64) -> list[tuple[Link, str]]:
        rows = self._db.read("SELECT input, op, selector, child FROM key_link WHERE parent = ? LIMIT ?", (parent, limit))
        return [(Link(index, op, selector), child) for index, op, selector, child in rows]

    def info(self, key: str) -> KeyInfo | None:
        return next(_infos(self._db.read(f"{_INFO} WHERE id = ?", (key,))), None)

    def find(self, op: str, limit: int = 16) -> list[KeyInfo]:
        return list(_infos(self._db.read(f"{_INFO} WHERE op = ? ORDER BY created_at DESC, id LIMIT ?", (op, limit))))

    def apply(self, changes: Sequence[Change]) -> None:
        with self._db.write() as cursor:
            for change in changes:
                if isinstance(change, Drop):
                    cursor.execute("DELETE FROM key_record WHERE key = ? AND result = ?", (change.key, change.result))
                else:
                    _keep(cursor, change)
                point("key.applying")
        point("key.applied")

    def keys_of(self, result: str) -> list[str]:
        return [key for (key,) in self._db.read("SELECT key FROM key_record WHERE result = ? ORDER BY key", (result,))]

    def sweep(self, exists: Callable[[str], bool]) -> Swept:
        results = [result for (result,) in self._db.read("SELECT DISTINCT result FROM key_record WHERE result != ''")]
        gone = [result for result in results if not exists(result)]
        with self._db.write() as cursor:
            records = 0
            for chunk in _chunks(gone):
                cursor.execute(f"DELETE FROM key_record WHERE result IN ({_marks(chunk)})", chunk)
                records += cursor.rowcount
            keys = _remove_useless(cursor)
        return Swept(records=records, keys=keys)


def _keep(cursor: sqlite3.Cursor, change: Keep) -> None:
    cursor.executemany(
        "INSERT OR IGNORE INTO key_link (parent, input, op, selector, child) VALUES (?, ?, ?, ?, ?)",
        [(parent, link.input, link.op, link.selector, change.key) for parent, link in change.links],
    )
    if (record := change.record) is not None:
        cursor.execute(
            "INSERT OR REPLACE INTO key_record (key, result, created_at, priority) VALUES (?, ?, ?, ?)",
            (change.key, record.result, record.created_at, record.priority),
        )
    if (info := change.info) is not None:
        cursor.execute(
            "INSERT OR REPLACE INTO key_info (id, op, name, vertex, created_at, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (change.key, info.op, info.name, info.vertex, info.created_at, info.detail),
        )


def _remove_useless(cursor: sqlite3.Cursor) -> int:
    """Remove keys that have no record and lead nowhere, then those that only led to them. Linear in what goes."""
    removed = 0
    todo = [key for (key,) in cursor.execute(_USELESS).fetchall()]
    while todo:
        key = todo.pop()
        parents = [
            parent for (parent,) in cursor.execute("SELECT DISTINCT parent FROM key_link WHERE child = ?", (key,)).fetchall()
        ]
        cursor.execute("DELETE FROM key_link WHERE child = ?", (key,))
        links = cursor.rowcount
        cursor.execute("DELETE FROM key_info WHERE id = ?", (key,))
        if links or cursor.rowcount:
            removed += 1
        for parent in parents:
            if not cursor.execute(
                "SELECT EXISTS (SELECT 1 FROM key_record WHERE key = ?1) OR EXISTS (SELECT 1 FROM key_link WHERE parent = ?1)",
                (parent,),
            ).fetchone()[0]:
                todo.append(parent)
    return removed


def _infos(rows: Iterable[tuple[str, str, str, str, int, bytes]]) -> Iterator[KeyInfo]:
    for id, op, name, vertex, created_at, detail in rows:
        yield KeyInfo(id=id, op=op, name=name, vertex=vertex, created_at=created_at, detail=detail)


def _chunks(values: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(values)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


__all__ = ["SqliteKeyStore"]
