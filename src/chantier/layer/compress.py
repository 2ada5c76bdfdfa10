# SPDX-License-Identifier: Apache-2.0
"""Compressing and decompressing streams of layers.

gzip is cut into blocks that threads compress at the same time, each with the 32 KiB before it as dictionary, so the result
does not depend on how many threads there are nor on how the bytes arrived (RFC 1951: blocks may be joined at byte borders
after a sync flush). Its header is what Go writes: no name, no time, unknown system (RFC 1952). zstd uses the library's own
workers, at least one, which likewise gives the same bytes for any number.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from chantier.errors import IntegrityError, UnsupportedError, UsageError
from chantier.spec import is_layer

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_GZIP_HEADER = bytes.fromhex("1f8b08000000000000ff")
_BLOCK = 1 << 20
_WINDOW = 1 << 15
_CHUNK = 1 << 18
Sink = Callable[[bytes], object]


def thread_count() -> int:
    """How many threads are of use here: the processors this process may run on."""
    return max(1, len(os.sched_getaffinity(0)))


@cache
def _pool() -> ThreadPoolExecutor:
    # One for all layers that are written at the same time: more threads than processors only use memory.
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(thread_count(), thread_name_prefix="chantier-compress")


class _Coder(Protocol):
    def write(self, data: bytes) -> None: ...
    def finish(self) -> None: ...


class Compressor:
    """Compresses what is written and hands it to `out`. `finish` ends the stream; without it the result is not whole.

    `kind` is gzip, zstd or uncompressed; `level` as upstream's `compression-level` (None: the default).
    """

    def __init__(self, kind: str, out: Sink, *, level: int | None = None, threads: int | None = None) -> None:
        makers: dict[str, Callable[[], _Coder]] = {
            "gzip": lambda: _Gzip(out, level, threads),
            "zstd": lambda: _Zstd(out, level, threads),
            "uncompressed": lambda: _Plain(out),
        }
        if kind not in makers:
            raise UsageError(f"unsupported layer compression type {kind!r}", hint="one of gzip, zstd, uncompressed")
        self._coder = makers[kind]()

    def write(self, data: bytes) -> None:
        self._coder.write(data)

    def finish(self) -> None:
        self._coder.finish()


class _Plain:
    def __init__(self, out: Sink) -> None:
        self._out = out

    def write(self, data: bytes) -> None:
        self._out(data)

    def finish(self) -> None:
        pass


class _Zstd:
    def __init__(self, out: Sink, level: int | None, threads: int | None) -> None:
        zstd = _zstd()
        parameter = zstd.CompressionParameter
        options = {parameter.compression_level: zstd_level(level), parameter.checksum_flag: 1}
        workers = min(threads or thread_count(), 4)
        try:
            self._coder = zstd.ZstdCompressor(options={**options, parameter.nb_workers: workers})
        except (ValueError, zstd.ZstdError):  # a library built without threads
            self._coder = zstd.ZstdCompressor(options=options)
        self._out = out

    def write(self, data: bytes) -> None:
        packed = self._coder.compress(data)
        if packed:
            self._out(packed)

    def finish(self) -> None:
        self._out(self._coder.flush())


def zstd_level(level: int | None) -> int:
    """zstd's own scale; the default is 3. Out of range is the nearest."""
    if level is None or level == -1:
        return 3
    return max(1, min(level, 22))


class _Gzip:
    def __init__(self, out: Sink, level: int | None, threads: int | None) -> None:
        self._out = out
        self._level = gzip_level(level)
        self._ahead = 2 * (threads or thread_count())
        self._alone = threads == 1
        self._held = bytearray()
        self._window = b""
        self._crc = 0
        self._size = 0
        self._pending: deque[Future[bytes]] = deque()
        self._started = False

    def write(self, data: bytes) -> None:
        from isal import isal_zlib

        self._crc = isal_zlib.crc32(data, self._crc)
        self._size += len(data)
        self._held += data
        # One block is always kept: the last is ended differently, and a small layer needs no threads.
        while len(self._held) > _BLOCK:
            block = bytes(self._held[:_BLOCK])
            del self._held[:_BLOCK]
            self._submit(block)

    def finish(self) -> None:
        self._drain(0)
        tail = deflate(bytes(self._held), self._window, self._level, last=True)
        self._start()
        self._out(tail + struct.pack("<LL", self._crc, self._size & 0xFFFFFFFF))

    def _submit(self, block: bytes) -> None:
        self._start()
        window, self._window = self._window, block[-_WINDOW:]
        if self._alone:
            self._out(deflate(block, window, self._level))
            return
        self._pending.append(_pool().submit(deflate, block, window, self._level))
        self._drain(self._ahead)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._out(_GZIP_HEADER)

    def _drain(self, keep: int) -> None:
        while len(self._pending) > keep:
            self._out(self._pending.popleft().result())


def gzip_level(level: int | None) -> int:
    """-2 to 9 as Go has it. The default, -1, is isal's 2: fourteen times as fast as zlib's 6 for an eighth more bytes."""
    if level is None or level == -1:
        return -1
    if not -2 <= level <= 9:
        raise UsageError(f"invalid gzip compression level {level}", hint="from -2 to 9")
    return level


