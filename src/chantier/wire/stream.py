# SPDX-License-Identifier: Apache-2.0
"""One stream of a connection: its windows, what came in and is not read yet, what is to go out."""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from chantier.values import dataclass

from .headers import HeaderList
from .status import INTERNAL, RESOURCE_EXHAUSTED, UNIMPLEMENTED, GrpcError

if TYPE_CHECKING:
    from .connection import Connection

_PREFIX = struct.Struct(">BI")
PREFIX_BYTES = 5
_SMALL = 512  # chunks below this are gathered: each bytes object costs some 35 bytes more than it holds


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Reset:
    """Why a stream ended before its time. `by_peer` False: we ended it, or the connection did, with `reason`."""

    code: int
    by_peer: bool
    reason: str = ""
    refused: bool = False  # the peer says it did nothing with it


class Stream:
    """State is read by whoever holds it; `changed` is called when there is more to read, `writable` when there is room again."""

    __slots__ = (
        "changed",
        "conn",
        "declared_encoding",
        "headers",
        "id",
        "inbox",
        "inbox_bytes",
        "local_closed",
        "out",
        "out_bytes",
        "out_end",
        "out_pos",
        "recv_window",
        "remote_closed",
        "reset",
        "send_window",
        "trailers",
        "unread",
        "writable",
    )

    def __init__(self, conn: Connection, id: int, recv_window: int, send_window: int) -> None:
        self.conn = conn
        self.id = id
        self.recv_window = recv_window  # what the peer may still send
        self.send_window = send_window
        self.headers: HeaderList | None = None
        self.trailers: HeaderList | None = None
        self.declared_encoding = b"identity"
        self.inbox: deque[bytes | bytearray] = deque()
        self.inbox_bytes = 0
        self.unread = 0  # bytes that came and were not consumed: those of the inbox, and those a reader holds
        self.out: deque[bytes | memoryview] = deque()
        self.out_bytes = 0
        self.out_pos = 0  # how much of out[0] is gone
        self.out_end: list[bytes] | None = None  # None: not yet; []: end of stream; [block]: trailers
        self.local_closed = False  # the end is written
        self.remote_closed = False
        self.reset: Reset | None = None
        self.changed: Callable[[], None] = _nothing
        self.writable: Callable[[], None] = _nothing

    # -- sending

    @property
    def open_to_write(self) -> bool:
        return self.reset is None and self.out_end is None

    def write(self, message: bytes, *, compressed: bool = False) -> None:
        """Queue one gRPC message."""
        out = self.out
        out.append(_PREFIX.pack(compressed, len(message)))
        out.append(message)
        self.out_bytes += PREFIX_BYTES + len(message)
        self.conn.ready_to_send(self)

    def write_framed(self, messages: bytes) -> None:
        """Queue gRPC messages that have their prefixes."""
        self.out.append(messages)
        self.out_bytes += len(messages)
        self.conn.ready_to_send(self)

    def end(self, trailers: bytes | None = None) -> None:
        """Nothing more comes from this side; `trailers` is a header block. Goes out after what is queued."""
        if self.open_to_write:
            self.out_end = [] if trailers is None else [trailers]
            self.conn.ready_to_send(self)

    @property
    def full(self) -> bool:
        return self.out_bytes > self.conn.limits.stream_buffer_bytes

    def take(self, amount: int) -> bytes:
        """The next bytes to send, at most `amount`."""
        out = self.out
        if amount >= self.out_bytes:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self.out_bytes = 0
            return bytes(data)
        parts = []
        left = amount
        while left:
            part = out[0]
            size = len(part)
            if size <= left:
                parts.append(part)
                out.popleft()
                left -= size
            else:
                view = memoryview(part)
                parts.append(view[:left])
                out[0] = view[left:]
                left = 0
        self.out_bytes -= amount
        return b"".join(parts)

    def drop_output(self) -> None:
        self.out.clear()
        self.out_bytes = 0

    # -- receiving

    def deliver(self, data: bytes) -> None:
        size = len(data)
        self.inbox_bytes += size
        self.unread += size
        self.conn.unread += size
        inbox = self.inbox
        if size >= _SMALL:
            inbox.append(data)
        elif inbox and type(inbox[-1]) is bytearray and len(inbox[-1]) < 65536:
            inbox[-1] += data
        else:
            inbox.append(bytearray(data))

    def take_inbox(self) -> deque[bytes | bytearray]:
        """All that came; the reader says with `consumed` when it is done with it."""
        taken, self.inbox = self.inbox, deque()
        self.inbox_bytes = 0
        return taken

    def consumed(self, size: int) -> None:
        """Let the peer send that much again."""
        self.unread -= size
        self.conn.consumed(self, size)

    def discard(self) -> None:
        """Nobody will read what came, nor what comes."""
        self.inbox.clear()
        self.inbox_bytes = 0
        if self.unread:
            self.consumed(self.unread)

    @property
    def finished_reading(self) -> bool:
        """Nothing more will come in."""
        return self.remote_closed or self.reset is not None


