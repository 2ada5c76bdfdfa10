# SPDX-License-Identifier: Apache-2.0
"""From blobs to trees: the missing layers of a chain are fetched and unpacked at the same time, then named from the bottom up.

With overlayfs each layer is unpacked into a directory of its own, whatever lies below it; the parents are set when all are
named, in one transaction. Without (`Native`) each layer needs the tree below it, so they are unpacked one after another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from chantier.errors import CancelledError_, ChantierError, IntegrityError, NotFoundError, StoreError
from chantier.kernel.trace import point
from chantier.layer import UnpackResult, decompressor, finish_layer, unpack
from chantier.snapshot import Snapshotter
from chantier.spec import Descriptor, new_id
from chantier.store import Root

from .fetch import Blobs
from .records import BASE, LAYER, Record, Records
from .work import Work, side_by_side

_log = logging.getLogger(__name__)
_WORKERS = 8


class Trees:
    """Makes snapshots for records that have none."""

    def __init__(self, root: Root, records: Records, snapshots: Snapshotter, blobs: Blobs) -> None:
        self.root = root
        self.records = records
        self.snapshots = snapshots
        self.blobs = blobs

    def realise(self, id: str, work: Work) -> str:
        """The name of the record's snapshot, made if need be. Once, however many threads and processes ask."""
        record = self.records.get(id)
        if record.snapshot is not None:
            return record.snapshot
        if record.kind in (BASE, LAYER):
            self._chain(record, work)
        else:
            with self.root.lock(f"realise-{id}", cancelled=work.cancelled):
                record = self.records.get(id)
                if record.snapshot is None:
                    from .compose import compose

                    compose(self, record, work)
        snapshot = self.records.get(id).snapshot
        if snapshot is None:
            raise StoreError(f"cache record {id} could not be made")
        return snapshot

    @contextmanager
    def new_key(self) -> Iterator[str]:
        """A name for a snapshot being made: held while the block runs; what no record has by its end is removed."""
        key = f"new-{new_id()}"
        self.root.holds.add("snapshot", key)
        try:
            yield key
        finally:
            try:
                if not self.records.snapshot_users(key):
                    self.snapshots.remove(key)
                self.root.holds.remove("snapshot", key)
            except StoreError as err:
                # On a full disk the hold stays until this process ends, then it is swept; what went wrong before is told.
                _log.warning("failed to clean up snapshot %s: %s", key, err)

    def _chain(self, record: Record, work: Work) -> None:
        chain, bottom = self._missing(record)
        if bottom is not None:
            self.realise(bottom, work)
        with ExitStack() as stack:
            for missing in chain:
                # Bottom first, as everybody does: chains that share layers cannot wait for each other in a circle.
                held = self.root.lock(f"realise-{missing.id}", cancelled=work.cancelled)
                stack.callback(held.release, remove=True)
            chain = [missing for missing in map(self._reread, chain) if missing.snapshot is None]
            if not chain:
                return
            if self.snapshots.stacked:
                self._stacked(chain, work)
            else:
                for missing in chain:
                    self._single(missing, work)

    def _missing(self, record: Record) -> tuple[list[Record], str | None]:
        """The layers without a snapshot, bottom first, and the record they lie on if that has none either."""
        chain: list[Record] = []
        at: Record | None = record
        while at is not None and at.snapshot is None and at.kind in (BASE, LAYER):
            chain.append(at)
            at = self.records.get(at.parents[0]) if at.parents else None
        chain.reverse()
        return chain, at.id if at is not None and at.snapshot is None else None

    def _reread(self, record: Record) -> Record:
        """The record as it is now; it takes over a snapshot of the same layers if somebody made one meanwhile."""
        record = self.records.get(record.id)
        if record.snapshot is None and record.chain is not None:
            with self.root.db.write():
                same = self.records.snapshot_of_chain(record.chain)
                if same is not None:
                    self.records.set_snapshot(record.id, same)
            record = self.records.get(record.id)
        return record

    def _stacked(self, chain: list[Record], work: Work) -> None:
        with ExitStack() as stack:
            keys = [stack.enter_context(self.new_key()) for _ in chain]
            for key in keys:
                self.snapshots.prepare(key)
            unpacked = side_by_side(
                work,
                [
                    lambda inner, record=record, key=key: self._unpack(record, key, inner)  # type: ignore[misc]
                    for record, key in zip(chain, keys, strict=True)
                ],
                workers=_WORKERS,
            )
            bottom = self._parent_snapshot(chain[0])
            below = self.snapshots.layers(bottom) if bottom is not None else ()
            for key, result in zip(keys, unpacked, strict=True):
                upper = self.snapshots.upper(key)
                finish_layer(upper, below, result.pending)
                below = (upper, *below)
            point("realise.naming")
            with self.root.db.write():
                parent = bottom
                for record, key in zip(chain, keys, strict=True):
                    name = new_id()
                    self.snapshots.commit(key, name, parent=parent)
                    self.records.set_snapshot(record.id, name)
                    parent = name
                    point("realise.moved")
            point("realise.named")

    def _single(self, record: Record, work: Work) -> None:
        with self.new_key() as key:
            self.snapshots.prepare(key, self._parent_snapshot(record))
            self._unpack(record, key, work)
            point("realise.naming")
            with self.root.db.write():
                name = new_id()
                self.snapshots.commit(key, name)
                self.records.set_snapshot(record.id, name)
            point("realise.named")

    def _parent_snapshot(self, record: Record) -> str | None:
        return self.records.get(record.parents[0]).snapshot if record.parents else None

    def _unpack(self, record: Record, key: str, work: Work) -> UnpackResult:
        blob = self._local_blob(record, work)
        started = work.step.status(f"extracting {blob.digest}") if work.step is not None else None
        work.check()
        try:
            with self.blobs.store.open(blob.digest) as file, closing(decompressor(file, blob.media_type)) as tar:
                result = unpack(
                    tar,
                    self.snapshots.upper(key),
                    convert="overlay" if self.snapshots.stacked else "apply",
                    cancelled=work.cancelled,
                )
            if record.diff_id is not None and result.diff_id != record.diff_id:
                raise IntegrityError(
                    f"layer {blob.digest} does not match its image: its content is {result.diff_id},"
                    f" the image says {record.diff_id}"
                )
        except (CancelledError_, StoreError):
            raise
        except ChantierError as err:
            self.blobs.refuse(blob.digest, err.brief)
            raise
        self.blobs.accept(blob.digest)
        point("realise.unpacked")
        if work.step is not None:
            work.step.status(f"extracting {blob.digest}", started=started, done=True)
        return result

    def lost(self, id: str) -> str:
        """Why a record's tree can be made no more, as far as this process has seen; "" if nothing speaks against it."""
        todo, seen = [id], set()
        while todo:
            record = self.records.find(todo.pop())
            if record is None or record.id in seen or record.snapshot is not None:
                continue
            seen.add(record.id)
            todo += record.made_of
            if record.kind in (BASE, LAYER):
                found = [self.blobs.why_not(blob.descriptor.digest) for blob in self.records.blobs(record.id)]
                if all(found):
                    return found[0] if found else f"cache record {record.id} has neither a tree nor a blob"
            elif record.reuses is not None:
                todo.append(record.reuses)
        return ""

    def _local_blob(self, record: Record, work: Work) -> Descriptor:
        """One packed form of the layer, brought here: one that is here already if there is any."""
        blobs = self.records.blobs(record.id)
        if not blobs:
            raise StoreError(f"cache record {record.id} has neither a tree nor a blob")
        for blob in blobs:
            if self.blobs.store.exists(blob.descriptor.digest):
                return blob.descriptor
        self.blobs.bring(blobs[0].descriptor, work)
        return blobs[0].descriptor


def snapshot_exists(snapshots: Snapshotter, name: str) -> bool:
    """Whether a snapshot and all it lies on are there, files and all."""
    try:
        return all(layer.is_dir() for layer in snapshots.layers(name))
    except NotFoundError:
        return False


__all__ = ["Trees", "snapshot_exists"]
