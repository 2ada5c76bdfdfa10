# SPDX-License-Identifier: Apache-2.0
"""Bringing to the disk what was finished (docs/adr/0011).

Nobody waits for the disk while a build runs: overlays are mounted `volatile`, blobs are named without fsync(2). Instead each
snapshot and blob is noted here, in the transaction that makes it count, with the id of this boot of the machine. Some time
later one syncfs(2) covers all that was noted before it, and the notes go. A process that dies loses nothing: the kernel has its
bytes. A note of another boot says that the machine went down in between: what it names is checked, or not believed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chantier import kernel
from chantier.errors import StoreError
from chantier.kernel.trace import point

from .blobs import BlobStore
from .unsettled import Unsettled

SOON_S = 5.0
"""How long after something was finished the disk is asked for it, so that a build in between is not slowed."""

_FEW = 16
_log = logging.getLogger(__name__)


class Settler:
    """Brings to the disk what was noted: `soon`, in a thread of its own, or `now`."""

    def __init__(self, unsettled: Unsettled, blobs: BlobStore, directory: Path) -> None:
        self._unsettled = unsettled
        self._blobs = blobs
        self._lock = threading.Lock()
        self._timing = threading.Lock()
        self._timer: threading.Timer | None = None
        # Open from now on, since syncfs(2) tells of errors since the open.
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def soon(self) -> None:
        with self._timing:
            if self._timer is None and self._fd >= 0:
                self._timer = threading.Timer(SOON_S, self._due)
                self._timer.name, self._timer.daemon = "chantier-settle", True
                self._timer.start()

    def now(self) -> None:
        """Returns once all that was noted before is on the disk. If the disk fails, that is logged, and the notes stay."""
        with self._lock:
            if self._fd < 0:
                return
            noted = self._unsettled.noted()
            if not noted:
                return
            try:
                self._sync([(kind, key) for _, kind, key in noted])
            except OSError as err:
                _log.error("failed to write layers to the disk: %s; they are forgotten when the machine starts again", err)
                return
            point("settle.synced")
            self._unsettled.settled(noted[-1][0])
        point("settle.settled")

    def _sync(self, noted: Sequence[tuple[str, str]]) -> None:
        """All of the file system, whoever wrote it; unless it is a few blobs."""
        if len(noted) > _FEW or any(kind != "blob" for kind, _ in noted):
            kernel.sync_file_system(self._fd)
            return
        for _, digest in noted:
            path = self._blobs.path(digest)
            for one in (path, path.parent, path.parent.parent):
                with suppress(FileNotFoundError):  # deleted since
                    _sync_one(one)

    def close(self, *, settle: bool = True) -> None:
        """Settle (or leave the notes), and end the thread."""
        with self._timing:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        try:
            if settle:
                self.now()
        finally:
            with self._timing, self._lock:
                if self._fd >= 0:
                    os.close(self._fd)
                self._fd = -1
        if timer is not None:
            timer.join()

    def _due(self) -> None:
        with self._timing:
            self._timer = None
        try:
            self.now()
        except StoreError as err:  # a disk that is full, a database that is busy: what comes next tries again
            _log.warning("failed to note what has reached the disk: %s", err)


def _sync_one(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


__all__ = ["SOON_S", "Settler"]
