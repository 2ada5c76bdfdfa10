# SPDX-License-Identifier: Apache-2.0
"""Blobs: files named by digest. A blob that has its name is whole, was verified, and never changes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO, Self

from chantier.errors import CancelledError_, IntegrityError, NotFoundError, ReferenceError_
from chantier.kernel.trace import point
from chantier.spec import Digest, new_id

from .db import Db
from .holds import SCHEMA as HOLDS_SCHEMA
from .holds import hold_for_lease
from .types import BlobInfo
from .unsettled import Unsettled
from .writer import Writer, unlink

SCHEMA = """
CREATE TABLE IF NOT EXISTS blob (
  digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT NOT NULL DEFAULT '', created INTEGER NOT NULL,
  touched INTEGER NOT NULL, labels TEXT NOT NULL DEFAULT '{}') WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blob_owner (
  digest TEXT NOT NULL, owner TEXT NOT NULL, PRIMARY KEY (digest, owner)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS blob_owner_owner ON blob_owner (owner)
"""

GRACE_NS = 600 * 10**9
"""How long a blob that nobody owns is kept after its last use while any build runs."""

_TOUCH_NS = GRACE_NS // 4
_CHUNK = 1 << 20


class BlobStore:
    """The blobs under one root. `root` is the state directory; blobs/ and ingest/ are made in it."""

    def __init__(self, root: Path, db: Db, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._db = db
        self._clock = clock
        self._blobs = root / "blobs"
        self._ingest = root / "ingest"
        for directory in (self._blobs, self._ingest):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        db.ensure(HOLDS_SCHEMA)
        db.ensure(SCHEMA)
        self._unsettled = Unsettled(db)

    # Looking

    def path(self, digest: str) -> Path:
        """Where the blob's file is, or would be."""
        checked = Digest.parse(digest)
        return self._blobs / checked.algorithm / checked.hex[:2] / checked.hex

    def stat(self, digest: str) -> BlobInfo | None:
        """What is known of a blob, or None if it is not here whole. Counts as a use."""
        path = self.path(digest)
        try:
            size = os.stat(path).st_size
        except FileNotFoundError:
            return None
        now = self._clock()
        row = self._row(digest)
        if row is None:
            # Its writer was killed between the rename and the record; or the machine was, and the bytes may not be there.
            if not self._whole(digest):
                unlink(path)
                return None
            self._record(Digest(digest), size, "", {}, now)
            row = (size, "", now, now, "{}")
        if row[0] != size:
            self.delete(digest)
            return None
        if hold_for_lease("blob", digest) and not path.exists():
            return None  # a collection took it before it was held
        if now - row[3] > _TOUCH_NS:
            with self._db.write() as cursor:
                cursor.execute("UPDATE blob SET touched = ? WHERE digest = ?", (now, digest))
        return _info(digest, row)

    def exists(self, digest: str) -> bool:
        return self.stat(digest) is not None

    def open(self, digest: str) -> BinaryIO:
        """The blob's bytes, seekable, not verified again. Raises NotFoundError."""
        if self.stat(digest) is None:
            raise _missing(digest)
        try:
            return open(self.path(digest), "rb")
        except FileNotFoundError:
            raise _missing(digest) from None

    def verified(self, digest: str) -> VerifiedReader:
        """The blob's bytes, once through; reading the last of them raises IntegrityError if they are not the digest's."""
        return VerifiedReader(self.open(digest), Digest(digest))

    def read(self, digest: str, *, limit: int = 32 << 20) -> bytes:
        """All of a small blob. Raises NotFoundError, or IntegrityError if it is damaged or larger than `limit`."""
        with self.verified(digest) as reader:
            data = reader.read(limit + 1)
            if len(data) > limit:
                raise IntegrityError(f"blob {digest} is larger than {limit} bytes")
            reader.read(1)
        return data

    def walk(self) -> Iterator[BlobInfo]:
        """All blobs, by digest."""
        for digest, *row in self._db.read("SELECT digest, size, media_type, created, touched, labels FROM blob ORDER BY digest"):
            yield _info(digest, tuple(row))

    # Writing

    def writer(
        self,
        *,
        key: str | None = None,
        media_type: str = "",
        labels: Mapping[str, str] | None = None,
        on_bytes: Callable[[int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Writer:
        """A place for a new blob. With a key an interrupted writer's bytes are found again, and others with the key wait.

        `on_bytes` is called with the offset after each write.
        """
        if key is None:
            path, fd = self._new_part()
        else:
            path = self._ingest / f"key-{hashlib.sha256(key.encode()).hexdigest()}.part"
            fd = _open_keyed(path, cancelled)
        point("blob.ingest")
        try:
            return Writer(self, fd, path, media_type=media_type, labels=labels or {}, on_bytes=on_bytes)
        except BaseException:
            os.close(fd)
            raise

    def _new_part(self) -> tuple[Path, int]:
        while True:
            path = self._ingest / f"{new_id()}.part"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return path, fd
            os.close(fd)  # a recover() took it for a dead writer's before we held the lock

    def name(self, part: Path, digest: Digest, size: int, media_type: str, labels: Mapping[str, str]) -> None:
        """For writers: give a finished file its name, and record it, in one transaction."""
        with self._db.write():
            os.rename(part, self.path(digest))
            point("blob.renamed")
            self._record(digest, size, media_type, labels, self._clock())
            self._unsettled.note("blob", digest)
            hold_for_lease("blob", digest)

    def put(self, data: bytes, *, media_type: str = "", labels: Mapping[str, str] | None = None) -> Digest:
        """Store a small blob (a manifest, a config)."""
        with self.writer(media_type=media_type, labels=labels) as writer:
            writer.write(data)
            return writer.commit()

    def set_labels(self, digest: str, labels: Mapping[str, str | None]) -> None:
        """Merge labels into those of a blob; None removes one. Raises NotFoundError."""
        with self._db.write() as cursor:
            row = self._row(digest)
            if row is None:
                raise _missing(digest)
            merged = {**json.loads(row[4]), **labels}
            kept = json.dumps({k: v for k, v in merged.items() if v is not None}, sort_keys=True)
            cursor.execute("UPDATE blob SET labels = ? WHERE digest = ?", (kept, digest))

    # Keeping and deleting

    def keep(self, digest: str, owner: str) -> None:
        """Keep a blob as long as `owner` (`record:ID`, `history:ID`, …) is not dropped. The blob need not be here yet."""
        with self._db.write() as cursor:
            cursor.execute("INSERT OR IGNORE INTO blob_owner VALUES (?, ?)", (digest, owner))

    def drop(self, owner: str, digest: str | None = None) -> None:
        """End what `keep` began, for one blob or for all of an owner's."""
        with self._db.write() as cursor:
            if digest is None:
                cursor.execute("DELETE FROM blob_owner WHERE owner = ?", (owner,))
            else:
                cursor.execute("DELETE FROM blob_owner WHERE owner = ? AND digest = ?", (owner, digest))

    def owners(self, digest: str) -> list[str]:
        return [row[0] for row in self._db.read("SELECT owner FROM blob_owner WHERE digest = ? ORDER BY owner", (digest,))]

    def delete(self, digest: str) -> None:
        """Remove a blob, whoever wants it. No error if it is not there."""
        with self._db.write() as cursor:
            trash = self._take_away(cursor, digest)
        unlink(trash)

    def unused(self, *, grace_ns: int = GRACE_NS) -> list[BlobInfo]:
        """Blobs that nobody owns, nobody holds, and that were not used within `grace_ns`."""
        rows = self._db.read(
            "SELECT digest, size, media_type, created, touched, labels FROM blob WHERE touched <= ?"
            " AND NOT EXISTS (SELECT 1 FROM blob_owner o WHERE o.digest = blob.digest)"
            " AND NOT EXISTS (SELECT 1 FROM store_hold h WHERE h.kind = 'blob' AND h.key = blob.digest)",
            (self._clock() - grace_ns,),
        )
        return [_info(digest, tuple(row)) for digest, *row in rows]

    def collect(self, *, grace_ns: int = GRACE_NS) -> int:
        """Delete the unused blobs, each only if it still is unused; returns the bytes freed."""
        freed = 0
        for candidate in self.unused(grace_ns=grace_ns):
            with self._db.write() as cursor:
                still = cursor.execute(
                    "SELECT 1 FROM blob WHERE digest = ? AND touched <= ?"
                    " AND NOT EXISTS (SELECT 1 FROM blob_owner o WHERE o.digest = blob.digest)"
                    " AND NOT EXISTS (SELECT 1 FROM store_hold h WHERE h.kind = 'blob' AND h.key = blob.digest)",
                    (candidate.digest, self._clock() - grace_ns),
                ).fetchone()
                if still is None:
                    continue
                trash = self._take_away(cursor, candidate.digest)
            unlink(trash)
            freed += candidate.size
        return freed

    def recover(self, *, alone: bool, keep_partial_s: float = 86400) -> None:
        """Remove partial blobs that no live writer has; keyed ones stay resumable for a day. Alone: also match files and rows."""
        for entry in os.scandir(self._ingest):
            fd = -1
            try:
                fd = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                age = time.time() - os.fstat(fd).st_mtime
                if not entry.name.startswith("key-") or age > keep_partial_s or os.fstat(fd).st_size == 0:
                    os.unlink(entry.path)
            except (BlockingIOError, FileNotFoundError):
                pass  # a live writer has it, or had it until now
            finally:
                if fd >= 0:
                    os.close(fd)
        if alone:
            self.reindex()

    def check_lost(self) -> list[str]:
        """Read the blobs that may not have reached the disk before the machine went down; delete and return those that did not."""
        damaged = []
        for digest in self._unsettled.lost("blob"):
            if not self._whole(digest):
                damaged.append(digest)
                self.delete(digest)
            self._unsettled.forget("blob", digest)
        return damaged

    def _whole(self, digest: str) -> bool:
        try:
            with VerifiedReader(open(self.path(digest), "rb"), Digest(digest)) as reader:
                while reader.read(_CHUNK):
                    pass
        except (FileNotFoundError, IntegrityError):
            return False
        return True

    def reindex(self) -> tuple[int, int]:
        """Make rows agree with files: returns how many were added and how many dropped. Files without a row are read."""
        found = dict(self.files())
        known = {info.digest: info.size for info in self.walk()}
        now = self._clock()
        with self._db.write() as cursor:
            gone = [(d,) for d, size in known.items() if found.get(d) != size]
            cursor.executemany("DELETE FROM blob WHERE digest = ?", gone)
            for digest, size in found.items():
                if (digest in known and known[digest] != size) or (digest not in known and not self._whole(digest)):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path(digest))
            new = [(d, size, now, now) for d, size in found.items() if d not in known and self.path(d).exists()]
            cursor.executemany("INSERT OR IGNORE INTO blob (digest, size, created, touched) VALUES (?, ?, ?, ?)", new)
        return len(new), len(gone)

    def files(self) -> Iterator[tuple[Digest, int]]:
        """The digest and size of every file under blobs/, whether or not it is recorded."""
        for directory, _, names in os.walk(self._blobs):
            algorithm = os.path.relpath(directory, self._blobs).partition("/")[0]
            for name in names:
                try:
                    yield Digest.parse(f"{algorithm}:{name}"), os.stat(os.path.join(directory, name)).st_size
                except (FileNotFoundError, ReferenceError_):  # just deleted, or no blob of ours
                    continue

    def _row(self, digest: str) -> tuple[int, str, int, int, str] | None:
        rows = self._db.read("SELECT size, media_type, created, touched, labels FROM blob WHERE digest = ?", (digest,))
        return rows[0] if rows else None

    def _record(self, digest: Digest, size: int, media_type: str, labels: Mapping[str, str], now: int) -> None:
        with self._db.write() as cursor:
            cursor.execute(
                "INSERT INTO blob (digest, size, media_type, created, touched, labels) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (digest) DO UPDATE SET size = excluded.size, touched = excluded.touched,"
                " media_type = CASE excluded.media_type WHEN '' THEN media_type ELSE excluded.media_type END",
                (digest, size, media_type, now, now, json.dumps(dict(labels), sort_keys=True)),
            )

    def _take_away(self, cursor: object, digest: str) -> Path | None:
        """Within a transaction: forget a blob and rename its file away, so that a writer of the same blob brings its own."""
        trash = self._ingest / f"{new_id()}.gone"
        with self._db.write() as inner:
            inner.execute("DELETE FROM blob WHERE digest = ?", (digest,))
            self._unsettled.forget("blob", digest)
            try:
                os.rename(self.path(digest), trash)
            except FileNotFoundError:
                return None
        point("blob.deleting")
        return trash


class VerifiedReader:
    """Reads a stream to its end and compares its digest there."""

    def __init__(self, stream: BinaryIO, digest: Digest) -> None:
        self._stream = stream
        self._digest = digest
        self._hasher = hashlib.new(digest.algorithm)

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._hasher.update(data)
        if size < 0 or (size > 0 and not data):
            self._compare()
        return data

    def readable(self) -> bool:
        return True

    def _compare(self) -> None:
        actual = f"{self._digest.algorithm}:{self._hasher.hexdigest()}"
        if actual != self._digest:
            raise IntegrityError(
                f"stored blob {self._digest} is damaged: its bytes have digest {actual}", hint="run `chantier fsck --repair`"
            )

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _open_keyed(path: Path, cancelled: Callable[[], bool] | None) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass  # its writer committed it meanwhile
        except BlockingIOError:
            if cancelled is not None and cancelled():
                os.close(fd)
                raise CancelledError_ from None
            time.sleep(0.02)
        os.close(fd)


def _info(digest: str, row: tuple[int, str, int, int, str]) -> BlobInfo:
    size, media_type, created, _, labels = row
    return BlobInfo(
        digest=Digest(digest), size=size, media_type=media_type, created=created, labels=MappingProxyType(json.loads(labels))
    )


def _missing(digest: str) -> NotFoundError:
    return NotFoundError(f"blob {digest} is not in the store")


__all__ = ["GRACE_NS", "SCHEMA", "BlobStore", "VerifiedReader"]
