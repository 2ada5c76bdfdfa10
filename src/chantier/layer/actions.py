# SPDX-License-Identifier: Apache-2.0
"""The small file actions of LLB on a tree: make a directory, a file, a link; remove; and who `--chown` names.

Paths are resolved inside the tree, so links never lead outside; errors carry paths as the tree's own.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from chantier.errors import ChantierError
from chantier.kernel import open_in_root, resolve_in_root, write_all

from .copy import clean_path, resolve_wildcards, translated

Owner = tuple[int, int]

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ACCOUNTS_LIMIT = 10 << 20


def make_directory(
    root: Path, path: str, mode: int, *, parents: bool = False, owner: Owner | None = None, time_ns: int | None = None
) -> None:
    """One that is there already is left as it is; so are parents that exist."""
    with translated():
        names = resolve_in_root(root, path).split("/")
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for i, name in enumerate(names):
                if not name:
                    continue
                last = i == len(names) - 1
                here = _enter(
                    here, names[: i + 1], mode, make=parents or last, owner=owner, time_ns=time_ns, strict=parents or not last
                )
        finally:
            os.close(here)


def _enter(here: int, names: list[str], mode: int, *, make: bool, owner: Owner | None, time_ns: int | None, strict: bool) -> int:
    """Go into the last of `names`, making it if need be; closes `here` and returns what to go on from."""
    path, name = "mkdir /" + "/".join(names), names[-1]
    try:
        below = os.open(name, _DIR, dir_fd=here)
    except FileNotFoundError as err:
        if not make:
            raise OSError(err.errno, err.strerror, path) from err
        os.mkdir(name, 0o700, dir_fd=here)
        below = os.open(name, _DIR, dir_fd=here)
        if owner is not None:
            os.fchown(below, *owner)
        os.fchmod(below, mode & 0o777)
        if time_ns is not None:
            os.utime(below, ns=(time_ns, time_ns))
    except OSError as err:
        if err.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise OSError(err.errno, err.strerror, path) from err
        if strict:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from err
        return here  # `mkdir` without parents takes whatever exists for success
    os.close(here)
    return below


def make_file(root: Path, path: str, mode: int, data: bytes, *, owner: Owner | None = None, time_ns: int | None = None) -> None:
    """Write a file; one that exists keeps its mode."""
    with translated():
        place = resolve_in_root(root, path)
        try:
            try:
                fd = open_in_root(root, place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                os.fchmod(fd, mode & 0o777)
            except FileExistsError:
                fd = open_in_root(root, place, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as err:
            raise OSError(err.errno, err.strerror, "open /" + place) from err
        try:
            write_all(fd, data)
            if owner is not None:
                os.fchown(fd, *owner)
            if time_ns is not None:
                os.utime(fd, ns=(time_ns, time_ns))
        finally:
            os.close(fd)


def make_symlink(root: Path, to: str, path: str, *, owner: Owner | None = None, time_ns: int | None = None) -> None:
    """Fails if `path` exists."""
    with translated():
        place = resolve_in_root(root, path)
        parent, _, name = place.rpartition("/")
        try:
            fd = open_in_root(root, parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as err:
            raise OSError(err.errno, err.strerror, f"symlink {to} /{place}") from err
        try:
            try:
                os.symlink(to, name or ".", dir_fd=fd)
            except OSError as err:
                raise OSError(err.errno, err.strerror, f"symlink {to} /{place}") from err
            if owner is not None:
                os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)
            if time_ns is not None:
                os.utime(name, ns=(time_ns, time_ns), dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)


def remove(root: Path, path: str, *, missing_ok: bool = False, wildcard: bool = False) -> None:
    """Remove a path with all below it. A link is removed, not what it names."""
    with translated():
        paths = [path]
        if wildcard:
            fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                paths = resolve_wildcards(root, fd, clean_path(path))
            finally:
                os.close(fd)
        for one in paths:
            _remove(root, one, missing_ok=missing_ok)


def _remove(root: Path, path: str, *, missing_ok: bool) -> None:
    head, name = posixpath.split(posixpath.normpath("/" + path))
    if not name:
        raise ChantierError("rmPath: invalid empty path")
    head = resolve_in_root(root, head)
    try:
        fd = open_in_root(root, head, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as err:
        if missing_ok:
            return
        raise OSError(err.errno, err.strerror, posixpath.join("lstat /" + head, name)) from err
    try:
        if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
            shutil.rmtree(name, dir_fd=fd)
        else:
            os.unlink(name, dir_fd=fd)
    except FileNotFoundError as err:
        if not missing_ok:
            raise OSError(err.errno, err.strerror, posixpath.join("lstat /" + head, name)) from err
    finally:
        os.close(fd)


def user_ids(root: Path, name: str) -> Owner | None:
    """uid and primary gid of a user of the tree's own /etc/passwd; None if there is no such user or file."""
    for fields in _records(root, "/etc/passwd"):
        if fields[0] == name:
            return _number(fields, 2), _number(fields, 3)
    return None


def group_id(root: Path, name: str) -> int | None:
    for fields in _records(root, "/etc/group"):
        if fields[0] == name:
            return _number(fields, 2)
    return None


def _number(fields: list[str], index: int) -> int:
    try:
        return int(fields[index])
    except (IndexError, ValueError):  # as shadow's tools do: a field that is no number counts as 0
        return 0


def _records(root: Path, path: str) -> Iterator[list[str]]:
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise ChantierError(f"failed to read {path}: {(err.strerror or '').lower()}") from err
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise ChantierError(f"failed to read {path}: not a regular file")
    with open(fd, "rb") as file:
        if info.st_size > _ACCOUNTS_LIMIT:
            raise ChantierError(f"failed to read {path}: larger than {_ACCOUNTS_LIMIT} bytes")
        data = file.read(_ACCOUNTS_LIMIT).decode("utf-8", "surrogateescape")
    for line in data.split("\n"):
        text = line.strip()
        if text and not text.startswith("#"):
            yield text.split(":")


__all__ = ["Owner", "group_id", "make_directory", "make_file", "make_symlink", "remove", "user_ids"]
