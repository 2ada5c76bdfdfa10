# SPDX-License-Identifier: Apache-2.0
"""Handles on results. Each holder has its own: `clone` gives one more, `release` ends this one. Thread-safe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from chantier.errors import StoreError
from chantier.progress import Step
from chantier.snapshot import Mount, mount_all, mounted
from chantier.spec import Digest

from .handles import State
from .layers import Packing, known_layers, layers_of
from .records import Record
from .types import LayerBlob, never
from .work import Work, side_by_side

if TYPE_CHECKING:
    from .cache import Cache

_FETCHERS = 8


class _Handle:
    """What both kinds of handle share."""

    def __init__(self, cache: Cache, state: State) -> None:
        self.cache = cache
        self._state: State | None = state
        self._id = state.id
        self._ending = threading.Lock()

    @property
    def state(self) -> State:
        """What the cache knows of the record. StoreError once the handle has ended."""
        if self._state is None:
            raise StoreError(f"the handle on cache record {self._id} has ended")
        return self._state

    @property
    def record(self) -> Record:
        return self.cache.records.get(self.state.record)

    @property
    def id(self) -> str:
        return self._id

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the records it is made of: one for a layer, more for a merge, (lower, upper) for a diff."""
        return self.record.made_of

    @property
    def description(self) -> str:
        return self.record.description

    @property
    def record_type(self) -> str:
        return self.record.record_type

    @property
    def created_at(self) -> int:
        """Nanoseconds since the epoch."""
        return self.record.created

    def size(self) -> int:
        """Bytes on disk of this record alone: its own tree and its own blobs."""
        return self.cache.size(self.state.record)

    def set_index(self, index: str) -> None:
        """Make it findable by `Cache.find(index)`; a mutable record is then kept after release."""
        self.cache.records.add_index(self.state.record, index)

    def release(self) -> None:
        """End this handle; a second call has no effect."""
        with self._ending:
            state, self._state = self._state, None
        if state is not None:
            self.cache.release(state)

    def _take(self) -> State:
        """Use the handle up."""
        with self._ending:
            state, self._state = self._state, None
        if state is None:
            raise StoreError(f"the handle on cache record {self._id} has ended")
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._id!r})"


class Ref(_Handle):
    """An immutable result: a stack of layers, each a directory tree, a blob or both. It may be lazy: nothing here yet."""

    @property
    def lazy(self) -> bool:
        """Whether `realise` has work to do."""
        return self.record.snapshot is None

    def lost(self) -> str:
        """Why the tree can no longer be made, as a try to do so has shown; "" as long as nothing speaks against it."""
        return "" if self.state.frozen else self.cache.trees.lost(self.state.record)

    def clone(self) -> Ref:
        state = self.state
        self.cache.handles.clone(state)
        return Ref(self.cache, state)

    def realise(self, *, step: Step | None = None, sessions: Sequence[Any] = (), cancelled: Callable[[], bool] = never) -> None:
        """Fetch what is missing (in parallel), unpack it (in parallel), name it. A failure leaves nothing named."""
        with self._steady():
            self.cache.trees.realise(self.state.record, Work(step, sessions, cancelled))

    def mounts(
        self, *, step: Step | None = None, sessions: Sequence[Any] = (), cancelled: Callable[[], bool] = never
    ) -> tuple[Mount, ...]:
        """How to mount the tree read-only; realises it first."""
        with self._steady():
            snapshot = self.cache.trees.realise(self.state.record, Work(step, sessions, cancelled))
            return self.cache.snapshots.mounts(snapshot, readonly=True)

    def mounted(
        self, *, step: Step | None = None, sessions: Sequence[Any] = (), cancelled: Callable[[], bool] = never
    ) -> AbstractContextManager[Path]:
        """The tree as a path, mounted read-only while the block runs; realises it first."""
        mounts = self.mounts(step=step, sessions=sessions, cancelled=cancelled)
        return mounted(mounts, readonly=True, where=self.cache.root.scratch())

    def _steady(self) -> AbstractContextManager[object]:
        """A frozen view may be sealed, and so change its record, at any time."""
        return self.state.lock if self.state.frozen else nullcontext()

    def layers(
        self,
        *,
        compression: str = "gzip",
        level: int | None = None,
        force: bool = False,
        oci: bool = True,
        step: Step | None = None,
        sessions: Sequence[Any] = (),
        cancelled: Callable[[], bool] = never,
    ) -> tuple[LayerBlob, ...]:
        """The layers, bottom first; those never packed are packed now. `force` repacks layers of another compression."""
        self.cache.seal(self.state)
        packing = Packing(compression=compression, level=level, force=force, oci=oci)
        return layers_of(self.cache.trees, self.state.record, packing, Work(step, sessions, cancelled))

    def known_layers(self, *, oci: bool = True) -> tuple[LayerBlob, ...] | None:
        """The layers if all have been packed before (or came as blobs), else None; does no work."""
        if self.state.frozen:
            return None
        return known_layers(self.cache.trees, self.state.record, oci=oci)

    def fetch_blobs(
        self,
        *,
        but: frozenset[Digest] = frozenset(),
        step: Step | None = None,
        sessions: Sequence[Any] = (),
        cancelled: Callable[[], bool] = never,
    ) -> None:
        """Bring the bytes of all layers that are known but not local."""
        missing = {layer.descriptor.digest: layer.descriptor for layer in self.known_layers() or () if not layer.local}
        missing = {digest: descriptor for digest, descriptor in missing.items() if digest not in but}
        if missing:
            side_by_side(
                Work(step, sessions, cancelled),
                [lambda work, blob=blob: self.cache.trees.blobs.bring(blob, work) for blob in missing.values()],  # type: ignore[misc]
                workers=_FETCHERS,
            )

    def get_meta(self, key: str) -> bytes | None:
        state = self.state
        return state.meta.get(key) if state.frozen else self.cache.records.meta(state.record, key)

    def set_meta(self, key: str, value: bytes | None) -> None:
        """Keep a value with the record, gone when the record goes (of a frozen view: when its last handle does). None removes it."""
        state = self.state
        if not state.frozen:
            self.cache.records.set_meta(state.record, key, value)
        elif value is None:
            state.meta.pop(key, None)
        else:
            state.meta[key] = value

    def get_tree_meta(self, key: str) -> bytes | None:
        """As get_meta; of a frozen view it is what the mutable tree behind it keeps, which outlives the view."""
        return self.cache.records.meta(self.state.record, key)

    def set_tree_meta(self, key: str, value: bytes | None) -> None:
        self.cache.records.set_meta(self.state.record, key, value)


