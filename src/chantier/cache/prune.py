# SPDX-License-Identifier: Apache-2.0
"""What is stored and what may go: usage records, and carrying out the store's plans.

A record is deleted in one transaction that checks once more that nobody, in any process, holds it or builds on it. Its files
go after that: a crash in between leaves files without a record, which `sweep` finds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from chantier.errors import CancelledError_, NotFoundError, StoreError
from chantier.kernel.trace import point
from chantier.snapshot import Snapshotter
from chantier.store import BlobStore, Eviction, Policy, Root, UsageRecord, compile_filters, plan
from chantier.store.blobs import GRACE_NS

from .records import Record, Records

_KEEP_PARTIAL_S = 86400.0
_log = logging.getLogger(__name__)


class Pruner:
    def __init__(
        self, root: Root, records: Records, snapshots: Snapshotter, blobs: BlobStore, *, clock: Callable[[], int]
    ) -> None:
        self._root = root
        self._records = records
        self._snapshots = snapshots
        self._blobs = blobs
        self._clock = clock
        self._measured: dict[str, tuple[int, int]] = {}  # mutable record: use count when it was measured, bytes

    def usage(self, *, filters: Sequence[str] = (), age_limit_ns: int = 0) -> list[UsageRecord]:
        matches = compile_filters(filters)
        self._root.reap()
        records = self._records.all()
        in_use = self._in_use(records)
        blob_sizes = self._blob_sizes()
        counted: set[str] = set()
        found = []
        for record in records:
            size = blob_sizes.get(record.id, 0)
            if record.snapshot is not None and record.snapshot not in counted:  # shared trees count once, for the oldest
                counted.add(record.snapshot)
                size += self._tree_size(record, busy=record.id in in_use)
            found.append(_usage_record(record, size=size, in_use=record.id in in_use))
        oldest = self._clock() - age_limit_ns
        return [
            record
            for record in found
            if matches(record) and (not age_limit_ns or record.last_used_at is None or record.last_used_at <= oldest)
        ]

    def size(self, id: str) -> int:
        """Bytes on disk of one record: its own tree and its own blobs."""
        record = self._records.get(id)
        return self._blob_sizes().get(id, 0) + self._tree_size(record, busy=True)

    def _in_use(self, records: Sequence[Record]) -> set[str]:
        """What is held, and all that is made of."""
        parents = {record.id: record.made_of for record in records}
        todo = list(self._root.holds.keys("record"))
        found: set[str] = set()
        while todo:
            id = todo.pop()
            if id not in found:
                found.add(id)
                todo.extend(parents.get(id, ()))
        return found

    def _blob_sizes(self) -> dict[str, int]:
        rows = self._root.db.read("SELECT c.id, SUM(b.size) FROM cache_blob c JOIN blob b ON b.digest = c.digest GROUP BY c.id")
        return {str(id): int(size) for id, size in rows}

    def _tree_size(self, record: Record, *, busy: bool) -> int:
        if record.snapshot is None:
            return 0
        known = self._measured.get(record.id)
        if record.mutable and not busy and known is not None and known[0] == record.usage_count:
            return known[1]
        try:
            size = self._snapshots.usage(record.snapshot).bytes
        except (NotFoundError, FileNotFoundError):  # just removed, or lost: then it takes nothing
            return 0
        if record.mutable:
            self._measured[record.id] = (record.usage_count, size)
        return size

    def plan(self, policy: Policy) -> list[Eviction]:
        return plan(self.usage(), policy, self._clock(), self._root.disk())

    def prune(
        self,
        policies: Sequence[Policy],
        *,
        on_removed: Callable[[UsageRecord], None] | None = None,
        cancelled: Callable[[], bool],
        grace_ns: int | None = None,
    ) -> list[UsageRecord]:
        removed = []
        for policy in policies:
            records = {record.id: record for record in self.usage()}
            for eviction in plan(list(records.values()), policy, self._clock(), self._root.disk()):
                if cancelled():
                    raise CancelledError_
                if self.remove(eviction.id):
                    _log.debug("removed %s: %s", eviction.id, eviction.reason)
                    removed.append(records[eviction.id])
                    if on_removed is not None:
                        on_removed(records[eviction.id])
        self._records.forget_sources()
        everything = any(policy.all and not policy.keep_duration_ns and not policy.filters for policy in policies)
        # A blob without an owner may be one that a running build is about to use; a part of one may yet be resumed.
        idle = everything and not self._root.holds.any()
        self._blobs.collect(grace_ns=grace_ns if grace_ns is not None else 0 if idle else GRACE_NS)
        self._blobs.recover(alone=False, keep_partial_s=0 if idle else _KEEP_PARTIAL_S)
        point("prune.blobs")
        self.sweep()
        return removed

    def remove(self, id: str) -> bool:
        """Delete a record and its files; False if it is held, built on, or gone."""
        with self._root.db.write():
            record = self._records.find(id)
            if record is None or self._root.holds.held("record", id) or self._records.children(id):
                return False
            self._records.delete(id)
            point("record.removing")
        point("record.removed")
        self._measured.pop(id, None)
        if record.snapshot is not None:
            self.drop_snapshot(record.snapshot)
        point("prune.record")
        return True

    def drop_snapshot(self, name: str) -> None:
        """Delete a snapshot unless a record has it; one that others lie on is left for `sweep`."""
        if self._records.snapshot_users(name):
            return
        try:
            self._snapshots.remove(name)
        except StoreError as err:
            _log.debug("snapshot %s stays for now: %s", name, err)

    def sweep(self) -> list[str]:
        """Delete the snapshots that no record has, nobody is making, and nothing that stays lies on. Returns their names."""
        with self._root.db.write():  # one view of all three tables
            infos = list(self._snapshots.walk())
            wanted = {record.snapshot for record in self._records.all()} | self._root.holds.keys("snapshot")
        doomed = []
        for info in reversed(infos):  # children before parents
            if info.name in wanted:
                wanted.add(info.parent)
            else:
                doomed.append(info.name)
        for name in doomed:
            self.drop_snapshot(name)
        return doomed


def _usage_record(record: Record, *, size: int, in_use: bool) -> UsageRecord:
    return UsageRecord(
        id=record.id,
        mutable=record.mutable,
        in_use=in_use,
        size=size,
        created_at=record.created,
        last_used_at=record.last_used,
        usage_count=record.usage_count,
        description=record.description,
        record_type=record.record_type,
        parents=record.made_of,
    )


__all__ = ["Pruner"]
