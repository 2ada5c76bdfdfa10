# SPDX-License-Identifier: Apache-2.0
"""What was learnt of registries, kept with the state: what references meant, documents of images, hosts that failed.

registry_known      reference -> digest, who said so, and when: for builds that may not, or cannot, ask again
registry_document   manifests, indexes and configs, which the cleaning of blobs would take; unused ones go after half a year
registry_host       the states of circuit breakers, so that another process does not wait for a dead mirror again
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chantier.errors import StoreError
from chantier.op.image import Seen
from chantier.registry import HostState
from chantier.spec import Digest
from chantier.store import Db
from chantier.values import asdict, fields

_log = logging.getLogger(__name__)
_MOST_BYTES = 1 << 20
_KEEP_S = 180 * 86400.0
_TOUCH_S = 86400.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS registry_known (
  reference TEXT PRIMARY KEY, digest TEXT NOT NULL, media_type TEXT NOT NULL, host TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS registry_document (
  digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, data BLOB NOT NULL, used REAL NOT NULL);
CREATE TABLE IF NOT EXISTS registry_host (authority TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID
"""


class Notes:
    """Implements `op.image.Known` and `registry.Memory`. Any thread; several processes. A note that cannot be written is no
    reason to fail a build: it is logged."""

    def __init__(self, db: Db) -> None:
        self._db = db
        db.ensure(_SCHEMA)

    # What references mean.

    def find(self, reference: str) -> Seen | None:
        rows = self._db.read("SELECT digest, media_type, host, at FROM registry_known WHERE reference = ?", (reference,))
        return Seen(digest=Digest(rows[0][0]), media_type=rows[0][1], host=rows[0][2], at=rows[0][3]) if rows else None

    def saw(self, reference: str, digest: str, media_type: str, host: str) -> None:
        self._note(
            "INSERT OR REPLACE INTO registry_known VALUES (?, ?, ?, ?, ?)", (reference, digest, media_type, host, time.time())
        )

    # Documents of images.

    def document(self, digest: str) -> bytes | None:
        rows = self._db.read("SELECT data, used FROM registry_document WHERE digest = ?", (digest,))
        if not rows:
            return None
        if time.time() - rows[0][1] > _TOUCH_S:
            self._note("UPDATE registry_document SET used = ? WHERE digest = ?", (time.time(), digest))
        return bytes(rows[0][0])

    def keep(self, digest: str, media_type: str, data: bytes) -> None:
        if len(data) > _MOST_BYTES:
            return
        now = time.time()
        self._note("DELETE FROM registry_document WHERE used < ?", (now - _KEEP_S,))
        self._note("INSERT OR IGNORE INTO registry_document VALUES (?, ?, ?, ?)", (digest, media_type, data, now))

    # Hosts.

    def load(self) -> Iterable[HostState]:
        known = {f.name for f in fields(HostState)}
        for (text,) in self._db.read("SELECT state FROM registry_host"):
            raw = json.loads(text)
            yield HostState(**{key: value for key, value in raw.items() if key in known})

    def save(self, state: HostState) -> None:
        if state.open_until:
            self._note("INSERT OR REPLACE INTO registry_host VALUES (?, ?)", (state.authority, json.dumps(asdict(state))))
        else:
            self._note("DELETE FROM registry_host WHERE authority = ?", (state.authority,))

    def _note(self, sql: str, values: tuple[object, ...]) -> None:
        try:
            with self._db.write() as cursor:
                cursor.execute(sql, values)
        except StoreError as err:
            _log.warning("failed to note what a registry said: %s", err)


class ReadOnly:
    """A Memory that is only looked at."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def load(self) -> Iterable[HostState]:
        return self._notes.load()

    def save(self, state: HostState) -> None:
        return None


@contextmanager
def notes_of(root: Path) -> Iterator[Notes | None]:
    """The notes of a state that this process does not use. None where there is no state, or it is not ours to look at."""
    database = root / "chantier.db"
    if not os.access(database, os.R_OK | os.W_OK):
        yield None
        return
    db = Db(database)
    try:
        try:
            notes = Notes(db)
        except StoreError as err:
            _log.warning("no notes of registries: %s", err)
            yield None
            return
        yield notes
    finally:
        db.close()


__all__ = ["Notes", "ReadOnly", "notes_of"]
