# SPDX-License-Identifier: Apache-2.0
"""Mounting: mount(2), umount2(2), the newer fsopen(2) family, and overlays with more layers than one page can name."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from . import libc
from .files import remove_tree
from .namespaces import CLONE_FS, apart, unshare

# sys/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 32768
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25
MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

# linux/mount.h
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_BINARY = 2
FSCONFIG_SET_PATH = 3
FSCONFIG_SET_PATH_EMPTY = 4
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7
MOVE_MOUNT_F_EMPTY_PATH = 0x04
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_IDMAP = 0x00100000
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

_PAGE = 4096  # mount(2) copies at most a page of options, the last byte being NUL


def mount(source: str, target: str, fstype: str | None = None, flags: int = 0, data: str = "") -> None:
    """mount(2). `data` of a page or more is EINVAL here: the kernel would cut it off silently."""
    raw = os.fsencode(data)
    if len(raw) >= _PAGE:
        raise OSError(errno.EINVAL, "mount options are longer than a page", target)
    kind = None if fstype is None else os.fsencode(fstype)
    result = libc.function("mount")(os.fsencode(source), os.fsencode(target), kind, libc.c_long(flags), raw or None)
    libc.check(result, source, target)


def file_system(fd: int) -> int:
    """The magic number of the file system that a descriptor is on: `f_type` of fstatfs(2)."""
    import ctypes

    # glibc's struct statfs begins with it: a long, but on s390x an unsigned int. 120 bytes are its largest size.
    room = (ctypes.c_uint32 if os.uname().machine == "s390x" else ctypes.c_long) * 64
    info = room()
    libc.check(libc.function("fstatfs")(fd, info))
    return int(info[0])


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    libc.check(libc.function("umount2")(os.fsencode(target), flags), target)


def sync_file_system(fd: int) -> None:
    """syncfs(2): returns once all of the file system that `fd` is on has reached the disk; OSError tells of writes that failed since
    it was opened (Linux 5.8).
    """
    libc.check(libc.function("syncfs")(fd))


def fsopen(fstype: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """fsopen(2): a context for a new file system."""
    return libc.syscall(libc.SYS_FSOPEN, os.fsencode(fstype), flags, filename=fstype)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    """fsconfig(2). A string may hold 255 bytes."""
    raw_key = None if key is None else os.fsencode(key)
    raw_value = None if value is None else os.fsencode(value)
    libc.syscall(libc.SYS_FSCONFIG, fd, command, raw_key, raw_value, aux, filename=value or key)


def fsmount(fd: int, flags: int = FSMOUNT_CLOEXEC, attr_flags: int = 0) -> int:
    """fsmount(2): the context's file system as a detached mount."""
    return libc.syscall(libc.SYS_FSMOUNT, fd, flags, attr_flags)


def open_tree(path: str, flags: int = OPEN_TREE_CLOEXEC, *, dir_fd: int = AT_FDCWD) -> int:
    """open_tree(2)."""
    return libc.syscall(libc.SYS_OPEN_TREE, dir_fd, os.fsencode(path), flags, filename=path)


def move_mount(fd: int, target: str) -> None:
    """move_mount(2): attach a detached mount."""
    empty = MOVE_MOUNT_F_EMPTY_PATH
    libc.syscall(libc.SYS_MOVE_MOUNT, fd, b"", AT_FDCWD, os.fsencode(target), empty, filename=target)


def mount_setattr(path: str, *, attr_set: int = 0, attr_clr: int = 0, userns_fd: int = 0, recursive: bool = False) -> None:
    """mount_setattr(2)."""
    import ctypes

    attr = (ctypes.c_uint64 * 4)(attr_set, attr_clr, 0, userns_fd)
    flags = AT_RECURSIVE if recursive else 0
    args: tuple[Any, ...] = (AT_FDCWD, os.fsencode(path), flags, attr, ctypes.sizeof(attr))
    libc.syscall(libc.SYS_MOUNT_SETATTR, *args, filename=path)


def bind(source: str, target: str, *, readonly: bool = False, recursive: bool = True, flags: int = 0) -> None:
    """A bind mount; `readonly` covers the submounts too where the kernel can (5.12). Undone if the second step fails."""
    mount(source, target, None, MS_BIND | (MS_REC if recursive else 0))
    if not readonly and not flags:
        return
    try:
        if readonly and recursive and not flags and _readonly_tree(target):
            return
        # A remount must repeat what the source's owner locked, or an unprivileged one is refused with EPERM.
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount("none", target, None, MS_REMOUNT | MS_BIND | kept | flags | (MS_RDONLY if readonly else 0))
    except OSError:
        umount(target, MNT_DETACH)
        raise


def _readonly_tree(target: str) -> bool:
    try:
        mount_setattr(target, attr_set=MOUNT_ATTR_RDONLY, recursive=True)
    except OSError as err:
        if err.errno in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
            return False
        raise
    return True


