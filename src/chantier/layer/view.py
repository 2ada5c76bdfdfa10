# SPDX-License-Identifier: Apache-2.0
"""What overlayfs would show of a stack of directories, seen without mounting it.

Follows the kernel's rules (Documentation/filesystems/overlayfs.rst): the top name wins, directories merge downwards until
another kind of file, a whiteout or an opaque directory stops them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from chantier import kernel
from chantier.errors import UnsupportedError

OPAQUE_XATTRS = ("trusted.overlay.opaque", "user.overlay.opaque")
_REDIRECT_XATTRS = ("trusted.overlay.redirect", "user.overlay.redirect")
_MAX_LINKS = 255


class Node:
    """One path of a view: where it lies, its status, and for a directory all those that are merged into it, top first."""

    __slots__ = ("directories", "info", "path")

    def __init__(self, path: bytes, info: os.stat_result, directories: tuple[bytes, ...] = ()) -> None:
        self.path = path
        self.info = info
        self.directories = directories

    @property
    def is_dir(self) -> bool:
        return bool(self.directories)


class View:
    """A stack of layer directories, top first. `plain` ones are whole trees in which a device 0:0 is nothing special."""

    def __init__(self, layers: Sequence[Path], *, plain: bool = False) -> None:
        self.layers = tuple(os.fsencode(layer) for layer in layers)
        self._plain = plain

    def root(self) -> Node | None:
        """None if there are no layers."""
        if not self.layers:
            return None
        return Node(self.layers[0], os.lstat(self.layers[0]), self.layers)

    def child(self, parent: Node, name: bytes) -> Node | None:
        """The entry `name` of a directory."""
        found: Node | None = None
        merged: list[bytes] = []
        for directory in parent.directories:
            path = directory + b"/" + name
            try:
                info = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not self._plain and kernel.is_whiteout(info):
                break
            if found is None:
                found = Node(path, info)
            if not stat.S_ISDIR(info.st_mode):
                break
            merged.append(path)
            if directory is not parent.directories[-1] and not self._plain and is_opaque(path):
                break
        if found is not None:
            found.directories = tuple(merged)
        return found

    def children(self, node: Node) -> Iterator[tuple[bytes, Node]]:
        """The entries of a directory, sorted by name."""
        names: set[bytes] = set()
        for directory in node.directories:
            names.update(os.listdir(directory))
        for name in sorted(names):
            child = self.child(node, name)
            if child is not None:
                yield name, child

    def lookup(self, path: bytes) -> Node | None:
        """The entry at a relative path, no link followed."""
        node = self.root()
        for name in path.split(b"/"):
            if node is None:
                return None
            if name:
                node = self.child(node, name)
        return node

    def resolve(self, path: bytes, *, follow_last: bool = False) -> tuple[bytes, Node | None]:
        """`path` without symbolic links, as with this view as `/`, and what is there; OSError ELOOP after 255 links."""
        root = self.root()
        todo = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
        names: list[bytes] = []
        nodes: list[Node | None] = []
        links = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                if names:
                    names.pop()
                    nodes.pop()
                continue
            here = nodes[-1] if nodes else root
            node = self.child(here, name) if here is not None else None
            if node is not None and stat.S_ISLNK(node.info.st_mode) and (todo or follow_last):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
                target = os.readlink(node.path)
                if target.startswith(b"/"):
                    names.clear()
                    nodes.clear()
                todo.extend(part for part in reversed(target.split(b"/")) if part not in (b"", b"."))
                continue
            names.append(name)
            nodes.append(node)
        return b"/".join(names), nodes[-1] if nodes else root


def is_opaque(directory: bytes) -> bool:
    """Whether a layer's directory hides what lies below it. UnsupportedError for a redirected one, which we never make."""
    attributes = kernel.list_xattrs(directory)
    if not attributes:
        return False
    if any(name in attributes for name in _REDIRECT_XATTRS):
        raise UnsupportedError("redirect_dir is used but it's not supported in overlayfs differ")
    return any(name in attributes and kernel.get_xattr(directory, name) == b"y" for name in OPAQUE_XATTRS)
