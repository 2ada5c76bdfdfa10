# SPDX-License-Identifier: Apache-2.0
"""Which snapshotter a state uses: what the config asks for, or the quickest that works where its layers lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chantier.errors import UnsupportedError
from chantier.store.db import Db
from chantier.values import dataclass

from .fuse import PROGRAM, FuseOverlay, fuse_works
from .native import Native
from .overlay import Overlay, overlay_works
from .types import Snapshotter

AUTO, OVERLAYFS, FUSE, NATIVE = "auto", "overlayfs", PROGRAM, "native"
NAMES = (AUTO, OVERLAYFS, FUSE, NATIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`name` of a snapshotter; `note` says what it costs that it is not a better one, and why, "" if it is the best or was asked for."""

    name: str
    note: str = ""

    def open(self, root: Path, db: Db) -> Snapshotter:
        kinds: dict[str, Callable[[Path, Db], Snapshotter]] = {OVERLAYFS: Overlay, FUSE: FuseOverlay, NATIVE: Native}
        return kinds[self.name](root, db)


def choose(wanted: str, directory: Path) -> Choice:
    """`wanted` is worker.oci.snapshotter; `directory` is where layers lie. UnsupportedError for an unknown name, or FUSE that fails."""
    wanted = wanted or AUTO
    if wanted not in NAMES:
        raise UnsupportedError(
            f"unknown snapshotter {wanted!r}", hint=f"snapshotters are {', '.join(NAMES[:-1])} and {NAMES[-1]}"
        )
    if wanted == FUSE:
        reason = fuse_works(directory)
        if reason:
            raise UnsupportedError(
                f"the snapshotter {FUSE} cannot be used: {reason}",
                hint="install fuse-overlayfs and give the user /dev/fuse (mode 0666), or leave worker.oci.snapshotter at auto",
            )
    if wanted != AUTO:
        return Choice(name=wanted)
    if overlay_works(directory):
        return Choice(name=OVERLAYFS)
    reason = fuse_works(directory)
    refused = f"the kernel's overlayfs cannot be mounted below {directory}"
    if not reason:
        return Choice(name=FUSE, note=f"{refused}: {FUSE} serves steps their files, which makes opening many of them slower")
    return Choice(name=NATIVE, note=f"{refused}, and {reason}: every snapshot is a full copy, in time and in room")


__all__ = ["AUTO", "FUSE", "NAMES", "NATIVE", "OVERLAYFS", "Choice", "choose"]
