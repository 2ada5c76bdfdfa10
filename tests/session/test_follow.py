# SPDX-License-Identifier: Apache-2.0
"""A directory of this machine that is followed: in bulk and entry by entry the same tree, index and digests come out."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import CancelledError_, SessionError
from chantier.session.follow import Followed, follow
from chantier.session.sync import pack_rows, unpack
from chantier.session.types import FilesRequest

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True, params=["c", "python"])
def trees_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole directories at a time, or entry by entry."""
    monkeypatch.setenv("CHANTIER_TREES", request.param)


def digest(mode: int, data: bytes) -> bytes:
    """As `cache.file_digest.small_digest`, which trees.c has as well."""
    head = f"namemode{mode & 0o7777}uid0gid0size{len(data)}typeflag0linknameunamegnamedevmajor0devminor0"
    return hashlib.sha256(head.encode() + data).digest()


class Follower:
    def __init__(self, source: Path, target: Path, **request: tuple[str, ...]) -> None:
        self.source, self.target = source, target
        self.request = FilesRequest(name="context", **request)
        self.index: bytes | None = None
        self.changing = 0

    def __call__(self, cancelled: Callable[[], bool] = lambda: False) -> Followed:
        def changing() -> None:
            self.changing += 1

        done = follow(self.source, self.request, self.target, self.index, digest=digest, changing=changing, cancelled=cancelled)
        self.index = done.index or self.index
        return done


@pytest.fixture
def follower(tmp_path: Path) -> Follower:
    for name in ("src", "dst"):
        (tmp_path / name).mkdir()
    return Follower(tmp_path / "src", tmp_path / "dst")


def look(root: Path, *, times: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {}
    first: dict[int, str] = {}
    for base, names, files in sorted(os.walk(root)):
        for name in sorted(names + files):
            path = Path(base, name)
            info = path.lstat()
            text: Any = os.readlink(path) if path.is_symlink() else path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
            if stat.S_ISREG(info.st_mode):
                text = (text, first.setdefault(info.st_ino, str(path.relative_to(root))))
            attributes = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
            found[str(path.relative_to(root))] = (info.st_mode, times and info.st_mtime_ns, text, attributes)
    return found


def settle(root: Path) -> None:
    """Until nothing below was changed in this tick: of what was, an index says nothing."""
    newest = max(path.lstat().st_ctime_ns for path in (root, *root.rglob("*")))
    while time.clock_gettime_ns(5) < newest + 30_000_000:  # CLOCK_REALTIME_COARSE, and what `sync` takes for a tick
        time.sleep(0.005)


def change(root: Path, chance: random.Random) -> None:
    """Something becomes something else, or goes, or comes."""
    places = [Path(base) for base, _, _ in os.walk(root)]
    path = chance.choice(places) / chance.choice(("a", "a.b", "d", "e", "long name", "é"))
    if os.path.lexists(path):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    kind = chance.randrange(7)
    if kind == 0:
        return
    if kind == 1:
        path.symlink_to(chance.choice(("a", "/etc/passwd", "nowhere")))
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3 and (others := [p for p in root.rglob("*") if p.is_file() and not p.is_symlink()]):
        os.link(chance.choice(others), path)
    elif kind == 4:
        path.mkdir(mode=chance.choice((0o755, 0o1777, 0o700)))
        for number in range(chance.randrange(40)):
            (path / f"f{number}").write_bytes(chance.randbytes(number))
    else:
        path.write_bytes(chance.randbytes(chance.choice((0, 5, 4096, 300_000))))
        path.chmod(chance.choice((0o644, 0o755, 0o4711, 0o600)))
        if chance.random() < 0.2:
            os.setxattr(path, "user.k", b"v")
        os.utime(path, ns=(0, chance.choice((-1_500_000_000, 10**18 + 1))))


@pytest.mark.parametrize("seed", range(20))
def test_any_change_is_followed(follower: Follower, seed: int) -> None:
    chance = random.Random(seed)
    before: dict[str, Any] = {}
    for _ in range(6):
        for _ in range(chance.randrange(1, 8)):
            change(follower.source, chance)
        settle(follower.source)
        done = follower()
        now = look(follower.source)
        assert look(follower.target) == now
        assert list(unpack(follower.index) or {}) == sorted(now, key=lambda path: os.fsencode(path).split(b"/"))
        told = {os.fsdecode(path) for path in done.changed}
        assert {path for path in {*before, *now} if before.get(path) != now.get(path)} <= told
        for path, value in done.digests.items():
            mode, _, (data, _), attributes = now[os.fsdecode(path)]
            assert value == digest(mode, data)
            assert not attributes
        again = follower()
        assert (again.index, list(again.changed)) == (None, [])
        before = now


def test_many_files_in_many_directories(follower: Follower) -> None:
    for number in range(700):
        path = follower.source / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % number * number)
    settle(follower.source)
    done = follower()
    assert look(follower.target) == look(follower.source)
    assert len(done.digests) == 700
    assert follower.changing == 1
    (follower.source / "d3/f10").write_text("other")
    (follower.source / "d0/f7").unlink()
    settle(follower.source)
    inode = (follower.target / "d3/f3").stat().st_ino
    assert sorted(follower().changed) == [b"d0", b"d0/f7", b"d3/f10"]
    assert look(follower.target) == look(follower.source)
    assert (follower.target / "d3/f3").stat().st_ino == inode


