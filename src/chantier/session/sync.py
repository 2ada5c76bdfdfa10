# SPDX-License-Identifier: Apache-2.0
"""The receiving half of a directory: make a tree hold exactly what is sent, taking only what differs.

What is there is known from an index of the last time, or else from looking. An index also knows the sender's inodes and
change times, where the sender is on this machine: then a change that keeps size and modification time is seen as well. A
file that changed in the very tick the index was made is taken again.

    index: "CS1\\0" and, compressed, for each path: the path, NUL, its signature's length (2 bytes), the signature
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from chantier.errors import CancelledError_, SessionError
from chantier.kernel import copy_file, write_all

from .types import FilesRequest
from .walk import Entry, walk, xattrs_of

_MAGIC = b"CS1\0"
SIGNATURE = struct.Struct("<IQqqQQB")
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AGAIN = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
SMALL = 256 * 1024
COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE: what file systems stamp with
TICK_NS = 20_000_000
COARSE_TICK_NS = 2_000_000_000  # of file systems that keep whole seconds

Known = dict[str, bytes]


def _never() -> bool:
    return False


def signature(entry: Entry) -> bytes:
    """What of an entry must be the same for it to be left as it is."""
    size = 0 if entry.is_dir else entry.size
    head = SIGNATURE.pack(entry.mode, size, entry.mtime_ns, entry.ctime_ns, entry.ino, entry.rdev, entry.hard)
    return head + os.fsencode(entry.link)


def pack(known: Known) -> bytes:
    return pack_rows(rows_of(known))


def rows_of(known: Known) -> bytes:
    return b"".join(os.fsencode(path) + b"\0" + len(v).to_bytes(2, "little") + v for path, v in known.items())


def unpack(data: bytes | None) -> Known | None:
    """None if there is no index, or none this version understands."""
    raw = unpack_rows(data)
    if raw is None:
        return None
    known: Known = {}
    try:
        at = 0
        while at < len(raw):
            end = raw.index(b"\0", at)
            size = int.from_bytes(raw[end + 1 : end + 3], "little")
            known[os.fsdecode(raw[at:end])] = raw[end + 3 : end + 3 + size]
            at = end + 3 + size
    except ValueError:
        return None
    return known


def row(entry: Entry) -> bytes:
    """An entry as the index has it."""
    value = signature(entry)
    return os.fsencode(entry.path) + b"\0" + len(value).to_bytes(2, "little") + value


def pack_rows(rows: bytes) -> bytes:
    return _MAGIC + zlib.compress(rows, 1)


def unpack_rows(data: bytes | None) -> bytes | None:
    """The rows of an index; None as with `unpack`."""
    if data is None or not data.startswith(_MAGIC):
        return None
    try:
        return zlib.decompress(data[len(_MAGIC) :])
    except zlib.error:
        return None


class Directories:
    """Directories below one that is open, opened as they are needed and without following links. Paths that come in a walk's order
    find theirs open already, mostly.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self._open: list[tuple[str, int]] = []  # from the top down to where the last path was

    def parent(self, path: str) -> tuple[int, str]:
        """The directory a path lies in, open until the next call, and its name there."""
        head, _, name = path.rpartition("/")
        while self._open and not (head == self._open[-1][0] or head.startswith(self._open[-1][0] + "/")):
            os.close(self._open.pop()[1])
        done = self._open[-1][0] if self._open else ""
        for part in filter(None, head[len(done) :].split("/")):
            fd = os.open(part, _DIR, dir_fd=self._open[-1][1] if self._open else self.root)
            done = f"{done}/{part}" if done else part
            self._open.append((done, fd))
        return self._open[-1][1] if self._open else self.root, name

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop()[1])


def look(into: Path, *, cancelled: Callable[[], bool] = _never) -> Known:
    """What is there, for a Receiver whose sender tells no inodes and change times."""
    known = {}
    for entry in walk(into, cancelled=cancelled):
        entry.ino = entry.ctime_ns = 0
        known[entry.path] = signature(entry)
    return known


