# SPDX-License-Identifier: Apache-2.0
"""A directory that comes in packets, many in a call (`packets.c`): lists compared with the rows kept, small files written.

Of `kernel.trees`, which is where the library comes from. What is not plain is left to the caller, packet by packet.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

from chantier.values import dataclass

_DONE = Struct("<QQII32s")
AT_END, ODD, FILES_FIRST = range(3)
SAME, DIFFERS, BAD_PATH, BAD_ORDER, NO_DIRECTORY, NO_TARGET = range(6)
NONE = (1 << 64) - 1
"""Instead of an offset: there is no such row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Entries that were taken note of. `answers` are messages to send, with their prefixes; `pairs` are offsets of rows after and
    before, one after the other (NONE: there is no such row), where they differ; `directories` offsets of directories; `fresh` the new rows.
    """

    said: int = SAME
    answers: bytes = b""
    pairs: Sequence[int] = ()
    directories: Sequence[int] = ()
    fresh: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of a chunk up to `at`, and why not more (`stop`). `left` are offset and size of packets of data that are the
    caller's, one after the other; `done` the offset of each file's row that was made, and its digest, empty if it was not computed.
    """

    at: int
    stop: int
    packets: int
    rows: Rows
    left: Sequence[int]
    done: Sequence[tuple[int, bytes]]


class Packets:
    """For one thread at a time. `close` it. Raises MemoryError."""

    @staticmethod
    def declare(library: Any, ctypes: Any) -> None:
        """Tell ctypes of the functions."""
        number, text, pointer, fd, signed = ctypes.c_uint64, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        library.chantier_intake.argtypes = (text, number)
        library.chantier_intake.restype = pointer
        library.chantier_intake_free.argtypes = (pointer,)
        library.chantier_intake_free.restype = None
        library.chantier_intake_put.argtypes = (pointer, text, number, ctypes.c_int, pointer, pointer, pointer)
        library.chantier_intake_rest.argtypes = (pointer, pointer)
        library.chantier_intake_file.argtypes = (pointer, number, ctypes.c_int)
        library.chantier_intake_file.restype = number
        library.chantier_take.argtypes = (pointer, fd, signed, signed, pointer, text, number, pointer, *[pointer] * 6)
        library.chantier_take.restype = None

    def __init__(self, library: Any, call: Callable[..., tuple[int, list[bytes]]], sha: Any, before: bytes) -> None:
        import ctypes

        class Progress(ctypes.Structure):
            _fields_ = (
                ("at", ctypes.c_uint64),
                ("packets", ctypes.c_uint64),
                ("waiting", ctypes.c_uint64),
                ("stop", ctypes.c_uint32),
                ("error", ctypes.c_uint32),
            )

        self._c: Any = ctypes
        self._library = library
        self._call = call
        self._sha = ctypes.byref(sha) if sha is not None else None
        self._before = before  # the library reads it as long as it works
        self._progress = Progress()
        self.waiting = 0
        """Files that were asked for and are not complete."""
        self._intake = library.chantier_intake(before, len(before))
        if not self._intake:
            raise MemoryError

    def close(self) -> None:
        if self._intake:
            self._library.chantier_intake_free(self._intake)
            self._intake = None

    def take(self, root: int, owner: tuple[int, int], chunk: bytes, at: int) -> Taken:
        """Take whole messages from `at` on; files go below the open directory `root`."""
        progress = self._progress
        progress.at = at
        place = self._c.byref(progress)
        _, (answers, pairs, directories, fresh, left, done) = self._call(
            "chantier_take", 6, self._intake, root, *owner, self._sha, chunk, len(chunk), place, ...
        )
        if progress.error:
            raise MemoryError
        self.waiting = progress.waiting
        return Taken(
            at=progress.at,
            stop=progress.stop,
            packets=progress.packets,
            rows=Rows(answers=answers, pairs=array("Q", pairs), directories=array("Q", directories), fresh=fresh),
            left=array("Q", left),
            done=[(row, digest if hashed else b"") for row, _, _, hashed, digest in _DONE.iter_unpack(done)],
        )

    def put(self, row: bytes, *, wanted: bool) -> Rows:
        """Take note of an entry that the caller read: its row, or b"" if it counts for nothing but its place in the list. If `wanted`,
        its content is asked for where the row differs from what was kept, and is the caller's to write.
        """
        said, (pairs, directories, answers) = self._call("chantier_intake_put", 3, self._intake, row, len(row), wanted, ...)
        if said < 0:
            raise MemoryError
        if answers:
            self.waiting += 1
        fresh = row if said in (SAME, DIFFERS) else b""
        return Rows(said=said, answers=answers, pairs=array("Q", pairs), directories=array("Q", directories), fresh=fresh)

    def rest(self) -> Rows:
        """The list is complete: the rest of what was kept is gone. OSError EINVAL if that was no walk."""
        code, (pairs,) = self._call("chantier_intake_rest", 1, self._intake, ...)
        if code == errno.ENOMEM:
            raise MemoryError
        if code:
            raise OSError(code, os.strerror(code))
        return Rows(pairs=array("Q", pairs))

    def file(self, id: int, *, done: bool) -> int | None:
        """Data for a file came to the caller, with `done` all of them: the offset of its row, None if it was not asked for."""
        row = self._library.chantier_intake_file(self._intake, id, done)
        if row == NONE:
            return None
        if done:
            self.waiting -= 1
        return int(row)


__all__ = [
    "AT_END",
    "BAD_ORDER",
    "BAD_PATH",
    "DIFFERS",
    "FILES_FIRST",
    "NONE",
    "NO_DIRECTORY",
    "NO_TARGET",
    "ODD",
    "SAME",
    "Packets",
    "Rows",
    "Taken",
]
