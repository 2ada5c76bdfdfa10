# SPDX-License-Identifier: Apache-2.0
"""Copying bytes, extended attributes, device nodes and times, always by descriptor or without following a last link."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from contextlib import suppress

FICLONE = 0x40049409  # linux/fs.h, _IOW(0x94, 9, int)
WHITEOUT_DEV = os.makedev(0, 0)

_NO_RANGE_COPY = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EBADF)
_CHUNK = 1 << 20
_RANGE = 1 << 30

Path = str | bytes | os.PathLike[str]


def reflink(src_fd: int, dst_fd: int) -> bool:
    """ioctl FICLONE: share the blocks of a whole file; False where the file system cannot."""
    try:
        fcntl.ioctl(dst_fd, FICLONE, src_fd)
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY, errno.EBADF):
            return False
        raise
    return True


def copy_file(src_fd: int, dst_fd: int, size: int) -> int:
    """Copy from both descriptors' places to the end of the source; returns the bytes copied.

    `size` is a hint. Shares blocks where it can (FICLONE, copy_file_range), reads and writes where it cannot. A file that
    grows or shrinks meanwhile is copied as it is read.
    """
    if size > 65536 and reflink(src_fd, dst_fd):
        return os.lseek(dst_fd, 0, os.SEEK_END)
    done = 0
    while size > done:
        try:
            count = os.copy_file_range(src_fd, dst_fd, min(size - done, _RANGE))
        except OSError as err:
            if err.errno not in _NO_RANGE_COPY:
                raise
            break
        if count == 0:  # also what old kernels say of /proc files: let read(2) decide
            break
        done += count
    return done + _copy_by_hand(src_fd, dst_fd)


def _copy_by_hand(src_fd: int, dst_fd: int) -> int:
    done = 0
    while chunk := os.read(src_fd, _CHUNK):
        write_all(dst_fd, chunk)
        done += len(chunk)
    return done


def copy_node(source: Path, info: os.stat_result, target: Path) -> None:
    """Make `target`, which is not there, with the bytes, the link's text or the device number of `source`; `info` is its lstat(2).

    Owner, attributes and times are the caller's to set; a regular file is made with mode 0600.
    """
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(os.fsencode(source)), target)
    elif stat.S_ISREG(info.st_mode):
        src = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            dst = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                copy_file(src, dst, info.st_size)
            finally:
                os.close(dst)
        finally:
            os.close(src)
    else:
        mknod(target, info.st_mode, info.st_rdev)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """write(2) until all is written."""
    written = os.write(fd, data)
    if written == len(data):
        return
    view = memoryview(data)
    while written < len(view):
        written += os.write(fd, view[written:])


def at(dir_fd: int, name: str | bytes) -> bytes:
    """A path that means `name` in `dir_fd`, for calls that take no directory descriptor (xattr(7)). Keep the fd open."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, os.fsencode(name))


def get_xattr(path: Path | int, name: str) -> bytes | None:
    """getxattr(2), not following a last link; None if there is no such attribute or the file system has none."""
    try:
        return os.getxattr(path, name) if isinstance(path, int) else os.getxattr(path, name, follow_symlinks=False)
    except OSError as err:
        if err.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def set_xattr(path: Path | int, name: str, value: bytes) -> None:
    """setxattr(2), not following a last link."""
    if isinstance(path, int):
        os.setxattr(path, name, value)
    else:
        os.setxattr(path, name, value, follow_symlinks=False)


def list_xattrs(path: Path | int) -> list[str]:
    """listxattr(2), not following a last link; none where the file system has none."""
    try:
        return os.listxattr(path) if isinstance(path, int) else os.listxattr(path, follow_symlinks=False)
    except OSError as err:
        if err.errno == errno.EOPNOTSUPP:
            return []
        raise


def remove_xattr(path: Path | int, name: str) -> None:
    """removexattr(2), not following a last link; nothing if it is not there."""
    try:
        if isinstance(path, int):
            os.removexattr(path, name)
        else:
            os.removexattr(path, name, follow_symlinks=False)
    except OSError as err:
        if err.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


def mknod(path: Path, mode: int, device: int = 0, *, dir_fd: int | None = None) -> None:
    """mknodat(2): `mode` holds the type (stat.S_IFCHR ...) and the permissions, which the umask cuts."""
    os.mknod(path, mode, device, dir_fd=dir_fd)


def utimens(path: Path, atime_ns: int, mtime_ns: int, *, dir_fd: int | None = None) -> None:
    """utimensat(2) with AT_SYMLINK_NOFOLLOW."""
    os.utime(path, ns=(atime_ns, mtime_ns), dir_fd=dir_fd, follow_symlinks=False)


_DEEP = 200  # below it, directories are moved up instead of descended into: neither stack nor descriptors run out
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path, *, dir_fd: int | None = None) -> None:
    """Delete a directory and all below it, however deep; what somebody else deletes meanwhile is fine.

    Follows no link, crosses no file systems but mounted ones (those are EBUSY).
    """
    try:
        top = os.open(path, _OPEN_DIR, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    try:
        while _empty(top, top, 0):
            pass  # what lay too deep was moved to the top: once more
    finally:
        os.close(top)
    with suppress(FileNotFoundError):
        os.rmdir(path, dir_fd=dir_fd)


def _empty(fd: int, top: int, depth: int) -> bool:
    """Delete what is in a directory; True if something deep was moved to `top` instead."""
    moved = False
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_dir in found:
        with suppress(FileNotFoundError):
            if not is_dir:
                os.unlink(name, dir_fd=fd)
            elif depth >= _DEEP:
                os.rename(name, f".chantier-{secrets.token_hex(8)}", src_dir_fd=fd, dst_dir_fd=top)
                moved = True
            else:
                below = os.open(name, _OPEN_DIR, dir_fd=fd)
                try:
                    moved = _empty(below, top, depth + 1) or moved
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=fd)
    return moved


def is_ours(info: os.stat_result) -> bool:
    """Whether nobody else can have put a file or directory there, or can change it."""
    return info.st_uid == os.geteuid() and not stat.S_ISLNK(info.st_mode) and not info.st_mode & 0o022


def is_whiteout(info: os.stat_result) -> bool:
    """Whether an entry of an overlay's layer hides the name below it: a character device 0:0."""
    return info.st_rdev == WHITEOUT_DEV and info.st_mode & 0o170000 == 0o020000
