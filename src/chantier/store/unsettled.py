# SPDX-License-Identifier: Apache-2.0
"""What was finished but may not have reached the disk yet (docs/adr/0011)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .db import Db

SCHEMA = """
CREATE TABLE IF NOT EXISTS store_unsettled (
  id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, key TEXT NOT NULL, boot TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS store_unsettled_key ON store_unsettled (kind, key)
"""


@cache
def boot_id() -> str:
    """Of this boot of the machine (random(4)); "" where the kernel does not tell: then nothing counts as lost."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Unsettled:
    """The notes. `kind` is snapshot or blob; `key` its directory's id, or its digest."""

    def __init__(self, db: Db) -> None:
        self._db = db
        db.ensure(SCHEMA)

    def note(self, kind: str, key: str) -> None:
        """In the transaction that finishes it."""
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM store_unsettled WHERE kind = ? AND key = ?", (kind, key))
            cursor.execute("INSERT INTO store_unsettled (kind, key, boot) VALUES (?, ?, ?)", (kind, key, boot_id()))

    def forget(self, kind: str, key: str) -> None:
        """It was deleted, or found whole."""
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM store_unsettled WHERE kind = ? AND key = ?", (kind, key))

    def lost(self, kind: str) -> list[str]:
        """What was finished before the machine went down, and may not be whole."""
        rows = self._db.read("SELECT key FROM store_unsettled WHERE kind = ? AND boot <> ? ORDER BY id", (kind, boot_id()))
        return [row[0] for row in rows]

    def noted(self) -> list[tuple[int, str, str]]:
        """The notes of this boot: number, kind and key, the newest last."""
        return [
            (number, kind, key)
            for number, kind, key in self._db.read(
                "SELECT id, kind, key FROM store_unsettled WHERE boot = ? ORDER BY id", (boot_id(),)
            )
        ]

    def settled(self, last: int) -> None:
        """All up to a note has reached the disk. What was noted again since has a newer one."""
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM store_unsettled WHERE id <= ? AND boot = ?", (last, boot_id()))


__all__ = ["SCHEMA", "Unsettled", "boot_id"]
