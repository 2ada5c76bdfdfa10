# SPDX-License-Identifier: Apache-2.0
"""What a layer that was unpacked on its own needs of the layers below it, done once they are there.

Overlayfs takes a directory's owner, mode and times from the top layer that has it. Where a layer's tar does not name the
parents of its files, the made ones must look like those below. And a hard link to a file of a lower layer is, in a layer
directory, a link to a copy of that file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from chantier import kernel
from chantier.errors import IntegrityError

from .metadata import failure
from .unpack import Pending
from .view import OPAQUE_XATTRS, Node, View

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def finish_layer(into: Path, lowers: Sequence[Path], pending: Pending) -> None:
    """Complete the layer directory `into` that lies on `lowers` (top first). To be called bottom layer first.

    IntegrityError if a hard link's target is nowhere.
    """
    view = View(lowers)
    root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        links = _Links(root, into, view)
        for path, target in pending.links:
            links.make(path, target)
        _follow_links(into, view, pending)
        if pending.opaque_root:
            _hide_all(into, view)
        _drop_whiteouts(into, lowers, pending)
        # Last, and children first: all of the above changes directories' times.
        for path in sorted({*pending.directories, *links.made}, key=lambda path: (path.count(b"/"), path), reverse=True):
            below = view.lookup(path)
            if below is not None and below.is_dir:
                _copy_directory(root, path, below)
    except OSError as err:
        raise failure("failed to finish layer", err) from err
    finally:
        os.close(root)


def _copy_directory(root: int, path: bytes, below: Node) -> None:
    try:
        fd = kernel.open_in_root(root, path or b".", _OPEN_DIR)
    except (FileNotFoundError, NotADirectoryError):  # moved to where a link below points
        return
    try:
        copy_metadata(below, fd)
    finally:
        os.close(fd)


def copy_metadata(source: Node, fd: int) -> None:
    """Owner, attributes (but overlayfs's own), mode and times of `source`."""
    info = source.info
    os.fchown(fd, info.st_uid, info.st_gid)
    for name in kernel.list_xattrs(source.path):
        value = None if name.startswith(("trusted.overlay.", "user.overlay.")) else kernel.get_xattr(source.path, name)
        if value is not None:
            kernel.set_xattr(fd, name, value)
    os.fchmod(fd, stat.S_IMODE(info.st_mode))
    os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))


class _Links:
    """Hard links whose targets lie below: the target is copied up, at its own path, then linked."""

    def __init__(self, root: int, into: Path, view: View) -> None:
        self._root = root
        self._view = view
        self._upper = View((into,))
        self._upper_plain = View((into,), plain=True)
        self.made: list[bytes] = []  # directories

    def make(self, path: bytes, target: bytes) -> None:
        place, name = self._directory(path)
        try:
            if self._upper_plain.lookup(target) is None:
                target = self._copy_up(path, target)
            elif self._upper.lookup(target) is None:
                raise self._missing(path, target)
            where, old = self._directory(target)
            try:
                os.link(old, name, src_dir_fd=where, dst_dir_fd=place, follow_symlinks=False)
            finally:
                os.close(where)
        finally:
            os.close(place)

    def _missing(self, path: bytes, target: bytes) -> IntegrityError:
        return IntegrityError(
            f"failed to unpack {os.fsdecode(path)!r}: the target {os.fsdecode(target)!r} of the hard link is missing"
        )

    def _directory(self, path: bytes) -> tuple[int, bytes]:
        head, _, name = path.rpartition(b"/")
        return kernel.open_in_root(self._root, head or b".", os.O_RDONLY | os.O_DIRECTORY), name

    def _copy_up(self, path: bytes, target: bytes) -> bytes:
        """Copy the file `target` of a lower layer; returns its path without links."""
        real, node = self._view.resolve(target)
        if node is None or node.is_dir:
            raise self._missing(path, target)
        if real != target and self._upper_plain.lookup(real) is not None:
            return real  # copied for an earlier link
        head, _, name = real.rpartition(b"/")
        place = self._parents(head)
        try:
            _copy_file(node, place, name)
        finally:
            os.close(place)
        return real

    def _parents(self, head: bytes) -> int:
        names = head.split(b"/") if head else []
        for count in range(1, len(names) + 1):
            path = b"/".join(names[:count])
            if self._upper_plain.lookup(path) is None:
                fd = kernel.makedirs_in_root(self._root, path, 0o755)
                os.close(fd)
                self.made.append(path)
        return kernel.open_in_root(self._root, head or b".", os.O_RDONLY | os.O_DIRECTORY)


