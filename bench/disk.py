# SPDX-License-Identifier: Apache-2.0
"""A fresh ext4 on a loop device: what one builder deleted must not slow the next one's creates."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Disk:
    """`device` is the block device's name, such as `loop3`."""

    path: Path
    device: str


@contextmanager
def fresh_disk(where: Path, size_bytes: int) -> Iterator[Disk]:
    """A sparse file, a file system in it, mounted below `where`; all gone afterwards. Needs root."""
    with tempfile.TemporaryDirectory(prefix="disk-", dir=where) as name:
        image, mounted = Path(name, "image"), Path(name, "m")
        mounted.mkdir()
        with open(image, "wb") as file:
            file.truncate(size_bytes)
        _run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
        device = _run("losetup", "--find", "--show", str(image)).strip()
        try:
            _run("mount", device, str(mounted))
            try:
                yield Disk(mounted, device.removeprefix("/dev/"))
            finally:
                _unmount(mounted)
        finally:
            _run("losetup", "--detach", device)


def _unmount(mounted: Path) -> None:
    """With whatever a builder left mounted below it. A daemon that has just ended may keep it busy for a moment."""
    for wait_s in (0.1, 0.5, 2, 5):
        if subprocess.run(["umount", "-R", str(mounted)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(wait_s)
    _run("umount", "-R", "-l", str(mounted))


def _run(*args: str) -> str:
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(args)}: {done.stderr.strip()}")
    return done.stdout
