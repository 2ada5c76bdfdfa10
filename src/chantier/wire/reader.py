# SPDX-License-Identifier: Apache-2.0
"""Bytes of a peer to frames and header blocks (RFC 9113 section 3.4, 4 and 6.10), however they are cut."""

from __future__ import annotations

from typing import Protocol

from hpack import Decoder
from hpack.exceptions import OversizedHeaderListError

from . import frames as h2
from .headers import HeaderList
from .rules import ProtocolError, unpad

_MAX_FRAGMENTS = 512  # CONTINUATION frames of one block; 1 MiB needs 64


class Taker(Protocol):
    """What is done with what was read; each may raise ProtocolError."""

    def on_data(self, flags: int, id: int, payload: bytes) -> None: ...

    def on_run(self, id: int, payloads: list[bytes]) -> None:
        """As `on_data` of each, without flags, none of them empty."""

    def on_headers(self, id: int, headers: HeaderList, end: bool) -> None: ...

    def on_frame(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        """Of the other types, unknown ones too."""

    def on_nothing(self) -> None:
        """A frame that moves nothing."""


class FrameReader:
    """`preface`: the peer is a client, and begins with its preface. Both begin with SETTINGS."""

    def __init__(self, taker: Taker, limits: h2.Limits, *, preface: bool) -> None:
        self.stopped = False  # set by the taker: what still comes is not looked at
        self.frames = 0  # so far
        self._taker = taker
        self._most = limits.frame_bytes
        self._most_headers = limits.header_list_bytes
        self._decoder = Decoder(limits.header_list_bytes)
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = len(h2.PREFACE) if preface else h2.HEADER_SIZE
        self._preface_due = preface
        self._settings_due = True
        self._block: list[bytes] | None = None  # fragments of a header block that goes on
        self._block_bytes = 0
        self._block_head = (0, 0)

    def feed(self, data: bytes) -> bool:
        """Take bytes, as many or few as there are; False while they make no whole frame. Raises ProtocolError."""
        if self._have:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return False
            data = b"".join(self._chunks)
        at = self._parse(data)
        rest = data[at:] if at else data
        self._chunks = [rest] if rest else []
        self._have = len(rest)
        return True

    def _parse(self, data: bytes) -> int:
        at = 0
        size = len(data)
        if self._preface_due:
            if data[: len(h2.PREFACE)] != h2.PREFACE[:size]:
                raise ProtocolError(h2.PROTOCOL_ERROR, "no HTTP/2 preface")
            if size < len(h2.PREFACE):
                return 0
            self._preface_due = False
            at = len(h2.PREFACE)
        unpack = h2.HEADER.unpack_from
        on_data = self._taker.on_data
        most = self._most
        while size - at >= h2.HEADER_SIZE:
            high, low, kind, flags, id = unpack(data, at)
            length: int = high << 8 | low
            if length > most:
                raise ProtocolError(h2.FRAME_SIZE_ERROR, f"frame of {length} bytes, at most {most} are allowed")
            end = at + h2.HEADER_SIZE + length
            if end > size:
                self._need = h2.HEADER_SIZE + length
                return at
            payload = data[at + h2.HEADER_SIZE : end]
            at = end
            if kind != h2.DATA or self._block is not None or self._settings_due:
                self.frames += 1
                self._frame(kind, flags, id & 0x7FFFFFFF, payload)
            elif flags or not payload:
                self.frames += 1
                on_data(flags, id & 0x7FFFFFFF, payload)
            else:
                # Peers put small messages into frames of their own, many in a row.
                run = [payload]
                while size - at >= h2.HEADER_SIZE:
                    high, low, kind, flags, other = unpack(data, at)
                    length = high << 8 | low
                    end = at + h2.HEADER_SIZE + length
                    if kind != h2.DATA or flags or other != id or not length or length > most or end > size:
                        break
                    run.append(data[at + h2.HEADER_SIZE : end])
                    at = end
                self.frames += len(run)
                self._taker.on_run(id & 0x7FFFFFFF, run)
            if self.stopped:
                return at
        self._need = h2.HEADER_SIZE
        return at

    def _frame(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        if self._block is not None:
            if kind != h2.CONTINUATION or id != self._block_head[0]:
                raise ProtocolError(h2.PROTOCOL_ERROR, "a header block was interrupted")
            self._on_continuation(flags, payload)
            return
        if self._settings_due:
            if kind != h2.SETTINGS or flags & h2.ACK:
                raise ProtocolError(h2.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._settings_due = False
        if kind == h2.HEADERS:
            self._on_headers(flags, id, payload)
        elif kind == h2.CONTINUATION:
            raise ProtocolError(h2.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        else:
            self._taker.on_frame(kind, flags, id, payload)

    def _on_headers(self, flags: int, id: int, payload: bytes) -> None:
        if id == 0:
            raise ProtocolError(h2.PROTOCOL_ERROR, "HEADERS for stream 0")
        if flags & h2.PADDED:
            payload = unpad(payload)
        if flags & h2.PRIORITY_FLAG:
            if len(payload) < 5:
                raise ProtocolError(h2.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            payload = payload[5:]
        self._block_head = (id, flags)
        if flags & h2.END_HEADERS:
            self._on_block(payload)
        else:
            self._block = [payload]
            self._block_bytes = len(payload)
            self._check_block()

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        block = self._block
        assert block is not None
        block.append(payload)
        self._block_bytes += len(payload)
        self._check_block()
        if not payload:
            self._taker.on_nothing()
        if flags & h2.END_HEADERS:
            self._block = None
            self._on_block(b"".join(block))

    def _check_block(self) -> None:
        assert self._block is not None
        if self._block_bytes > self._most_headers or len(self._block) > _MAX_FRAGMENTS:
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "header block too large")

    def _on_block(self, block: bytes) -> None:
        try:
            fields = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError as err:
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "header list too large") from err
        except Exception as err:
            # Whatever the decoder trips over, the tables of the two sides differ from now on (RFC 9113 4.3).
            raise ProtocolError(h2.COMPRESSION_ERROR, f"bad header block: {err}") from err
        id, flags = self._block_head
        self._taker.on_headers(id, [(bytes(name), bytes(value)) for name, value in fields], bool(flags & h2.END_STREAM))


__all__ = ["FrameReader", "Taker"]
