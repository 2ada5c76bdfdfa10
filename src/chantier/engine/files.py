# SPDX-License-Identifier: Apache-2.0
"""Reading from results: a file, a directory's entries, one entry (LLBBridge's ReadFile, ReadDir, StatFile).

Texts of errors are Go's, with paths as they were asked for. Links are followed inside the result, never out of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from chantier.errors import NotFoundError
from chantier.kernel import open_in_root
from chantier.pb import fsutil_pb2
from chantier.session.types import FilesRequest
from chantier.session.walk import to_go_mode, to_stat, walk


def read_file(root: Path, path: str, *, offset: int = 0, length: int = 0) -> bytes:
    """Length 0 is all that follows."""
    with open(_open(root, path, os.O_RDONLY | os.O_NONBLOCK, "open"), "rb") as file:
        if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
            raise NotFoundError(f"read {path}: is a directory")
        file.seek(offset)
        return file.read(length or -1)


def read_dir(root: Path, path: str, *, pattern: str = "", cancelled: Callable[[], bool] = lambda: False) -> list[fsutil_pb2.Stat]:
    """Its direct children, by name; those that an include pattern of .dockerignore's kind matches or leads through."""
    fd = _open(root, path or "/", os.O_RDONLY | os.O_DIRECTORY, "open")
    try:
        if pattern:
            request = FilesRequest(name="", include=(pattern,))
            found = walk(Path(f"/proc/self/fd/{fd}"), request, cancelled=cancelled)
            return [to_stat(entry) for entry in found if "/" not in entry.path]
        return [_stat(fd, name, name) for name in sorted(os.listdir(fd), key=os.fsencode)]
    finally:
        os.close(fd)


def stat_file(root: Path, path: str) -> fsutil_pb2.Stat:
    """A link is itself, if it is the last part of the path."""
    inside = os.path.normpath("/" + path)
    directory, name = os.path.split(inside)
    fd = _open(root, directory, os.O_PATH | os.O_DIRECTORY, "lstat", shown=path)
    try:
        return _stat(fd, name or ".", name or ".")
    except OSError as err:
        raise NotFoundError(f"lstat {path}: {(err.strerror or str(err)).lower()}") from err
    finally:
        os.close(fd)


def _open(root: Path, path: str, flags: int, action: str, *, shown: str | None = None) -> int:
    try:
        return open_in_root(root, path, flags | os.O_CLOEXEC)
    except OSError as err:
        raise NotFoundError(f"{action} {path if shown is None else shown}: {(err.strerror or str(err)).lower()}") from err


def _stat(directory: int, name: str, shown: str) -> fsutil_pb2.Stat:
    info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    made = fsutil_pb2.Stat(path=shown, mode=to_go_mode(info.st_mode), uid=info.st_uid, gid=info.st_gid, modTime=info.st_mtime_ns)
    if stat.S_ISLNK(info.st_mode):
        made.linkname = os.readlink(name, dir_fd=directory)
        made.size = info.st_size
    elif not stat.S_ISDIR(info.st_mode):
        made.size = info.st_size
    if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        made.devmajor, made.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
    return made


__all__ = ["read_dir", "read_file", "stat_file"]
