# SPDX-License-Identifier: Apache-2.0
"""A disk that is too small: a clear error, no damage, and the same build works once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

SIZE = 60 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system in a file, mounted."""
    image, where = tmp_path / "disk.img", tmp_path / "disk"
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(where)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-R", "-l", str(where)], check=False)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves only so much room."""
    path = disk / "filler"
    info = os.statvfs(disk)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(info.f_bavail * info.f_frsize - leave, 4096))
    return path


BUILDS = {
    "step": ("FROM alpine\nRUN dd if=/dev/urandom of=/big bs=1M count=8\n", ()),
    "copy": ("FROM alpine\nCOPY big /big\n", ()),
    "layer": ("FROM alpine\nRUN dd if=/dev/urandom of=/big bs=1M count=8\n", ("push",)),
    "cache": ("FROM alpine\nRUN dd if=/dev/urandom of=/big bs=1M count=8\n", ("cache",)),
    "mount": ("FROM alpine\nRUN --mount=type=cache,target=/c dd if=/dev/urandom of=/c/big bs=1M count=8\n", ()),
}


@pytest.mark.parametrize(("kind", "leave"), [("step", 6), ("copy", 6), ("layer", 11), ("cache", 11), ("mount", 6), ("step", 1)])
def test_a_full_disk(
    make_command: Callable[..., Command], registry: RealRegistry, disk: Path, tmp_path: Path, kind: str, leave: int
) -> None:
    command = make_command("[worker.oci]\ngc = false\n", root=disk / "state")
    context = tmp_path / "ctx"
    context.mkdir()
    (context / "big").write_bytes(os.urandom(8 << 20))
    text, more = BUILDS[kind]
    args: tuple[str, ...] = ("-t", f"{registry.host}/full/disk:1", "--push") if "push" in more else ()
    if "cache" in more:
        args = ("--cache-to", f"type=registry,ref={registry.host}/full/cache:1,mode=max,ignore-error=false")
    command.build("FROM alpine\nRUN echo before > /before\n", context=context).ok()
    filler = fill(disk, leave << 20)
    done = command.build(text, *args, context=context)
    assert done.code != 0
    assert "no space left on device" in done.err.lower(), done.err
    assert "internal error" not in done.err
    filler.unlink()
    checked = command("fsck", "--deep")
    assert (checked.code, checked.out) == (0, "clean\n"), checked.out
    command.build(text, *args, context=context).ok()
    done = command.build("FROM alpine\nRUN echo before > /before\n", context=context).ok()
    assert done.step("RUN echo before").endswith("CACHED")
