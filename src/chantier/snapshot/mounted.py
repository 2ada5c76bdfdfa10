# SPDX-License-Identifier: Apache-2.0
"""Mounting snapshots for a while."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from chantier import kernel
from chantier.errors import StoreError
from chantier.spec import new_id

from . import fuse
from .mount import Mount

_FLAGS = {
    "ro": kernel.MS_RDONLY,
    "nosuid": kernel.MS_NOSUID,
    "nodev": kernel.MS_NODEV,
    "noexec": kernel.MS_NOEXEC,
    "sync": kernel.MS_SYNCHRONOUS,
    "dirsync": kernel.MS_DIRSYNC,
    "noatime": kernel.MS_NOATIME,
    "nodiratime": kernel.MS_NODIRATIME,
    "relatime": kernel.MS_RELATIME,
    "strictatime": kernel.MS_STRICTATIME,
}
_PROPAGATION = {
    "private": kernel.MS_PRIVATE,
    "rprivate": kernel.MS_PRIVATE | kernel.MS_REC,
    "shared": kernel.MS_SHARED,
    "rshared": kernel.MS_SHARED | kernel.MS_REC,
    "slave": kernel.MS_SLAVE,
    "rslave": kernel.MS_SLAVE | kernel.MS_REC,
    "unbindable": kernel.MS_UNBINDABLE,
    "runbindable": kernel.MS_UNBINDABLE | kernel.MS_REC,
}
_NOTHING = {"rw", "bind", "rbind", "suid", "dev", "exec", "defaults"}


def mount_all(mounts: Sequence[Mount], target: Path) -> None:
    """Mount each onto `target`, in order; undone if one fails. StoreError names the mount and the kernel's reason."""
    done = 0
    try:
        for mount in mounts:
            _mount(mount, os.fspath(target))
            done += 1
    except OSError as err:
        for _ in range(done):
            kernel.umount(os.fspath(target), kernel.MNT_DETACH)
        raise StoreError(f"failed to mount {mounts[done].type} {mounts[done].source} at {target}: {err.strerror}") from err


def _mount(mount: Mount, target: str) -> None:
    flags = 0
    propagation = []
    data = []
    for option in mount.options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif option not in _NOTHING:
            data.append(option)
    if mount.type == "bind":
        readonly = bool(flags & kernel.MS_RDONLY)
        recursive = "bind" not in mount.options
        kernel.bind(mount.source, target, readonly=readonly, recursive=recursive, flags=flags & ~kernel.MS_RDONLY)
    elif mount.type == "overlay":
        _mount_overlay(target, flags, data)
    elif mount.type == fuse.PROGRAM:
        fuse.mount_fuse(target, [*data, *(["ro"] if flags & kernel.MS_RDONLY else [])])
    else:
        kernel.mount(mount.source, target, mount.type, flags, ",".join(data))
    for change in propagation:
        kernel.mount("none", target, None, change)


def _mount_overlay(target: str, flags: int, data: Sequence[str]) -> None:
    named = {"lowerdir": "", "upperdir": "", "workdir": ""}
    options = []
    for option in data:
        key, _, value = option.partition("=")
        if key in named:
            named[key] = value
        else:
            options.append(option)
    upper, work = (kernel.split_lowers(named[key])[0] or None for key in ("upperdir", "workdir"))
    lowers = kernel.split_lowers(named["lowerdir"])
    kernel.overlay(target, lowers, upper=upper, work=work, flags=flags, options=options)


def unmount(target: Path) -> None:
    """Unmount everything at `target`, however often mounted; nothing if it is no mount point.

    Waits briefly for those who still hold files there, then detaches the mount: it ends when the last of them lets go.
    """
    path = os.fspath(target)
    for _ in range(1000):
        try:
            _unmount_once(path)
        except OSError as err:
            if err.errno in (errno.EINVAL, errno.ENOENT):  # not a mount point (any more)
                return
            raise StoreError(f"failed to unmount {target}: {err.strerror}") from err
        fuse.release(path)


def _unmount_once(path: str) -> None:
    for pause_s in (0.0, 0.01, 0.05):
        time.sleep(pause_s)
        try:
            kernel.umount(path, kernel.UMOUNT_NOFOLLOW)
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
        else:
            return
    kernel.umount(path, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)


@contextmanager
def mounted(mounts: Sequence[Mount], *, readonly: bool = False, where: Path) -> Iterator[Path]:
    """The tree that `mounts` make, as a path, while the block runs. Any thread, any number at a time.

    A single bind mount needs no mounting: its source is given (and a read-only one is then only as read-only as the caller is
    careful). `readonly` makes a writable overlay read-only. The mount point is made in the directory `where`: one that
    somebody else unmounts and clears if this process is killed, as a state's scratch is.
    """
    if len(mounts) == 1 and mounts[0].type == "bind":
        yield Path(mounts[0].source)
        return
    if not mounts:
        raise StoreError("failed to mount: there is nothing to mount")
    if readonly:
        mounts = [*mounts[:-1], _readonly(mounts[-1])]
    target = where / f"mount-{new_id()[:12]}"
    target.mkdir(mode=0o700)
    try:
        mount_all(mounts, target)
        try:
            yield target
        finally:
            unmount(target)
    finally:
        with suppress(OSError):  # still mounted in another mount namespace, perhaps: it goes with the directory
            target.rmdir()


def _readonly(mount: Mount) -> Mount:
    if mount.readonly:
        return mount
    return Mount(mount.type, mount.source, ("ro", *(option for option in mount.options if option != "rw")))
