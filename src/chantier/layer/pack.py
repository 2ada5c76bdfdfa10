# SPDX-License-Identifier: Apache-2.0
"""From changes to the tar of a layer (image-spec, layer.md, "Representing Changes").

Names are relative; a directory comes right before its first entry, even if unchanged, but never the root; deletions are
`.wh.` files with all else zero; owners by number; times in whole seconds; of the extended attributes only
`security.capability`; sockets are left out; the first of several links in this layer is the file, the others are links to it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from chantier import kernel
from chantier.errors import CancelledError_, StoreError

from .diff import DELETE, UNMODIFIED, Changes, changes
from .header import BLOCK, BLOCKDEV, CHARDEV, DIRECTORY, FIFO, HARDLINK, REGULAR, SYMLINK, TRAILER, Entry, encode

_BILLION = 1_000_000_000
_CHUNK = 1 << 20
_TYPES = {
    stat.S_IFREG: REGULAR,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHARDEV,
    stat.S_IFBLK: BLOCKDEV,
    stat.S_IFIFO: FIFO,
}
_NO_XATTRS: Mapping[str, bytes] = {}
_PADDING = [bytes(-size % BLOCK) for size in range(BLOCK)]


def never() -> bool:
    """The `cancelled` of those who are never cancelled."""
    return False


def pack_diff(
    lower: Sequence[Path],
    upper: Sequence[Path],
    out: Callable[[bytes], object],
    *,
    plain: bool = False,
    cancelled: Callable[[], bool] = never,
) -> None:
    """Write the layer that turns the stack `lower` into `upper` (directories, top first): the same bytes for the same trees."""
    pack(changes(lower, upper, plain=plain), out, cancelled=cancelled)


def pack(found: Changes, out: Callable[[bytes], object], *, cancelled: Callable[[], bool] = never) -> None:
    """Write changes as a tar, in pieces of about a MiB."""
    packer = _Packer(found, out, cancelled)
    for change in found.entries:
        if change.kind == DELETE:
            packer.whiteout(change.path)
        else:
            packer.add(change.path, change.info, change.source, unmodified=change.kind == UNMODIFIED)
    packer.finish()


class _Packer:
    def __init__(self, found: Changes, out: Callable[[bytes], object], cancelled: Callable[[], bool]) -> None:
        self._upper = found.upper
        self._out = out
        self._cancelled = cancelled
        self._buffer: list[bytes] = []
        self._held = 0
        self._parents: set[bytes] = {b""}
        self._links: dict[tuple[int, int], bytes] = {}  # inode: the name it was written under
        self._waiting: dict[tuple[int, int], list[bytes]] = {}  # unchanged names of an inode not written yet

    def whiteout(self, path: bytes) -> None:
        head, slash, tail = path.rpartition(b"/")
        self._add_parents(path)
        self._header(Entry(head + slash + b".wh." + tail))

    def add(self, path: bytes, info: os.stat_result, source: bytes, *, unmodified: bool = False) -> None:
        kind = _TYPES.get(stat.S_IFMT(info.st_mode))
        if kind is None:  # a socket
            return
        extra: list[bytes] = []
        target = None
        if info.st_nlink > 1 and kind != DIRECTORY:
            inode = (info.st_dev, info.st_ino)
            target = self._links.get(inode)
            if target is None:
                if unmodified:
                    self._waiting.setdefault(inode, []).append(path)
                    return
                self._links[inode] = path
                extra = self._waiting.pop(inode, [])
        elif unmodified:
            return
        entry = self._entry(path, kind, info, source, target)
        self._add_parents(path)
        if kind == DIRECTORY:
            self._parents.add(path)
        if entry.type == REGULAR and info.st_size:
            self._file(entry, source)
        else:
            self._header(entry)
        for name in extra:
            self._add_parents(name)
            self._header(entry._replace(name=name, type=HARDLINK, link=path, size=0))

    def finish(self) -> None:
        self._write(TRAILER)
        self._flush()

    def _entry(self, path: bytes, kind: bytes, info: os.stat_result, source: bytes, target: bytes | None) -> Entry:
        link = b""
        if target is not None:
            link, actual = target, HARDLINK
        else:
            actual = kind
            if kind == SYMLINK:
                link = os.readlink(source)
        xattrs = _NO_XATTRS
        if kind == REGULAR:
            capability = kernel.get_xattr(source, "security.capability")
            if capability is not None:
                xattrs = {"security.capability": capability}
        device = info.st_rdev if kind in (CHARDEV, BLOCKDEV) else 0
        return Entry(
            path,
            actual,
            stat.S_IMODE(info.st_mode),
            info.st_uid,
            info.st_gid,
            info.st_size if actual == REGULAR else 0,
            info.st_mtime_ns // _BILLION * _BILLION,
            link,
            os.major(device),
            os.minor(device),
            xattrs,
        )

    def _add_parents(self, path: bytes) -> None:
        parent = path.rpartition(b"/")[0]
        if parent in self._parents:
            return
        node = self._upper.lookup(parent)
        if node is None:
            raise StoreError(f"failed to write layer: {os.fsdecode(parent)!r} vanished")
        self.add(parent, node.info, node.path)

    def _file(self, entry: Entry, source: bytes) -> None:
        self._header(entry)
        left = entry.size
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            while left:
                chunk = os.read(fd, min(left, _CHUNK))
                if not chunk:
                    raise StoreError(f"failed to write layer: {os.fsdecode(source)} became shorter while it was read")
                left -= len(chunk)
                self._write(chunk)
        finally:
            os.close(fd)
        self._write(_PADDING[entry.size % BLOCK])

    def _header(self, entry: Entry) -> None:
        try:
            self._write(encode(entry))
        except ValueError as err:
            raise StoreError(f"failed to write layer: {err}") from err

    def _write(self, data: bytes) -> None:
        if len(data) >= _CHUNK:
            self._flush()
            self._out(data)
            return
        self._buffer.append(data)
        self._held += len(data)
        if self._held >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._cancelled():
            raise CancelledError_
        if self._buffer:
            self._out(b"".join(self._buffer))
            self._buffer.clear()
            self._held = 0
