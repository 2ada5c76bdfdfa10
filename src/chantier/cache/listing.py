# SPDX-License-Identifier: Apache-2.0
"""What stood behind a content key: the files with their modes and digests, so that a later miss can name the one that differs.

    key_content   content key -> what it was computed of, compressed; the oldest go first

Only kept for explanations: a listing that is missing, too long or damaged is no error.
"""

from __future__ import annotations

import json
import os
import stat
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chantier.store import Db

if TYPE_CHECKING:
    from .content_tree import ContentTree, Selector

_SCHEMA = """
CREATE TABLE IF NOT EXISTS key_content (
  key TEXT PRIMARY KEY, at INTEGER NOT NULL, listing BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS key_content_at ON key_content (at)
"""
MAX_FILES = 4000
_MAX_KEPT = 400

Listing = Mapping[str, Sequence[str]]
"""path -> (mode in octal with the type's letter, digest)."""


class Listings:
    def __init__(self, db: Db, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._db = db
        self._clock = clock
        db.ensure(_SCHEMA)

    def has(self, key: str) -> bool:
        return bool(self._db.read("SELECT 1 FROM key_content WHERE key = ?", (key,)))

    def save(self, key: str, listing: Listing) -> None:
        data = zlib.compress(json.dumps(listing, separators=(",", ":")).encode("utf-8", "surrogateescape"), 6)
        with self._db.write() as cursor:
            cursor.execute("INSERT OR REPLACE INTO key_content VALUES (?, ?, ?)", (key, self._clock(), data))
            cursor.execute(
                "DELETE FROM key_content WHERE key IN (SELECT key FROM key_content ORDER BY at DESC LIMIT -1 OFFSET ?)",
                (_MAX_KEPT,),
            )

    def load(self, key: str) -> dict[str, list[str]] | None:
        rows = self._db.read("SELECT listing FROM key_content WHERE key = ?", (key,))
        if not rows:
            return None
        try:
            found = json.loads(zlib.decompress(rows[0][0]).decode("utf-8", "surrogateescape"))
        except (zlib.error, ValueError):
            return None
        return found if isinstance(found, dict) else None


def list_tree(tree: ContentTree, root: Path, selectors: Sequence[Selector]) -> dict[str, tuple[str, str]] | None:
    """While the tree is being read: what the selectors took of it; None if that is too much to be worth keeping."""
    found: dict[str, tuple[str, str]] = {}
    if tree.size(selectors) >= MAX_FILES:
        return None
    for path, digest in tree.entries(selectors):
        if len(found) >= MAX_FILES:
            return None
        name = os.fsdecode(path)
        try:
            mode = os.lstat(root / name).st_mode
        except OSError:
            continue
        found[name or "/"] = (stat.filemode(mode)[0] + oct(mode & 0o7777)[2:], digest.hex()[:16])
    return found


def differences(before: Listing, after: Listing, *, limit: int = 5) -> list[str]:
    """What changed, in words: `src/a.txt: content`. Directories are named only where their own mode or owner changed."""
    lines = []
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if old == new or (old is not None and new is not None and list(old) == list(new)):
            continue
        if old is None:
            lines.append(f"{path} is new")
        elif new is None:
            lines.append(f"{path} is gone")
        elif old[0] != new[0] and old[0][0] == new[0][0]:
            lines.append(f"{path}: mode {old[0][1:]} became {new[0][1:]}")
        elif old[0] != new[0]:
            lines.append(f"{path} is of another type")
        else:
            lines.append(f"{path}: {'owner or attributes' if new[0].startswith('d') else 'content'} changed")
    return lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more"]


__all__ = ["MAX_FILES", "Listing", "Listings", "differences", "list_tree"]
