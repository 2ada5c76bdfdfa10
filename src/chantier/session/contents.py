# SPDX-License-Identifier: Apache-2.0
"""Files whose bytes come in pieces, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable

from chantier.errors import SessionError
from chantier.kernel import write_all

from .sync import Receiver
from .walk import Entry

_MAX_OPEN = 256


class Contents:
    """Writes them through a Receiver. `on_file` gets the bytes of files that came in one piece, with their inodes."""

    def __init__(self, receiver: Receiver, on_file: Callable[[Entry, int, bytes], None] | None) -> None:
        self._receiver = receiver
        self._on_file = on_file
        self._open: dict[int, int] = {}
        self._whole: dict[int, bytes] = {}  # of open files: their bytes, if one piece had them all

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def __contains__(self, id: int) -> bool:
        """Whether a file is open."""
        return id in self._open

    def take(self, id: int, entry: Entry, data: bytes, *, again: bool = False) -> bool:
        """A piece of a file, or with b"" its end: true then. `again`: the file was made by an earlier call. Raises SessionError."""
        fd = self._open.get(id)
        if fd is None:
            if len(self._open) >= _MAX_OPEN:
                raise SessionError("the sender sends too many files at once")
            fd = self._receiver.open(entry, again=again)
            self._open[id] = fd
            if self._on_file is not None and len(data) == entry.size and not again:
                self._whole[id] = data
        elif data:
            self._whole.pop(id, None)
        if data:
            write_all(fd, data)
            return False
        whole = self._whole.pop(id, None)
        if whole is not None and self._on_file is not None:
            self._on_file(entry, os.fstat(fd).st_ino, whole)
        del self._open[id]
        self._receiver.close_file(entry, fd)
        return True


__all__ = ["Contents"]
