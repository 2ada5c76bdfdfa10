# SPDX-License-Identifier: Apache-2.0
"""A full disk: a clear error, no damage, and the same work succeeds once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_parts import Home, write

from chantier.cache.check import check
from chantier.errors import ChantierError, DiskFullError

pytestmark = pytest.mark.root


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Home]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    home = Home(disk / "root")
    yield home
    home.close()
    subprocess.run(["umount", str(disk)], check=True)


def fill(home: Home) -> Path:
    path = home.path / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    os.truncate(path, path.stat().st_size - 131072)
    return path


def test_every_write_path(small: Home) -> None:
    noise = os.urandom(300_000).hex()
    base = small.step(None, {"a": "1"})
    lazy = small.image({"big": noise})
    copied = small.cache.new(None)
    write(copied, {"noise": noise})
    ready = copied.commit()
    lower = small.step(None, {"x": noise})
    diff = small.cache.diff(lower, ready, description="d")
    assert diff is not None
    before = {info.name for info in small.snapshots.walk()}
    filler = fill(small)
    for attempt in (lazy.realise, ready.layers, lambda: small.root.blobs.put(os.urandom(200_000))):
        with pytest.raises(DiskFullError) as caught:
            attempt()
        assert "no space left" in str(caught.value).lower()
    with pytest.raises((ChantierError, OSError)):
        write(small.cache.new(base), {"noise": noise})
    filler.unlink()
    assert {info.name for info in small.snapshots.walk() if info.committed} <= before
    assert small.tree(lazy) == {"big": noise}
    assert len(ready.layers()) == 1
    assert small.tree(diff) == {"noise": noise}
    problems = [p for p in check(small.root, small.snapshots, deep=True) if p.kind != "ingest"]
    assert problems == []
