# SPDX-License-Identifier: Apache-2.0
"""From trees, or from a tar, to a layer blob in one pass: tar, its digest, compression, the blob's digest.

Four things happen at once: this thread walks and reads files, one hashes the tar, several compress, and what they give is
hashed and written in order by this thread again. Hashing and compressing free the GIL. A layer of less than a MiB is done
without any thread.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from chantier.errors import CancelledError_
from chantier.spec import Digest
from chantier.values import dataclass

from .compress import Compressor
from .pack import never, pack_diff

_INLINE = 1 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenLayer:
    """A layer: digest of its tar, digest and size of the blob, size of the tar."""

    diff_id: Digest
    digest: Digest
    size: int
    uncompressed_size: int


class Hasher:
    """SHA-256 of a stream; hashed in a thread of its own once there is enough to be worth it."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.size = 0
        self._queue: queue.Queue[bytes | None] | None = None
        self._thread: threading.Thread | None = None

    def update(self, data: bytes) -> None:
        self.size += len(data)
        if self._queue is None and self.size > _INLINE:
            self._queue = queue.Queue(8)
            self._thread = threading.Thread(target=self._run, args=(self._queue,), name="chantier-hash", daemon=True)
            self._thread.start()
        if self._queue is None:
            self._sha.update(data)
        else:
            self._queue.put(data)

    def digest(self) -> Digest:
        self.close()
        return Digest("sha256:" + self._sha.hexdigest())

    def close(self) -> None:
        """End the thread; to be called also when the work is given up."""
        if self._thread is not None and self._queue is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = self._queue = None

    def _run(self, chunks: queue.Queue[bytes | None]) -> None:
        while (chunk := chunks.get()) is not None:
            self._sha.update(chunk)


class LayerWriter:
    """Takes a tar piece by piece, gives the blob to `write`. A context manager; `finish` returns what was written."""

    def __init__(
        self, write: Callable[[bytes], object], *, compression: str = "gzip", level: int | None = None, threads: int | None = None
    ) -> None:
        self._write_blob = write
        self._tar = Hasher()
        self._blob = hashlib.sha256()
        self._size = 0
        self._plain = compression == "uncompressed"
        self._compressor = Compressor(compression, self._packed, level=level, threads=threads)

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def write(self, data: bytes) -> None:
        self._tar.update(data)
        self._compressor.write(data)

    def finish(self) -> WrittenLayer:
        self._compressor.finish()
        diff_id = self._tar.digest()
        digest = diff_id if self._plain else Digest("sha256:" + self._blob.hexdigest())
        return WrittenLayer(diff_id=diff_id, digest=digest, size=self._size, uncompressed_size=self._tar.size)

    def _packed(self, data: bytes) -> None:
        if not self._plain:
            self._blob.update(data)
        self._size += len(data)
        self._write_blob(data)


def write_layer(
    lower: Sequence[Path],
    upper: Sequence[Path],
    write: Callable[[bytes], object],
    *,
    compression: str = "gzip",
    level: int | None = None,
    threads: int | None = None,
    plain: bool = False,
    cancelled: Callable[[], bool] = never,
) -> WrittenLayer:
    """The layer that turns the stack `lower` into `upper` (directories, top first), as one blob given to `write`.

    The bytes are the same for the same trees, whatever the number of threads.
    """
    with LayerWriter(write, compression=compression, level=level, threads=threads) as writer:
        pack_diff(lower, upper, writer.write, plain=plain, cancelled=cancelled)
        return writer.finish()


def convert_layer(
    tar: BinaryIO,
    write: Callable[[bytes], object],
    *,
    compression: str,
    level: int | None = None,
    threads: int | None = None,
    cancelled: Callable[[], bool] = never,
) -> WrittenLayer:
    """An existing tar (see `decompressor`) as a blob of another compression."""
    with LayerWriter(write, compression=compression, level=level, threads=threads) as writer:
        while chunk := tar.read(_CHUNK):
            if cancelled():
                raise CancelledError_
            writer.write(chunk)
        return writer.finish()
