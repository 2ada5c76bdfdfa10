# SPDX-License-Identifier: Apache-2.0
"""Paths and mounts below the root we are chrooted into; the old root is our working directory meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from chantier.kernel import mounts as kernel
from chantier.kernel import paths
from chantier.kernel.namespaces import pivot_root

from .plan import Refused, because

_LINKS = 40
_PROC_MAGIC = 0x9FA0
_RUN_FLAGS = os.O_PATH | os.O_CLOEXEC
_DEVPTS_MAGIC = 0x1CD1


def _by_fd(fd: int) -> str:
    return f"proc/self/fd/{fd}"


def open_there(path: str, flags: int = _RUN_FLAGS, without: int = paths.RESOLVE_NO_MAGICLINKS) -> int:
    """What is at a path. Links of /proc that are no paths lead out of any root: inside a container's they must not be followed."""
    if paths.has_openat2():
        return paths.openat2(paths.AT_FDCWD, path, flags, resolve=without)
    return os.open(path, flags | os.O_CLOEXEC)


def make_path(path: str, *, directory: bool) -> None:
    """Make what is missing of a path, following links as securejoin does: also those that lead nowhere yet."""
    done, rest, links = "", path, 0
    try:
        while rest := rest.lstrip("/"):
            part, _, rest = rest.partition("/")
            last = not rest.strip("/")
            if part == ".":
                continue
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            following = f"{done}/{part}"
            try:
                mode = os.lstat(following).st_mode
            except FileNotFoundError:
                with suppress(FileExistsError):
                    if last and not directory:
                        os.close(os.open(following, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
                    else:
                        os.mkdir(following, 0o755)
                mode = 0
            if stat.S_ISLNK(mode):
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, "")
                link = os.readlink(following)
                rest = f"{link}/{rest}"
                if link.startswith("/"):
                    done = ""
                continue
            done = following
    except OSError as err:
        raise because(f'error creating mount point "{path}"', err) from err


def place_of(path: str, *, directory: bool) -> int:
    """A place to mount on, made if it is missing. Nothing of others may lead it into /proc."""
    try:
        try:
            fd = open_there(path)
        except FileNotFoundError:
            make_path(path, directory=directory)
            fd = open_there(path)
    except OSError as err:
        raise because(f'error opening mount point "{path}"', err) from err
    if path != "/proc" and not path.startswith("/proc/") and kernel.file_system(fd) == _PROC_MAGIC:
        raise Refused(f'refusing to mount at "{path}": it leads into /proc')
    return fd


def _kept(fd: int) -> int:
    flags = os.fstatvfs(fd).f_flag
    return flags & (kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)


def _apply(target: str, fd: int, flags: int, propagation: int, *, locked: bool) -> None:
    try:
        if flags:
            flags |= kernel.MS_REMOUNT | kernel.MS_BIND | (_kept(fd) if locked else 0)
            kernel.mount("none", _by_fd(fd), None, flags)
        if propagation:
            kernel.mount("none", _by_fd(fd), None, propagation)
    except OSError as err:
        raise because(f'error remounting "{target}"', err) from err


def mount_new(kind: str, source: str, target: str, flags: str, data: str, propagation: str) -> None:
    if kind in ("proc", "sysfs"):
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(target).st_mode):
                raise Refused(f'filesystem "{kind}" must be mounted on ordinary directory')
    fd = place_of(target, directory=True)
    try:
        kernel.mount(source, _by_fd(fd), kind, int(flags, 0), data)
    except OSError as err:
        raise because(f'error mounting "{source}" to rootfs at "{target}"', err) from err
    finally:
        os.close(fd)
    if int(propagation, 0):
        fd = open_there(target)
        _apply(target, fd, 0, int(propagation, 0), locked=False)
        os.close(fd)


def bind(source: str, target: str, recursive: str, flags: str, propagation: str) -> None:
    where = f'error mounting "{source}" to rootfs at "{target}"'
    try:
        src = open_there(source.lstrip("/") or ".", without=paths.RESOLVE_NO_SYMLINKS)
        before = os.fstat(src)
        fd = place_of(target, directory=stat.S_ISDIR(before.st_mode))
        kernel.mount(_by_fd(src), _by_fd(fd), None, kernel.MS_BIND | int(recursive, 0))
        os.close(fd)
        os.close(src)
        if not int(flags, 0) and not int(propagation, 0):
            return
        fd = open_there(target)
        after = os.fstat(fd)
    except OSError as err:
        raise because(where, err) from err
    if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
        raise Refused(f'mount point "{target}" has changed while it was being mounted')
    _apply(target, fd, int(flags, 0), int(propagation, 0), locked=True)
    os.close(fd)


