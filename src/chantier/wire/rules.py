# SPDX-License-Identifier: Apache-2.0
"""What a peer may not do (RFC 9113), and how often it may do what moves nothing."""

from __future__ import annotations

from collections.abc import Callable

from . import frames as h2
from .headers import HeaderList


class ProtocolError(Exception):
    """The peer broke the protocol: the connection ends with `code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamError(Exception):
    """One message is malformed: its stream ends with `code`, the connection goes on."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Bucket:
    """Allows `burst` at once and `rate` a second for long."""

    __slots__ = ("_burst", "_clock", "_rate", "_then", "level")

    def __init__(self, burst: int, rate: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._then = clock()
        self.level = 0.0

    def add(self, amount: int = 1) -> bool:
        """False once there is too much."""
        self.level += amount
        if self.level > self._burst:
            now = self._clock()
            self.level = max(0.0, self.level - (now - self._then) * self._rate)
            self._then = now
        return self.level <= self._burst

    def relieve(self, amount: int) -> None:
        if self.level:
            self.level = max(0.0, self.level - amount)


def unpad(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(h2.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})


def check_headers(headers: HeaderList, *, trailers: bool) -> None:
    """Raises StreamError for what makes a message malformed (section 8.2 and 8.3)."""
    seen: set[bytes] = set()
    plain = False
    for name, value in headers:
        if name[:1] == b":":
            if plain or trailers or name in seen:
                raise StreamError(h2.PROTOCOL_ERROR, f"misplaced pseudo-header {name!r}")
            seen.add(name)
            continue
        plain = True
        if not name or name != name.lower() or name in _HOP or (name == b"te" and value.lower() != b"trailers"):
            raise StreamError(h2.PROTOCOL_ERROR, f"invalid header {name!r}")


def check_request(headers: HeaderList) -> None:
    for name in (b":method", b":scheme", b":path"):
        if not _pseudo(headers, name):
            raise StreamError(h2.PROTOCOL_ERROR, f"a request without {name.decode()}")
    if _pseudo(headers, b":status") is not None:
        raise StreamError(h2.PROTOCOL_ERROR, "a request with :status")


def interim(headers: HeaderList) -> bool:
    """Whether these headers of a response announce another (1xx, section 8.1)."""
    status = _pseudo(headers, b":status")
    if status is None or len(status) != 3 or not status.isdigit():
        raise StreamError(h2.PROTOCOL_ERROR, "a response without status")
    return status[:1] == b"1"


def _pseudo(headers: HeaderList, name: bytes) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value
    return None


__all__ = ["Bucket", "ProtocolError", "StreamError", "check_headers", "check_request", "interim", "unpad"]
