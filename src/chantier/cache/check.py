# SPDX-License-Identifier: Apache-2.0
"""Looking for damage: whether blobs, trees, records and what they say of each other agree. Changes nothing.

What a live process is in the middle of is not damage: what is held is passed over.
"""

from __future__ import annotations

import os

from chantier.errors import IntegrityError, NotFoundError
from chantier.snapshot import Snapshotter
from chantier.store import Root
from chantier.values import dataclass

from .realise import snapshot_exists
from .records import BASE, DIFF, LAYER, MERGE, Record, Records
from .recover import can_be_made

_PARENTS = {BASE: (0, 0), LAYER: (1, 1), MERGE: (2, None), DIFF: (2, 2)}


@dataclass(frozen=True, slots=True)
class Problem:
    """`kind` is blob, record, snapshot, hold or ingest; `key` names which; `text` says what is wrong."""

    kind: str
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.key}: {self.text}"


def check(root: Root, snapshots: Snapshotter, *, deep: bool = False) -> list[Problem]:
    """All that is wrong. `deep` also reads every blob and compares its digest."""
    records = Records(root.db)
    return [
        *_blobs(root, deep=deep),
        *_records(root, records, snapshots),
        *_snapshots(root, records, snapshots),
        *_holds(root, records),
        *_ingest(root),
    ]


def _blobs(root: Root, *, deep: bool) -> list[Problem]:
    found = []
    files = dict(root.blobs.files())
    known = {info.digest: info for info in root.blobs.walk()}
    for digest, info in known.items():
        size = files.get(digest)
        if size is None:
            found.append(Problem("blob", digest, "its file is missing"))
        elif size != info.size:
            found.append(Problem("blob", digest, f"its file has {size} bytes, want {info.size}"))
        elif deep:
            found.extend(_damaged(root, digest))
    found.extend(Problem("blob", name, "a file without a record") for name in files if name not in known)
    return found


def _damaged(root: Root, digest: str) -> list[Problem]:
    try:
        with root.blobs.verified(digest) as reader:
            while reader.read(1 << 20):
                pass
    except NotFoundError:  # removed just now
        return []
    except IntegrityError as err:
        return [Problem("blob", digest, str(err))]
    return []


def _records(root: Root, records: Records, snapshots: Snapshotter) -> list[Problem]:
    found = []
    everything = {record.id: record for record in records.all()}
    for record in everything.values():
        found.extend(_record(root, records, snapshots, record, everything))
    for table, column in (("cache_parent", "child"), ("cache_index", "id"), ("cache_meta", "id"), ("cache_blob", "id")):
        rows = root.db.read(f"SELECT DISTINCT {column} FROM {table} WHERE {column} NOT IN (SELECT id FROM cache_record)")
        found.extend(Problem("record", row[0], f"rows in {table} of a record that does not exist") for row in rows)
    rows = root.db.read("SELECT owner FROM blob_owner WHERE owner LIKE 'record:%'")
    owners = {str(row[0]).removeprefix("record:") for row in rows}
    found.extend(Problem("record", id, "owns blobs but does not exist") for id in sorted(owners - everything.keys()))
    return found


def _record(root: Root, records: Records, snapshots: Snapshotter, record: Record, everything: dict[str, Record]) -> list[Problem]:
    found = []
    least, most = _PARENTS[record.kind]
    count = len(record.parents)
    if count < least or (most is not None and count > most):
        found.append(Problem("record", record.id, f"a {record.kind} with {count} parents"))
    found.extend(
        Problem("record", record.id, f"its parent {parent} is gone") for parent in record.made_of if parent not in everything
    )
    if record.snapshot is not None and not snapshot_exists(snapshots, record.snapshot):
        found.append(Problem("record", record.id, f"its snapshot {record.snapshot} is gone"))
    if record.snapshot is None and not can_be_made(records, root.blobs, record.id):
        found.append(Problem("record", record.id, "has neither a tree nor a blob that can be had"))
    if record.mutable and not records.indexes(record.id) and not root.holds.held("record", record.id):
        found.append(Problem("record", record.id, "mutable, kept by nothing and held by nobody"))
    if record.snapshot is not None and not record.mutable:
        found.extend(_lies_on(snapshots, record, everything))
    for blob in records.blobs(record.id):
        digest = blob.descriptor.digest
        if f"record:{record.id}" not in root.blobs.owners(digest):
            found.append(Problem("blob", digest, f"is not kept for record {record.id}, which needs it"))
    return found


def _lies_on(snapshots: Snapshotter, record: Record, everything: dict[str, Record]) -> list[Problem]:
    """A layer's snapshot lies on that of its parent."""
    if record.kind != LAYER:
        return []
    parent = everything.get(record.parents[0])
    try:
        info = snapshots.info(record.snapshot or "")
    except NotFoundError:
        return []  # said already
    if not info.committed:
        return [Problem("record", record.id, f"its snapshot {info.name} is not committed")]
    shared = [other for other in everything.values() if other.snapshot == info.parent and other.snapshot is not None]
    if parent is not None and parent.snapshot != info.parent and parent.chain not in {other.chain for other in shared}:
        return [Problem("record", record.id, f"its snapshot lies on {info.parent}, its parent's is {parent.snapshot}")]
    return []


def _snapshots(root: Root, records: Records, snapshots: Snapshotter) -> list[Problem]:
    with root.db.write():
        infos = list(snapshots.walk())
        wanted: set[str | None] = {record.snapshot for record in records.all()}
        wanted |= root.holds.keys("snapshot")
    found = []
    for info in reversed(infos):
        if info.name in wanted:
            wanted.add(info.parent)
        else:
            found.append(Problem("snapshot", info.name, "belongs to no record"))
    if not root.alive() and not root.holds.any():
        named = {identity for (identity,) in root.db.read("SELECT id FROM snapshot")}
        found += [
            Problem("snapshot", entry.name, "a directory without a record")
            for entry in os.scandir(root.snapshots_dir)
            if entry.is_dir(follow_symlinks=False) and entry.name not in named
        ]
    return found


def _holds(root: Root, records: Records) -> list[Problem]:
    alive = {root.process, *root.alive()}
    return [
        Problem("hold", process, "a process that is dead still holds things")
        for process in root.holds.processes()
        if process not in alive
    ]


def _ingest(root: Root) -> list[Problem]:
    """Leftovers of writers. Keyed ones may be resumed, and others may be being written by somebody alive."""
    if root.alive() or root.holds.any():
        return []
    names = sorted(name for name in os.listdir(root.path / "ingest") if not name.startswith("key-"))
    return [Problem("ingest", name, "left by a writer that is gone") for name in names]


__all__ = ["Problem", "check"]
