# SPDX-License-Identifier: Apache-2.0
"""Namespaces: unshare(2), setns(2), and what we can know of the user namespace we are in."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from chantier.values import dataclass

from . import libc
from .numbers import number

T = TypeVar("T")

# sched.h
CLONE_FS = 0x00000200
CLONE_FILES = 0x00000400
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread."""
    libc.check(libc.function("unshare")(flags))


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2), for the calling thread."""
    libc.check(libc.function("setns")(fd, nstype))


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2), for which C libraries have no function."""
    libc.syscall(number("pivot_root"), os.fsencode(new_root), os.fsencode(put_old), filename=new_root)


def apart(call: Callable[[], T]) -> T:
    """`call` in a thread of its own, which ends with it: what it unshares or joins nobody else gets into."""
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(call())
        except BaseException as err:  # handed to the caller's thread below
            failures.append(err)

    import threading

    thread = threading.Thread(target=body, name="chantier-apart")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdRange:
    """One line of a uid_map: `size` ids from `inside` are those from `outside` in the parent namespace."""

    inside: int
    outside: int
    size: int


def parse_id_map(text: str) -> tuple[IdRange, ...]:
    """/proc/PID/uid_map (user_namespaces(7))."""
    rows = (line.split() for line in text.splitlines() if line.strip())
    return tuple(IdRange(inside=int(row[0]), outside=int(row[1]), size=int(row[2])) for row in rows)


@cache
def in_user_namespace() -> bool:
    """Whether root here is not root of the machine: overlays then need `userxattr`, device nodes cannot be made."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            ranges = parse_id_map(file.read())
    except FileNotFoundError:  # a kernel without user namespaces
        return False
    return ranges != (IdRange(inside=0, outside=0, size=2**32 - 1),)
