# SPDX-License-Identifier: Apache-2.0
"""One blob being written: bytes go to a file in ingest/, their digest is taken on the way, `commit` gives the file its name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from chantier.errors import DiskFullError, IntegrityError, StoreError
from chantier.kernel.trace import point
from chantier.spec import Digest

if TYPE_CHECKING:
    from .blobs import BlobStore

_CHUNK = 1 << 20


class Writer:
    """One blob being written; hashes as it goes. A context manager: leaving the block without `commit` closes it.

    An unkeyed writer's bytes then go; a keyed one's stay for the next writer with the key, unless `abort` is called.
    """

    def __init__(
        self,
        store: BlobStore,
        fd: int,
        path: Path,
        *,
        media_type: str,
        labels: Mapping[str, str],
        on_bytes: Callable[[int], None] | None,
    ) -> None:
        self._store = store
        self._fd = fd
        self._path = path
        self._hasher = hashlib.sha256()
        self._on_bytes = on_bytes
        self.media_type = media_type
        self.labels = dict(labels)
        self.offset = self._rehash()
        self.resumed = self.offset > 0

    def _rehash(self) -> int:
        os.lseek(self._fd, 0, os.SEEK_SET)
        done = 0
        while chunk := os.read(self._fd, _CHUNK):
            self._hasher.update(chunk)
            done += len(chunk)
        return done

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Append. Raises DiskFullError."""
        if self._fd < 0:
            raise ValueError("write to a closed blob writer")
        view = memoryview(data).cast("B")
        count = len(view)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as err:
            raise translated(err, "write a blob") from err
        self._hasher.update(data)
        self.offset += count
        point("blob.write")
        if self._on_bytes is not None:
            self._on_bytes(self.offset)
        return count

    def restart(self) -> None:
        """Drop what was written so far and begin at offset 0."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hasher = hashlib.sha256()
        self.offset = 0
        self.resumed = False

    def digest(self) -> Digest:
        """Of the bytes so far."""
        return Digest("sha256:" + self._hasher.hexdigest())

    def commit(self, expected: str | None = None, size: int | None = None) -> Digest:
        """Name the blob by its digest. Raises IntegrityError if that is not `expected`, or the size not `size`.

        On such an error the bytes are dropped: they are not worth resuming. Committing a blob that is there already is fine.
        """
        digest = self._checked(expected, size)
        target = self._store.path(digest)
        try:
            os.fchmod(self._fd, 0o444)
            point("blob.whole")
            for directory in (target.parent.parent, target.parent):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o700)
            self._store.name(self._path, digest, self.offset, self.media_type, self.labels)
            point("blob.recorded")
        except OSError as err:
            self.abort()
            raise translated(err, f"store blob {digest}") from err
        self._close()
        return digest

    def _checked(self, expected: str | None, size: int | None) -> Digest:
        digest = self.digest()
        if expected is not None and not expected.startswith("sha256:"):
            digest = self._other_digest(Digest.parse(expected).algorithm)
        if size is not None and self.offset != size:
            self.abort()
            raise IntegrityError(f"blob {expected or digest} has {self.offset} bytes, want {size}")
        if expected is not None and digest != expected:
            self.abort()
            raise IntegrityError(f"blob has digest {digest}, want {expected}")
        return digest

    def _other_digest(self, algorithm: str) -> Digest:
        os.lseek(self._fd, 0, os.SEEK_SET)
        hasher = hashlib.new(algorithm)
        while chunk := os.read(self._fd, _CHUNK):
            hasher.update(chunk)
        return Digest(f"{algorithm}:{hasher.hexdigest()}")

    def abort(self) -> None:
        """Drop the bytes, keyed or not."""
        if self._fd >= 0:
            unlink(self._path)
        self._close()

    def close(self) -> None:
        """End without committing."""
        if self._fd >= 0 and not self._path.name.startswith("key-"):
            unlink(self._path)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def translated(err: OSError, action: str) -> StoreError:
    """An OSError of a write path as one of ours."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"failed to {action}: {err.strerror}", hint="free some space or prune the cache")
    return StoreError(f"failed to {action}: {err}")


def unlink(path: Path | None) -> None:
    if path is None:
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    point("blob.deleted")


__all__ = ["Writer", "translated", "unlink"]