def _copy_file(node: Node, place: int, name: bytes) -> None:
    info = node.info
    if stat.S_ISREG(info.st_mode):
        src = os.open(node.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            dst = os.open(name, _CREATE, 0o600, dir_fd=place)
            try:
                kernel.copy_file(src, dst, info.st_size)
                copy_metadata(node, dst)
            finally:
                os.close(dst)
        finally:
            os.close(src)
        return
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(node.path), name, dir_fd=place)
    else:
        kernel.mknod(name, info.st_mode, info.st_rdev, dir_fd=place)
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=place)
    os.chown(name, info.st_uid, info.st_gid, dir_fd=place, follow_symlinks=False)
    os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=place, follow_symlinks=False)


def _drop_whiteouts(into: Path, lowers: Sequence[Path], pending: Pending) -> None:
    """Remove those that hide nothing: in a directory that is in one layer only, overlayfs would list them as files."""
    stack = View((into, *lowers))
    for path in pending.whiteouts:
        head, _, name = path.rpartition(b"/")
        place = os.path.join(os.fsencode(into), path)
        try:
            if not kernel.is_whiteout(os.lstat(place)):
                continue
        except (FileNotFoundError, NotADirectoryError):
            continue
        parent = stack.lookup(head)
        below = Node(parent.path, parent.info, parent.directories[1:]) if parent is not None else None
        if below is None or stack.child(below, name) is None:
            os.unlink(place)


def _hide_all(into: Path, view: View) -> None:
    """Delete whatever is below: overlayfs merges the roots of all layers, so it is done name by name."""
    root = view.root()
    opaque = OPAQUE_XATTRS[1] if kernel.in_user_namespace() else OPAQUE_XATTRS[0]
    for name, node in view.children(root) if root is not None else ():
        path = os.path.join(os.fsencode(into), name)
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            kernel.mknod(path, stat.S_IFCHR, kernel.WHITEOUT_DEV)
        else:
            if stat.S_ISDIR(info.st_mode) and node.is_dir:
                kernel.set_xattr(path, opaque, b"y")


def _follow_links(into: Path, view: View, pending: Pending) -> None:
    """Where a made parent is a symbolic link below (`lib` of a merged /usr), its files belong where the link points."""
    for path in sorted(pending.directories, key=lambda path: path.count(b"/")):
        made = os.path.join(os.fsencode(into), path)
        below = view.lookup(path) if path else None
        if below is None or not stat.S_ISLNK(below.info.st_mode) or not os.path.isdir(made):
            continue
        real, target = view.resolve(path, follow_last=True)
        if target is None or not target.is_dir or not real or real == path or real.startswith(path + b"/"):
            continue  # a dangling link: the directory takes its place
        _move(into, view, path, real)


def _move(into: Path, view: View, path: bytes, real: bytes) -> None:
    root = os.fsencode(into)
    names = real.split(b"/")
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for count in range(1, len(names) + 1):
            part = b"/".join(names[:count])
            if not os.path.lexists(os.path.join(root, part)):
                os.mkdir(os.path.join(root, part), 0o755)
                node = view.lookup(part)
                if node is not None and node.is_dir:
                    _copy_directory(fd, part, node)
    finally:
        os.close(fd)
    _merge(os.path.join(root, path), os.path.join(root, real))
    os.rmdir(os.path.join(root, path))


def _merge(source: bytes, target: bytes) -> None:
    """Move all entries; directories that are in both are merged, other files replace."""
    for name in os.listdir(source):
        old, new = os.path.join(source, name), os.path.join(target, name)
        both = os.path.isdir(old) and not os.path.islink(old) and os.path.isdir(new) and not os.path.islink(new)
        if both:
            _merge(old, new)
            os.rmdir(old)
        else:
            os.rename(old, new)
