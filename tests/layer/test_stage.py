# SPDX-License-Identifier: Apache-2.0
"""A copy through a stage gives what the same copy through the mounted overlay gives."""

from __future__ import annotations

import os
import random
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chantier import kernel
from chantier.layer.copy import CopyOptions, copy_tree
from chantier.layer.shared import Inodes, read_shared, write_shared
from chantier.layer.stage import Stage
from chantier.snapshot.overlay import overlay_options

pytestmark = pytest.mark.root

NAMES = ("a", "b", "c", "dir", "sub", "x.txt")


def fill(root: Path, rng: random.Random, *, depth: int = 3) -> None:
    files: list[Path] = []

    def level(here: Path, left: int) -> None:
        for name in rng.sample(NAMES, rng.randrange(1, len(NAMES))):
            path = here / name
            kind = rng.random()
            if kind < 0.4 and left:
                path.mkdir()
                level(path, left - 1)
                path.chmod(rng.choice((0o755, 0o700, 0o2775, 0o1777)))
            elif kind < 0.5:
                path.symlink_to(rng.choice(("a", "/b", "../c")))
            elif kind < 0.65 and files:
                os.link(rng.choice(files), path)
            else:
                path.write_bytes(rng.randbytes(rng.choice((0, 10, 5000, 300_000))))
                path.chmod(rng.choice((0o644, 0o755, 0o4755)))
                os.chown(path, *rng.choice(((0, 0), (7, 8))))
                path.chmod(rng.choice((0o644, 0o755, 0o4755)))
                if rng.random() < 0.2:
                    os.setxattr(path, "user.note", b"1")
                files.append(path)

    level(root, depth)
    for base, names, others in os.walk(root, topdown=False):
        for name in names + others:
            os.utime(os.path.join(base, name), ns=(10**18, 10**18 + rng.randrange(10**12)), follow_symlinks=False)


def look(root: Path) -> dict[str, Any]:
    """All that can be seen of a tree. Names of one file are told by the first of them; no times that were made just now."""
    now, first, found = time.time() - 3600, {}, {}
    for base, names, others in sorted(os.walk(root)):
        for name in sorted(names + others):
            path = os.path.join(base, name)
            info = os.lstat(path)
            rel = os.path.relpath(path, root)
            text: Any = os.readlink(path) if stat.S_ISLNK(info.st_mode) else None
            if stat.S_ISREG(info.st_mode):
                text = (Path(path).read_bytes(), first.setdefault(info.st_ino, rel))
            attributes = sorted(name for name in os.listxattr(path, follow_symlinks=False))
            at = info.st_mtime_ns if info.st_mtime < now else "now"
            found[rel] = (info.st_mode, info.st_uid, info.st_gid, at, text, attributes)
    return found


class Layered:
    """A base and an upper directory, mounted while `copy` needs it."""

    def __init__(self, where: Path, base: Path) -> None:
        self.base, self.upper = base, where / "fs"
        self.work, self.root = where / "work", where / "m"
        for path in (self.upper, self.work, self.root):
            path.mkdir(parents=True)
        self.mount()

    def mount(self) -> None:
        kernel.overlay(str(self.root), [str(self.base)], upper=str(self.upper), work=str(self.work), options=overlay_options())

    def unmount(self) -> None:
        kernel.umount(str(self.root), kernel.MNT_DETACH)

    def copy(self, source: Path, src: str, dest: str, options: CopyOptions, *, staged: bool, sharing: bool = False) -> Stage:
        stage = Stage(self.upper if staged else None, sharing=sharing)
        try:
            copy_tree(source, src, self.root, dest, options, stage=stage if staged else None)
            self.unmount()
            stage.place()
            self.mount()
        finally:
            stage.close()
        return stage


@pytest.fixture(autouse=True, params=["c", "python"])
def trees_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names for a directory's files at once, or one by one."""
    monkeypatch.setenv("CHANTIER_TREES", request.param)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.mkdir()
    fill(path, random.Random(1))
    return path


@pytest.fixture
def layered(tmp_path: Path, base: Path) -> Iterator[Any]:
    made: list[Layered] = []

    def make(name: str) -> Layered:
        made.append(Layered(tmp_path / name, base))
        return made[-1]

    yield make
    for one in made:
        one.unmount()


