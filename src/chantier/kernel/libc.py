# SPDX-License-Identifier: Apache-2.0
"""The C library through ctypes, loaded at the first call; errors become OSError with the file's name."""

from __future__ import annotations

import errno
import os
from functools import cache
from typing import Any

# Numbers of calls newer than Linux 5.0 are the same on every architecture we run on (asm-generic/unistd.h).
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_OPENAT2 = 437
SYS_MOUNT_SETATTR = 442

_M_ARENA_MAX = -8  # malloc.h


@cache
def libc() -> Any:
    """The C library's handle."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


@cache
def function(name: str) -> Any:
    """One C function, whose arguments are passed as ctypes sees them."""
    return getattr(libc(), name)


def c_long(value: int) -> Any:
    """`value` as a C long: without it ctypes passes an int, and the upper half of a register is not ours."""
    import ctypes

    return ctypes.c_long(value)


def check(result: int, filename: object = None, filename2: object = None) -> int:
    """`result`, or OSError from errno if it is -1."""
    if result == -1:
        import ctypes

        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), filename, None, filename2)
    return result


def syscall(number: int, *args: Any, filename: object = None) -> int:
    """syscall(2). Integers are passed as C longs, everything else as given."""
    converted = [c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return check(function("syscall")(c_long(number), *converted), filename)


def is_missing_call(err: OSError) -> bool:
    """Whether `err` says that the kernel lacks the call: ENOSYS, or EPERM from a seccomp filter older than the call."""
    return err.errno in (errno.ENOSYS, errno.EPERM)


def limit_malloc_arenas(count: int) -> None:
    """mallopt(3) with M_ARENA_MAX: threads share `count` heaps, where glibc would give each of them its own, up to eight a processor.

    Python's threads rarely allocate at the same moment, and what is free in one heap is of no use to others. Does nothing where the
    C library has no such thing (musl).
    """
    try:
        mallopt = function("mallopt")
    except AttributeError:
        return
    mallopt(_M_ARENA_MAX, count)
