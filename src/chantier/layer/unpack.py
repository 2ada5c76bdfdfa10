# SPDX-License-Identifier: Apache-2.0
"""From the tar of a layer to files: into a directory that overlayfs will use as a layer, or over the whole tree below it.

The tar is of anybody's making. Every name is resolved inside the target as if it were `/`: `..` stops there, absolute links
start there, a link that a layer brings is followed only inside. Nobody else may write to the target meanwhile.

Layers of one image may be unpacked at the same time, each on its own. What then cannot be known yet, the parents that a
layer does not name and the links to files below it, is returned as `Pending` and done by `finish_layer` once the layers
below are there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from chantier import kernel
from chantier.errors import IntegrityError, UsageError
from chantier.kernel.trace import point
from chantier.spec import Digest
from chantier.values import dataclass

from . import owners
from .ahead import ReadAhead, StreamError
from .header import BLOCKDEV, CHARDEV, DIRECTORY, FIFO, HARDLINK, REGULAR, SYMLINK, Entry
from .metadata import failure, file_time, set_metadata, set_xattrs
from .pack import never
from .reader import TarReader
from .view import OPAQUE_XATTRS

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_META = b".wh..wh."  # aufs's own files at the root of old layers: no part of the image
_CACHED_PARENTS = 64
_DEVICE_KIND = {CHARDEV: stat.S_IFCHR, BLOCKDEV: stat.S_IFBLK, FIFO: stat.S_IFIFO}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What a layer needs of those below it: directories it has no entry for, links (path, target) to files not in it.

    `whiteouts` may prove to hide nothing; `opaque_root`: nothing below may be seen at all.
    """

    directories: tuple[bytes, ...] = ()
    links: tuple[tuple[bytes, bytes], ...] = ()
    whiteouts: tuple[bytes, ...] = ()
    opaque_root: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackResult:
    """`diff_id` and `size` are those of the tar to its very end; `entries` counts its headers."""

    diff_id: Digest
    size: int
    entries: int
    pending: Pending = Pending()


def unpack(
    stream: BinaryIO,
    into: Path,
    *,
    lowers: Sequence[Path] | None = None,
    convert: str = "overlay",
    cancelled: Callable[[], bool] = never,
) -> UnpackResult:
    """Unpack the plain tar `stream` into the directory `into`.

    `convert="overlay"`: `into` is a layer directory; deletions become what overlayfs has for them. `convert="apply"`: `into`
    is a whole tree; deletions delete. `lowers`, the layer directories below (top first, empty for none), finishes the layer at
    once; with None the result's `pending` is for `finish_layer`.

    IntegrityError for what is no proper tar, StoreError (DiskFullError) for what cannot be written, the stream's own errors
    as they are. After an error `into`
    holds a part and is to be thrown away.
    """
    if convert not in ("overlay", "apply"):
        raise UsageError(f"cannot unpack by {convert!r}", hint="overlay or apply")
    source = ReadAhead(stream, cancelled)
    try:
        with _Unpacker(into, overlay=convert == "overlay") as unpacker:
            reader = TarReader(source)
            entries = 0
            for entry in reader:
                entries += 1
                unpacker.add(entry, reader)
                point("unpack.entry")
            reader.drain()
            unpacker.finish()
        digest, size = source.digest()
    except StreamError as err:
        raise err.cause from None
    finally:
        source.close()
    pending = unpacker.pending() if convert == "overlay" else Pending()
    if convert == "overlay" and lowers is not None:
        from .finish import finish_layer

        finish_layer(into, lowers, pending)
        pending = Pending()
    point("unpack.finished")
    return UnpackResult(diff_id=digest, size=size, entries=entries, pending=pending)