@pytest.mark.parametrize("seed", range(12))
def test_the_same_with_and_without(seed: int, tmp_path: Path, layered: Any) -> None:
    rng = random.Random(seed)
    source = tmp_path / "source"
    source.mkdir()
    fill(source, rng)
    options = CopyOptions(
        dir_contents=True,
        create_dest_path=True,
        replace=True,
        exclude=rng.choice(((), ("**/a",), ("sub", "!sub/b"))),
        include=rng.choice(((), ("**/x.txt", "dir"))),
        owner=rng.choice((None, (3, 4), (0, 0))),
        mode=rng.choice((None, None, 0o750)),
        time_ns=rng.choice((None, 10**18)),
    )
    dest = rng.choice(("/", "/new", "/dir", "/dir/deep/er", "/sub"))
    found = []
    for name, staged, sharing in (("plain", False, False), ("staged", True, False), ("shared", True, True)):
        target = layered(name)
        for place in (dest, dest, "/again"):
            target.copy(source, "/", place, options, staged=staged, sharing=sharing)
        found.append(look(target.root))
        assert not (target.upper.parent / "stage").exists()
    assert found[0] == found[1]
    # Shared names tell one another by their inode in all places they are: `taken` is the caller's to keep.
    assert [v[:4] for v in found[0].values()] == [v[:4] for v in found[2].values()]
    assert found[0].keys() == found[2].keys()


def test_a_deleted_directory_stays_hidden(tmp_path: Path, base: Path, layered: Any) -> None:
    (base / "gone").mkdir()
    (base / "gone/old").write_text("old")
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/new").write_text("new")
    target = layered("t")
    (target.root / "gone/old").unlink()
    (target.root / "gone").rmdir()
    stage = target.copy(source, "/d", "/gone", CopyOptions(dir_contents=True, create_dest_path=True), staged=True)
    assert stage.waiting
    assert os.listdir(target.root / "gone") == ["new"]


def test_a_large_file_takes_the_place_of_an_empty_one(tmp_path: Path, base: Path, layered: Any) -> None:
    (base / "old").write_text("old")
    (base / "old").chmod(0o600)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("old", "new", "small"):
        (source / name).write_text(name * (100_000 if name != "small" else 1))
        os.utime(source / name, ns=(10**18, 10**18))
    target = layered("t")
    os.utime(target.root, ns=(10**18, 10**18))
    stage = target.copy(source, "/", "/", CopyOptions(dir_contents=True), staged=True, sharing=True)
    assert stage.shared.numbers == {(source / name).stat().st_ino for name in ("old", "new")}
    assert sorted(os.listdir(target.upper)) == ["new", "old", "small"]
    for name in ("old", "new"):
        assert (target.upper / name).samefile(source / name)
        assert (target.root / name).read_text() == name * 100_000
        assert stat.S_IMODE((target.root / name).stat().st_mode) == 0o644
    assert not (target.upper / "small").samefile(source / "small")
    assert not (target.upper.parent / "stage").exists()


def test_a_directory_with_an_acl_for_its_files_gets_copies(tmp_path: Path, layered: Any) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(b"b" * 300_000)
    target = layered("t")
    (target.root / "acl").mkdir()
    entries = b"".join(struct.pack("<HHI", tag, 7, 2**32 - 1) for tag in (1, 4, 32))  # acl(5): owner, group, others
    os.setxattr(target.root / "acl", "system.posix_acl_default", struct.pack("<I", 2) + entries)
    stage = target.copy(source, "/", "/acl", CopyOptions(dir_contents=True), staged=True, sharing=True)
    assert not stage.waiting
    assert not (target.upper / "acl/big").samefile(source / "big")


def test_hard_links_across_the_edge_of_the_stage(tmp_path: Path, layered: Any) -> None:
    source = tmp_path / "source"
    (source / "m").mkdir(parents=True)
    (source / "b").write_text("one")
    os.link(source / "b", source / "m/x")
    os.link(source / "b", source / "z")
    for sharing in (False, True):
        target = layered(f"t{sharing}")
        target.copy(source, "/", "/", CopyOptions(dir_contents=True), staged=True, sharing=sharing)
        assert len({(target.upper / name).stat().st_ino for name in ("b", "m/x", "z")}) == 1
        assert (target.root / "z").read_text() == "one"


def test_a_share_is_the_same_file_and_never_twice_in_a_stack(tmp_path: Path, layered: Any) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/x").write_text("x")
    target, options = layered("t"), CopyOptions(dir_contents=True, create_dest_path=True)
    stage = target.copy(source, "/d", "/p", options, staged=True, sharing=True)
    inode = (source / "d/x").stat().st_ino
    assert (target.upper / "p/x").stat().st_ino == inode
    assert inode in stage.shared
    write_shared(target.upper, stage.shared)
    again = Stage(target.upper, sharing=True, taken=read_shared([target.upper]))
    copy_tree(source, "/d", target.root, "/q", options, stage=again)
    target.unmount()
    again.place()
    target.mount()
    assert (target.upper / "q/x").stat().st_ino != inode
    assert (target.root / "q/x").read_text() == "x"
    assert not again.shared


def test_everything_may_be_taken(tmp_path: Path) -> None:
    upper = tmp_path / "id" / "fs"
    upper.mkdir(parents=True)
    assert not read_shared([upper])
    write_shared(upper, Inodes([5, 7]))
    assert 5 in read_shared([upper])
    assert 6 not in read_shared([upper])
    write_shared(upper, Inodes(all=True))
    assert 6 in read_shared([upper])
