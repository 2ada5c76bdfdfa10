# SPDX-License-Identifier: Apache-2.0
"""Snapshots as layers of overlayfs: only differences are stored, and nothing is copied to make a child."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from chantier import kernel
from chantier.errors import StoreError
from chantier.store.db import Db

from .mount import Mount
from .names import KEEP, Names, probe_directory
from .types import Info, Usage


class Overlay:
    """The snapshotter for every kernel with overlayfs."""

    stacked = True

    def __init__(self, root: Path, db: Db) -> None:
        self._names = Names(root, db)

    def prepare(self, key: str, parent: str | None = None) -> None:
        with self._names.making(key, parent) as (place, above):
            (place / "work").mkdir(mode=0o711)
            make_root(place / "fs", like=above)

    def commit(self, key: str, name: str, *, parent: str | None = KEEP) -> None:
        self._names.commit(key, name, parent)

    def mounts(self, name: str, *, readonly: bool = True, durable: bool = True) -> tuple[Mount, ...]:
        chain = self._names.chain(name)
        if not readonly and chain[0].committed:
            raise StoreError(f"cannot mount snapshot {name!r} for writing: it is committed")
        layers = [os.fspath(self._names.fs(row)) for row in chain]
        access = "ro" if readonly else "rw"
        if len(layers) == 1:
            return (Mount("bind", layers[0], ("rbind", access)),)
        lowers = layers if readonly else layers[1:]
        options = [*overlay_options(), "lowerdir=" + ":".join(kernel.escape(layer) for layer in lowers)]
        if readonly:
            return (Mount("overlay", "overlay", ("ro", *options)),)
        work = self._names.directory / chain[0].id / "work"
        options += [f"upperdir={kernel.escape(layers[0])}", f"workdir={kernel.escape(os.fspath(work))}"]
        if not durable and volatile_works():
            options.append("volatile")
            # How the kernel remembers that a sync was left out. Ours are left out on purpose (docs/adr/0011).
            shutil.rmtree(work / "work/incompat/volatile", ignore_errors=True)
        return (Mount("overlay", "overlay", tuple(options)),)

    def remove(self, name: str) -> None:
        self._names.remove(name)

    def usage(self, name: str) -> Usage:
        return self._names.usage(name)

    def layers(self, name: str) -> tuple[Path, ...]:
        return tuple(self._names.fs(row) for row in self._names.chain(name))

    def upper(self, name: str) -> Path:
        return self._names.fs(self._names.chain(name)[0])

    def info(self, name: str) -> Info:
        row = self._names.chain(name)[0]
        return Info(name=row.name, parent=row.parent, committed=row.committed, created_ns=row.created_ns)

    def walk(self) -> Iterator[Info]:
        return self._names.walk()

    def note(self, name: str) -> None:
        self._names.note(name)

    def drop_lost(self) -> list[str]:
        return self._names.drop_lost()

    def recover(self) -> list[str]:
        """Clean up after crashes; returns what was removed. Leaves alone what a live process owns."""
        return self._names.recover()


def make_root(path: Path, *, like: Path | None) -> None:
    """A snapshot's root directory. Overlayfs shows the upper one's owner and mode, so they must be the parent's."""
    path.mkdir(mode=0o755)
    if like is None:
        path.chmod(0o755)
        return
    info = like.lstat()
    if (info.st_uid, info.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(path, info.st_uid, info.st_gid)
    path.chmod(stat.S_IMODE(info.st_mode))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


@cache
def overlay_options() -> tuple[str, ...]:
    """Options every overlay of ours gets: features that would leave files a plain reader of `fs` misunderstands are off."""
    try:  # loads the module, without which the parameters cannot be seen
        os.close(kernel.fsopen("overlay"))
    except OSError:
        pass  # an old kernel, or no overlayfs: then mounting will say so
    features = Path("/sys/module/overlay/parameters")
    # In a user namespace `userxattr` alone turns the other two off, and refuses to hear of them (fs/overlayfs/params.c).
    unprivileged = kernel.in_user_namespace()
    names = ("index",) if unprivileged else ("index", "metacopy", "redirect_dir")
    off = tuple(f"{name}=off" for name in names if (features / name).exists())
    return (*off, "userxattr") if unprivileged else off


@cache
def volatile_works() -> bool:
    """Whether overlays may be mounted so that ending them, and fsync(2) in them, writes nothing to the disk (Linux 5.10)."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (5, 10)


def overlay_works(directory: Path) -> bool:
    """Whether an overlay can be mounted whose layers lie in `directory`."""
    with probe_directory(directory) as name:
        parts = {part: os.path.join(name, part) for part in ("lower", "upper", "work", "merged")}
        for part in parts.values():
            os.mkdir(part)
        try:
            options = (*overlay_options(), *(("volatile",) if volatile_works() else ()))
            kernel.overlay(parts["merged"], [parts["lower"]], upper=parts["upper"], work=parts["work"], options=options)
        except OSError:
            return False
        kernel.umount(parts["merged"], kernel.MNT_DETACH)
        return True
