# SPDX-License-Identifier: Apache-2.0
"""`Cache`: makes, finds, keeps and drops results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chantier.snapshot import Snapshotter
from chantier.store import BlobStore, Db, Eviction, Policy, Root, UsageRecord

from .ref import MutableRef, Ref
from .types import Fetcher, LayerSource, never


class Cache:
    """All results under one root. Thread-safe, and safe beside other processes on the same root."""

    def __init__(self, root: Root, db: Db, blobs: BlobStore, snapshots: Snapshotter, fetcher: Fetcher | None = None) -> None:
        raise NotImplementedError

    def new(
        self, parent: Ref | None = None, *, description: str = "", record_type: str = "regular", index: str | None = None
    ) -> MutableRef:
        """A writable tree on top of `parent`, which is realised first. With an index it is kept after release."""
        raise NotImplementedError

    def get(self, id: str) -> Ref:
        """A handle on a stored result. Raises NotFoundError if it is gone, or its tree is."""
        raise NotImplementedError

    def exists(self, id: str) -> bool:
        raise NotImplementedError

    def find(self, index: str) -> list[str]:
        """Ids of the records with that index, newest first."""
        raise NotImplementedError

    def get_mutable(self, id: str) -> MutableRef | None:
        """A handle on a kept mutable record; None if somebody holds it or it is gone."""
        raise NotImplementedError

    def image(self, layers: Sequence[LayerSource], *, description: str, record_type: str = "regular") -> Ref | None:
        """The lazy result of an image's layers, bottom first; nothing is fetched. None for no layers (scratch)."""
        raise NotImplementedError

    def merge(self, refs: Sequence[Ref], *, description: str) -> Ref:
        """One tree of all inputs, later over earlier (MergeOp); lazy."""
        raise NotImplementedError

    def diff(self, lower: Ref | None, upper: Ref | None, *, description: str) -> Ref | None:
        """What `upper` changes on `lower` (DiffOp); lazy; None for nothing."""
        raise NotImplementedError

    def mutable(
        self,
        index: str,
        *,
        sharing: str = "shared",
        base: Ref | None = None,
        description: str = "",
        record_type: str = "exec.cachemount",
        cancelled: Callable[[], bool] = never,
    ) -> MutableRef:
        """A handle on the cache mount `index` (with a base: of that base). `sharing` is shared, private or locked.

        shared: all users write to one tree; private: a free tree or a new one; locked: waits until the tree is free.
        """
        raise NotImplementedError

    def clear_index(self, index: str) -> None:
        """Forget an index, also of based cache mounts (`INDEX:…`): their records are no longer found, and fall to the GC."""
        raise NotImplementedError

    def add_source(self, digest: str, source: str) -> None:
        """Remember one more place where a blob can be had (it was pushed there)."""
        raise NotImplementedError

    def usage(self, *, filters: Sequence[str] = (), age_limit_ns: int = 0) -> list[UsageRecord]:
        """What is stored, oldest first. `age_limit_ns` leaves out what was used within it."""
        raise NotImplementedError

    def plan(self, policy: Policy) -> list[Eviction]:
        """What `prune(policy)` would remove now, and why."""
        raise NotImplementedError

    def prune(
        self,
        policies: Policy | Sequence[Policy],
        *,
        on_removed: Callable[[UsageRecord], None] | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> list[UsageRecord]:
        """Remove what the policies say, one record at a time, never what is in use by any process; then unused blobs."""
        raise NotImplementedError


__all__ = ["Cache"]
