# SPDX-License-Identifier: Apache-2.0
"""Paths of an image as a Dockerfile writes them, for Linux and for Windows images."""

from __future__ import annotations

import re

from chantier.errors import DockerfileError
from chantier.llb.file import absolute, clean

_DRIVE = re.compile(r"([a-zA-Z]):")


def to_slash(path: str, os: str) -> str:
    return path.replace("\\", "/") if os == "windows" else path


def without_drive(path: str, os: str) -> str:
    """A Windows path without its drive, which must be C:; other systems' paths as they are."""
    if os != "windows":
        return path
    match = _DRIVE.match(path)
    if match is None:
        return to_slash(path, os)
    if match[1].lower() != "c":
        raise DockerfileError("the specified path is not on the system drive (C:)")
    return to_slash(path[2:], os) or "/"


def is_absolute(path: str, os: str) -> bool:
    return without_drive(path, os).startswith("/")


def workdir(current: str, path: str, os: str) -> str:
    """What WORKDIR makes of the directory it stood at; with backslashes for Windows."""
    if not path:
        out = absolute("/", to_slash(current, os) or "/")
    else:
        out = absolute(without_drive(current, os) or "/", without_drive(path, os))
    return out.replace("/", "\\") if os == "windows" else out


def destination(cwd: str, path: str, os: str) -> str:
    """A COPY destination: absolute, a trailing slash kept; `.` and nothing are the directory itself."""
    path = without_drive(path, os)
    return absolute(cwd, "./" if path in ("", ".") else path, keep_slash=True)


def source(path: str, os: str) -> str:
    """A COPY source: absolute in the tree it is taken from, so `../x` is `/x`."""
    return absolute("/", without_drive(path, os))


def used(path: str) -> str:
    """A path as it is noted among those used of a tree."""
    return clean("/" + path)


def has_wildcard(path: str) -> bool:
    return re.search(r"[*?\[]", re.sub(r"\\.", "", path, flags=re.DOTALL)) is not None


def follow(paths: set[str]) -> tuple[str, ...]:
    """Which paths of a directory to send; none where all of it is used, or nothing."""
    return () if "/" in paths else tuple(sorted(path.lstrip("/") for path in paths))


__all__ = ["destination", "follow", "has_wildcard", "is_absolute", "source", "to_slash", "used", "without_drive", "workdir"]
