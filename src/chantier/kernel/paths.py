# SPDX-License-Identifier: Apache-2.0
"""Opening a path inside a directory that somebody else filled, so that no symbolic link of theirs leads outside."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from functools import cache

from . import libc

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

AT_FDCWD = -100
_MAX_LINKS = 255
_OPEN_DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_ANY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def openat2(dir_fd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2). A rename during the look-up gives EAGAIN; it is tried again."""
    import ctypes

    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, mode, resolve)
    raw = os.fsencode(path)
    for attempt in range(64):
        try:
            return libc.syscall(libc.SYS_OPENAT2, dir_fd, raw, how, ctypes.sizeof(how), filename=path)
        except OSError as err:
            if err.errno != errno.EAGAIN or attempt == 63:
                raise
    raise AssertionError


@cache
def has_openat2() -> bool:
    """Whether openat2(2) works here (Linux 5.6, and no seccomp filter against it)."""
    try:
        os.close(openat2(AT_FDCWD, "/", os.O_PATH, resolve=RESOLVE_IN_ROOT))
    except OSError as err:
        if libc.is_missing_call(err):
            return False
        raise
    return True


def open_in_root(root: int | str | os.PathLike[str], path: str | bytes, flags: int, mode: int = 0) -> int:
    """Open `path` as if `root` were `/`: `..` stops at it, absolute links start from it. Returns a descriptor.

    O_NOFOLLOW concerns the last component, as in open(2). Safe against renames and link swaps while it runs.
    """
    if not isinstance(root, int):
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_in_root(root_fd, path, flags, mode)
        finally:
            os.close(root_fd)
    raw = os.fsencode(path)
    if not raw.strip(b"/"):
        raw = b"."
    if has_openat2():
        return openat2(root, raw, flags, mode, RESOLVE_IN_ROOT)
    return _open_by_hand(root, raw, flags, mode)


def resolve_in_root(root: str | os.PathLike[str], path: str, *, follow_last: bool = True) -> str:
    """`path` inside `root` without symbolic links, relative, "" for the root itself.

    What does not exist is kept as it stands (`..` in it then works on the text). The answer is text, and so only true until
    somebody renames something: open it with `open_in_root`. OSError ELOOP after 255 links.
    """
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        walk = _Walk(root_fd)
        try:
            walk.go(os.fsencode(path), follow_last=follow_last)
            return os.fsdecode(b"/".join(walk.names))
        finally:
            walk.close()
    finally:
        os.close(root_fd)


def _open_by_hand(root_fd: int, raw: bytes, flags: int, mode: int) -> int:
    """open_in_root for kernels without openat2: each step is one openat(2) that follows nothing."""
    follow_last = not flags & os.O_NOFOLLOW and flags & (os.O_CREAT | os.O_EXCL) != (os.O_CREAT | os.O_EXCL)
    walk = _Walk(root_fd)
    try:
        walk.go(raw, follow_last=follow_last, missing_ok=bool(flags & os.O_CREAT))
        if not walk.names:
            return os.open(b".", flags | os.O_CLOEXEC, dir_fd=root_fd)
        if walk.missing > 1:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(raw))
        parent = walk.parent()
        wanted = flags | os.O_NOFOLLOW | os.O_CLOEXEC
        if raw.endswith(b"/") and not flags & os.O_CREAT:
            wanted |= os.O_DIRECTORY
        return os.open(walk.names[-1], wanted, mode, dir_fd=parent)
    finally:
        walk.close()


class _Walk:
    """A position below a root: the names so far, and an open directory for each that exists and is one."""

    def __init__(self, root_fd: int) -> None:
        self._root = root_fd
        self.names: list[bytes] = []
        self._fds: list[int] = []  # one per existing name; the last may be a file
        self.missing = 0
        self._links = 0

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def parent(self) -> int:
        """The directory that holds the last name."""
        depth = len(self.names) - 1
        return self._fds[depth - 1] if depth else self._root

    def go(self, raw: bytes, *, follow_last: bool, missing_ok: bool = True) -> None:
        todo = [part for part in reversed(raw.split(b"/")) if part not in (b"", b".")]
        while todo:
            name = todo.pop()
            if name == b"..":
                self._up()
                continue
            target = self._down(name, want_link=bool(todo) or follow_last, missing_ok=missing_ok)
            if target is None:
                continue
            self._links += 1
            if self._links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(raw))
            if target.startswith(b"/"):
                self._to_root()
            todo.extend(part for part in reversed(target.split(b"/")) if part not in (b"", b"."))

    def _up(self) -> None:
        if not self.names:
            return
        self.names.pop()
        if self.missing:
            self.missing -= 1
        else:
            os.close(self._fds.pop())

    def _to_root(self) -> None:
        self.close()
        self.names.clear()
        self.missing = 0

    def _down(self, name: bytes, *, want_link: bool, missing_ok: bool) -> bytes | None:
        """Go into `name`; returns the target instead where it is a link to be followed."""
        if self.missing:
            self.names.append(name)
            self.missing += 1
            return None
        here = self._fds[-1] if self._fds else self._root
        try:
            fd = os.open(name, _OPEN_ANY, dir_fd=here)
        except OSError as err:
            # Below a file there is nothing either: the caller sees ENOTDIR when it opens the answer.
            if missing_ok and err.errno in (errno.ENOENT, errno.ENOTDIR):
                self.names.append(name)
                self.missing = 1
                return None
            raise
        if want_link and stat.S_ISLNK(os.fstat(fd).st_mode):
            try:
                return os.readlink(b"", dir_fd=fd)
            finally:
                os.close(fd)
        self.names.append(name)
        self._fds.append(fd)
        return None


def makedirs_in_root(root_fd: int, path: str | bytes, mode: int = 0o755) -> int:
    """Open the directory `path` inside `root_fd`, making what is missing, and return a descriptor.

    A component that is a link is followed inside the root; one that is another file is ENOTDIR.
    """
    raw = os.fsencode(path)
    with suppress(FileNotFoundError):
        return open_in_root(root_fd, raw, os.O_RDONLY | os.O_DIRECTORY)
    walk = _Walk(root_fd)
    try:
        walk.go(raw, follow_last=True)
        here = os.dup(walk._fds[-1]) if walk._fds else os.open(b".", _OPEN_DIR, dir_fd=root_fd)
        for name in walk.names[len(walk.names) - walk.missing :]:
            try:
                with suppress(FileExistsError):
                    os.mkdir(name, mode, dir_fd=here)
                below = os.open(name, _OPEN_DIR, dir_fd=here)
            finally:
                os.close(here)
            here = below
        try:
            return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
        finally:
            os.close(here)
    finally:
        walk.close()
