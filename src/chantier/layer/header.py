# SPDX-License-Identifier: Apache-2.0
"""One tar entry as a value, and as the bytes Go's archive/tar writes for it when asked for PAX.

That means ustar whenever everything fits (POSIX.1-1988), and a PAX extended header before it only for what does not fit:
names that are long or not ASCII, large numbers, extended attributes (POSIX.1-2001, "pax Interchange Format").
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

REGULAR = b"0"
HARDLINK = b"1"
SYMLINK = b"2"
CHARDEV = b"3"
BLOCKDEV = b"4"
DIRECTORY = b"5"
FIFO = b"6"

BLOCK = 512
TRAILER = bytes(2 * BLOCK)
XATTR = "SCHILY.xattr."
MAX_SPECIAL = 1 << 20  # of one extended header, as in Go

_NO_XATTRS: Mapping[str, bytes] = {}
_LAYOUT = struct.Struct("100s 8s 8s 8s 12s 12s 8s 1s 100s 8s 32s 32s 8s 8s 155s 12x")
_BLANK_CHECKSUM = b" " * 8
_NAME = 100
_PREFIX = 155
_SHORT = 1 << 21  # what seven octal digits hold
_LONG = 1 << 33  # what eleven hold


class Entry(NamedTuple):
    """What a header says. `name` has no slash at its ends, whatever the type; `size` is that of the data that follows."""

    name: bytes
    type: bytes = REGULAR
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[str, bytes] = _NO_XATTRS
    sparse: tuple[tuple[int, int], ...] | None = None  # (offset, length) of the data within a file of `real_size`
    real_size: int = 0


def encode(entry: Entry) -> bytes:
    """The header blocks of `entry`. ValueError for a name that no tar can hold."""
    name = entry.name + b"/" if entry.type == DIRECTORY else entry.name
    seconds = entry.mtime_ns // 1_000_000_000
    if not entry.xattrs and _is_plain(name) and _is_plain(entry.link):
        _, _, _, uid, gid, size, *_ = entry
        if 0 <= uid < _SHORT and 0 <= gid < _SHORT and 0 <= size < _LONG and 0 <= seconds < _LONG:
            return _block(entry, name, b"", seconds)
    records: dict[str, bytes] = {XATTR + key: value for key, value in entry.xattrs.items()}
    prefix, rest = b"", name
    if len(name) > _NAME or not name.isascii():
        split = split_ustar(name)
        if split is None:
            records["path"] = name
        else:
            prefix, rest = split
    link = entry.link
    if len(link) > _NAME or not link.isascii():
        records["linkpath"] = link
    for key, value, width in (("uid", entry.uid, 8), ("gid", entry.gid, 8), ("size", entry.size, 12), ("mtime", seconds, 12)):
        if not _fits(width, value):
            records[key] = b"%d" % value
    if b"\0" in name or b"\0" in link:
        raise ValueError(f"a tar cannot hold the name {name!r}")
    if not records:
        return _block(entry, rest, prefix, seconds)
    if prefix:
        records["path"] = name
    data = b"".join(_record(key, records[key]) for key in sorted(records))
    if len(data) > MAX_SPECIAL:
        raise ValueError(f"the extended header of {name!r} is too long")
    head = _pax_header(name, len(data)) + data + bytes(-len(data) % BLOCK)
    return head + _block(entry._replace(link=_ascii(link)), _ascii(name), b"", seconds)


def _is_plain(name: bytes) -> bool:
    return len(name) <= _NAME and name.isascii() and b"\0" not in name


def split_ustar(name: bytes) -> tuple[bytes, bytes] | None:
    """A long name as ustar's (prefix, name), at the last slash that leaves room; None if there is none."""
    if not name.isascii():
        return None
    length = len(name)
    if length > _PREFIX + 1:
        length = _PREFIX + 1
    elif name.endswith(b"/"):
        length -= 1
    at = name.rfind(b"/", 0, length)
    rest = len(name) - at - 1
    if at <= 0 or rest > _NAME or rest == 0 or at > _PREFIX:
        return None
    return name[:at], name[at + 1 :]


def _block(entry: Entry, name: bytes, prefix: bytes, seconds: int) -> bytes:
    fields = [
        _cut(name),
        _octal(8, entry.mode),
        _octal(8, entry.uid),
        _octal(8, entry.gid),
        _octal(12, entry.size),
        _octal(12, seconds),
        _BLANK_CHECKSUM,
        entry.type,
        _cut(entry.link),
        b"ustar\x0000",
        b"",
        b"",
        _octal(8, entry.major),
        _octal(8, entry.minor),
        prefix,
    ]
    return _sealed(fields)


def _pax_header(name: bytes, size: int) -> bytes:
    head, slash, tail = name.rpartition(b"/")
    head = head.rstrip(b"/")
    place = b"/".join(part for part in (head, b"PaxHeaders.0", tail) if part)
    if slash and not head:
        place = b"/" + place
    place = _ascii(place)[:_NAME].rstrip(b"/")
    zero = _octal(8, 0)
    fields = [place, zero, zero, zero, _octal(12, size), _octal(12, 0), _BLANK_CHECKSUM, b"x", b"", b"ustar\x0000"]
    return _sealed([*fields, b"", b"", b"", b"", b""])


def _sealed(fields: list[bytes]) -> bytes:
    # All is ASCII here, so the sum stays below Adler's modulus, and its low half is the sum of the bytes plus one.
    total = (zlib.adler32(_LAYOUT.pack(*fields)) & 0xFFFF) - 1
    fields[6] = b"%06o\0 " % total
    return _LAYOUT.pack(*fields)


def _cut(name: bytes) -> bytes:
    """A name in 100 bytes. A cut one must not end in `/`: readers that know no PAX would take it for a directory."""
    if len(name) > _NAME and name[_NAME - 1 : _NAME] == b"/":
        return name[:_NAME].rstrip(b"/")
    return name[:_NAME]


def _fits(width: int, value: int) -> bool:
    return 0 <= value < 1 << (width - 1) * 3


@lru_cache(4096)
def _octal(width: int, value: int) -> bytes:
    if not _fits(width, value):
        value = 0
    return b"%0*o\0" % (width - 1, value)


def _ascii(name: bytes) -> bytes:
    """Go's toASCII: what is not ASCII is left out."""
    return name if name.isascii() else bytes(byte for byte in name if byte < 0x80)


def _record(key: str, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where LENGTH counts itself."""
    body = b" %s=%s\n" % (key.encode(), value)
    length = len(body)
    size = length + len(str(length))
    if length + len(str(size)) != size:
        size = length + len(str(size))
    return b"%d%s" % (size, body)
