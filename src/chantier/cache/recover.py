# SPDX-License-Identifier: Apache-2.0
"""Making the cache whole after a process died: what it was making goes, what it held is free, what is lost is forgotten."""

from __future__ import annotations

import logging

from chantier.kernel.trace import point
from chantier.snapshot import Snapshotter
from chantier.store import BlobStore, Root

from .prune import Pruner
from .realise import snapshot_exists
from .records import Records

_log = logging.getLogger(__name__)


def recover(root: Root, records: Records, snapshots: Snapshotter, blobs: BlobStore, pruner: Pruner) -> None:
    """Run when a cache is opened; harmless beside live processes, whose things are held."""
    with root.recovering() as alone:
        lost = snapshots.drop_lost() if alone else []
        if lost:
            _log.warning("%d layers had not reached the disk when the machine went down; they are forgotten", len(lost))
        clean_files = getattr(snapshots, "recover", None)
        if clean_files is not None:
            clean_files()
        for record in records.all():
            # A step's tree that was never finished. The kept ones (cache mounts, local sources) have an index.
            if record.mutable and not records.indexes(record.id):
                pruner.remove(record.id)
        swept = pruner.sweep()
        if swept:
            _log.info("removed %d unfinished snapshots", len(swept))
        point("recover.snapshots")
        if root.unclean or lost:
            forget_lost(records, snapshots, blobs, pruner)
        point("recover.done")


def forget_lost(records: Records, snapshots: Snapshotter, blobs: BlobStore, pruner: Pruner) -> list[str]:
    """Forget trees whose files are gone, and records that have nothing left to be made from. Returns what was dropped."""
    dropped = []
    for record in reversed(records.all()):  # children are younger than what they are made of
        if record.snapshot is None or snapshot_exists(snapshots, record.snapshot):
            continue
        if not record.mutable and can_be_made(records, blobs, record.id):
            records.set_snapshot(record.id, None)
        elif pruner.remove(record.id):
            dropped.append(record.id)
    return dropped


def can_be_made(records: Records, blobs: BlobStore, id: str) -> bool:
    """Whether a record's tree can be had without the snapshot: from a blob, or from the records it is composed of."""
    record = records.get(id)
    if record.kind in ("merge", "diff"):
        return True
    return any(
        blobs.exists(blob.descriptor.digest) or records.sources(blob.descriptor.digest) for blob in records.blobs(record.id)
    )


__all__ = ["can_be_made", "forget_lost", "recover"]
