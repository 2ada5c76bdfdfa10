# SPDX-License-Identifier: Apache-2.0
"""Locks between processes, and between threads: flock(2) on a file, let go by the kernel when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from chantier.errors import CancelledError_

_FIRST_WAIT_S = 0.002
_LONGEST_WAIT_S = 0.1


class FileLock:
    """A held lock. Made by `lock` or `try_lock`; each holds the file through a description of its own, so threads exclude each other."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    def release(self, *, remove: bool = False) -> None:
        """Let go; with `remove` (exclusive holders only) the file goes too, and those who wait for it start over."""
        if self._fd < 0:
            return
        if remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def try_lock(path: Path, *, shared: bool = False) -> FileLock | None:
    """The lock, or None if somebody holds it in a way that excludes us."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if _same_file(fd, path):
            return FileLock(fd, path)
        os.close(fd)  # its last holder removed it between our open and our flock


def lock(path: Path, *, shared: bool = False, cancelled: Callable[[], bool] | None = None) -> FileLock:
    """Wait for the lock. Raises CancelledError_ when `cancelled()` turns true."""
    wait = _FIRST_WAIT_S
    while (held := try_lock(path, shared=shared)) is None:
        if cancelled is not None and cancelled():
            raise CancelledError_
        time.sleep(wait)
        wait = min(wait * 2, _LONGEST_WAIT_S)
    return held


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


__all__ = ["FileLock", "lock", "try_lock"]
