# SPDX-License-Identifier: Apache-2.0
"""The documents of a build's directory: written whole or not at all, and locked by who is writing the build's story."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chantier.kernel.trace import point

_MAX_RECORD = 16 << 20


def write(path: Path, document: Mapping[str, Any], *, hold: bool = False) -> int:
    """Whole or not at all; with `hold` the file stays open and locked, and its descriptor is given.

    Nobody waits for the disk: of a build right before a power cut the record may be lost, and then reads as interrupted.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if hold:
            fcntl.flock(fd, fcntl.LOCK_EX)
        data = memoryview(json.dumps(document, separators=(",", ":"), default=str).encode())
        while data:
            data = data[os.write(fd, data) :]
        point("history.writing")
        os.rename(part, path)
        point("history.written")
    except BaseException:
        os.close(fd)
        part.unlink(missing_ok=True)
        raise
    if hold:
        return fd
    os.close(fd)
    return -1


def read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_RECORD))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def last_change(directory: Path) -> int:
    """When a build that was interrupted last said anything, in nanoseconds since the epoch."""
    times = []
    for name in ("start.json", "events.jsonl", "log"):
        with contextlib.suppress(FileNotFoundError):
            times.append((directory / name).stat().st_mtime_ns)
    return max(times, default=0)


def locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


__all__ = ["last_change", "locked", "read", "write"]