class Receiver:
    """Entries go to `want` in the walk's order; for each it returns true for, the content goes to `open` and `close_file`
    (in any order, before `finish`). Not for several threads at once.

    `owner` None leaves the owner to the system: the user's own. Without `remove` what is there and not sent stays.
    """

    def __init__(
        self,
        into: Path,
        known: Known | None = None,
        *,
        owner: tuple[int, int] | None = (0, 0),
        remove: bool = True,
        changing: Callable[[], None] = lambda: None,
        directories: dict[str, int] | None = None,
    ) -> None:
        """`changing` is called once, before the first change. With all `directories` there will be and their times, entries are
        taken to come from a walk of our own: unchecked, and as they differ only.
        """
        self._known = known if known is not None else {}
        self._owner = owner
        self._remove = remove
        self._changing: Callable[[], None] | None = changing
        self._new: Known = {}
        self._started = time.clock_gettime_ns(COARSE_CLOCK)
        self.root = os.open(into, _DIR)
        self._directories = Directories(self.root)
        self.renewed: set[str] = set()  # paths that were made anew, directories left out
        self._touched: set[str] = set()  # directories whose times have to be put back
        self._times: dict[str, int] = directories if directories is not None else {}
        self._checking = directories is None
        self._last: tuple[bytes, ...] = ()
        self.changed = False

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *exc: object) -> None:
        self._directories.close()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1

    # -- what a sender's entries lead to

    def want(self, entry: Entry) -> bool:
        """Take note of an entry; make it unless it is a file with content, and then say whether that is needed."""
        if self._checking:
            self._check(entry)
        value = signature(entry)
        kept = self._known.pop(entry.path, None)
        # Of a file that changed just now the same signature may stand for other bytes next time.
        racy = entry.ctime_ns >= self._started - self._tick(entry) and entry.ino != 0
        self._new[entry.path] = b"" if racy and not entry.is_dir else value
        if entry.is_dir:
            self._times[entry.path] = entry.mtime_ns
        if kept == value and not (entry.hard and entry.link in self.renewed):
            return False
        self._begin()
        if entry.is_dir:
            self._directory(entry, was_dir=kept is not None and _is_dir(kept))
            return False
        self.renewed.add(entry.path)
        parent, name = self._directories.parent(entry.path)
        if kept is not None or not entry.has_content:
            self._clear(parent, name)
        self._touch(entry.path)
        if entry.hard:
            self._hard_link(entry, parent, name)
        elif stat.S_ISLNK(entry.mode):
            os.symlink(entry.link, name, dir_fd=parent)
            self._attributes_at(entry, parent, name)
        elif stat.S_ISREG(entry.mode):
            return True
        else:
            self._node(entry, parent, name)
        return False

    def open(self, entry: Entry, *, again: bool = False) -> int:
        """A descriptor to write a wanted file's bytes to. `again`: the file was made by an earlier call."""
        parent, name = self._directories.parent(entry.path)
        if again:
            return os.open(name, _AGAIN, dir_fd=parent)
        try:
            return os.open(name, _CREATE, 0o600, dir_fd=parent)
        except FileExistsError:  # it was not known
            self._clear(parent, name)
            return os.open(name, _CREATE, 0o600, dir_fd=parent)

    def close_file(self, entry: Entry, fd: int) -> None:
        """The bytes are written: set what else there is to a file."""
        try:
            if self._owner is not None:
                info = os.fstat(fd)
                if (info.st_uid, info.st_gid) != self._owner:
                    os.fchown(fd, *self._owner)
            for name, value in (entry.xattrs or {}).items():
                with suppress(OSError):  # what this user or file system cannot have
                    os.setxattr(fd, name, value)
            os.fchmod(fd, stat.S_IMODE(entry.mode))
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def finish(self) -> Known:
        """Remove what was not sent, put directories' times right; returns what is there now."""
        if self._remove and self._known:
            self._begin()
            for path in sorted(self._known, reverse=True):
                self._delete(path)
        for path in sorted(self._touched, reverse=True):
            if path in self._times:
                with suppress(FileNotFoundError):
                    parent, name = self._directories.parent(path)
                    os.utime(name, ns=(self._times[path], self._times[path]), dir_fd=parent, follow_symlinks=False)
        return self._new

    def begin(self) -> None:
        """Somebody is going to make files in the tree, and says `wrote` of each."""
        self._begin()

    def wrote(self, path: str) -> None:
        """A file was made as its entry says, in the place of what was there."""
        self._known.pop(path, None)
        self.renewed.add(path)
        self._touch(path)

    # -- changes

    def _begin(self) -> None:
        self.changed = True
        if self._changing is not None:
            changing, self._changing = self._changing, None
            changing()

    def _tick(self, entry: Entry) -> int:
        return COARSE_TICK_NS if entry.ctime_ns % 1_000_000_000 == 0 else TICK_NS

    def _check(self, entry: Entry) -> None:
        """A sender's paths are clean, relative and in order, and their directories come first."""
        path = entry.path
        parts = tuple(os.fsencode(path).split(b"/"))
        if b"" in parts or b"." in parts or b".." in parts:
            raise SessionError(f"invalid path {path!r} from the client")
        if parts <= self._last:
            raise SessionError(f'changes out of order: "{path}" "{os.fsdecode(b"/".join(self._last))}"')
        if len(parts) > 1 and path.rpartition("/")[0] not in self._times:
            raise SessionError(f"invalid path {path!r} from the client: its directory was not sent")
        self._last = parts

    def _directory(self, entry: Entry, *, was_dir: bool) -> None:
        parent, name = self._directories.parent(entry.path)
        if not was_dir:
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                # Of a tree that is only added to, this may be a directory already.
                if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                    os.unlink(name, dir_fd=parent)
                    os.mkdir(name, 0o700, dir_fd=parent)
            self._touch(entry.path)
        self._touched.add(entry.path)
        fd = os.open(name, _DIR, dir_fd=parent)
        try:
            if self._owner is not None:
                os.fchown(fd, *self._owner)
            for key, value in entry.read_xattrs().items():
                with suppress(OSError):
                    os.setxattr(fd, key, value)
            # Its owner must be able to fill it.
            os.fchmod(fd, stat.S_IMODE(entry.mode) | (0 if os.geteuid() == 0 else 0o700))
        finally:
            os.close(fd)

    def _hard_link(self, entry: Entry, parent: int, name: str) -> None:
        if self._checking and entry.link not in self._new:
            raise SessionError(f"invalid hard link {entry.path} to {entry.link}: that was not sent")
        head, _, other = entry.link.rpartition("/")
        fd = os.dup(self.root)
        try:
            for part in filter(None, head.split("/")):
                below = os.open(part, _DIR, dir_fd=fd)
                os.close(fd)
                fd = below
            os.link(other, name, src_dir_fd=fd, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(fd)

    def _node(self, entry: Entry, parent: int, name: str) -> None:
        kind = stat.S_IFMT(entry.mode)
        os.mknod(name, kind | 0o600, entry.rdev, dir_fd=parent)
        os.chmod(name, stat.S_IMODE(entry.mode), dir_fd=parent)
        self._attributes_at(entry, parent, name)

    def _attributes_at(self, entry: Entry, parent: int, name: str) -> None:
        if self._owner is not None:
            os.chown(name, *self._owner, dir_fd=parent, follow_symlinks=False)
        for key, value in entry.read_xattrs().items():
            with suppress(OSError):
                os.setxattr(f"/proc/self/fd/{parent}/{name}", key, value, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _delete(self, path: str) -> None:
        head = path.rpartition("/")[0]
        if head and head not in self._times:  # went with its directory
            return
        parent, name = self._directories.parent(path)
        self._clear(parent, name)
        self._touch(path)

    def _clear(self, parent: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as err:
            if err.errno not in (errno.EISDIR, errno.EPERM):
                raise
            shutil.rmtree(name, dir_fd=parent)

    def _touch(self, path: str) -> None:
        head = path.rpartition("/")[0]
        if head:
            self._touched.add(head)


def _is_dir(value: bytes) -> bool:
    return len(value) >= SIGNATURE.size and stat.S_ISDIR(SIGNATURE.unpack_from(value)[0])


def is_hard(value: bytes) -> bool:
    """Whether a signature is that of a further name of a file."""
    return len(value) >= SIGNATURE.size and bool(SIGNATURE.unpack_from(value)[6])


def sync(
    source: Path,
    request: FilesRequest | None,
    receiver: Receiver,
    *,
    compare_inodes: bool = True,
    mtime_ns: int | None = None,
    on_bytes: Callable[[int], None] = lambda _n: None,
    on_file: Callable[[Entry, int, bytes], None] = lambda _entry, _inode, _data: None,
    cancelled: Callable[[], bool] = _never,
) -> Known:
    """Both halves on one machine: make the receiver's tree hold what the request selects of `source`.

    `on_file` gets the bytes of small files, with the inode they were written to. Without `compare_inodes` the receiver was made from `look`, and has no inodes to compare. `mtime_ns` replaces all times.
    """
    for entry in walk(source, request, cancelled=cancelled):
        if not compare_inodes:
            entry.ino = entry.ctime_ns = 0
        if mtime_ns is not None:
            entry.mtime_ns = mtime_ns
        if not receiver.want(entry):
            continue
        take(entry, receiver, on_bytes=on_bytes, on_file=on_file, cancelled=cancelled)
    return receiver.finish()


def take(
    entry: Entry,
    receiver: Receiver,
    *,
    on_bytes: Callable[[int], None],
    on_file: Callable[[Entry, int, bytes], None],
    cancelled: Callable[[], bool],
) -> None:
    """Copy the content of an entry that `want` said yes to."""
    try:
        read = entry.open() if entry.dir_fd >= 0 else -1
    except FileNotFoundError:  # gone since it was seen: as if it were empty, until next time
        read = -1
    except OSError as err:
        if err.errno == errno.ENXIO:  # a socket
            read = -1
        else:
            raise SessionError(f"failed to read {entry.path}: {(err.strerror or '').lower()}") from err
    write = receiver.open(entry)
    if read >= 0:
        try:
            entry.xattrs = xattrs_of(read)
            count, data = _copy(read, write, entry.size, cancelled)
            on_bytes(count)
            if data is not None:
                on_file(entry, os.fstat(write).st_ino, data)
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
    receiver.close_file(entry, write)


def _copy(read: int, write: int, size: int, cancelled: Callable[[], bool]) -> tuple[int, bytes | None]:
    """How many bytes, and these if they are few and as many as was expected."""
    if size > SMALL:
        if cancelled():
            raise CancelledError_
        return copy_file(read, write, size), None
    data = os.read(read, size + 1)  # one byte more: then it grew
    write_all(write, data)
    if len(data) == size:
        return size, data
    done = len(data)
    while data:
        data = os.read(read, SMALL)
        write_all(write, data)
        done += len(data)
    return done, None


__all__ = [
    "COARSE_CLOCK",
    "COARSE_TICK_NS",
    "SIGNATURE",
    "SMALL",
    "TICK_NS",
    "Directories",
    "Known",
    "Receiver",
    "is_hard",
    "look",
    "pack",
    "pack_rows",
    "row",
    "rows_of",
    "signature",
    "sync",
    "take",
    "unpack",
    "unpack_rows",
]