class _Parent:
    """An open directory of the target and its path there without links."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path


class _Unpacker:
    def __init__(self, into: Path, *, overlay: bool) -> None:
        self._overlay = overlay
        self._into = into
        self._root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._real_root = os.readlink(b"/proc/self/fd/%d" % self._root)
        self._parents: dict[bytes, _Parent] = {}
        self._directories: dict[bytes, Entry | None] = {}  # made here; None: the tar has no entry for it (yet)
        self._unpacked: set[bytes] = set()  # by this layer: its whiteouts do not concern them
        self._links: dict[bytes, bytes] = {}
        self._whiteouts: set[bytes] = set()
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._always_chown = not overlay or bool(os.fstat(self._root).st_mode & stat.S_ISGID)
        self._opaque_root = False  # overlayfs merges the roots of all layers, whatever their attributes
        self._opaque = OPAQUE_XATTRS[1] if kernel.in_user_namespace() else OPAQUE_XATTRS[0]

    def __enter__(self) -> _Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_parents()
        os.close(self._root)

    def pending(self) -> Pending:
        directories = [path for path, entry in self._directories.items() if entry is None]
        links = tuple(self._links.items())
        whiteouts = tuple(self._whiteouts)
        return Pending(directories=(b"", *directories), links=links, whiteouts=whiteouts, opaque_root=self._opaque_root)

    def add(self, entry: Entry, reader: TarReader) -> None:
        """Write one entry. The root's own entry is left out, as upstream does: a layer may not change it."""
        name = clean(entry.name)
        if not name:
            return
        head, _, base = name.rpartition(b"/")
        if name.startswith(_META) and name != _OPAQUE:
            return
        try:
            if base.startswith(_WHITEOUT):
                self._white_out(head, base)
                return
            parent = self._parent(head)
            path = parent.path + b"/" + base if parent.path else base
            if self._links:
                self._links.pop(path, None)
            self._write(parent, path, base, entry, reader)
            if not self._overlay:
                self._unpacked.add(path)
        except OSError as err:
            raise failure(f"failed to unpack {os.fsdecode(name)!r}", err) from err
        except (OverflowError, ValueError) as err:  # a number or a name that no file system has
            raise IntegrityError(f"failed to unpack {os.fsdecode(name)!r}: {err}") from err

    def finish(self) -> None:
        """Owners, modes, attributes and times of directories: last, for writing into them changes their times."""
        for path, entry in reversed(self._directories.items()):
            try:
                fd = kernel.open_in_root(self._root, path, _OPEN_DIR)
                try:
                    if entry is None:
                        if self._always_chown:
                            os.fchown(fd, self._uid, self._gid)
                        os.fchmod(fd, 0o755)
                    else:
                        set_metadata(fd, entry, self._uid, self._gid, chown=True)
                finally:
                    os.close(fd)
            except OSError as err:
                raise failure(f"failed to unpack {os.fsdecode(path)!r}", err) from err

    # --- one entry ---

    def _write(self, parent: _Parent, path: bytes, base: bytes, entry: Entry, reader: TarReader) -> None:
        kind = entry.type
        if kind == REGULAR:
            self._file(parent, path, base, entry, reader)
        elif kind == DIRECTORY:
            self._directory(parent, path, base, entry)
        elif kind == HARDLINK:
            self._link(parent, path, base, entry)
        elif kind == SYMLINK:
            self._make(parent, path, base, lambda: os.symlink(entry.link, base, dir_fd=parent.fd))
            self._set_by_name(parent, base, entry)
        else:
            self._device(parent, path, base, entry)

    def _file(self, parent: _Parent, path: bytes, base: bytes, entry: Entry, reader: TarReader) -> None:
        try:
            fd = os.open(base, _CREATE, 0o600, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, path, base)
            fd = os.open(base, _CREATE, 0o600, dir_fd=parent.fd)
        try:
            if entry.sparse is not None:
                _write_sparse(fd, entry, reader)
            elif entry.size:
                for chunk in reader.data():
                    kernel.write_all(fd, chunk)
            set_metadata(fd, entry, self._uid, self._gid, chown=self._always_chown)
        finally:
            os.close(fd)

    def _directory(self, parent: _Parent, path: bytes, base: bytes, entry: Entry) -> None:
        opaque = False
        try:
            os.mkdir(base, 0o700, dir_fd=parent.fd)
        except FileExistsError:
            info = os.lstat(base, dir_fd=parent.fd)
            if not stat.S_ISDIR(info.st_mode):
                # In place of a whiteout of this layer: what the directory had below must stay hidden.
                opaque = self._overlay and kernel.is_whiteout(info)
                self._clear(parent, path, base)
                os.mkdir(base, 0o700, dir_fd=parent.fd)
        if opaque:
            kernel.set_xattr(kernel.at(parent.fd, base), self._opaque, b"y")
        # Always the newest place in order: children follow their parents.
        self._directories.pop(path, None)
        self._directories[path] = entry

    def _link(self, parent: _Parent, path: bytes, base: bytes, entry: Entry) -> None:
        target = clean(entry.link)
        if not target:
            raise IntegrityError(f"failed to unpack {os.fsdecode(path)!r}: it is a hard link to the root")
        head, _, name = target.rpartition(b"/")
        try:
            where, real = self._existing(head)
        except (FileNotFoundError, NotADirectoryError):
            where, real = -1, head
        real = real + b"/" + name if real else name
        if real == path:
            if where >= 0:
                os.close(where)
            raise IntegrityError(f"failed to unpack {os.fsdecode(path)!r}: it is a hard link to itself")
        try:
            if where >= 0 and self._linkable(where, name, target):
                self._make(
                    parent, path, base, lambda: os.link(name, base, src_dir_fd=where, dst_dir_fd=parent.fd, follow_symlinks=False)
                )
                return
        finally:
            if where >= 0:
                os.close(where)
        if not self._overlay:
            raise IntegrityError(
                f"failed to unpack {os.fsdecode(path)!r}: the target {os.fsdecode(target)!r} of the hard link is missing"
            )
        with suppress(FileNotFoundError):
            os.lstat(base, dir_fd=parent.fd)
            self._clear(parent, path, base)
        self._links[path] = real

    def _linkable(self, where: int, name: bytes, target: bytes) -> bool:
        try:
            info = os.lstat(name, dir_fd=where)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(info.st_mode):
            raise IntegrityError(f"failed to unpack: a hard link to the directory {os.fsdecode(target)!r}")
        return not (self._overlay and kernel.is_whiteout(info))

    def _device(self, parent: _Parent, path: bytes, base: bytes, entry: Entry) -> None:
        kind = _DEVICE_KIND[entry.type]
        device = 0 if kind == stat.S_IFIFO else os.makedev(entry.major, entry.minor)
        try:
            self._make(parent, path, base, lambda: kernel.mknod(base, kind | 0o600, device, dir_fd=parent.fd))
        except PermissionError:
            if not kernel.in_user_namespace() or kind == stat.S_IFIFO:
                raise
            return  # devices cannot exist in a user namespace: the image is used without, as upstream does
        self._set_by_name(parent, base, entry)

    def _make(self, parent: _Parent, path: bytes, base: bytes, action: Callable[[], None]) -> None:
        try:
            action()
        except FileExistsError:
            self._clear(parent, path, base)
            action()

    def _set_by_name(self, parent: _Parent, base: bytes, entry: Entry) -> None:
        """Metadata of what cannot be opened: links and devices."""
        owner = owners.held(entry.uid, entry.gid)
        if self._always_chown or owner != (self._uid, self._gid):
            os.chown(base, *owner, dir_fd=parent.fd, follow_symlinks=False)
        if entry.xattrs:
            set_xattrs(kernel.at(parent.fd, base), entry.xattrs)
        if entry.type != SYMLINK:
            os.chmod(base, entry.mode, dir_fd=parent.fd)
        mtime = file_time(entry.mtime_ns)
        os.utime(base, ns=(mtime, mtime), dir_fd=parent.fd, follow_symlinks=False)

    # --- deletions ---

    def _white_out(self, head: bytes, base: bytes) -> None:
        if base == _OPAQUE:
            self._make_opaque(head)
            return
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise IntegrityError(f"failed to unpack: invalid whiteout name: {os.fsdecode(base)}")
        parent = self._parent(head)
        path = parent.path + b"/" + name if parent.path else name
        try:
            info = os.lstat(name, dir_fd=parent.fd)
        except FileNotFoundError:
            if path in self._links:
                return  # of this layer: a whiteout only concerns those below
            if self._overlay:
                kernel.mknod(name, stat.S_IFCHR, kernel.WHITEOUT_DEV, dir_fd=parent.fd)
                self._whiteouts.add(path)
            return
        if not self._overlay:
            if path not in self._unpacked and path not in self._directories:
                self._clear(parent, path, name)
            elif stat.S_ISDIR(info.st_mode):
                self._empty(parent.fd, name, path)
            return
        # This layer's own file: it stays; of a directory only what this layer put in.
        if stat.S_ISDIR(info.st_mode):
            kernel.set_xattr(kernel.at(parent.fd, name), self._opaque, b"y")

    def _make_opaque(self, head: bytes) -> None:
        parent = self._parent(head)
        if self._overlay:
            if parent.path:
                kernel.set_xattr(parent.fd, self._opaque, b"y")
            else:
                self._opaque_root = True
            return
        fd = os.dup(parent.fd)
        try:
            self._empty_fd(fd, parent.path)
        finally:
            os.close(fd)

    def _empty(self, where: int, name: bytes, path: bytes) -> None:
        fd = os.open(name, _OPEN_DIR, dir_fd=where)
        try:
            self._empty_fd(fd, path)
        finally:
            os.close(fd)

    def _empty_fd(self, fd: int, path: bytes) -> None:
        """Remove from a directory what this layer did not put there."""
        place = _Parent(fd, path)
        for text in os.listdir(fd):
            name = os.fsencode(text)
            below = path + b"/" + name if path else name
            if below not in self._unpacked and below not in self._directories:
                self._clear(place, below, name)
            elif stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                self._empty(fd, name, below)

    def _clear(self, parent: _Parent, path: bytes, base: bytes) -> None:
        """Remove what stands where an entry shall be."""
        info = os.lstat(base, dir_fd=parent.fd)
        if not stat.S_ISDIR(info.st_mode):
            os.unlink(base, dir_fd=parent.fd)
            if stat.S_ISLNK(info.st_mode):
                self._forget_parents(keep=parent)
            self._links.pop(path, None)
            return
        self._forget_parents(keep=parent)
        kernel.remove_tree(base, dir_fd=parent.fd)
        prefix = path + b"/"
        for known in (self._directories, self._links):
            for gone in [key for key in known if key == path or key.startswith(prefix)]:
                del known[gone]
        if self._unpacked:
            self._unpacked = {key for key in self._unpacked if key != path and not key.startswith(prefix)}

    # --- parents ---

    def _parent(self, head: bytes) -> _Parent:
        found = self._parents.get(head)
        if found is None:
            found = self._open_parent(head)
            if len(self._parents) >= _CACHED_PARENTS:
                os.close(self._parents.pop(next(iter(self._parents))).fd)
            self._parents[head] = found
        return found

    def _open_parent(self, head: bytes) -> _Parent:
        """Open a directory for entries, making what is missing on the way; those made are the tar's unnamed parents."""
        try:
            return _Parent(*self._existing(head))
        except (FileNotFoundError, NotADirectoryError):
            pass
        here = _Parent(os.dup(self._root), b"")
        try:
            for name in self._without_links(head).split(b"/"):
                path = here.path + b"/" + name if here.path else name
                below = self._enter(here, name, path)
                os.close(here.fd)
                here = _Parent(below, path)
        except BaseException:
            os.close(here.fd)
            raise
        return here

    def _without_links(self, head: bytes) -> bytes:
        return os.fsencode(kernel.resolve_in_root(self._into, os.fsdecode(head)))

    def _enter(self, here: _Parent, name: bytes, path: bytes) -> int:
        try:
            return os.open(name, _OPEN_DIR, dir_fd=here.fd)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=here.fd)
        except NotADirectoryError:
            if self._overlay and kernel.is_whiteout(os.lstat(name, dir_fd=here.fd)):
                # Deleted by this layer and now filled again: what was in it below stays hidden.
                os.unlink(name, dir_fd=here.fd)
                os.mkdir(name, 0o700, dir_fd=here.fd)
                kernel.set_xattr(kernel.at(here.fd, name), self._opaque, b"y")
            elif self._overlay or path in self._unpacked:
                raise
            else:  # a lower layer's file gives way, as it would to a directory above it
                os.unlink(name, dir_fd=here.fd)
                os.mkdir(name, 0o700, dir_fd=here.fd)
        self._directories[path] = None
        return os.open(name, _OPEN_DIR, dir_fd=here.fd)

    def _existing(self, head: bytes) -> tuple[int, bytes]:
        """A directory of the target, opened, and its path without links."""
        if not head:
            return os.dup(self._root), b""
        if kernel.has_openat2():
            try:
                resolve = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_SYMLINKS
                return kernel.openat2(self._root, head, os.O_RDONLY | os.O_DIRECTORY, 0, resolve), head
            except OSError as err:
                if err.errno != errno.ELOOP:  # ELOOP: there is a link on the way
                    raise
        fd = kernel.open_in_root(self._root, head, os.O_RDONLY | os.O_DIRECTORY)
        return fd, self._path_of(fd)

    def _path_of(self, fd: int) -> bytes:
        real = os.readlink(b"/proc/self/fd/%d" % fd)
        if real == self._real_root:
            return b""
        return real[len(self._real_root) :].lstrip(b"/")

    def _forget_parents(self, keep: _Parent | None = None) -> None:
        for head, parent in list(self._parents.items()):
            if parent is not keep:
                os.close(parent.fd)
                del self._parents[head]


def clean(name: bytes) -> bytes:
    """A name of a tar, relative, without `.` and `..`; what climbs above the root stays at it."""
    if b"//" not in name and b"/." not in name and not name.startswith((b"/", b".")) and not name.endswith(b"/"):
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _write_sparse(fd: int, entry: Entry, reader: TarReader) -> None:
    """Put the pieces of a file where they belong; the rest are holes."""
    pieces = iter(entry.sparse or ())
    left = 0
    for chunk in reader.data():
        view = memoryview(chunk)
        while view:
            while not left:
                offset, left = next(pieces)
                os.lseek(fd, offset, os.SEEK_SET)
            kernel.write_all(fd, view[:left])
            count = min(left, len(view))
            view, left = view[count:], left - count
    os.ftruncate(fd, entry.real_size)