def node(path: str, kind: str, major: str, minor: str, mode: str, uid: str, gid: str) -> None:
    try:
        parent, _, name = path.rpartition("/")
        fd = place_of(f"{parent}/", directory=True)
        with suppress(FileNotFoundError):  # a file in its place is replaced
            os.unlink(name, dir_fd=fd)
        types = {"b": stat.S_IFBLK, "p": stat.S_IFIFO}
        os.mknod(name, types.get(kind[:1], stat.S_IFCHR) | int(mode, 0), os.makedev(int(major), int(minor)), dir_fd=fd)
        os.chown(name, int(uid), int(gid), dir_fd=fd, follow_symlinks=False)
        os.close(fd)
    except OSError as err:
        raise because(f'error creating device "{path}"', err) from err


def mask(path: str) -> None:
    try:
        fd = open_there(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except OSError as err:
        raise because(f'error masking "{path}"', err) from err
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            kernel.mount("tmpfs", _by_fd(fd), "tmpfs", kernel.MS_RDONLY, "size=4k")
            return
        src = os.open("dev/null", _RUN_FLAGS)
        null = os.fstat(src)
        if not stat.S_ISCHR(null.st_mode) or null.st_rdev != os.makedev(1, 3):
            raise Refused(f'error masking "{path}": /dev/null is not what it should be')
        kernel.mount(_by_fd(src), _by_fd(fd), None, kernel.MS_BIND)
        os.close(src)
        os.close(fd)
        fd = open_there(path)
        _apply(path, fd, kernel.MS_NOSUID | kernel.MS_NOEXEC, 0, locked=True)
    except OSError as err:
        raise because(f'error masking "{path}"', err) from err
    finally:
        os.close(fd)


def make_readonly(path: str) -> None:
    try:
        fd = open_there(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        kernel.mount(_by_fd(fd), _by_fd(fd), None, kernel.MS_BIND | kernel.MS_REC)
        os.close(fd)
        fd = open_there(path)
    except OSError as err:
        raise because(f'error making "{path}" read-only', err) from err
    _apply(path, fd, kernel.MS_RDONLY, 0, locked=True)
    os.close(fd)


def remount(target: str, flags: str) -> None:
    fd = open_there(target)
    _apply(target, fd, int(flags, 0), 0, locked=True)
    os.close(fd)


def open_ptmx() -> int:
    """The container's own terminals. What else may stand there is not for us to open for writing, nor to trust the names of."""
    for flags in (os.O_PATH, os.O_RDWR | os.O_NOCTTY):
        fd = open_there("/dev/pts/ptmx", flags)
        if kernel.file_system(fd) != _DEVPTS_MAGIC:
            raise Refused("error opening a terminal: /dev/pts is not what it should be")
        if flags != os.O_PATH:
            return fd
        os.close(fd)
    raise AssertionError


def bind_console(terminal: int) -> None:
    fd = place_of("/dev/console", directory=False)
    kernel.mount(_by_fd(terminal), _by_fd(fd), None, kernel.MS_BIND)
    os.close(fd)


def leave() -> None:
    """Out of the container's root again, to where its files are as the machine sees them: for a process of the machine's."""
    old, new = _roots
    os.fchdir(old)
    os.chroot(".")
    os.fchdir(new)


_roots: list[int] = []


def enter_root(path: str) -> None:
    try:
        kernel.mount("none", "/", None, kernel.MS_SLAVE | kernel.MS_REC)
        kernel.mount(path, path, None, kernel.MS_BIND | kernel.MS_REC)
        _roots[:] = [os.open(where, _RUN_FLAGS | os.O_DIRECTORY) for where in ("/", path)]
        os.fchdir(_roots[1])
        kernel.mount("none", ".", None, kernel.MS_PRIVATE | kernel.MS_REC)
        os.chroot(".")
        os.fchdir(_roots[0])
    except OSError as err:
        raise because(f'error mounting rootfs "{path}"', err) from err


def pivot(move: str) -> None:
    old, new = _roots
    try:
        leave()
        if int(move):
            kernel.mount(".", "/", None, kernel.MS_MOVE)
            os.chroot(".")
        else:
            pivot_root(".", ".")
            os.fchdir(old)
            kernel.mount("none", ".", None, kernel.MS_SLAVE | kernel.MS_REC)
            kernel.umount(".", kernel.MNT_DETACH)
        os.chdir("/")
        os.close(old)
        os.close(new)
    except OSError as err:
        raise because("pivot_root", err) from err