class MessageReader:
    """Cuts a stream's bytes into gRPC messages, as they are asked for: what is not asked for keeps its share of the window."""

    __slots__ = ("_at", "_data", "_limit", "_owed", "_part_bytes", "_parts", "_stream", "_wanted")

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._data: bytes | bytearray = b""
        self._at = 0
        self._parts: list[bytes | bytearray] = []  # of a message that is not whole yet
        self._part_bytes = 0
        self._wanted = PREFIX_BYTES
        self._owed = 0  # of the message that is not whole yet, what was given back already

    def next(self) -> bytes | None:
        """A whole message, or None: look at the stream whether more can come. Raises GrpcError."""
        while True:
            data, at = self._data, self._at
            have = len(data) - at
            if have >= PREFIX_BYTES:
                flag, size = _PREFIX.unpack_from(data, at)
                end = at + PREFIX_BYTES + size
                if end <= len(data):
                    if size > self._limit:
                        raise self._too_large(size)
                    self._at = end
                    self._settle(end - at)
                    message = bytes(data[at + PREFIX_BYTES : end])
                    return self._decompress(message) if flag else message
                if size > self._limit:
                    raise self._too_large(size)
                self._wanted = PREFIX_BYTES + size
            else:
                self._wanted = PREFIX_BYTES
            if not self._more():
                return None

    def framed(self, most: int) -> bytes:
        """Whole messages, as they came, with their prefixes: those that are there, until they are `most` bytes or more. Empty if
        there is none: see `next`. Raises GrpcError.
        """
        while True:
            data, at = self._data, self._at
            end, have = at, len(data)
            while have - end >= PREFIX_BYTES and end - at < most:
                flag, size = _PREFIX.unpack_from(data, end)
                after = end + PREFIX_BYTES + size
                if flag or size > self._limit or after > have:
                    break
                end = after
            if end > at:
                self._at = end
                self._settle(end - at)
                return bytes(data[at:end])
            self._wanted = PREFIX_BYTES
            if have - at >= PREFIX_BYTES:
                size = _PREFIX.unpack_from(data, at)[1]
                if size > self._limit or at + PREFIX_BYTES + size <= have:  # too large, or compressed
                    message = self.next()
                    return b"" if message is None else _PREFIX.pack(0, len(message)) + message
                self._wanted += size
            if not self._more():
                return b""

    def _more(self) -> bool:
        """Gather until a whole message is there, so that a large one is joined once."""
        stream = self._stream
        if self._at < len(self._data):
            rest = self._data[self._at :]
            self._parts.append(rest)
            self._part_bytes += len(rest)
        self._data, self._at = b"", 0
        if stream.inbox_bytes:
            gathered = stream.inbox_bytes
            self._parts.extend(stream.take_inbox())
            self._part_bytes += gathered
        if self._part_bytes >= self._wanted:
            self._data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts, self._part_bytes = [], 0
            return True
        # The rest of the message may be larger than the window: let it come.
        owed = self._part_bytes - self._owed
        if owed > 0:
            self._owed += owed
            stream.consumed(owed)
        return False

    def _settle(self, size: int) -> None:
        """Give the window back what this message took, less what was given back while it was not whole."""
        if self._owed:
            early = min(self._owed, size)
            self._owed -= early
            size -= early
        if size:
            self._stream.consumed(size)

    @property
    def partial(self) -> bool:
        return bool(self._part_bytes) or self._at < len(self._data)

    def _too_large(self, size: int) -> GrpcError:
        return GrpcError(RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size} vs. {self._limit})")

    def _decompress(self, message: bytes) -> bytes:
        encoding = self._stream.declared_encoding
        if encoding != b"gzip":
            name = encoding.decode("latin-1")
            raise GrpcError(UNIMPLEMENTED, f'grpc: Decompressor is not installed for grpc-encoding "{name}"')
        inflate = zlib.decompressobj(31)
        try:
            data = inflate.decompress(message, self._limit + 1)
        except zlib.error as err:
            raise GrpcError(INTERNAL, f"grpc: failed to decompress the received message: {err}") from err
        if len(data) > self._limit:
            raise GrpcError(RESOURCE_EXHAUSTED, f"grpc: received message after decompression larger than max {self._limit}")
        if not inflate.eof:
            raise GrpcError(INTERNAL, "grpc: failed to decompress the received message: unexpected EOF")
        return data


__all__ = ["PREFIX_BYTES", "MessageReader", "Reset", "Stream"]
