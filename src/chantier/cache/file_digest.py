# SPDX-License-Identifier: Apache-2.0
"""The digest of one file: its header (mode, owner, size, link target, device, extended attributes), then its bytes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable

from chantier.errors import CancelledError_

_CHUNK = 1 << 20
_PRIVATE = ("trusted.overlay.", "user.overlay.")


def text(digest: bytes) -> str:
    return "sha256:" + digest.hex()


def header(
    info: os.stat_result, kind: str, size: int, link: bytes, xattrs: list[tuple[bytes, bytes]], *, mode: int | None = None
) -> hashlib._Hash:
    device = info.st_rdev if kind in "34" else 0
    mode = info.st_mode & 0o7777 if mode is None else mode
    digest = hashlib.sha256(
        b"namemode%duid%dgid%dsize%dtypeflag%blinkname%bunamegnamedevmajor%ddevminor%d"
        % (mode, info.st_uid, info.st_gid, size, kind.encode(), link, os.major(device), os.minor(device))
    )
    for name, value in xattrs:
        digest.update(name + value)
    return digest


def digest_file(fd: int, info: os.stat_result, cancelled: Callable[[], bool]) -> bytes:
    """The digest of a regular file; closes it."""
    try:
        digest = header(info, "0", info.st_size, b"", xattrs(fd))
        if info.st_size <= 65536:
            if info.st_size:
                digest.update(os.read(fd, 65536))
            return digest.digest()
        buffer = memoryview(bytearray(min(_CHUNK, info.st_size)))
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
            if cancelled():
                raise CancelledError_
        return digest.digest()
    finally:
        os.close(fd)


def _wanted(name: str) -> bool:
    if name.startswith("security."):
        return name == "security.capability"
    return not name.startswith(("system.", *_PRIVATE))


def xattrs(fd: int) -> list[tuple[bytes, bytes]]:
    try:
        names = os.listxattr(fd)
    except OSError as err:
        if err.errno == errno.EOPNOTSUPP:
            return []
        raise
    return [(os.fsencode(name), os.getxattr(fd, name)) for name in sorted(names) if _wanted(name)] if names else []


def xattrs_at(fd: int, name: bytes) -> list[tuple[bytes, bytes]]:
    path = b"/proc/self/fd/%d/%s" % (fd, name)
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as err:
        if err.errno == errno.EOPNOTSUPP:
            return []
        raise
    return [(os.fsencode(n), os.getxattr(path, n, follow_symlinks=False)) for n in sorted(names) if _wanted(n)]


def small_digest(mode: int, data: bytes) -> bytes:
    """The digest of a regular file of root's without extended attributes. `mode` may hold the type."""
    head = b"namemode%duid0gid0size%dtypeflag0linknameunamegnamedevmajor0devminor0" % (mode & 0o7777, len(data))
    return hashlib.sha256(head + data).digest()


__all__ = ["digest_file", "header", "small_digest", "text", "xattrs", "xattrs_at"]
