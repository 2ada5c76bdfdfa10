# SPDX-License-Identifier: Apache-2.0
"""kill -9 at every named step of every write path: the next start cleans up, nothing half-made is seen, the work can be done.

The child is a fork that runs the whole scenario and kills itself; the parent then opens the same root.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cache_parts import Home
from crash_scenario import FETCHER, WANT, scenario

from chantier.cache.check import check
from chantier.kernel.mounts import mount_points
from chantier.kernel.trace import STORE_POINTS, install

pytestmark = pytest.mark.root

LONG = os.environ.get("CHANTIER_CRASHES") is not None


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is room for it: a killed process leaves the same behind, and the disk need not be waited for."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="chantier-crash-") as name:
        yield Path(name)


Run = Callable[[Path, str], int]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs the scenario in a child that dies as told; gives its exit code."""
    program = [sys.executable, str(Path(__file__).with_name("crash_scenario.py"))]
    server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    stdin, stdout = server.stdin, server.stdout

    def ask(path: Path, spec: str) -> int:
        stdin.write(f"{path}\t{spec}\n")
        stdin.flush()
        return int(stdout.readline())

    with tempfile.TemporaryDirectory() as name:
        scenario(Path(name))  # fills this process's fetcher, too
    yield ask
    stdin.close()
    server.wait(60)


def reopen_and_check(path: Path) -> None:
    home = Home(path, fetcher=FETCHER)
    try:
        assert [str(problem) for problem in check(home.root, home.snapshots, deep=True)] == []
        for record in home.cache.usage():
            if not record.mutable:
                with home.cache.get(record.id) as ref:
                    home.tree(ref)
    finally:
        home.close()


def test_the_scenario_passes_every_point(tmp_path: Path) -> None:
    seen: set[str] = set()
    path = tmp_path / "root"
    scenario(path)
    damage(path)
    before = install(seen.add)
    try:
        assert scenario(path) == WANT
    finally:
        install(before)
    assert set(STORE_POINTS) - seen == set()


def damage(path: Path) -> None:
    data = (path / "chantier.db").read_bytes()
    (path / "chantier.db").write_bytes(data[: len(data) // 2])


def counts(point: str) -> tuple[int, ...]:
    """At which times that the point is reached. Each commit parts one state of the database from the next."""
    if point not in ("db.committing", "db.committed"):
        return (1, 3)
    return tuple(range(1, 400)) if LONG else (1, 2, 5, 13, 34, 89)


@pytest.mark.timeout(0 if LONG else 900)
@pytest.mark.parametrize("point", STORE_POINTS)
def test_killed_at(point: str, tmp_path: Path, run: Run) -> None:
    for count in counts(point):
        path = tmp_path / f"root{count}"
        if point == "db.set-aside":
            scenario(path)
            damage(path)
        code = run(path, f"{point}:{count}")
        if code == 0:
            assert count > 1, f"{point} was never reached"
            break
        assert code == -signal.SIGKILL
        reopen_and_check(path)
        assert scenario(path) == WANT
        reopen_and_check(path)
        home = Home(path, fetcher=FETCHER)
        assert home.cache.usage() == []
        assert [p for p in os.listdir(path / "snapshots") if p != "lock"] == []
        assert list(home.root.blobs.files()) == []
        assert os.listdir(path / "tmp") == []
        assert mount_points(path) == []
        home.close()


@pytest.mark.slow
@pytest.mark.timeout(0 if LONG else 900)
def test_killed_at_random_moments(tmp_path: Path, run: Run) -> None:
    rng = random.Random(7)
    path = tmp_path / "root"
    for _ in range(int(os.environ.get("CHANTIER_CRASHES", "30"))):
        assert run(path, f"after:{rng.uniform(0.0, 0.3)}") in (0, -signal.SIGKILL)
        reopen_and_check(path)
    assert scenario(path) == WANT
    reopen_and_check(path)


@pytest.mark.parametrize("keep", [0, 50, 4096, 20000])
def test_a_truncated_database_is_set_aside(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "root"
    home = Home(path, fetcher=FETCHER)
    ref = home.step(home.image({"a": "1"}), {"b": "2"})
    blobs = ref.layers()
    home.close()
    data = (path / "chantier.db").read_bytes()
    assert len(data) > 20000
    (path / "chantier.db").write_bytes(data[:keep])
    home = Home(path, fetcher=FETCHER)
    (warning,) = home.warnings
    assert "damaged" in warning
    assert "starts empty" in warning
    assert len([name for name in os.listdir(path) if "damaged" in name]) == 1
    assert home.cache.usage() == []
    assert check(home.root, home.snapshots, deep=True) == []
    # Blobs need no database to be what they are.
    assert home.root.blobs.read(blobs[-1].descriptor.digest)
    assert [name for name in os.listdir(path / "snapshots") if name != "lock"] == []
    home.close()
    assert scenario(path) == WANT


def test_a_garbled_database_is_set_aside_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "root"
    home = Home(path, fetcher=FETCHER)
    home.step(home.image({"a": "1"}), {"b": "2"}).layers()
    home.close()
    (path / "processes/dead").write_text("{}")
    data = bytearray((path / "chantier.db").read_bytes())
    data[8192:40960] = os.urandom(32768)
    (path / "chantier.db").write_bytes(data)
    home = Home(path, fetcher=FETCHER)
    assert "damaged" in home.warnings[0]
    home.close()
    assert scenario(path) == WANT


def test_a_deleted_database_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "root"
    home = Home(path, fetcher=FETCHER)
    home.image({"a": "1"}).fetch_blobs()
    home.close()
    (path / "chantier.db").unlink()
    home = Home(path, fetcher=FETCHER)
    assert "is gone" in home.warnings[0]
    assert check(home.root, home.snapshots, deep=True) == []
    home.close()
