# SPDX-License-Identifier: Apache-2.0
"""What single rows of an index say (see `sync`), by their offsets."""

from __future__ import annotations

import os

from .sync import SIGNATURE
from .walk import Entry


def path_at(rows: bytes | bytearray, offset: int) -> bytes:
    return bytes(rows[offset : rows.index(b"\0", offset)])


def value_at(rows: bytes | bytearray, offset: int) -> bytes:
    """The signature."""
    at = rows.index(b"\0", offset) + 3
    return bytes(rows[at : at + int.from_bytes(rows[at - 2 : at], "little")])


def time_at(rows: bytes | bytearray, offset: int) -> int:
    """When it was modified, nanoseconds."""
    time: int = SIGNATURE.unpack_from(rows, rows.index(b"\0", offset) + 3)[2]
    return time


def entry_at(rows: bytes | bytearray, offset: int) -> Entry:
    """All but its extended attributes, and whether it has any."""
    value = value_at(rows, offset)
    mode, length, mtime_ns, ctime_ns, ino, rdev, hard = SIGNATURE.unpack_from(value)
    return Entry(
        os.fsdecode(path_at(rows, offset)),
        mode,
        size=length,
        mtime_ns=mtime_ns,
        ctime_ns=ctime_ns,
        ino=ino,
        rdev=rdev,
        hard=bool(hard),
        link=os.fsdecode(value[SIGNATURE.size :]),
    )


__all__ = ["entry_at", "path_at", "time_at", "value_at"]
