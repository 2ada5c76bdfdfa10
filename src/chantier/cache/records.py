# SPDX-License-Identifier: Apache-2.0
"""The table of records: what is written down of each result. Plain SQL; decisions are made elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from types import MappingProxyType

from chantier.errors import NotFoundError
from chantier.spec import Descriptor, Digest
from chantier.spec.media import compression_of
from chantier.store import Db
from chantier.values import dataclass

SCHEMA = """
CREATE TABLE IF NOT EXISTS cache_record (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, parents TEXT NOT NULL, snapshot TEXT, mutable INTEGER NOT NULL,
  description TEXT NOT NULL, record_type TEXT NOT NULL, created INTEGER NOT NULL, layer_created INTEGER,
  last_used INTEGER, usage_count INTEGER NOT NULL DEFAULT 0, diff_id TEXT, chain TEXT, blob_chain TEXT, reuses TEXT
  ) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cache_record_chain ON cache_record (chain);
CREATE INDEX IF NOT EXISTS cache_record_blob_chain ON cache_record (blob_chain);
CREATE INDEX IF NOT EXISTS cache_record_snapshot ON cache_record (snapshot);
CREATE TABLE IF NOT EXISTS cache_parent (
  child TEXT NOT NULL, parent TEXT NOT NULL, PRIMARY KEY (child, parent)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cache_parent_parent ON cache_parent (parent);
CREATE TABLE IF NOT EXISTS cache_index (
  text TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (text, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cache_index_id ON cache_index (id);
CREATE TABLE IF NOT EXISTS cache_meta (
  id TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (id, key));
CREATE TABLE IF NOT EXISTS cache_blob (
  id TEXT NOT NULL, digest TEXT NOT NULL, place INTEGER NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL,
  annotations TEXT NOT NULL, urls TEXT NOT NULL, PRIMARY KEY (id, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cache_blob_digest ON cache_blob (digest);
CREATE TABLE IF NOT EXISTS cache_source (
  digest TEXT NOT NULL, source TEXT NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (digest, source)) WITHOUT ROWID
"""

_COLUMNS = (
    "id, kind, parents, snapshot, mutable, description, record_type, created, layer_created, last_used, usage_count,"
    " diff_id, chain, blob_chain, reuses"
)

BASE, LAYER, MERGE, DIFF = "base", "layer", "merge", "diff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row. `parents` of a diff are (lower, upper), either may be "". `reuses` names the record whose layer a diff is."""

    id: str
    kind: str
    parents: tuple[str, ...] = ()
    snapshot: str | None = None
    mutable: bool = False
    description: str = ""
    record_type: str = "regular"
    created: int = 0
    layer_created: int | None = None
    last_used: int | None = None
    usage_count: int = 0
    diff_id: str | None = None
    chain: str | None = None
    blob_chain: str | None = None
    reuses: str | None = None

    @property
    def made_of(self) -> tuple[str, ...]:
        return tuple(parent for parent in self.parents if parent)


@dataclass(frozen=True, slots=True)
class Blob:
    """One packed form of a record's own layer."""

    descriptor: Descriptor
    compression: str


class Records:
    """Reads and writes rows. A write is a transaction of its own, or part of the caller's."""

    def __init__(self, db: Db) -> None:
        self._db = db
        db.ensure(SCHEMA)

    def get(self, id: str) -> Record:
        """Raises NotFoundError."""
        record = self.find(id)
        if record is None:
            raise NotFoundError(f"no cache record {id!r}")
        return record

    def find(self, id: str) -> Record | None:
        rows = self._db.read(f"SELECT {_COLUMNS} FROM cache_record WHERE id = ?", (id,))
        return _record(rows[0]) if rows else None

    def all(self) -> list[Record]:
        """Oldest first."""
        return [_record(row) for row in self._db.read(f"SELECT {_COLUMNS} FROM cache_record ORDER BY created, id")]

    def by_blob_chain(self, blob_chain: str) -> Record | None:
        rows = self._db.read(
            f"SELECT {_COLUMNS} FROM cache_record WHERE blob_chain = ? AND mutable = 0 ORDER BY created LIMIT 1", (blob_chain,)
        )
        return _record(rows[0]) if rows else None

    def snapshot_of_chain(self, chain: str) -> str | None:
        """A snapshot that holds exactly these layers, whoever made it."""
        rows = self._db.read(
            "SELECT snapshot FROM cache_record WHERE chain = ? AND mutable = 0 AND snapshot IS NOT NULL"
            " AND kind IN ('base', 'layer') ORDER BY created LIMIT 1",
            (chain,),
        )
        return str(rows[0][0]) if rows else None

    def insert(self, record: Record) -> None:
        with self._db.write() as cursor:
            cursor.execute(
                f"INSERT INTO cache_record ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id,
                    record.kind,
                    json.dumps(record.parents),
                    record.snapshot,
                    int(record.mutable),
                    record.description,
                    record.record_type,
                    record.created,
                    record.layer_created,
                    record.last_used,
                    record.usage_count,
                    record.diff_id,
                    record.chain,
                    record.blob_chain,
                    record.reuses,
                ),
            )
            cursor.executemany(
                "INSERT OR IGNORE INTO cache_parent VALUES (?, ?)", [(record.id, parent) for parent in record.made_of]
            )

    def delete(self, id: str) -> None:
        """The row and all that hangs on it; children and blobs' files are the caller's concern."""
        with self._db.write() as cursor:
            for table, column in (
                ("cache_record", "id"),
                ("cache_parent", "child"),
                ("cache_index", "id"),
                ("cache_meta", "id"),
                ("cache_blob", "id"),
            ):
                cursor.execute(f"DELETE FROM {table} WHERE {column} = ?", (id,))
            cursor.execute("DELETE FROM blob_owner WHERE owner = ?", (f"record:{id}",))

    def move(self, old: str, new: str) -> None:
        """Give indexes, metadata and blobs of one record to another."""
        with self._db.write() as cursor:
            for table in ("cache_index", "cache_meta", "cache_blob"):
                cursor.execute(f"UPDATE {table} SET id = ? WHERE id = ?", (new, old))
            cursor.execute("UPDATE blob_owner SET owner = ? WHERE owner = ?", (f"record:{new}", f"record:{old}"))

    def set_snapshot(self, id: str, snapshot: str | None) -> None:
        self._update(id, "snapshot", snapshot)

    def set_record_type(self, id: str, record_type: str) -> None:
        self._update(id, "record_type", record_type)

    def set_description(self, id: str, description: str) -> None:
        self._update(id, "description", description)

    def set_chains(self, id: str, chain: str, blob_chain: str) -> None:
        with self._db.write() as cursor:
            cursor.execute(
                "UPDATE cache_record SET chain = COALESCE(chain, ?), blob_chain = COALESCE(blob_chain, ?) WHERE id = ?",
                (chain, blob_chain, id),
            )

    def used(self, id: str, now: int) -> None:
        with self._db.write() as cursor:
            cursor.execute("UPDATE cache_record SET last_used = ?, usage_count = usage_count + 1 WHERE id = ?", (now, id))

    def _update(self, id: str, column: str, value: str | None) -> None:
        with self._db.write() as cursor:
            cursor.execute(f"UPDATE cache_record SET {column} = ? WHERE id = ?", (value, id))

    def children(self, id: str) -> list[str]:
        return [row[0] for row in self._db.read("SELECT child FROM cache_parent WHERE parent = ? ORDER BY child", (id,))]

    def snapshot_users(self, snapshot: str) -> list[str]:
        return [row[0] for row in self._db.read("SELECT id FROM cache_record WHERE snapshot = ?", (snapshot,))]

    # Indexes and metadata

    def clear_indexes(self, id: str) -> None:
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM cache_index WHERE id = ?", (id,))

    def indexed(self, text: str) -> list[str]:
        rows = self._db.read(
            "SELECT r.id FROM cache_index i JOIN cache_record r ON r.id = i.id WHERE i.text = ? ORDER BY r.created DESC, r.id",
            (text,),
        )
        return [row[0] for row in rows]

    def indexes(self, id: str) -> list[str]:
        return [row[0] for row in self._db.read("SELECT text FROM cache_index WHERE id = ? ORDER BY text", (id,))]

    def add_index(self, id: str, text: str) -> None:
        with self._db.write() as cursor:
            cursor.execute("INSERT OR IGNORE INTO cache_index VALUES (?, ?)", (text, id))

    def replace_index(self, id: str, text: str) -> None:
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM cache_index WHERE text = ?", (text,))
            cursor.execute("INSERT INTO cache_index VALUES (?, ?)", (text, id))

    def clear_index(self, text: str) -> None:
        with self._db.write() as cursor:
            # `:` is followed by `;` in ASCII: the range is all texts that start with `TEXT:`
            cursor.execute("DELETE FROM cache_index WHERE text = ? OR (text >= ? AND text < ?)", (text, f"{text}:", f"{text};"))

    def meta(self, id: str, key: str) -> bytes | None:
        rows = self._db.read("SELECT value FROM cache_meta WHERE id = ? AND key = ?", (id, key))
        return bytes(rows[0][0]) if rows else None

    def set_meta(self, id: str, key: str, value: bytes | None) -> None:
        with self._db.write() as cursor:
            if value is None:
                cursor.execute("DELETE FROM cache_meta WHERE id = ? AND key = ?", (id, key))
            else:
                cursor.execute("INSERT OR REPLACE INTO cache_meta VALUES (?, ?, ?)", (id, key, value))

    # Blobs

    def blobs(self, id: str) -> list[Blob]:
        """The packed forms of a record's own layer, the first one made first."""
        rows = self._db.read(
            "SELECT digest, media_type, size, annotations, urls FROM cache_blob WHERE id = ? ORDER BY place, digest", (id,)
        )
        return [_blob(*row) for row in rows]

    def add_blob(self, id: str, descriptor: Descriptor, diff_id: str) -> None:
        with self._db.write() as cursor:
            cursor.execute(
                "INSERT OR IGNORE INTO cache_blob SELECT ?, ?, COUNT(*), ?, ?, ?, ? FROM cache_blob WHERE id = ?",
                (
                    id,
                    descriptor.digest,
                    descriptor.media_type,
                    descriptor.size,
                    json.dumps(dict(descriptor.annotations)),
                    json.dumps(descriptor.urls),
                    id,
                ),
            )
            cursor.execute("UPDATE cache_record SET diff_id = COALESCE(diff_id, ?) WHERE id = ?", (diff_id, id))
            cursor.execute("INSERT OR IGNORE INTO blob_owner VALUES (?, ?)", (descriptor.digest, f"record:{id}"))

    def remove_blob(self, id: str, digest: str) -> None:
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM cache_blob WHERE id = ? AND digest = ?", (id, digest))
            cursor.execute("DELETE FROM blob_owner WHERE owner = ? AND digest = ?", (f"record:{id}", digest))

    def sources(self, digest: str) -> tuple[str, ...]:
        rows = self._db.read("SELECT source FROM cache_source WHERE digest = ? ORDER BY place, source", (digest,))
        return tuple(row[0] for row in rows)

    def add_sources(self, digest: str, sources: Sequence[str]) -> None:
        """New ones go first: they were seen last."""
        with self._db.write() as cursor:
            for source in reversed(sources):
                cursor.execute(
                    "INSERT OR REPLACE INTO cache_source"
                    " SELECT ?, ?, COALESCE(MIN(place), 1) - 1 FROM cache_source WHERE digest = ?",
                    (digest, source, digest),
                )

    def forget_sources(self) -> None:
        """Drop the sources of blobs that no record mentions."""
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM cache_source WHERE digest NOT IN (SELECT digest FROM cache_blob)")


def fold(chain: str | None, item: str) -> str:
    """ChainID of image-spec config.md: of one item itself, of more the sha256 of `CHAIN ITEM`."""
    if chain is None:
        return item
    return "sha256:" + hashlib.sha256(f"{chain} {item}".encode()).hexdigest()


def fold_all(items: Iterable[str]) -> str | None:
    chain = None
    for item in items:
        chain = fold(chain, item)
    return chain


def blob_id(digest: str, diff_id: str) -> str:
    """What identifies one blob of one layer: ChainID of (blob, diffID)."""
    return fold(digest, diff_id)


def _record(row: Sequence[object]) -> Record:
    values = dict(zip(_NAMES, row, strict=True))
    values["parents"] = tuple(json.loads(str(values["parents"])))
    values["mutable"] = bool(values["mutable"])
    return Record(**values)  # type: ignore[arg-type]


_NAMES = tuple(name.strip() for name in _COLUMNS.split(","))


def _blob(digest: str, media_type: str, size: int, annotations: str, urls: str) -> Blob:
    descriptor = Descriptor(
        media_type=media_type,
        digest=Digest(digest),
        size=size,
        annotations=MappingProxyType(json.loads(annotations)),
        urls=tuple(json.loads(urls)),
    )
    try:
        compression = compression_of(media_type)
    except KeyError:  # a layer of a type we do not know: never asked for, never repacked
        compression = media_type
    return Blob(descriptor, compression)


__all__ = ["BASE", "DIFF", "LAYER", "MERGE", "SCHEMA", "Blob", "Record", "Records", "blob_id", "fold", "fold_all"]