def escape(path: str) -> str:
    """A path as it stands in an overlay option: `\\`, `:` and `,` are escaped."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def split_lowers(text: str) -> list[str]:
    """The paths of a `lowerdir=` value, unescaped; the inverse of joining escaped paths by `:`."""
    out: list[str] = []
    current: list[str] = []
    letters = iter(text)
    for letter in letters:
        if letter == "\\":
            current.append(next(letters, ""))
        elif letter == ":":
            out.append("".join(current))
            current.clear()
        else:
            current.append(letter)
    out.append("".join(current))
    return out


def overlay(
    target: str,
    lowers: Sequence[str],
    *,
    upper: str | None = None,
    work: str | None = None,
    flags: int = 0,
    options: Sequence[str] = (),
) -> None:
    """Mount an overlay of `lowers`, top first, at `target`, however long their names are.

    mount(2) takes one page of options. Beyond it we append layer by layer with fsconfig(2) (Linux 6.8); older kernels get
    the directories as numbers of open descriptors, relative to /proc/self/fd.
    """
    extra = list(options)
    if upper is not None and work is not None:
        extra += [f"upperdir={escape(upper)}", f"workdir={escape(work)}"]
    data = ",".join([*extra, "lowerdir=" + ":".join(escape(lower) for lower in lowers)])
    if len(os.fsencode(data)) < _PAGE:
        mount("overlay", target, "overlay", flags, data)
        return
    if _overlay_by_fsconfig(target, lowers, upper, work, flags, options):
        return
    _overlay_by_descriptors(target, lowers, extra, flags)


def _overlay_by_fsconfig(
    target: str, lowers: Sequence[str], upper: str | None, work: str | None, flags: int, options: Sequence[str]
) -> bool:
    """False if this kernel cannot append layers, or a name is too long for it."""
    paths = [path for path in (*lowers, upper, work) if path is not None]
    if max(len(os.fsencode(path)) for path in paths) > 255:
        return False
    with ExitStack() as stack:
        try:
            context = fsopen("overlay")
            stack.callback(os.close, context)
            fsconfig(context, FSCONFIG_SET_STRING, "lowerdir+", lowers[0])
        except OSError as err:
            if err.errno in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
                return False
            raise
        for lower in lowers[1:]:
            fsconfig(context, FSCONFIG_SET_STRING, "lowerdir+", lower)
        for key, value in (("upperdir", upper), ("workdir", work)):
            if value is not None:
                fsconfig(context, FSCONFIG_SET_STRING, key, value)
        for option in options:
            key, equals, text = option.partition("=")
            fsconfig(context, FSCONFIG_SET_STRING if equals else FSCONFIG_SET_FLAG, key, text if equals else None)
        if flags & MS_RDONLY:
            fsconfig(context, FSCONFIG_SET_FLAG, "ro")
        try:
            fsconfig(context, FSCONFIG_CMD_CREATE)
        except OSError as err:
            raise OSError(err.errno, err.strerror, "overlay", None, target) from err
        attr = flags & (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
        detached = fsmount(context, attr_flags=attr)  # the four have the same values as MS_*
        stack.callback(os.close, detached)
        move_mount(detached, target)
    return True


def _overlay_by_descriptors(target: str, lowers: Sequence[str], extra: Sequence[str], flags: int) -> None:
    with ExitStack() as stack:
        names = []
        for lower in lowers:
            fd = os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            names.append(str(fd))
        data = ",".join([*extra, "lowerdir=" + ":".join(names)])
        if len(os.fsencode(data)) >= _PAGE:
            raise OSError(errno.E2BIG, f"too many overlay layers: {len(lowers)}", target)
        in_directory("/proc/self/fd", lambda: mount("overlay", os.path.abspath(target), "overlay", flags, data))


def in_directory(directory: str, action: Any) -> None:
    """Call `action` with `directory` as working directory, in a thread that has a working directory of its own."""

    def body() -> None:
        unshare(CLONE_FS)
        os.chdir(directory)
        action()

    apart(body)


def mount_points(below: Path) -> list[str]:
    """Mount points at or below a directory in this mount namespace, deepest first; links on the way to it are followed."""
    prefix = os.path.realpath(below)
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            # proc(5): field 5, with space, tab, newline and backslash as octal escapes
            target = os.fsdecode(line.split(b" ")[4].decode("unicode_escape").encode("latin-1"))
            if target == prefix or target.startswith(prefix + "/"):
                found.append(target)
    return sorted(found, key=len, reverse=True)


def remove_unmounted(path: Path) -> bool:
    """Unmount all below a directory, then delete it, as far as that can be done; whether nothing is mounted there.

    What cannot be unmounted keeps the directory: it is never deleted through.
    """
    if not os.path.lexists(path):
        return True
    for target in mount_points(path):
        with suppress(OSError):  # busy elsewhere: looked at again below
            umount(target, MNT_DETACH | UMOUNT_NOFOLLOW)
    if mount_points(path):
        return False
    try:
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:  # one file in it resists: the others go
        shutil.rmtree(path, ignore_errors=True)
    return True