def deflate(data: bytes, window: bytes, level: int, *, last: bool = False) -> bytes:
    """`data` as deflate blocks that end at a byte border, `window` being what stands before them."""
    coder = _deflater(level, window)
    return bytes(coder.compress(data) + coder.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH))


def _deflater(level: int, window: bytes) -> Any:
    options: dict[str, Any] = {"wbits": -zlib.MAX_WBITS}
    if window:
        options["zdict"] = window
    if level in (-1, 1, 2, 3):
        from isal import isal_zlib

        return isal_zlib.compressobj(2 if level == -1 else level, **options)
    if level == -2:
        return zlib.compressobj(6, strategy=zlib.Z_HUFFMAN_ONLY, **options)
    return zlib.compressobj(level, **options)


# --- reading ---

_SKIPPABLE = b"\x2a\x4d\x18"  # of zstd, after a first byte 0x50 to 0x5f (RFC 8878, 3.1.2)


def sniff(head: bytes) -> str:
    """gzip, zstd, bzip2, xz or uncompressed, by the first bytes of a stream (6 are enough)."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (len(head) > 3 and head[0] & 0xF0 == 0x50 and head[1:4] == _SKIPPABLE):
        return "zstd"
    if head.startswith(b"BZh"):
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    return "uncompressed"


def decompressor(stream: BinaryIO, media_type: str | None = None) -> BinaryIO:
    """What is inside `stream`, with `read(n)`. Members and frames one after another are joined.

    The bytes decide, not the media type: registries hold layers that are not what their type says. A type that promises
    compression is only checked to be one that we know. IntegrityError while reading what is damaged or cut off.
    """
    if media_type is not None and not is_layer(media_type):
        raise UnsupportedError(f"unsupported layer media type {media_type!r}")
    head = b""
    while len(head) < 6 and (more := stream.read(6 - len(head))):
        head += more
    kind = sniff(head)
    reader = _Prefixed(head, stream) if kind == "uncompressed" else _Frames(_Prefixed(head, stream), kind)
    return cast("BinaryIO", reader)


class _Prefixed:
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            if size < 0:
                return head + self._stream.read()
            head, self._head = head[:size], head[size:]
            return head + self._stream.read(size - len(head)) if size > len(head) else head
        return self._stream.read(size)

    def close(self) -> None:
        self._stream.close()


class _Frames:
    """A compressed stream, never more than `read` asks for at a time, so that a bomb only costs its own reading."""

    def __init__(self, stream: _Prefixed, kind: str) -> None:
        self._stream = stream
        self._kind = kind
        self._make, self._errors = _decoders(kind)
        self._decoder: Any = self._make()
        self._input = b""
        self._begun = False  # whether the present frame has bytes
        self._ended = False

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            parts = []
            while part := self.read(_BLOCK):
                parts.append(part)
            return b"".join(parts)
        parts = []
        while size and not self._ended:
            part = self._some(size)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        self._stream.close()

    def _some(self, size: int) -> bytes:
        decoder = self._decoder
        if decoder.eof:
            self._next_frame(decoder.unused_data)
            return b""
        if decoder.needs_input and not self._input:
            self._input = self._stream.read(_CHUNK)
            if not self._input:
                if self._begun:
                    raise IntegrityError(f"failed to decompress: the {self._kind} stream is cut off")
                self._ended = True
                return b""
        data, self._input = self._input, b""
        self._begun = self._begun or bool(data)
        try:
            return bytes(decoder.decompress(data, size))
        except self._errors as err:
            raise IntegrityError(f"failed to decompress: the {self._kind} stream is damaged: {err}") from err

    def _next_frame(self, rest: bytes) -> None:
        if self._kind in ("gzip", "bzip2", "xz"):
            rest = rest.lstrip(b"\0")  # padding, as gzip(1) and tape drives leave it
        while not rest:
            rest = self._stream.read(_CHUNK)
            if not rest:
                self._ended = True
                return
            if self._kind in ("gzip", "bzip2", "xz"):
                rest = rest.lstrip(b"\0")
        self._input = rest
        self._decoder = self._make()
        self._begun = True


def _decoders(kind: str) -> tuple[Callable[[], Any], tuple[type[BaseException], ...]]:
    """How to make a decoder with `decompress(data, max_length)`, `eof`, `needs_input` and `unused_data`; what it raises."""
    if kind == "gzip":
        from isal import igzip_lib

        broken: Any = igzip_lib.error  # isal's stub gives it as an instance
        return lambda: igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP), (broken, EOFError)
    if kind == "zstd":
        zstd = _zstd()
        return zstd.ZstdDecompressor, (zstd.ZstdError, EOFError)
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor, (OSError, EOFError, ValueError)
    import lzma

    return lzma.LZMADecompressor, (lzma.LZMAError, EOFError)


def _zstd() -> Any:
    """The standard library's zstd, or its backport before Python 3.14."""
    import importlib

    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UnsupportedError("zstd is not available in this Python", hint="install backports.zstd")
