# SPDX-License-Identifier: Apache-2.0
"""Stacks of directories that can be mounted: what an image, a step's root or a context is while it is being used.

A snapshot is a name, a parent and a directory `fs`. It is *active* (may be written, through its mounts) until `commit` makes
it immutable; then it may be a parent. Names are given by the caller and live in the database, directories have ids of their own:

    ROOT/snapshots/ID/fs      the snapshot's own files; for `Overlay` only what differs from the parent
    ROOT/snapshots/ID/work    overlayfs's scratch directory
    ROOT/snapshots/ID/shared  which of its files are files of another tree too (`layer.shared`)
    ROOT/snapshots/ID/stage   while a copy makes new directories beside `fs` (`layer.stage`)
    ROOT/snapshots/.rm-ID     on its way out
    ROOT/snapshots/lock       held shared while a directory has no row yet, exclusively by `recover`

What it promises: a snapshot is named only once its directory stands; `remove` refuses while a child lives; a crash leaves
only directories without a row and mounts without an owner, which `recover` removes; several threads and processes may use one
root. What it refuses: writing to a committed snapshot.

Three names to know: `Snapshotter`, `Overlay`, `mounted`.
"""

from .choose import Choice, choose
from .fuse import FuseOverlay
from .mount import Mount
from .mounted import mount_all, mounted, unmount
from .native import Native
from .overlay import Overlay, overlay_works
from .types import Info, Snapshotter, Usage

__all__ = [
    "Choice",
    "FuseOverlay",
    "Info",
    "Mount",
    "Native",
    "Overlay",
    "Snapshotter",
    "Usage",
    "choose",
    "mount_all",
    "mounted",
    "overlay_works",
    "unmount",
]
