# SPDX-License-Identifier: Apache-2.0
"""Doing to one tree what was done to another, sharing inodes: the work under MergeOp and DiffOp.

The changes come from the layer room's differ, so a merged tree is exactly what unpacking the inputs' layers one after another
would give. Directories lead to what is in them, with the metadata of the input that changed it last; other files are linked
from where they are, or copied where no link can be made. A deletion leaves a whiteout only if there is something to hide.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from chantier import kernel
from chantier.errors import CancelledError_, StoreError
from chantier.layer.diff import DELETE, UNMODIFIED, Change, Changes
from chantier.layer.shared import read_shared
from chantier.layer.view import Node, View, is_opaque

_NO_LINK = (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP)
_OURS = ("trusted.overlay.", "user.overlay.")
_NOT_COPIED = (*_OURS, "system.", "security.selinux")


def opaque_name() -> str:
    return "user.overlay.opaque" if kernel.in_user_namespace() else "trusted.overlay.opaque"


class Target:
    """A tree that changes are applied to: a directory, and below it (for overlayfs) the layers it lies on, top first."""

    def __init__(self, upper: Path, below: Sequence[Path] = ()) -> None:
        self.taken = read_shared(below)
        """Inodes that the stack has names of: a file that is one of them is copied, or two paths would be the same file."""
        self._upper = os.fsencode(upper)
        self._below = View(below)
        self._nodes: dict[bytes, Node | None] = {}
        self._times: list[tuple[bytes, os.stat_result]] = []
        self._copied: dict[tuple[int, int], bytes] = {}

    def apply(self, found: Changes, *, cancelled: Callable[[], bool]) -> None:
        """Costs one link or copy for each file that changed. Raises CancelledError_."""
        self._copied.clear()  # files of one change set may be one file; those of two are not
        parents: set[bytes] = {b""}
        for change in found.entries:
            if cancelled():
                raise CancelledError_
            if change.kind == UNMODIFIED:
                continue
            self._parents(change.path, found.upper, parents)
            self._one(change)
            if stat.S_ISDIR(change.info.st_mode) and change.kind != DELETE:
                parents.add(change.path)
        # Children first: making them touched their parents' times.
        for path, info in reversed(self._times):
            here = _lstat(path)
            if here is not None and stat.S_ISDIR(here.st_mode):
                kernel.utimens(path, info.st_atime_ns, info.st_mtime_ns)
        self._times.clear()

    def _parents(self, path: bytes, upper: View, done: set[bytes]) -> None:
        parent = path.rpartition(b"/")[0]
        if parent in done:
            return
        self._parents(parent, upper, done)
        node = upper.lookup(parent)
        if node is None:
            raise StoreError(f"failed to combine trees: {os.fsdecode(parent)!r} vanished")
        self._directory(parent, node.path, node.info)
        done.add(parent)

    def _one(self, change: Change) -> None:
        path = self._path(change.path)
        if change.kind == DELETE:
            self._clear(path)
            if self._hidden(change.path) is not None:
                kernel.mknod(path, stat.S_IFCHR, kernel.WHITEOUT_DEV)
        elif stat.S_ISDIR(change.info.st_mode):
            self._directory(change.path, change.source, change.info)
        else:
            self._clear(path)
            self._file(path, change.source, change.info)

    def _path(self, name: bytes) -> bytes:
        return self._upper + b"/" + name

    def _directory(self, name: bytes, source: bytes, info: os.stat_result) -> None:
        path = self._path(name)
        there = _lstat(path)
        if there is None or not stat.S_ISDIR(there.st_mode):
            self._clear(path)
            os.mkdir(path, 0o700)
            below = self._hidden(name)
            if there is not None and below is not None and below.is_dir:
                # What we had here, a whiteout or a file, hid a directory below; this one must go on hiding it.
                kernel.set_xattr(path, opaque_name(), b"y")
                self._nodes.clear()
        _copy_attributes(source, info, path)
        self._times.append((path, info))

    def _file(self, path: bytes, source: bytes, info: os.stat_result) -> None:
        inode = (info.st_dev, info.st_ino)
        if not (info.st_nlink > 1 and info.st_ino in self.taken):
            try:
                os.link(source, path, follow_symlinks=False)
            except OSError as err:
                if err.errno not in _NO_LINK:
                    raise
            else:
                return
        first = self._copied.get(inode)
        if first is not None and _lstat(first) is not None:
            os.link(first, path, follow_symlinks=False)
            return
        kernel.copy_node(source, info, path)
        _copy_attributes(source, info, path)
        kernel.utimens(path, info.st_atime_ns, info.st_mtime_ns)
        self._copied[inode] = path

    def _clear(self, path: bytes) -> None:
        info = _lstat(path)
        if info is None:
            return
        if stat.S_ISDIR(info.st_mode):
            shutil.rmtree(path)
            self._nodes.clear()
        else:
            os.unlink(path)

    def _hidden(self, name: bytes) -> Node | None:
        """What the layers below would show at a name, had we nothing there."""
        parent, _, last = name.rpartition(b"/")
        node = self._node_below(parent)
        return self._below.child(node, last) if node is not None else None

    def _node_below(self, name: bytes) -> Node | None:
        """The directory of the layers below that our directory `name` merges with."""
        if not name:
            return self._below.root()
        if name in self._nodes:
            return self._nodes[name]
        parent, _, last = name.rpartition(b"/")
        node = self._node_below(parent)
        if node is not None:
            own = _lstat(self._path(name))
            hidden = own is not None and (not stat.S_ISDIR(own.st_mode) or is_opaque(self._path(name)))
            found = None if hidden else self._below.child(node, last)
            node = found if found is not None and found.is_dir else None
        self._nodes[name] = node
        return node


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _copy_attributes(source: bytes, info: os.stat_result, path: bytes) -> None:
    os.chown(path, info.st_uid, info.st_gid, follow_symlinks=False)
    wanted = [name for name in kernel.list_xattrs(source) if not name.startswith(_OURS)]
    for name in kernel.list_xattrs(path):
        if name not in wanted and not name.startswith(_NOT_COPIED):
            kernel.remove_xattr(path, name)
    for name in wanted:
        value = kernel.get_xattr(source, name)
        if value is not None:
            kernel.set_xattr(path, name, value)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(path, stat.S_IMODE(info.st_mode))


__all__ = ["Target", "opaque_name"]
