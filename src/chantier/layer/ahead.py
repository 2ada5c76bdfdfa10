# SPDX-License-Identifier: Apache-2.0
"""A tar's bytes, read ahead of who unpacks them."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from chantier.errors import CancelledError_
from chantier.spec import Digest

_CHUNK = 1 << 20
_FIRST = 1 << 18


class StreamError(Exception):
    """An OSError of the stream, on its way past those who would take it for one of the target."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ReadAhead:
    """The chunks of the tar, read, decompressed and hashed ahead in a thread once the tar proves to be more than one chunk."""

    def __init__(self, stream: BinaryIO, cancelled: Callable[[], bool]) -> None:
        self._stream = stream
        self._cancelled = cancelled
        self._sha = hashlib.sha256()
        self._size = 0
        self._chunks: queue.Queue[bytes | BaseException] = queue.Queue(4)
        self._thread: threading.Thread | None = None
        self._first = True
        self._over = False
        self._stop = False

    def __call__(self) -> bytes:
        if self._cancelled():
            raise CancelledError_
        if self._over:
            return b""
        if self._first:
            self._first = False
            try:
                return self._read(_FIRST)
            except OSError as err:
                raise StreamError(err) from err
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="chantier-unpack-read", daemon=True)
            self._thread.start()
        chunk = self._chunks.get()
        if isinstance(chunk, BaseException):
            self._over = True
            raise StreamError(chunk) if isinstance(chunk, OSError) else chunk
        self._over = not chunk
        return chunk

    def digest(self) -> tuple[Digest, int]:
        return Digest("sha256:" + self._sha.hexdigest()), self._size

    def close(self) -> None:
        """End the thread, also half-way."""
        self._stop = True
        while self._thread is not None and self._thread.is_alive():
            with suppress(queue.Empty):
                self._chunks.get(timeout=0.01)

    def _read(self, size: int) -> bytes:
        chunk = self._stream.read(size)
        self._sha.update(chunk)
        self._size += len(chunk)
        return chunk

    def _run(self) -> None:
        try:
            while not self._stop:
                chunk = self._read(_CHUNK)
                self._chunks.put(chunk)
                if not chunk:
                    return
        except BaseException as err:  # raised again where the chunks are taken
            self._chunks.put(err)


__all__ = ["ReadAhead", "StreamError"]
