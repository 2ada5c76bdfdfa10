# SPDX-License-Identifier: Apache-2.0
"""`Cache`: makes, finds, keeps and drops results."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from chantier.errors import NotFoundError, StoreError, UsageError
from chantier.kernel.trace import point
from chantier.progress import Step
from chantier.snapshot import Snapshotter
from chantier.spec import Descriptor, new_id
from chantier.store import BlobStore, Db, Eviction, Policy, Root, UsageRecord
from chantier.values import replace

from .compose import flat_inputs, layer_ids
from .fetch import Blobs
from .handles import SHARED, Handles, State
from .listing import Listings
from .prune import Pruner
from .realise import Trees, snapshot_exists
from .records import BASE, DIFF, LAYER, MERGE, Record, Records, blob_id, fold
from .recover import can_be_made, recover
from .ref import MutableRef, Ref
from .types import Fetcher, LayerSource, never
from .work import Work

_POLL_S = 0.1


class Cache:
    """All results under one root. Thread-safe, and safe beside other processes on the same root.

    Opening it cleans up after processes that died. `clock` gives nanoseconds since the epoch.
    """

    def __init__(
        self,
        root: Root,
        db: Db,
        blobs: BlobStore,
        snapshots: Snapshotter,
        fetcher: Fetcher | None = None,
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.root = root
        self.db = db
        self.blobs = blobs
        self.snapshots = snapshots
        self.clock = clock
        self.records = Records(db)
        self.trees = Trees(root, self.records, snapshots, Blobs(blobs, self.records, fetcher))
        self.listings = Listings(db, clock=clock)
        self.handles = Handles(root, self.records, clock=clock)
        self._pruner = Pruner(root, self.records, snapshots, blobs, clock=clock)
        recover(root, self.records, snapshots, blobs, self._pruner)

    # Making

    def new(
        self,
        parent: Ref | None = None,
        *,
        description: str = "",
        record_type: str = "regular",
        index: str | None = None,
        share: bool = False,
        step: Step | None = None,
        sessions: Sequence[Any] = (),
        cancelled: Callable[[], bool] = never,
    ) -> MutableRef:
        """A writable tree on top of `parent`, which is realised first. With an index it is kept after release.

        With `share` it may have several handles: `get_mutable(id, share=True)` gives more.
        """
        below = None
        if parent is not None:
            self.seal(parent.state)
            below = self.trees.realise(parent.state.record, Work(step, sessions, cancelled))
        with self.trees.new_key() as key:
            point("record.preparing")
            self.snapshots.prepare(key, below)
            point("record.prepared")
            record = Record(
                id=new_id(),
                kind=BASE if parent is None else LAYER,
                parents=() if parent is None else (parent.state.record,),
                snapshot=key,
                mutable=True,
                description=description,
                record_type=record_type,
                created=self.clock(),
            )
            with self.db.write():
                self.records.insert(record)
                if index is not None:
                    self.records.add_index(record.id, index)
                state = self.handles.reserve(record, share=share)
            self.handles.enter(state)
        point("record.new")
        return MutableRef(self, state, fresh=True)

    def image(self, layers: Sequence[LayerSource], *, description: str, record_type: str = "regular") -> Ref | None:
        """The lazy result of an image's layers, bottom first; nothing is fetched. None for no layers (scratch).

        The same layers of the same blobs are the same record; the same layers of other blobs share its tree.
        """
        if not layers:
            return None
        record: Record | None = None
        with self.handles.lock, self.db.write():
            chain = blob_chain = None
            for layer in layers:
                chain = fold(chain, layer.diff_id)
                blob_chain = fold(blob_chain, blob_id(layer.descriptor.digest, layer.diff_id))
                found = self.records.by_blob_chain(blob_chain)
                if found is None:
                    found = self._insert_layer(layer, record, chain, blob_chain, description, record_type)
                elif found.record_type != record_type and record_type == "regular":
                    self.records.set_record_type(found.id, record_type)
                self.records.add_sources(layer.descriptor.digest, layer.sources)
                record = found
            if record is not None:
                self.root.holds.add("record", record.id)
        if record is None:
            return None
        point("image.recorded")
        ref = Ref(self, self.handles.acquire(record.id))
        self._intact(record.id)
        return ref

    def _insert_layer(
        self, layer: LayerSource, parent: Record | None, chain: str, blob_chain: str, description: str, record_type: str
    ) -> Record:
        record = Record(
            id=new_id(),
            kind=BASE if parent is None else LAYER,
            parents=() if parent is None else (parent.id,),
            snapshot=self.records.snapshot_of_chain(chain),
            description=layer.description or description,
            record_type=record_type,
            created=self.clock(),
            layer_created=layer.created_at,
            diff_id=layer.diff_id,
            chain=chain,
            blob_chain=blob_chain,
        )
        self.records.insert(record)
        self.records.add_blob(record.id, layer.descriptor, layer.diff_id)
        return record

    def merge(self, refs: Sequence[Ref], *, description: str) -> Ref:
        """One tree of all inputs, later over earlier (MergeOp); lazy. Of one input: that input."""
        if not refs:
            raise UsageError("cannot merge nothing")
        for ref in refs:
            self.seal(ref.state)
        inputs = flat_inputs(self.records, [ref.state.record for ref in refs])
        if len(inputs) == 1:
            return refs[0].clone()
        return self._insert(Record(id=new_id(), kind=MERGE, parents=tuple(inputs), description=description))

    def diff(self, lower: Ref | None, upper: Ref | None, *, description: str) -> Ref | None:
        """What `upper` changes on `lower` (DiffOp); lazy; None for nothing.

        Where upper's layers are lower's and more, it is made of those layers, and their blobs are its own.
        """
        for ref in (lower, upper):
            if ref is not None:
                self.seal(ref.state)
        if lower is None:
            return upper.clone() if upper is not None else None
        below = layer_ids(self.records, lower.state.record)
        above = layer_ids(self.records, upper.state.record) if upper is not None else []
        if above == below:
            return None
        if upper is not None and above[: len(below)] == below:
            return self._layers_between(lower, upper, above[len(below) :], description)
        parents = (lower.state.record, upper.state.record if upper is not None else "")
        return self._insert(Record(id=new_id(), kind=DIFF, parents=parents, description=description))

    def _layers_between(self, lower: Ref, upper: Ref, items: list[str], description: str) -> Ref:
        if len(items) == 1:
            parents = (lower.state.record, upper.state.record)
            # The layer of a merge was made on something else, and may delete what is not here: that is no difference of trees.
            reuses = items[0] if items[0] == upper.state.record else None
            return self._insert(Record(id=new_id(), kind=DIFF, parents=parents, description=description, reuses=reuses))
        singles: list[Ref] = []
        try:
            for item in items:
                record = self.records.get(item)
                if record.kind == DIFF:  # computed, and already no more than its own layer
                    singles.append(self.get(item))
                    continue
                parents = (record.parents[0] if record.parents else "", item)
                singles.append(
                    self._insert(Record(id=new_id(), kind=DIFF, parents=parents, description=description, reuses=item))
                )
            return self._insert(
                Record(id=new_id(), kind=MERGE, parents=tuple(ref.state.record for ref in singles), description=description)
            )
        finally:
            for ref in singles:
                ref.release()

    def _insert(self, record: Record) -> Ref:
        record = replace(record, created=self.clock())
        with self.db.write():
            self.records.insert(record)
            state = self.handles.reserve(record)
        return Ref(self, self.handles.enter(state))

    # Finding

    def get(self, id: str) -> Ref:
        """A handle on a stored result. Raises NotFoundError if it is gone, or its tree is and cannot be had again."""
        ref = Ref(self, self.handles.acquire(id))
        try:
            intact = self._intact(id)
        except BaseException:
            ref.release()
            raise
        if intact:
            return ref
        ref.release()
        self._pruner.remove(id)
        raise NotFoundError(f"no cache record {id!r}: its files are gone")

    def _intact(self, id: str) -> bool:
        """Whether the record's tree is there, or can be made again; lost snapshots are forgotten, its own and its parents'."""
        record = self.records.get(id)
        if record.snapshot is None or snapshot_exists(self.snapshots, record.snapshot):
            return True
        todo = [id]
        while todo:
            record = self.records.get(todo.pop())
            todo.extend(record.made_of)
            if record.snapshot is None or snapshot_exists(self.snapshots, record.snapshot):
                continue
            if not can_be_made(self.records, self.blobs, record.id):
                return False
            self.records.set_snapshot(record.id, None)
        return True

    def exists(self, id: str) -> bool:
        record = self.records.find(id)
        return record is not None and not record.mutable

    def find(self, index: str) -> list[str]:
        """Ids of the records with that index, newest first."""
        return self.records.indexed(index)

    def get_mutable(self, id: str, *, share: bool = False) -> MutableRef | None:
        """A handle on a kept mutable record; None if somebody holds it (and does not share) or it is gone."""
        state = self.handles.acquire_mutable(id, share=share)
        if state is None:
            return None
        record = self.records.get(state.record)
        if record.snapshot is not None and snapshot_exists(self.snapshots, record.snapshot):
            return MutableRef(self, state)
        self.release(state)
        self._pruner.remove(id)
        return None

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
        """A handle on the cache mount `index`; with a base on the one of that base, whose tree it starts from.

        shared: all users write to one tree; private: a tree nobody uses, or a new one; locked: the tree, once nobody uses it.
        Raises CancelledError_ while it waits.
        """
        if sharing not in ("shared", "private", "locked"):
            raise UsageError(f"invalid cache sharing mode {sharing!r}", hint="use shared, private or locked")
        if base is not None:
            self.seal(base.state)
        key = index if base is None else f"{index}:{base.id}"
        work = Work(None, (), cancelled)
        while True:
            with self.root.lock(f"index-{hashlib.sha256(key.encode()).hexdigest()}", cancelled=cancelled):
                ids = [id for id in self.find(key) if (record := self.records.find(id)) is not None and record.mutable]
                for id in ids:
                    ref = self.get_mutable(id, share=sharing == "shared")
                    if ref is not None:
                        return ref
                if sharing != "locked" or not ids:
                    return self.new(
                        base,
                        description=description,
                        record_type=record_type,
                        index=key,
                        share=sharing == "shared",
                        cancelled=cancelled,
                    )
            work.check()
            time.sleep(_POLL_S)

    def clear_index(self, index: str) -> None:
        """Forget an index, also of based cache mounts (`INDEX:…`): their records are no longer found, and fall to the GC."""
        self.records.clear_index(index)

    def replace_index(self, id: str, index: str) -> None:
        """Let this record be the one that the index finds, and no other; what held it before falls to the GC once unused."""
        with self.db.write():
            self.records.replace_index(id, index)

    def bring(self, descriptor: Descriptor, *, sessions: Sequence[Any] = (), cancelled: Callable[[], bool] = never) -> None:
        """Make one blob local, from where it is known to be. Raises NotFoundError, IntegrityError, or what its sources say."""
        self.trees.blobs.bring(descriptor, Work(None, sessions, cancelled))

    def add_source(self, digest: str, source: str) -> None:
        """Remember one more place where a blob can be had (it was pushed there)."""
        self.records.add_sources(digest, (source,))

    # What handles ask for

    def commit(self, state: State, description: str | None) -> State:
        """Turn a mutable record into an immutable one of another id, with its indexes and metadata."""
        if state.mode == SHARED or state.handles != 1:
            raise StoreError("cannot commit a shared cache record")
        point("record.committing")
        with self.handles.lock:
            with self.db.write():
                made = self._immutable(state, new_id(), description)
            done = self.handles.turn(state, State(made, made))
        point("record.committed")
        self.root.settler.soon()
        return done

    def _immutable(self, state: State, id: str, description: str | None) -> str:
        """In a transaction: the record under a new id, its snapshot committed, its hold moved."""
        record = self.records.get(state.record)
        if not record.mutable or record.snapshot is None:
            raise StoreError(f"cache record {state.record} is not mutable")
        snapshot = new_id()
        self.snapshots.commit(record.snapshot, snapshot)
        self.records.insert(
            replace(
                record,
                id=id,
                snapshot=snapshot,
                mutable=False,
                created=self.clock(),
                last_used=None,
                usage_count=0,
                description=record.description if description is None else description,
            )
        )
        self.records.move(record.id, id)
        self.records.delete(record.id)
        self.root.holds.remove("record", record.id, owner=state.mode)
        self.root.holds.add("record", id)
        return id

    def freeze(self, state: State) -> State:
        """A view of a mutable record, under an id of its own."""
        if state.mode == SHARED or state.handles != 1:
            raise StoreError("cannot freeze a shared cache record")
        with self.handles.lock:
            return self.handles.turn(state, State(new_id(), state.record, mode=state.mode, frozen=True))

    def seal(self, state: State) -> None:
        """Before something is built on a frozen view: make it an immutable record for good, under the view's id."""
        with state.lock:
            if not state.frozen:
                return
            with self.handles.lock, self.db.write():
                self.records.clear_indexes(state.record)
                self._immutable(state, state.id, None)
                for key, value in state.meta.items():
                    self.records.set_meta(state.id, key, value)
            state.record, state.mode, state.frozen = state.id, "", False
        point("record.sealed")

    def release(self, state: State) -> None:
        """End one handle; the last one of a mutable record that nothing keeps takes the record with it."""
        snapshot = None
        if state.mode:
            record = self.records.find(state.record)
            snapshot = record.snapshot if record is not None else None
        if self.handles.release(state) and snapshot is not None:
            self._pruner.drop_snapshot(snapshot)

    # Looking after the disk

    def usage(self, *, filters: Sequence[str] = (), age_limit_ns: int = 0) -> list[UsageRecord]:
        """What is stored, oldest first. `age_limit_ns` leaves out what was used within it. Raises UsageError."""
        return self._pruner.usage(filters=filters, age_limit_ns=age_limit_ns)

    def plan(self, policy: Policy) -> list[Eviction]:
        """What `prune(policy)` would remove now, and why."""
        return self._pruner.plan(policy)

    def prune(
        self,
        policies: Policy | Sequence[Policy],
        *,
        on_removed: Callable[[UsageRecord], None] | None = None,
        cancelled: Callable[[], bool] = never,
        grace_ns: int | None = None,
    ) -> list[UsageRecord]:
        """Remove what the policies say, one record at a time, never what is in use by any process; then unused blobs.

        Blobs nobody owns stay for `grace_ns` after their last use, by default as long as a build may yet want them.
        """
        rules = (policies,) if isinstance(policies, Policy) else tuple(policies)
        return self._pruner.prune(rules, on_removed=on_removed, cancelled=cancelled, grace_ns=grace_ns)

    def size(self, id: str) -> int:
        return self._pruner.size(id)

    # What repairing asks for

    def sweep(self) -> list[str]:
        """Delete the snapshots that nothing needs; gives their names."""
        return self._pruner.sweep()

    def drop(self, id: str) -> bool:
        """Remove a record; False if it is held, built on, or gone."""
        return self._pruner.remove(id)

    def forget_tree(self, id: str) -> bool:
        """Forget a tree that is lost, if it can be made again; whether the record is sound now."""
        record = self.records.get(id)
        if record.mutable or any(self.records.find(parent) is None for parent in record.made_of):
            return False
        if record.snapshot is not None and snapshot_exists(self.snapshots, record.snapshot):
            return False
        if not can_be_made(self.records, self.blobs, id):
            return False
        self.records.set_snapshot(id, None)
        return True


__all__ = ["Cache"]
