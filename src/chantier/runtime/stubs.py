# SPDX-License-Identifier: Apache-2.0
"""Mount stubs: the empty files and directories a runtime makes in a rootfs to mount something onto.

They are not the step's work and must not land in its layer. Before the step we write down which mount targets are missing;
after it those are removed again if they are still empty, and the directory that held them gets its times back.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from chantier.kernel import open_in_root, resolve_in_root
from chantier.values import dataclass

_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Stubs:
    """Paths inside `rootfs` that did not exist, deepest first."""

    rootfs: Path
    paths: tuple[str, ...]

    def remove(self) -> None:
        """Remove those that are empty still. What cannot be removed stays: the step may have made it its own."""
        for path in self.paths:
            _remove(self.rootfs, path)


def record(rootfs: Path, targets: Sequence[str], *, recursive: bool = False) -> Stubs:
    """Which of `targets` are missing in `rootfs`; with `recursive` also the directories above them that are."""
    missing: set[str] = set()
    for target in targets:
        try:
            path = resolve_in_root(rootfs, target)
        except OSError:  # a loop of links: the mount itself will fail with a better message
            continue
        while path and not _exists(rootfs, path):
            missing.add(path)
            if not recursive:
                break
            path = os.path.dirname(path)
    return Stubs(rootfs=rootfs, paths=tuple(sorted(missing, key=lambda p: (-p.count("/"), p))))


def _exists(rootfs: Path, path: str) -> bool:
    try:
        os.close(open_in_root(rootfs, path, _HOLD))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # there is something, whatever keeps us from opening it
        return True
    return True


def _remove(rootfs: Path, path: str) -> None:
    directory, name = os.path.split(path)
    try:
        parent = open_in_root(rootfs, directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # the step moved or removed the directory above
        return
    try:
        info = os.lstat(name, dir_fd=parent)
        before = os.fstat(parent)
        if stat.S_ISDIR(info.st_mode):
            os.rmdir(name, dir_fd=parent)
        elif info.st_size == 0:
            os.unlink(name, dir_fd=parent)
        else:
            return
        os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError:  # gone already, or not empty: either way it is no longer our stub
        return
    finally:
        os.close(parent)


__all__ = ["Stubs", "record"]
