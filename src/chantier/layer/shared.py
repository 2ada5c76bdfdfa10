# SPDX-License-Identifier: Apache-2.0
"""Which files of a layer are further names of files elsewhere: of a tree kept for a client's directory (docs/adr/0010).

    ROOT/snapshots/ID/shared    inode numbers, 8 bytes each, little endian; `*` alone stands for all files there may be

Two paths of one stack that are one inode are "the same file" to what runs on it, though its image has two. So whoever adds
names to a stack first asks which inodes it has.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

_NAME = "shared"
_ALL = b"*"


class Inodes:
    """A set of inode numbers that may be everything. Changed in place."""

    __slots__ = ("all", "numbers")

    def __init__(self, numbers: Iterable[int] = (), *, all: bool = False) -> None:
        self.numbers = set(numbers)
        self.all = all

    def __contains__(self, inode: int) -> bool:
        return self.all or inode in self.numbers

    def __bool__(self) -> bool:
        return self.all or bool(self.numbers)

    def add(self, other: Inodes) -> None:
        self.numbers |= other.numbers
        self.all = self.all or other.all


def read_shared(layers: Sequence[Path]) -> Inodes:
    """The shared inodes of a stack of layer directories (`Snapshotter.layers`)."""
    found = Inodes()
    for layer in layers:
        try:
            data = (layer.parent / _NAME).read_bytes()
        except FileNotFoundError:
            continue
        if data == _ALL:
            found.all = True
        else:
            numbers = array("Q", data)
            if sys.byteorder == "big":
                numbers.byteswap()
            found.numbers.update(numbers)
    return found


def write_shared(upper: Path, inodes: Inodes) -> None:
    """Note them of a snapshot that is not committed yet (`Snapshotter.upper`). Atomic."""
    numbers = array("Q", sorted(inodes.numbers))
    if sys.byteorder == "big":
        numbers.byteswap()
    fresh = upper.parent / f".{_NAME}"
    fresh.write_bytes(_ALL if inodes.all else numbers.tobytes())
    os.replace(fresh, upper.parent / _NAME)


__all__ = ["Inodes", "read_shared", "write_shared"]
