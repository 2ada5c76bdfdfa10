# SPDX-License-Identifier: Apache-2.0
"""What tells which records of builds are too many: a few numbers of each, kept in memory, so that the end of a build does not
read the records of all others again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from chantier.record import RUNNING, BuildRecord
from chantier.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Times are nanoseconds since the epoch; `ended` is when it was last known to run."""

    ref: str
    started: int
    ended: int
    pinned: bool


class Outlines:
    """Of the builds below `directory`, read by `load`. Any thread; files that other processes changed are read anew."""

    def __init__(self, directory: Path, load: Callable[[str], BuildRecord | None]) -> None:
        self._directory = directory
        self._load = load
        self._known: dict[str, tuple[tuple[int, int, int], Outline]] = {}
        self._lock = threading.Lock()

    def of_ended(self, refs: Iterable[str]) -> list[Outline]:
        """Those that run are left out."""
        with self._lock:
            found, known = [], {}
            for ref in refs:
                version = self._version(ref)
                kept = self._known.get(ref)
                outline = kept[1] if kept is not None and kept[0] == version else self._read(ref)
                if outline is not None:
                    found.append(outline)
                    if version is not None:
                        known[ref] = (version, outline)
            self._known = known
            return found

    def _version(self, ref: str) -> tuple[int, int, int] | None:
        """Changes with each replacement of the record; None while there is none."""
        try:
            st = os.stat(self._directory / ref / "record.json")
        except FileNotFoundError:
            return None
        return st.st_ino, st.st_mtime_ns, st.st_size

    def _read(self, ref: str) -> Outline | None:
        record = self._load(ref)
        if record is None or record.status == RUNNING:
            return None
        return Outline(ref=record.ref, started=record.started, ended=record.completed or record.started, pinned=record.pinned)


__all__ = ["Outline", "Outlines"]
