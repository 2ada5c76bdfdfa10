# SPDX-License-Identifier: Apache-2.0
"""What a snapshotter is, and the values it answers with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from chantier.values import dataclass

from .mount import Mount


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a snapshot's own files take: allocated bytes, each inode once, and inodes."""

    bytes: int
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """One row of `walk`."""

    name: str
    parent: str | None
    committed: bool
    created_ns: int


class Snapshotter(Protocol):
    """Mountable stacks of directories. All methods may be called from several threads and processes at once.

    `stacked` says whether a snapshot's `upper` holds only the difference to its parent, with whiteouts as overlayfs has them.
    """

    stacked: bool

    def prepare(self, key: str, parent: str | None = None) -> None:
        """Name a new active snapshot on top of the committed `parent`. StoreError if the name is taken."""

    def commit(self, key: str, name: str, *, parent: str | None = ...) -> None:
        """Make the active snapshot `key` immutable under `name` (which may be the same), in one transaction.

        `parent` sets another committed parent, for layers that were unpacked at the same time; only where `stacked`.
        """

    def mounts(self, name: str, *, readonly: bool = True, durable: bool = True) -> tuple[Mount, ...]:
        """How to mount it. Writable only while active. Not `durable`: what is written waits for no disk, in a tree that counts for
        nothing until it is committed.
        """

    def remove(self, name: str) -> None:
        """Forget it and delete its files. StoreError while a child lives; nothing if there is no such name."""

    def usage(self, name: str) -> Usage:
        """What its own files take, without its parents'. Costs a walk; remembered once committed."""

    def layers(self, name: str) -> tuple[Path, ...]:
        """The directories that are stacked, top (its own) first."""

    def upper(self, name: str) -> Path:
        """Its own directory: write here only while nobody has it mounted."""

    def info(self, name: str) -> Info:
        """NotFoundError if there is no such snapshot."""

    def walk(self) -> Iterator[Info]:
        """All snapshots, parents before children."""

    def note(self, name: str) -> None:
        """What was written to an active one counts from now on, whether it has reached the disk or not: see `drop_lost`."""

    def drop_lost(self) -> list[str]:
        """Forget what may not have reached the disk before the machine went down. Only while nobody else is alive."""