class MutableRef(_Handle):
    """A tree being written. `commit` makes it a Ref; `release` drops it, unless it has an index: then it is kept."""

    def __init__(self, cache: Cache, state: State, *, fresh: bool = False) -> None:
        super().__init__(cache, state)
        self.fresh = fresh
        """Whether it was made by the call that returned it, and so nothing was written to it before."""

    def mounts(self) -> tuple[Mount, ...]:
        """How to mount the tree for writing; a shared one any number of times."""
        state = self.state
        snapshot = self.record.snapshot
        if snapshot is None:
            raise StoreError(f"cache record {self.id} has no tree")
        mounts = self.cache.snapshots.mounts(snapshot, readonly=False, durable=bool(self.cache.records.indexes(state.record)))
        if not state.sharable or all(mount.type == "bind" for mount in mounts):
            return mounts
        with state.lock:
            if state.pool is None:
                # Two overlays on one upper directory are undefined: it is mounted once, and bound wherever it is wanted.
                pool = self.cache.root.scratch() / f"shared-{state.record}"
                pool.mkdir(mode=0o700, exist_ok=True)
                mount_all(mounts, pool)
                state.pool = pool
            return (Mount("bind", str(state.pool), ("rbind", "rw")),)

    def mounted(self) -> AbstractContextManager[Path]:
        """The tree as a path, mounted for writing while the block runs."""
        return mounted(self.mounts(), where=self.cache.root.scratch())

    def stack(self) -> tuple[Path, ...]:
        """The directories of the tree, its own first; none where trees are not stacked. Its own may be written to while nobody
        has the tree mounted.
        """
        snapshot = self.record.snapshot
        return self.cache.snapshots.layers(snapshot) if snapshot is not None and self.cache.snapshots.stacked else ()

    def note(self) -> None:
        """What was written counts from now on. If the machine goes down before it has reached the disk, the tree is forgotten."""
        snapshot = self.record.snapshot
        if snapshot is not None:
            self.cache.snapshots.note(snapshot)
            self.cache.root.settler.soon()

    def commit(self, *, description: str | None = None) -> Ref:
        """Make it immutable; this handle is used up."""
        state = self._take()
        try:
            return Ref(self.cache, self.cache.commit(state, description))
        except BaseException:
            self._state = state
            raise

    def freeze(self) -> Ref:
        """An immutable view; releasing its last handle gives the mutable back to the cache. This handle is used up.

        The view's id means nothing to `Cache.get` (unless something is built on it: then it becomes a record of its own).
        """
        state = self._take()
        try:
            return Ref(self.cache, self.cache.freeze(state))
        except BaseException:
            self._state = state
            raise

    def get_meta(self, key: str) -> bytes | None:
        return self.cache.records.meta(self.state.record, key)

    def set_meta(self, key: str, value: bytes | None) -> None:
        """Keep a value with the record; `commit` hands it on to the result."""
        self.cache.records.set_meta(self.state.record, key, value)


__all__ = ["MutableRef", "Ref"]
