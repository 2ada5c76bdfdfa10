# SPDX-License-Identifier: Apache-2.0
"""The state directory: who is alive, what they hold, how it comes back after a crash."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from chantier.errors import CancelledError_, StoreError
from chantier.kernel.mounts import mount_points
from chantier.spec import digest_of
from chantier.store import Root

CHILD = """
import sys, time
from pathlib import Path
from chantier.store import Root
root = Root.open(Path(sys.argv[1]))
root.holds.add("record", "of-child")
lock = root.lock("some-lock")
(root.scratch() / "file").write_text("x")
writer = root.blobs.writer()
writer.write(b"half")
keyed = root.blobs.writer(key="resume")
keyed.write(b"half")
print(root.process, flush=True)
time.sleep(60)
"""


def start(path: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(60)


def test_the_layout_is_private(tmp_path: Path) -> None:
    with Root.open(tmp_path / "a/b/root") as root:
        for name in ("", "blobs", "ingest", "locks", "processes", "snapshots", "tmp"):
            assert stat.S_IMODE((root.path / name).stat().st_mode) == 0o700
        assert root.alive() == []
        assert os.listdir(root.path / "processes") == [root.process]
    assert os.listdir(tmp_path / "a/b/root/processes") == []


def test_holds_of_the_living_count_and_those_of_the_dead_do_not(tmp_path: Path) -> None:
    with Root.open(tmp_path) as root:
        process, id = start(tmp_path)
        try:
            assert root.alive() == [id]
            assert root.reap() == []
            assert root.holds.held("record", "of-child")
            assert root.try_lock("some-lock") is None
        finally:
            kill(process)
        assert root.holds.held("record", "of-child")  # nobody has noticed yet
        assert root.reap() == [id]
        assert not root.holds.any()
        lock = root.try_lock("some-lock")
        assert lock is not None
        lock.release()


def test_opening_cleans_up_after_the_dead(tmp_path: Path) -> None:
    process, id = start(tmp_path)
    kill(process)
    with Root.open(tmp_path) as root:
        assert root.unclean
        assert not root.holds.any()
        assert os.listdir(tmp_path / "processes") == [root.process]
        assert not (tmp_path / "tmp" / id).exists()
        (left,) = os.listdir(tmp_path / "ingest")
        assert left.startswith("key-")
        with root.blobs.writer(key="resume") as writer:
            assert writer.offset == 4
    with Root.open(tmp_path) as root:
        assert not root.unclean


def test_the_living_are_left_alone(tmp_path: Path) -> None:
    process, id = start(tmp_path)
    try:
        with Root.open(tmp_path) as root:
            assert len(os.listdir(tmp_path / "ingest")) == 2
            assert (tmp_path / "tmp" / id / "file").exists()
            assert root.holds.held("record", "of-child")
    finally:
        kill(process)


@pytest.mark.root
def test_stale_mounts_are_taken_down_never_deleted_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep me")
    root = tmp_path / "root"
    Root.open(root).close()
    for stale in (root / "tmp/dead/with space", root / "executor/x/rootfs"):
        stale.mkdir(parents=True)
        subprocess.run(["mount", "--bind", str(precious), str(stale)], check=True)
    (root / "tmp/file").write_text("x")
    assert len(mount_points(root)) == 2
    Root.open(root).close()
    assert mount_points(root) == []
    assert os.listdir(root / "tmp") == os.listdir(root / "executor") == []
    assert (precious / "file").read_text() == "keep me"


def test_leases_hold_blobs_in_threads_too(tmp_path: Path) -> None:
    import asyncio

    with Root.open(tmp_path) as root:
        found = root.blobs.put(b"found")

        async def build() -> None:
            with root.lease():
                await asyncio.to_thread(root.blobs.put, b"made")
                await asyncio.to_thread(root.blobs.stat, found)
                assert root.holds.keys("blob") == {found, digest_of(b"made")}
                assert root.blobs.collect(grace_ns=0) == 0

        asyncio.run(build())
        assert not root.holds.any()
        assert root.blobs.collect(grace_ns=0) == 9


def test_two_leases_are_two_holders(tmp_path: Path) -> None:
    with Root.open(tmp_path) as root:
        one, two = root.lease(), root.lease()
        one.hold("blob", "x")
        two.hold("blob", "x")
        one.release()
        assert root.holds.held("blob", "x")
        two.release()
        assert not root.holds.held("blob", "x")


def test_a_damaged_database_with_others_alive_is_an_error(tmp_path: Path) -> None:
    process, _ = start(tmp_path)
    try:
        with (tmp_path / "chantier.db").open("r+b") as file:
            file.write(b"x" * 16)
        with pytest.raises(StoreError, match="damaged"):
            Root.open(tmp_path)
    finally:
        kill(process)


def test_a_path_that_cannot_be_a_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="state directory"):
        Root.open(tmp_path / "file")


def test_locks_exclude_threads_wait_and_can_be_cancelled(tmp_path: Path) -> None:
    with Root.open(tmp_path) as root:
        held = root.lock("l")
        with pytest.raises(CancelledError_):
            root.lock("l", cancelled=lambda: True)
        got: list[float] = []

        def wait() -> None:
            with root.lock("l"):
                got.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.03)
        released = time.monotonic()
        held.release(remove=True)
        thread.join(60)
        assert got[0] >= released
        with root.lock("s", shared=True), root.lock("s", shared=True):
            assert root.try_lock("s") is None


def test_removed_lock_files_do_not_let_two_in(tmp_path: Path) -> None:
    with Root.open(tmp_path) as root:
        inside = 0
        most = 0

        def work() -> None:
            nonlocal inside, most
            for _ in range(30):
                lock = root.lock("l")
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1
                lock.release(remove=True)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert most == 1