def test_a_file_of_this_very_tick_is_taken_again(follower: Follower) -> None:
    """Whatever the clock does: changed after the walk began is changed in its tick."""
    (follower.source / "x").write_text("1")
    os.utime(follower.source / "x", ns=(1, 1))
    started = (follower.source / "x").stat().st_ctime_ns
    done = follower()
    if time.clock_gettime_ns(5) < started + 15_000_000:
        assert (unpack(done.index) or {})["x"] == b""
        assert follower().changed == [b"x"]
    settle(follower.source)
    follower()
    assert follower().index is None


def test_patterns(tmp_path: Path) -> None:
    for name in ("src/d", "src/keep", "dst"):
        (tmp_path / name).mkdir(parents=True)
    for path in ("a", "d/x", "d/y.log", "keep/z"):
        (tmp_path / "src" / path).write_text(path)
    follower = Follower(tmp_path / "src", tmp_path / "dst", exclude=("**/*.log", "keep"))
    follower()
    assert set(look(follower.target)) == {"a", "d", "d/x"}


def test_special_files(follower: Follower) -> None:
    os.mknod(follower.source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(follower.source / "s"))
        follower()
    assert (follower.target / "null").lstat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISREG((follower.target / "s").lstat().st_mode)
    assert (follower.target / "s").lstat().st_size == 0


def test_owners_are_roots(follower: Follower) -> None:
    (follower.source / "x").write_text("x")
    os.chown(follower.source / "x", 7, 8)
    follower()
    info = (follower.target / "x").stat()
    assert (info.st_uid, info.st_gid) == (0, 0)


def test_cancelling(follower: Follower) -> None:
    (follower.source / "x").write_text("x")
    with pytest.raises(CancelledError_):
        follower(lambda: True)


def test_what_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir()
    with pytest.raises(FileNotFoundError):
        Follower(tmp_path / "missing", tmp_path / "dst")()


def test_a_damaged_index(follower: Follower) -> None:
    (follower.source / "x").write_text("x")
    follower.index = pack_rows(b"no row")
    follower()
    assert (follower.target / "x").read_text() == "x"


def test_a_target_that_is_gone(follower: Follower) -> None:
    """What fails in bulk is tried entry by entry, and says what is wrong."""
    (follower.source / "x").write_text("x")
    follower()
    os.chmod(follower.source / "x", 0o600)
    shutil.rmtree(follower.target)
    with pytest.raises((OSError, SessionError)):
        follower()
