# SPDX-License-Identifier: Apache-2.0
"""Bytes by digest, one database, who is alive, and what may be deleted.

    ROOT/
      chantier.db           all metadata (SQLite, WAL)
      blobs/sha256/ab/ab…   blobs, named by digest once complete, never changed
      ingest/               blobs being written; a keyed one (KEY.part) can be resumed
      snapshots/            the snapshotter's
      processes/ID          one file a live process, locked as long as it lives
      locks/NAME            locks between processes
      tmp/ID/               scratch of one process, cleaned once it is dead

Promises: a blob that has a name is complete and was verified; what a live process holds is not deleted by another;
opening succeeds after a kill, a full disk, or a damaged database. Refuses: to trust a digest it did not compute.

Three names to know: `Root`, `BlobStore`, `plan`.
"""

from .blobs import BlobStore
from .db import Db
from .filters import compile_filters
from .gc import default_policies, plan, why_kept
from .holds import Holds, Lease
from .root import Root
from .types import BlobInfo, Disk, Eviction, Policy, UsageRecord
from .weigh import Weight, weigh
from .writer import Writer

__all__ = [
    "BlobInfo",
    "BlobStore",
    "Db",
    "Disk",
    "Eviction",
    "Holds",
    "Lease",
    "Policy",
    "Root",
    "UsageRecord",
    "Weight",
    "Writer",
    "compile_filters",
    "default_policies",
    "plan",
    "weigh",
    "why_kept",
]
