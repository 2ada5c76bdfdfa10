# SPDX-License-Identifier: Apache-2.0
"""A connection inside a call: the session's HTTP/2 in the BytesMessages of Control.Session (protocol.md 2.1).

Message boundaries mean nothing. What comes in is fed at once, as the inner windows bound it; what goes out waits for the
outer call's window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from .call import Call
from .endpoint import Endpoint
from .status import GrpcError
from .stream import PREFIX_BYTES

_PIECE = 1 << 20
Attach = Callable[[Callable[[bytes], None], Callable[[], None]], Endpoint]


@lru_cache(4096)
def _head(size: int) -> bytes:
    """How a BytesMessage of this size begins, as all write it: the tag of `data`, the length of the rest. Empty: there is none."""
    for width in range(1, 6):
        length = size - 1 - width
        if length >= 0 and (length.bit_length() + 6) // 7 == width:
            return b"\n" + bytes(length >> 7 * n & 127 | (128 if n < width - 1 else 0) for n in range(width))
    return b""


class Tunnel:
    """`attach` makes the inner endpoint from `write` and `hang_up`; `message` is the class with the field `data`."""

    def __init__(self, call: Call, attach: Attach, message: Any) -> None:
        self._call = call
        self._message = message
        self._over = False
        self.endpoint = attach(self._write, self._hang_up)
        call.on_writable = self.endpoint.resume

    async def run(self) -> None:
        """Carry bytes in until either side ends. The inner connection is over when it returns."""
        reason = "the session was closed"
        try:
            while chunk := await self._call.read_framed(_PIECE):
                self.endpoint.feed(self._carried(chunk))
        except GrpcError as err:
            reason = str(err)
        except asyncio.CancelledError:
            reason = "the other side went away"  # with the outer call, and so its handler
            raise
        finally:
            self._over = True
            self._call.on_writable = None
            self.endpoint.lost(reason)

    def _carried(self, chunk: bytes) -> bytes:
        """The bytes in messages that came with their prefixes: peers put each inner frame into a message of its own."""
        parts, at, size = [], 0, len(chunk)
        while at < size:
            start = at + PREFIX_BYTES
            at = start + int.from_bytes(chunk[at + 1 : start], "big")
            head = _head(at - start)
            plain = bool(head) and chunk.startswith(head, start)
            parts.append(chunk[start + len(head) : at] if plain else self._call.parse(chunk[start:at]).data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _write(self, data: bytes) -> None:
        call = self._call
        if self._over or not call.stream.open_to_write:
            return
        if len(data) <= _PIECE:
            call.send_nowait(self._message(data=data))
        else:
            for at in range(0, len(data), _PIECE):
                call.send_nowait(self._message(data=data[at : at + _PIECE]))
        if call.full:
            self.endpoint.pause()

    def _hang_up(self) -> None:
        self._over = True
        self._call.stop_reading()


__all__ = ["Tunnel"]
