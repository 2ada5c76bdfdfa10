# SPDX-License-Identifier: Apache-2.0
"""Who holds which record: counted in this process, noted for the others.

A record is held while any handle on it exists here or in another live process. Immutable records may have any number of
holders. A mutable one has one, or several that share it (a cache mount); sharers in other processes are possible only
where nothing must be mounted twice.

Order of locks: this table's first, then the database's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from chantier.errors import NotFoundError, StoreError
from chantier.kernel.trace import point
from chantier.snapshot import unmount
from chantier.store import Root
from chantier.values import dataclass, field

from .records import Record, Records

_log = logging.getLogger(__name__)
EXCLUSIVE, SHARED = "exclusive", "shared"


@dataclass(eq=False)
class State:
    """What this process knows of a record it holds. `id` is what the handles show, `record` the row."""

    id: str
    record: str
    mode: str = ""  # "" for immutable records
    frozen: bool = False  # a view of a mutable record; `meta` is then its own
    sharable: bool = False  # further handles in this process may join
    handles: int = 1
    meta: dict[str, bytes] = field(default_factory=dict)
    pool: Path | None = None  # where a shared overlay is mounted
    lock: threading.RLock = field(default_factory=threading.RLock)


class Handles:
    def __init__(self, root: Root, records: Records, *, clock: Callable[[], int] = time.time_ns) -> None:
        self.lock = threading.RLock()
        self._root = root
        self._records = records
        self._clock = clock
        self._states: dict[str, State] = {}

    def acquire(self, id: str) -> State:
        """One more handle on an immutable record. Raises NotFoundError."""
        with self.lock:
            state = self._states.get(id)
            if state is not None:
                if state.mode:
                    raise NotFoundError(f"no cache record {id!r}")
                state.handles += 1
                return state
            with self._root.db.write():
                if self._records.get(id).mutable:
                    raise NotFoundError(f"no cache record {id!r}: it is not finished")
                self._root.holds.add("record", id)
            return self._new(State(id, id))

    def acquire_mutable(self, id: str, *, share: bool = False) -> State | None:
        """A handle on a kept mutable record, or None while somebody holds it. Holders that died do not count."""
        for last in (False, True):
            with self.lock:
                state = self._states.get(id)
                if state is not None:
                    if not (share and state.sharable):
                        return None
                    state.handles += 1
                    return state
                with self._root.db.write():
                    record = self._records.find(id)
                    if record is None or not record.mutable:
                        return None
                    # Two overlays on one upper directory are undefined (overlayfs.rst): only bare trees cross processes.
                    mode = SHARED if share and not record.made_of else EXCLUSIVE
                    free = self._free(id, mode)
                    if free:
                        self._root.holds.add("record", id, owner=mode)
                if free:
                    return self._new(State(id, id, mode=mode, sharable=share))
            if last or not self._root.reap():
                return None
        return None

    def _free(self, id: str, mode: str) -> bool:
        rows = self._root.db.read("SELECT DISTINCT owner FROM store_hold WHERE kind = 'record' AND key = ?", (id,))
        return all(mode == SHARED and owner == SHARED for (owner,) in rows)

    def reserve(self, record: Record, *, share: bool = False) -> State:
        """In the transaction that inserts a record: hold it. Once that is committed, `enter` makes the first handle of it."""
        mode = "" if not record.mutable else SHARED if share and not record.made_of else EXCLUSIVE
        self._root.holds.add("record", record.id, owner=mode)
        return State(record.id, record.id, mode=mode, sharable=share)

    def enter(self, state: State) -> State:
        with self.lock:
            return self._new(state)

    def _new(self, state: State) -> State:
        self._states[state.id] = state
        return state

    def clone(self, state: State) -> None:
        with self.lock:
            if state.handles <= 0:
                raise StoreError(f"cannot use the handle on {state.id}: it was released")
            state.handles += 1

    def turn(self, state: State, into: State) -> State:
        """Replace a state by another that takes over its handles. The caller holds `lock` and sees to the holds."""
        self._states.pop(state.id, None)
        return self._new(into)

    def release(self, state: State) -> bool:
        """End one handle. True if it was the last, and the record a mutable one that nothing keeps: it is for the caller to delete."""
        with self.lock:
            state.handles -= 1
            if state.handles > 0:
                return False
            self._states.pop(state.id, None)
            if state.pool is not None:  # before others may mount the same directories
                unmount(state.pool)
                state.pool.rmdir()
                state.pool = None
            try:
                with self._root.db.write():
                    self._records.used(state.record, self._clock())
                    drop = bool(state.mode) and not self._records.indexes(state.record)
                    if drop:
                        self._records.delete(state.record)
                    self._root.holds.remove("record", state.record, owner=state.mode)
            except StoreError as err:
                # A handle must always end: on a full disk the hold stays until this process ends, no more is lost.
                _log.warning("failed to note the release of %s: %s", state.record, err)
                return False
        point("record.released")
        return drop


__all__ = ["EXCLUSIVE", "SHARED", "Handles", "State"]
