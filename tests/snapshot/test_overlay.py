# SPDX-License-Identifier: Apache-2.0
"""Snapshots on a real overlayfs (and as copies), their names, crashes and mounts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from chantier.errors import NotFoundError, StoreError, UnsupportedError
from chantier.snapshot import Mount, Native, Overlay, mount_all, mounted, overlay_works, unmount
from chantier.store.db import Db

pytestmark = pytest.mark.root


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Db]:
    db = Db(tmp_path / "db")
    yield db
    db.close()


@pytest.fixture
def overlay(tmp_path: Path, db: Db) -> Overlay:
    return Overlay(tmp_path / "root", db)


@pytest.fixture(params=[Overlay, Native])
def snapshots(request: pytest.FixtureRequest, tmp_path: Path, db: Db) -> Overlay | Native:
    made: Overlay | Native = request.param(tmp_path / "root", db)
    return made


@contextmanager
def opened(mounts: Sequence[Mount], *, readonly: bool = False) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as where:
        with mounted(mounts, readonly=readonly, where=Path(where)) as tree:
            yield tree
        assert os.listdir(where) == []


def write(snapshots: Overlay | Native, name: str, files: dict[str, str | None]) -> None:
    """Write files through the mount; None deletes."""
    with opened(snapshots.mounts(name, readonly=False)) as tree:
        for path, text in files.items():
            if text is None:
                (tree / path).unlink()
            else:
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).write_text(text)


def read(snapshots: Overlay | Native, name: str) -> dict[str, str]:
    with opened(snapshots.mounts(name)) as tree:
        return {os.fspath(path.relative_to(tree)): path.read_text() for path in sorted(tree.rglob("*")) if path.is_file()}


def chain(snapshots: Overlay | Native, count: int) -> str | None:
    parent = None
    for number in range(count):
        snapshots.prepare(f"k{number}", parent)
        write(snapshots, f"k{number}", {f"f{number}": str(number)})
        snapshots.commit(f"k{number}", f"n{number}")
        parent = f"n{number}"
    return parent


def test_child_sees_parent_and_parent_stays(snapshots: Overlay | Native) -> None:
    snapshots.prepare("a", None)
    write(snapshots, "a", {"one": "1", "dir/two": "2"})
    snapshots.commit("a", "base")
    snapshots.prepare("b", "base")
    write(snapshots, "b", {"one": None, "dir/two": "changed", "three": "3"})
    snapshots.commit("b", "b")
    assert read(snapshots, "base") == {"one": "1", "dir/two": "2"}
    assert read(snapshots, "b") == {"dir/two": "changed", "three": "3"}


def test_names(snapshots: Overlay | Native) -> None:
    snapshots.prepare("a", None)
    with pytest.raises(StoreError, match="snapshot 'a' exists already"):
        snapshots.prepare("a", None)
    with pytest.raises(StoreError, match="'a' as a parent: it is not committed"):
        snapshots.prepare("b", "a")
    with pytest.raises(NotFoundError, match="no snapshot 'nobody'"):
        snapshots.prepare("b", "nobody")
    snapshots.commit("a", "base")
    with pytest.raises(NotFoundError):
        snapshots.mounts("a")
    with pytest.raises(StoreError, match="it is committed"):
        snapshots.mounts("base", readonly=False)
    with pytest.raises(StoreError, match="committed already"):
        snapshots.commit("base", "other")
    snapshots.prepare("b", "base")
    with pytest.raises(StoreError, match="'base' exists already"):
        snapshots.commit("b", "base")
    with pytest.raises(StoreError, match="it is the parent of 'b'"):
        snapshots.remove("base")
    assert [(i.name, i.parent, i.committed) for i in snapshots.walk()] == [("base", None, True), ("b", "base", False)]
    assert snapshots.info("b").parent == "base"
    snapshots.remove("b")
    snapshots.remove("base")
    snapshots.remove("base")
    assert list(snapshots.walk()) == []
    assert os.listdir(snapshots._names.directory) == ["lock"]


def test_failed_prepare_leaves_nothing(snapshots: Overlay | Native) -> None:
    with pytest.raises(NotFoundError):
        snapshots.prepare("x", "nobody")
    assert os.listdir(snapshots._names.directory) in ([], ["lock"])


def test_mount_forms(overlay: Overlay) -> None:
    overlay.prepare("a", None)
    fs = os.fspath(overlay.upper("a"))
    assert overlay.mounts("a", readonly=False) == (Mount("bind", fs, ("rbind", "rw")),)
    assert overlay.mounts("a") == (Mount("bind", fs, ("rbind", "ro")),)
    overlay.commit("a", "a")
    overlay.prepare("b", "a")
    (mount,) = overlay.mounts("b", readonly=False)
    top = os.fspath(overlay.upper("b"))
    assert mount.options[-3:] == (f"lowerdir={fs}", f"upperdir={top}", f"workdir={top[:-2]}work")
    assert "index=off" in mount.options and "redirect_dir=off" in mount.options and "metacopy=off" in mount.options
    overlay.commit("b", "b")
    (mount,) = overlay.mounts("b")
    assert mount.readonly and mount.options[-1] == f"lowerdir={top}:{fs}"
    assert overlay.layers("b") == (Path(top), Path(fs))


def test_root_directory_follows_the_parent(overlay: Overlay) -> None:
    overlay.prepare("a", None)
    os.chmod(overlay.upper("a"), 0o1777)
    os.chown(overlay.upper("a"), 5, 6)
    overlay.commit("a", "a")
    overlay.prepare("b", "a")
    info = overlay.upper("b").stat()
    assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == (0o1777, 5, 6)


def test_layers_unpacked_apart_get_their_parents_at_commit(overlay: Overlay) -> None:
    for name in ("low", "high"):
        overlay.prepare(name, None)
        (overlay.upper(name) / name).write_text(name)
    with pytest.raises(NotFoundError):
        overlay.commit("high", "high", parent="low")  # not committed yet
    overlay.commit("low", "low")
    overlay.commit("high", "high", parent="low")
    assert read(overlay, "high") == {"low": "low", "high": "high"}
    assert overlay.info("high").parent == "low"


def test_native_cannot_be_given_a_parent(tmp_path: Path, db: Db) -> None:
    native = Native(tmp_path / "root", db)
    native.prepare("a", None)
    with pytest.raises(UnsupportedError):
        native.commit("a", "a", parent="b")


def test_native_copies_everything(tmp_path: Path, db: Db) -> None:
    native = Native(tmp_path / "root", db)
    native.prepare("a", None)
    top = native.upper("a")
    (top / "d").mkdir()
    (top / "d" / "f").write_bytes(b"x" * 100_000)
    os.link(top / "d" / "f", top / "g")
    os.symlink("nowhere", top / "l")
    os.mknod(top / "null", 0o020666, os.makedev(1, 3))
    os.mkfifo(top / "fifo")
    os.setxattr(top / "g", "user.a", b"b")
    os.chown(top / "g", 1, 2)
    os.chmod(top / "g", 0o4755)
    os.utime(top / "d", ns=(1, 2))
    native.commit("a", "a")
    native.prepare("b", "a")
    new = native.upper("b")
    assert (new / "g").stat().st_ino == (new / "d" / "f").stat().st_ino != (top / "g").stat().st_ino
    assert (new / "g").stat().st_mode == 0o104755
    assert os.getxattr(new / "d" / "f", "user.a") == b"b"
    assert (new / "d").stat().st_mtime_ns == 2
    assert os.readlink(new / "l") == "nowhere"
    assert (new / "null").stat().st_rdev == os.makedev(1, 3)
    assert (new / "fifo").is_fifo()


@pytest.mark.parametrize("count", [3, 60, 200])
def test_many_layers(overlay: Overlay, count: int) -> None:
    name = chain(overlay, count)
    assert name
    assert len(read(overlay, name)) == count
    overlay.prepare("top", name)
    write(overlay, "top", {"f0": None, "new": "n"})
    assert len(read(overlay, "top")) == count


def test_usage(snapshots: Overlay | Native) -> None:
    snapshots.prepare("a", None)
    (snapshots.upper("a") / "f").write_bytes(b"x" * 10_000)
    os.link(snapshots.upper("a") / "f", snapshots.upper("a") / "g")
    usage = snapshots.usage("a")
    assert usage.inodes == 2
    assert 10_000 <= usage.bytes < 30_000
    snapshots.commit("a", "a")
    assert snapshots.usage("a") == usage
    (snapshots.upper("a") / "later").write_text("not counted: committed usage is remembered")
    assert snapshots.usage("a") == usage


def test_concurrent_mounts(overlay: Overlay) -> None:
    name = chain(overlay, 3)
    assert name
    failures: list[BaseException] = []

    def body(number: int) -> None:
        try:
            for turn in range(5):
                key = f"t{number}-{turn}"
                overlay.prepare(key, name)
                write(overlay, key, {"mine": key})
                assert read(overlay, key)["mine"] == key
                overlay.remove(key)
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_mounted_while_somebody_looks(overlay: Overlay) -> None:
    name = chain(overlay, 2)
    assert name
    with opened(overlay.mounts(name)) as tree:
        held = open(tree / "f0")
    assert not os.path.ismount(tree)
    assert held.read() == "0"  # detached, not torn away
    held.close()


def test_readonly_view_of_writable_mounts(overlay: Overlay) -> None:
    name = chain(overlay, 1)
    overlay.prepare("w", name)
    with opened(overlay.mounts("w", readonly=False), readonly=True) as tree:
        with pytest.raises(OSError, match="Read-only"):
            (tree / "x").write_text("x")


def test_mount_all_undoes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "t").mkdir()
    good, bad = Mount("bind", str(tmp_path / "a"), ("rbind", "ro")), Mount("bind", str(tmp_path / "missing"), ("rbind",))
    with pytest.raises(StoreError, match=r"failed to mount bind .*/missing at .*/t: No such file"):
        mount_all([good, bad], tmp_path / "t")
    assert not os.path.ismount(tmp_path / "t")
    mount_all([good], tmp_path / "t")
    with pytest.raises(OSError, match="Read-only"):
        (tmp_path / "t" / "x").write_text("")
    unmount(tmp_path / "t")
    unmount(tmp_path / "t")


def test_overlay_works(tmp_path: Path) -> None:
    assert overlay_works(tmp_path)
    assert os.listdir(tmp_path) == ["lock"]


def test_a_probe_is_not_taken_away_by_a_recovery(overlay: Overlay, tmp_path: Path) -> None:
    """Engines that open one root at once each recover it, and each try an overlay there."""
    ended = threading.Event()

    def recover() -> None:
        while not ended.is_set():
            overlay.recover()

    other = threading.Thread(target=recover)
    other.start()
    try:
        assert all(overlay_works(tmp_path / "root" / "snapshots") for _ in range(100))
    finally:
        ended.set()
        other.join()


_CHILD = """
import sys, os
from pathlib import Path
from chantier.snapshot import Overlay
from chantier.store.db import Db
root = Path(sys.argv[1])
overlay = Overlay(root / "root", Db(root / "db"))
number = 0
print("go", flush=True)
while True:
    number += 1
    key = f"{os.getpid()}-{number}"
    overlay.prepare(key, "n0")
    if number % 3 == 0:
        overlay.remove(key)
    elif number % 3 == 1:
        overlay.commit(key, key + "-c")
"""


def child(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    return process


def test_killed_at_any_time(tmp_path: Path, overlay: Overlay) -> None:
    chain(overlay, 1)
    for turn in range(6):
        processes = [child(tmp_path) for _ in range(2)]
        time.sleep(0.02 + turn * 0.013)
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        overlay.recover()  # while the other goes on
        processes[1].kill()
        processes[1].wait()
        overlay.recover()
        named = {overlay.upper(info.name).parent.name for info in overlay.walk()}
        assert {name for name in os.listdir(overlay._names.directory) if name != "lock"} == named
        for info in overlay.walk():
            assert overlay.upper(info.name).is_dir()
            assert (overlay.upper(info.name).parent / "work").is_dir()


def test_orphan_directories_go(overlay: Overlay) -> None:
    (overlay._names.directory / "orphan" / "fs").mkdir(parents=True)
    (overlay._names.directory / ".rm-half").mkdir()
    overlay.prepare("a", None)
    assert overlay.recover() == [".rm-half", "orphan"]
    assert overlay.upper("a").is_dir()
    assert len(os.listdir(overlay._names.directory)) == 2
