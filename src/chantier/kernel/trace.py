# SPDX-License-Identifier: Apache-2.0
"""Named steps of every write path, so that tests can stop the world at any of them.

A write path calls `point("blob.renamed")` after each step that a crash could part from the next. In production that is one
comparison. A test installs a hook, or runs a process with CHANTIER_CRASH_AT="NAME" or "NAME:3" (the third time), which then
kills itself there as kill -9 would.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

STORE_POINTS = (
    "db.set-aside",
    "db.migrating",
    "db.committing",
    "db.committed",
    "process.registered",
    "blob.ingest",
    "blob.write",
    "blob.whole",
    "blob.renamed",
    "blob.recorded",
    "blob.deleting",
    "blob.deleted",
    "settle.synced",
    "settle.settled",
    "snapshot.made",
    "snapshot.named",
    "snapshot.committed",
    "snapshot.removed",
    "snapshot.discarding",
    "snapshot.discarded",
    "record.preparing",
    "record.prepared",
    "record.new",
    "record.committing",
    "record.committed",
    "record.sealed",
    "record.released",
    "record.removing",
    "record.removed",
    "image.recorded",
    "realise.fetched",
    "unpack.entry",
    "unpack.finished",
    "realise.unpacked",
    "realise.naming",
    "realise.moved",
    "realise.named",
    "compose.applied",
    "compose.naming",
    "compose.named",
    "layer.packed",
    "layer.recorded",
    "key.applying",
    "key.applied",
    "prune.record",
    "prune.blobs",
    "recover.snapshots",
    "recover.done",
)
"""Steps of the state directory, from the database up to the cache."""

BUILD_POINTS = (
    "step.ran",
    "push.blob",
    "push.manifest",
    "cache-import.read",
    "cache-export.layer",
    "cache-export.documents",
    "cache-export.done",
    "gc.begun",
    "history.begun",
    "history.logged",
    "history.attached",
    "history.imported",
    "history.writing",
    "history.written",
    "history.removing",
    "history.removed",
)
"""Steps of a build, wherever its engine runs."""

MOUNT_POINTS = (
    "cache-mount.sent",
    "cache-mount.committing",
    "cache-mount.written",
    "cache-mount.named",
    "cache-mount.unpacked",
    "cache-mount.replaced",
)
"""Steps of cache mounts on their way out and in."""

USER_POINTS = ("content.written", "content.named", "output.written", "output.named", "builder.written", "builder.named")
"""Steps on the user's side: OCI layouts of exported caches and images, files that builds give, the store of builders."""

POINTS = (*STORE_POINTS, *BUILD_POINTS, *MOUNT_POINTS, *USER_POINTS)

Hook = Callable[[str], None]
_hook: Hook | None = None


def point(name: str) -> None:
    """Say that a step is done. Costs nothing unless somebody listens."""
    if _hook is not None:
        _hook(name)


def install(hook: Hook | None) -> Hook | None:
    """Call `hook` at every point from now on; returns the one before. Tests only."""
    global _hook
    before, _hook = _hook, hook
    return before


def crash_at(spec: str) -> Hook:
    """The hook of CHANTIER_CRASH_AT: SIGKILL to this process the n-th time the point is reached."""
    name, _, count = spec.partition(":")
    left = int(count or 1)

    def hook(reached: str) -> None:
        nonlocal left
        if reached != name:
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


if os.environ.get("CHANTIER_CRASH_AT"):
    install(crash_at(os.environ["CHANTIER_CRASH_AT"]))

__all__ = ["BUILD_POINTS", "MOUNT_POINTS", "POINTS", "STORE_POINTS", "USER_POINTS", "Hook", "crash_at", "install", "point"]
