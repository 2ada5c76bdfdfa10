# SPDX-License-Identifier: Apache-2.0
"""Whole directories at a time, in C (`trees.c`, `packets.c`): for trees so large that a few Python calls for each file are what they cost.

`trees()` is None where there is no compiler and never was one: callers then do the same in Python. The library is compiled once
for each user, in /var/cache/chantier or ~/.cache/chantier, and loaded only if it is this user's and nobody else can write to it.

Rows, the bytes of a walk, are described in `session/sync.py`.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Any

from .compiled import CompileError, caches, compiled, is_ours
from .packets import NONE, Packets

_SOURCE = Path(__file__).with_name("trees.c")
_BESIDE = (_SOURCE.with_name("rows.h"), _SOURCE.with_name("packets.c"))
_FLAGS = ("-O2", "-std=gnu11", "-w", "-shared", "-fPIC", "-fvisibility=hidden")
_COPIED = Struct("<QII32s")


class Trees:
    """The functions of the library. They free the GIL, and raise OSError with the path as `filename` where there is one."""

    def __init__(self, library: Any) -> None:
        import ctypes

        class Buffer(ctypes.Structure):
            _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_uint64), ("room", ctypes.c_uint64))

        self._c = ctypes
        self._buffer = Buffer
        self._library = library
        self._question = ctypes.CFUNCTYPE(ctypes.c_int)
        self._sha = _sha256(ctypes)
        number, text, pointer, fd = ctypes.c_uint64, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int
        library.chantier_walk.argtypes = (fd, pointer, pointer, self._question)
        library.chantier_compare.argtypes = (text, number, text, number, pointer, pointer)
        library.chantier_settled.argtypes = (text, number, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer)
        library.chantier_copy.argtypes = (
            fd, fd, text, number, pointer, text, number, ctypes.c_int64, ctypes.c_int64, pointer, pointer,
        )  # fmt: skip
        library.chantier_link.argtypes = (fd, fd, ctypes.c_int64, ctypes.c_int64, pointer, number, pointer, pointer)
        library.chantier_free.argtypes = (pointer,)
        library.chantier_free.restype = None
        Packets.declare(library, ctypes)

    def call(self, name: str, count: int, *args: Any) -> tuple[int, list[bytes]]:
        """Call a function that fills `count` buffers, which are its last arguments but for those after `...`."""
        buffers = [self._buffer() for _ in range(count)]
        passed: list[Any] = []
        for arg in args:
            passed += [self._c.byref(buffer) for buffer in buffers] if arg is ... else [arg]
        try:
            code = getattr(self._library, name)(*passed)
            return code, [self._c.string_at(b.data, b.size) if b.size else b"" for b in buffers]
        finally:
            for buffer in buffers:
                self._library.chantier_free(self._c.byref(buffer))

    def walk(self, root: int, cancelled: Callable[[], bool]) -> bytes:
        """The rows of all that is in an open directory. OSError ECANCELED if `cancelled`, which each directory asks."""
        code, (rows, failed) = self.call("chantier_walk", 2, root, ..., self._question(cancelled))
        if code:
            raise OSError(code, os.strerror(code), os.fsdecode(failed))
        return rows

    def compare(self, before: bytes, after: bytes) -> tuple[list[tuple[int, int]], Sequence[int]] | None:
        """Where two walks differ, as offsets of rows in `after` and in `before` (or NONE), and the offsets of the directories in
        `after`. None if one of the two is no walk.
        """
        code, (pairs, directories) = self.call("chantier_compare", 2, before, len(before), after, len(after), ...)
        if code == errno.EINVAL:
            return None
        _check(code)
        offsets = array("Q", pairs)
        return list(zip(offsets[::2], offsets[1::2], strict=True)), array("Q", directories)

    def settled(self, rows: bytes, started: int, tick: int, coarse_tick: int) -> bytes:
        """Rows to be compared with later: without the signature of what changed (nanoseconds) about or after `started`."""
        code, (kept,) = self.call("chantier_settled", 1, rows, len(rows), started, tick, coarse_tick, ...)
        _check(code)
        return kept

    def copy(
        self, source: int, target: int, rows: bytes, offsets: Sequence[int], replace: bytes, owner: tuple[int, int] | None
    ) -> Iterator[tuple[int, bool, bytes]]:
        """Make small files of one directory in another, as rows say: the inode of each, whether it was made, and its digest as
        `cache/file_digest.py` has it (empty if it was not computed). What is not made is left as it would be found.
        """
        count = len(offsets)
        numbers = array("Q", offsets)
        results = self._c.create_string_buffer(max(count * _COPIED.size, 1))
        uid, gid = owner if owner is not None else (-1, -1)
        place = self._c.c_void_p(numbers.buffer_info()[0])
        sha = self._c.byref(self._sha) if self._sha is not None else None
        code = self._library.chantier_copy(
            source, target, rows, len(rows), place, replace, count, uid, gid, sha, self._c.addressof(results)
        )
        _check(code)
        data = memoryview(results)[: count * _COPIED.size]
        return ((ino, bool(done), digest if hashed else b"") for ino, done, hashed, digest in _COPIED.iter_unpack(data))

    def link(self, source: int, target: int, taken: array[int], owner: tuple[int, int] | None) -> tuple[array[int], list[bytes]]:
        """Give the files of one directory further names in another, but for inodes that are `taken` (sorted) and files that are
        not `owner`'s: the inodes linked, and the names of everything that was not.
        """
        uid, gid = owner if owner is not None else (-1, -1)
        place = self._c.c_void_p(taken.buffer_info()[0])
        code, (inodes, rest) = self.call("chantier_link", 2, source, target, uid, gid, place, len(taken), ...)
        _check(code)
        return array("Q", inodes), rest.split(b"\0")[:-1]

    def packets(self, before: bytes) -> Packets:
        """What receives a directory of which these rows were kept."""
        return Packets(self._library, self.call, self._sha, before)


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


def _sha256(ctypes: Any) -> Any:
    """The three functions of OpenSSL that Python's own hashlib uses; None if Python was not linked with it dynamically."""
    try:
        import _hashlib

        openssl = ctypes.CDLL(_hashlib.__file__)
        functions = [ctypes.cast(getattr(openssl, f"SHA256_{name}"), ctypes.c_void_p) for name in ("Init", "Update", "Final")]
    except (ImportError, AttributeError, OSError):
        return None
    return (ctypes.c_void_p * 3)(*functions)


def trees() -> Trees | None:
    """The library; None where it cannot be had, or CHANTIER_TREES=python says that it is not wanted."""
    return None if os.environ.get("CHANTIER_TREES") == "python" else _library()


@cache
def _library() -> Trees | None:
    for place in caches():
        try:
            return _load(compiled(_SOURCE, place, "trees", flags=_FLAGS, beside=_BESIDE))
        except CompileError:
            return None
        except OSError:  # a directory that is not ours, or a file system without execution
            continue
    return None


def _load(path: Path) -> Trees:
    import ctypes

    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or not is_ours(info):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), os.fspath(path))
        return Trees(ctypes.CDLL(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


__all__ = ["NONE", "Trees", "trees"]
