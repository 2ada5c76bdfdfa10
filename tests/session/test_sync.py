# SPDX-License-Identifier: Apache-2.0
"""A directory that follows another: what is selected, what is taken again, what a hostile sender is refused."""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path

import pytest

from chantier.errors import ChantierError, SessionError
from chantier.session.sync import Receiver, look, pack, sync, unpack
from chantier.session.types import FilesRequest
from chantier.session.walk import Entry, follow_links, from_go_mode, from_stat, to_go_mode, to_stat, walk

pytestmark = pytest.mark.root


@pytest.fixture
def src(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    for path in ("a.txt", "a/b", "a/c/d", "keep/x", "z"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    (root / "l").symlink_to("a")
    return root


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    (tmp_path / "dst").mkdir()
    return tmp_path / "dst"


def paths(root: Path, **request: tuple[str, ...]) -> list[str]:
    return [entry.path for entry in walk(root, FilesRequest(name="context", **request))]


def test_order_is_depth_first_by_bytes(src: Path) -> None:
    assert paths(src) == ["a", "a/b", "a/c", "a/c/d", "a.txt", "keep", "keep/x", "l", "z"]


def test_patterns(src: Path) -> None:
    assert paths(src, exclude=("a", "!a/c")) == ["a", "a/c", "a/c/d", "a.txt", "keep", "keep/x", "l", "z"]
    assert paths(src, exclude=("*", "!keep/x")) == ["keep", "keep/x"]
    assert paths(src, include=("a/c/d", "nothing")) == ["a", "a/c", "a/c/d"]
    assert paths(src, include=("a",), exclude=("**/d",)) == ["a", "a/b", "a/c"]
    with pytest.raises(ChantierError, match=r"^invalid includepatterns: \[\[a\]: syntax error in pattern$"):
        paths(src, follow=("[a",))
    with pytest.raises(ChantierError, match=r"^invalid excludepatterns: \[\[a x\]: syntax error in pattern$"):
        paths(src, exclude=("[a", "x"))


def test_followpaths(src: Path) -> None:
    (src / "m").symlink_to("/l/c")
    (src / "loop").symlink_to("loop")
    (src / "gone").symlink_to("nowhere")
    assert follow_links(src, ["l/b"]) == ["a/b", "l"]
    assert follow_links(src, ["m/d"]) == ["a/c/d", "l", "m"]
    assert follow_links(src, ["../z", "missing"]) == ["missing", "z"]
    assert follow_links(src, ["l*"]) == ["a", "l*", "loop"] or follow_links(src, ["l*"]) == ["a", "l*"]
    assert follow_links(src, ["gone", "loop"]) == ["gone", "loop", "nowhere"]
    assert follow_links(src, ["z", "/"]) is None
    assert paths(src, follow=("l/c",)) == ["a", "a/c", "a/c/d", "l"]
    assert paths(src, follow=("/",)) == paths(src)
    assert follow_links(src, ["l/b", "l/c"]) == ["a/b", "l"]  # one link is followed once


def test_special_entries(src: Path) -> None:
    os.link(src / "a.txt", src / "zz")
    os.mkfifo(src / "p")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(src / "s"))
        found = {entry.path: entry for entry in walk(src)}
    assert (found["zz"].hard, found["zz"].link, found["zz"].has_content) == (True, "a.txt", False)
    assert stat.S_ISREG(found["s"].mode)
    assert found["s"].size == 0
    assert stat.S_ISFIFO(found["p"].mode)


@pytest.mark.parametrize(
    ("mode", "go"),
    [
        (0o100644, 420),
        (0o040755, 2147484141),
        (0o120777, 134218239),
        (0o104755, 0o755 | 1 << 23),
        (0o041777, 1 << 31 | 0o777 | 1 << 20),
    ],
)
def test_go_modes(mode: int, go: int) -> None:
    assert to_go_mode(mode) == go
    assert from_go_mode(go) == mode
    with pytest.raises(SessionError):
        from_go_mode(1 << 19 | 1 << 31 | 1 << 27)


def test_wire_form(src: Path) -> None:
    os.mknod(src / "dev", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(src / "z", "user.k", b"v")
    for entry in walk(src):
        again = from_stat(to_stat(entry))
        for name in ("path", "mode", "size", "mtime_ns", "link", "hard", "rdev"):
            assert getattr(again, name) == getattr(entry, name)
        assert again.xattrs == ({"user.k": b"v"} if entry.path == "z" else {})


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for base, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(base, name)
            info = os.lstat(path)
            text = os.readlink(path) if os.path.islink(path) else Path(path).read_text() if os.path.isfile(path) else ""
            found[os.path.relpath(path, root)] = (info.st_mode, info.st_uid, info.st_mtime_ns, text)
    return found


class Follower:
    """A destination with its index, as the local source keeps it."""

    def __init__(self, dst: Path) -> None:
        self.dst = dst
        self.index: bytes | None = None

    def __call__(self, src: Path, request: FilesRequest | None = None) -> tuple[int, bool]:
        taken = []
        with Receiver(self.dst, unpack(self.index)) as receiver:
            known = sync(src, request, receiver, on_bytes=taken.append)
            self.index = pack(known)
            return len(taken), receiver.changed


def settle() -> None:
    time.sleep(0.03)  # out of the tick in which files were made


def test_follows_every_kind_of_change(src: Path, dst: Path) -> None:
    os.chown(src / "z", 7, 8)
    os.chmod(src / "z", 0o4755)
    settle()
    follow = Follower(dst)
    assert follow(src) == (5, True)
    want = listing(src) | {"z": (os.stat(src / "z").st_mode, 0, os.stat(src / "z").st_mtime_ns, "z")}
    assert listing(dst) == want
    settle()
    assert follow(src) == (0, False)
    # content with the same size and time; a mode; a kind; gone; new; a directory's time
    info = os.stat(src / "a/b")
    (src / "a/b").write_text("B/a")
    os.utime(src / "a/b", ns=(info.st_atime_ns, info.st_mtime_ns))
    os.chmod(src / "keep", 0o700)
    (src / "a/c/d").unlink()
    (src / "a/c").rmdir()
    (src / "a/c").write_text("now a file")
    (src / "l").unlink()
    (src / "l").mkdir()
    (src / "l/in").write_text("in")
    (src / "z").unlink()
    (src / "a.txt").unlink()
    os.link(src / "keep/x", src / "zz")
    settle()
    follow(src)
    assert listing(dst) == listing(src)
    assert os.stat(dst / "zz").st_ino == os.stat(dst / "keep/x").st_ino
    settle()
    assert follow(src) == (0, False)
    (src / "keep/x").write_text("changed through one of two names")
    settle()
    follow(src)
    assert listing(dst) == listing(src)
    assert os.stat(dst / "zz").st_nlink == 2
    # A narrower request takes away, a wider one brings back.
    follow(src, FilesRequest(name="c", include=("keep",)))
    assert listing(dst).keys() == {"keep", "keep/x"}
    follow(src)
    assert listing(dst) == listing(src)


def test_a_file_of_this_very_tick_is_taken_again(src: Path, dst: Path) -> None:
    follow = Follower(dst)
    (src / "a.txt").write_text("new")
    follow(src)
    assert follow(src)[0] >= 1


def test_no_index_means_looking(src: Path, dst: Path) -> None:
    taken: list[int] = []
    for _ in range(2):
        taken.clear()
        with Receiver(dst, look(dst)) as receiver:
            sync(src, None, receiver, compare_inodes=False, on_bytes=taken.append)
    assert taken == []
    (dst / "stray").mkdir()
    (dst / "stray/f").write_text("f")
    (dst / "z").write_text("wrong")
    with Receiver(dst, look(dst)) as receiver:
        sync(src, None, receiver, compare_inodes=False, on_bytes=taken.append)
    assert len(taken) == 1
    assert listing(dst) == listing(src)


def test_merging_keeps_what_is_there(src: Path, dst: Path, tmp_path: Path) -> None:
    (dst / "a").mkdir()
    (dst / "a/other").write_text("o")
    (tmp_path / "outside").mkdir()
    (dst / "keep").symlink_to(tmp_path / "outside")
    with Receiver(dst, owner=None, remove=False) as receiver:
        sync(src, None, receiver)
    assert (dst / "a/other").read_text() == "o"
    assert listing(src).items() <= {**listing(dst), "a": listing(src)["a"]}.items()
    assert os.listdir(tmp_path / "outside") == []


@pytest.mark.parametrize("path", ["/abs", "../up", "a/../b", "a//b", ".", "", "..", "no/parent", "./x"])
def test_paths_of_a_hostile_sender(dst: Path, path: str) -> None:
    with Receiver(dst) as receiver, pytest.raises(SessionError, match="invalid path"):
        receiver.want(Entry(path, stat.S_IFREG | 0o644))


def test_order_of_a_hostile_sender(dst: Path, tmp_path: Path) -> None:
    with Receiver(dst) as receiver:
        receiver.want(Entry("l", stat.S_IFLNK | 0o777, link=str(tmp_path)))
        with pytest.raises(SessionError, match=r'changes out of order: "l" "l"'):
            receiver.want(Entry("l", stat.S_IFDIR | 0o755))
        with pytest.raises(SessionError, match="its directory was not sent"):
            receiver.want(Entry("l/x", stat.S_IFREG | 0o644))
        with pytest.raises(SessionError, match="that was not sent"):
            receiver.want(Entry("m", stat.S_IFREG | 0o644, hard=True, link="../../etc/passwd"))
    assert unpack(b"junk") is None
    assert unpack(b"CS1\0junk") is None
    assert unpack(None) is None


def test_unreadable_directory(src: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(walk(src / "nothing"))


def test_growing_and_shrinking_files(src: Path, dst: Path) -> None:
    settle()
    follow = Follower(dst)
    entries = list(walk(src))
    assert entries
    with Receiver(dst) as receiver:
        for entry in walk(src):
            if entry.path == "z":
                entry.size = 1000
            if entry.path == "a.txt":
                entry.size = 2
            if receiver.want(entry):
                from chantier.session.sync import _copy

                read, write = entry.open(), receiver.open(entry)
                assert _copy(read, write, entry.size, lambda: False)[0] == os.fstat(read).st_size
                os.close(read)
                receiver.close_file(entry, write)
        receiver.finish()
    assert (dst / "a.txt").read_text() == "a.txt"
    assert (dst / "z").read_text() == "z"
    follow(src)
