# SPDX-License-Identifier: Apache-2.0
"""What is known of a tree: its entries with their digests, and how they are kept.

A directory's entries are read from the packed form when somebody asks for them, so that one change in a large tree costs what
lies on its way.

    "CI2\\0" and, compressed, the top node. A node: its kind and what follows (1 byte), name, NUL, for a link its target, NUL, then,
    if known, its digest and that of all in it (32 bytes each), the length of what its children take (8 bytes) and how many
    entries lie below (8 bytes), the children in order
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress

FILE, DIR, LINK = 0, 1, 2
_HAS_DIGEST, _HAS_TOTAL, _LISTED, _HAS_CHILDREN = 4, 8, 16, 32
_MAGIC = b"CI2\0"
_MAX_KEPT = 500_000  # entries of a tree that are kept


class Node:
    """One entry. `digest` is that of the file or the directory's header, `total` that of a directory with all in it.

    `children` of a directory that is not `listed` are what was once there, and may be there still.
    """

    __slots__ = ("_children", "_packed", "digest", "kind", "link", "listed", "name", "parent", "total")

    def __init__(self, name: bytes, parent: Node | None, kind: int, link: bytes = b"", digest: bytes = b"") -> None:
        self.name = name
        self.parent = parent
        self.kind = kind
        self.link = link
        self.digest = digest
        self.total = b""
        self.listed = False
        self._children: dict[bytes, Node] = {}
        self._packed: tuple[bytes, int, int, int] | None = None  # bytes, from, to, how many below

    @property
    def children(self) -> dict[bytes, Node]:
        """In the order of their names' bytes, if it is listed."""
        if self._packed is not None:
            data, at, end, _ = self._packed
            while at < end:
                child, at = _unpack(data, at, self)
                self._children[child.name] = child
            self._packed = None
        return self._children

    @children.setter
    def children(self, found: dict[bytes, Node]) -> None:
        self._packed = None
        self._children = found
        self.listed = True

    @property
    def path(self) -> bytes:
        names = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))

    @property
    def below(self) -> int:
        """How many entries are known below it."""
        if self._packed is not None:
            return self._packed[3]
        return len(self._children) + sum(child.below for child in self._children.values() if child.kind == DIR)

    def pack(self, out: bytearray) -> int:
        """Gives how many entries that were, itself counted."""
        flags = (
            self.kind
            | (_HAS_DIGEST if self.digest else 0)
            | (_HAS_TOTAL if self.total else 0)
            | (_LISTED if self.listed else 0)
            | (_HAS_CHILDREN if self._packed is not None or self._children else 0)
        )
        out.append(flags)
        out += self.name + b"\0"
        if self.kind == LINK:
            out += self.link + b"\0"
        out += self.digest + self.total
        if not flags & _HAS_CHILDREN:
            return 1
        start = len(out)
        out += bytes(16)
        if self._packed is not None:
            data, at, end, count = self._packed
            out += data[at:end]
        else:
            count = sum([child.pack(out) for child in self._children.values()])
        out[start : start + 16] = (len(out) - start - 16).to_bytes(8, "little") + count.to_bytes(8, "little")
        return 1 + count


def _unpack(data: bytes, at: int, parent: Node | None) -> tuple[Node, int]:
    """The node at an offset, and where the next one is."""
    flags = data[at]
    end = data.index(b"\0", at + 1)
    made = Node(data[at + 1 : end], parent, flags & 3)
    at = end + 1
    if made.kind == LINK:
        end = data.index(b"\0", at)
        made.link = data[at:end]
        at = end + 1
    if flags & _HAS_DIGEST:
        made.digest = data[at : at + 32]
        at += 32
    if flags & _HAS_TOTAL:
        made.total = data[at : at + 32]
        at += 32
    made.listed = bool(flags & _LISTED)
    if flags & _HAS_CHILDREN:
        size, count = int.from_bytes(data[at : at + 8], "little"), int.from_bytes(data[at + 8 : at + 16], "little")
        at += 16
        made._packed = (data, at, at + size, count)
        at += size
    return made, at


def pack(top: Node) -> bytes | None:
    """All that is known of a tree, for `unpack`; None if that is too much to keep."""
    out = bytearray()
    return _MAGIC + zlib.compress(out, 1) if top.below <= _MAX_KEPT and top.pack(out) else None


def unpack(data: bytes | None) -> Node:
    """A tree of which nothing is known if there is no data, or none this version understands."""
    if data is not None and data.startswith(_MAGIC):
        with suppress(zlib.error, ValueError, IndexError):
            return _unpack(zlib.decompress(data[len(_MAGIC) :]), 0, None)[0]
    return Node(b"", None, DIR)


def update(top: Node, changed: Iterable[bytes], digests: Mapping[bytes, bytes]) -> None:
    """Forget what paths that changed in any way had, and what they counted in; `digests` are those of files as they are now."""
    here, above = top, b""
    _doubt(top)
    for path in changed:
        head, _, name = path.rpartition(b"/")
        if head != above:
            here, above = _directory(top, head), head
        known = here.children
        child = known.get(name)
        if path in digests:
            known[name] = Node(name, here, FILE, digest=digests[path])
        elif child is not None and child.kind == DIR:  # its header; what is in it is told by itself
            child.digest = child.total = b""
        elif child is not None:
            del known[name]


def _directory(top: Node, path: bytes) -> Node:
    """The directory at a path, which is to be listed anew, and counts for nothing any more as those above it do."""
    here = top
    for name in filter(None, path.split(b"/")):
        below = here.children.get(name)
        if below is None or below.kind != DIR:
            below = here.children[name] = Node(name, here, DIR)
            _doubt(here)
        here.total = b""
        here = below
    _doubt(here)
    return here


def _doubt(node: Node) -> None:
    node.total = b""
    node.listed = False


__all__ = ["DIR", "FILE", "LINK", "Node", "pack", "unpack", "update"]
