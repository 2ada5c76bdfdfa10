# SPDX-License-Identifier: Apache-2.0
"""Header lists and metadata: what goes into a header block, and gRPC's way of putting values into headers.

Blocks we write use HPACK's static table and literals only (RFC 7541 6.2.2): nothing then depends on the order in which blocks
are written, and the peer keeps no table for us. Blocks we read are decoded by `hpack`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from hpack.table import HeaderTable

HeaderList = list[tuple[bytes, bytes]]
MetadataValue = str | bytes
MetadataLike = Mapping[str, MetadataValue] | Iterable[tuple[str, MetadataValue]]

# RFC 7541 6.3: our table has size zero, said at the start of a connection's first block.
TABLE_SIZE_ZERO = b"\x20"
_STATIC: dict[bytes, int] = {}
_STATIC_PAIR: dict[tuple[bytes, bytes], int] = {}
for _i, (_name, _value) in enumerate(HeaderTable.STATIC_TABLE, 1):
    _STATIC.setdefault(_name, _i)
    _STATIC_PAIR[_name, _value] = _i

_KEY = re.compile(r"[0-9a-z_.-]+")
_NOT_PLAIN = re.compile(rb"[^\x20-\x24\x26-\x7e]")
_CACHED_VALUE = 256


def _integer(value: int, bits: int, first: int) -> bytes:
    """RFC 7541 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    out = bytearray((first | most,))
    value -= most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(name: bytes, value: bytes) -> bytes:
    pair = _STATIC_PAIR.get((name, value))
    if pair is not None:
        return _integer(pair, 7, 0x80)
    index = _STATIC.get(name)
    head = _integer(index, 4, 0) if index is not None else b"\0" + _integer(len(name), 7, 0) + name
    return head + _integer(len(value), 7, 0) + value


_cached_field = lru_cache(4096)(_field)


def encode(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A header block that any decoder reads without a dynamic table."""
    return b"".join([_cached_field(n, v) if len(v) < _CACHED_VALUE else _field(n, v) for n, v in headers])


def list_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The size MAX_HEADER_LIST_SIZE speaks of (RFC 9113 10.5.1)."""
    return sum(len(n) + len(v) + 32 for n, v in headers)


class Metadata:
    """Names and values of a call, in order; a name may stand several times. Values of names in `-bin` are bytes."""

    __slots__ = ("_items",)

    def __init__(self, items: MetadataLike = ()) -> None:
        pairs = items.items() if isinstance(items, Mapping) else items
        self._items = [(key.lower(), value) for key, value in pairs]

    def __iter__(self) -> Iterator[tuple[str, MetadataValue]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: str) -> bool:
        return any(name == key for name, _ in self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metadata) and self._items == other._items

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Metadata({self._items!r})"

    def add(self, key: str, value: MetadataValue) -> None:
        self._items.append((key.lower(), value))

    def text(self, key: str, default: str = "") -> str:
        """The first value of a name whose values are text."""
        for name, value in self._items:
            if name == key and isinstance(value, str):
                return value
        return default

    def texts(self, key: str) -> list[str]:
        return [value for name, value in self._items if name == key and isinstance(value, str)]

    def binary(self, key: str) -> bytes | None:
        for name, value in self._items:
            if name == key and isinstance(value, bytes):
                return value
        return None


def encode_metadata(items: MetadataLike | Metadata) -> HeaderList:
    """Raises ValueError for a name no header may have."""
    out: HeaderList = []
    for key, value in items.items() if isinstance(items, Mapping) else items:
        name = key.lower()
        if not _KEY.fullmatch(name) or name.startswith("grpc-"):
            raise ValueError(f"invalid metadata key {key!r}")
        if name.endswith("-bin"):
            raw = value.encode() if isinstance(value, str) else value
            out.append((name.encode(), base64.b64encode(raw).rstrip(b"=")))
        else:
            text = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
            if b"\n" in text or b"\r" in text or b"\0" in text:
                raise ValueError(f"invalid metadata value of {key}: {value!r}")
            out.append((name.encode(), text.strip(b" ")))
    return out


_RESERVED = frozenset({b"content-type", b"te", b"user-agent", b"trailer", b"grpc-encoding", b"grpc-accept-encoding"})
_STATUS = frozenset({b"grpc-status", b"grpc-message", b"grpc-status-details-bin", b"grpc-timeout", b"grpc-message-type"})


def decode_metadata(headers: HeaderList) -> Metadata:
    """What of a header list is metadata. Bad base64 is left out, as it cannot be told from other text."""
    found = Metadata()
    for name, value in headers:
        if name[:1] == b":" or name in _RESERVED or name in _STATUS:
            continue
        key = name.decode("utf-8", "replace")
        if name.endswith(b"-bin"):
            for part in value.split(b","):
                raw = from_base64(part)
                if raw is not None:
                    found.add(key, raw)
        else:
            found.add(key, value.decode("utf-8", "surrogateescape"))
    return found


def from_base64(text: bytes) -> bytes | None:
    text = text.strip(b" ").rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return None


def percent_encode(text: str) -> bytes:
    """grpc-message: all but printable ASCII, and `%`."""
    return _NOT_PLAIN.sub(lambda m: b"%%%02X" % m.group()[0], text.encode("utf-8", "replace"))


def percent_decode(text: bytes) -> str:
    return unquote_to_bytes(text).decode("utf-8", "replace")


_UNITS = ((b"n", 1e-9), (b"u", 1e-6), (b"m", 1e-3), (b"S", 1.0), (b"M", 60.0), (b"H", 3600.0))
_SECONDS = dict(_UNITS)


def encode_timeout(seconds: float) -> bytes:
    """grpc-timeout: at most eight digits, rounded up."""
    if seconds <= 0:
        return b"0n"
    for unit, size in _UNITS:
        amount = -int(-seconds // size)
        if amount < 100_000_000:
            return b"%d%s" % (amount, unit)
    return b"99999999H"


def decode_timeout(text: bytes) -> float | None:
    """None for what is no timeout."""
    digits, unit = text[:-1], text[-1:]
    if not 1 <= len(digits) <= 8 or not digits.isdigit() or unit not in _SECONDS:
        return None
    return int(digits) * _SECONDS[unit]


__all__ = [
    "TABLE_SIZE_ZERO",
    "HeaderList",
    "Metadata",
    "MetadataLike",
    "MetadataValue",
    "decode_metadata",
    "decode_timeout",
    "encode",
    "encode_metadata",
    "encode_timeout",
    "from_base64",
    "list_bytes",
    "percent_decode",
    "percent_encode",
]
