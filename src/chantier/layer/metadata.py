# SPDX-License-Identifier: Apache-2.0
"""Owner, mode, attributes and times of what a layer brings, and what its errors mean."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from chantier import kernel
from chantier.errors import ChantierError, DiskFullError, IntegrityError, StoreError

from . import owners
from .header import Entry

_MAX_NS = (1 << 63) - 1
# Overlayfs would believe these: a layer could redirect a directory to anywhere in another one.
_OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")


def set_metadata(fd: int, entry: Entry, uid: int, gid: int, *, chown: bool) -> None:
    """Owner, attributes, mode, times, in this order: changing the owner clears set-id bits and capabilities."""
    owner = owners.held(entry.uid, entry.gid)
    if chown or owner != (uid, gid):
        os.fchown(fd, *owner)
    if entry.xattrs:
        set_xattrs(fd, entry.xattrs)
    os.fchmod(fd, entry.mode)
    mtime = file_time(entry.mtime_ns)
    os.utime(fd, ns=(mtime, mtime))


def set_xattrs(place: int | bytes, xattrs: Mapping[str, bytes]) -> None:
    """Extended attributes, but for those that speak to overlayfs, and those this file system or user cannot have."""
    for name, value in xattrs.items():
        if name.startswith(_OVERLAY_XATTRS):
            continue
        try:
            kernel.set_xattr(place, name, value)
        except OSError as err:
            if err.errno == errno.EOPNOTSUPP:
                continue
            # user.* on links and devices, trusted.* and the like without privilege; capabilities are no detail.
            if err.errno == errno.EPERM and (kernel.in_user_namespace() or not name.startswith("security.")):
                continue
            raise


def file_time(nanoseconds: int) -> int:
    """A time as utimensat(2) takes it; what no file system has becomes 1970, as upstream does."""
    return nanoseconds if -_MAX_NS <= nanoseconds <= _MAX_NS else 0


def failure(brief: str, err: OSError) -> ChantierError:
    """The room's error for a system call's: links in circles and names too long are the layer's fault, the rest is not."""
    text = f"{brief}: {err.strerror}"
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(text, hint="free some space or prune the cache")
    if err.errno == errno.EINVAL and kernel.in_user_namespace():
        return StoreError(text, hint="the user namespace may lack this owner's ids: see /etc/subuid and /etc/subgid")
    if err.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EINVAL):
        return IntegrityError(text)
    return StoreError(text)


__all__ = ["failure", "file_time", "set_metadata", "set_xattrs"]
