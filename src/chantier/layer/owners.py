# SPDX-License-Identifier: Apache-2.0
"""Owners in a user namespace of one id: everybody's files are root's there, since nobody else can own one.

Only what unpacked layers and archives say is turned so, and the build says it first; an owner that a build asks for by name
or number (COPY --chown) is not, and fails. In any other namespace an owner that is not mapped is an error too: then a range
is too small, which can be mended.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from chantier.kernel import parse_id_map


@cache
def single() -> bool:
    """Whether this user namespace has one user id only."""
    try:
        ranges = parse_id_map(Path("/proc/self/uid_map").read_text(encoding="ascii"))
    except OSError:  # a kernel without user namespaces
        return False
    return sum(part.size for part in ranges) == 1


def held(uid: int, gid: int) -> tuple[int, int]:
    """The owner that a file of `uid` and `gid` can have here."""
    return (os.geteuid(), os.getegid()) if single() else (uid, gid)


__all__ = ["held", "single"]
