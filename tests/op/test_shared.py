# SPDX-License-Identifier: Apache-2.0
"""COPY of a client's directory: its layers and the tree kept for it share files, and nobody can tell (docs/adr/0010)."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chantier.cache import Ref
from chantier.cache.content import Selector, content_digest
from chantier.cache.content_node import Node, unpack
from chantier.op.file import FileOp
from chantier.op.local import LocalOp
from chantier.pb import ops_pb2 as pb
from chantier.session.local import LocalSession

if TYPE_CHECKING:
    from conftest import Bench, Job

pytestmark = pytest.mark.root


def action(*, input: int = -1, secondary: int = -1, output: int = -1, **kind: Any) -> pb.FileAction:
    return pb.FileAction(input=input, secondaryInput=secondary, output=output, **kind)


def copy(src: str, dest: str, **more: Any) -> pb.FileActionCopy:
    usual = {"createDestPath": True, "dirCopyContents": True, "mode": -1, "timestamp": -1}
    return pb.FileActionCopy(src=src, dest=dest, **{**usual, **more})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "ctx"
    (root / "d/sub").mkdir(parents=True)
    for name in ("a", "d/x", "d/sub/y"):
        (root / name).write_text(name)
    time.sleep(0.03)  # what changed just now is taken again
    return root


class Builds:
    """Builds of one directory, one after the other."""

    def __init__(self, bench: Bench, job: Job, source: Path) -> None:
        self.bench, self.job = bench, job
        job.sessions.append(LocalSession(directories={"context": source}))
        self.context: Ref | None = None

    def take(self) -> Ref:
        if self.context is not None:
            self.context.release()
        self.context = self.local()
        return self.context

    def local(self, **attrs: str) -> Ref:
        source = pb.Op(source=pb.SourceOp(identifier="local://context", attrs={f"local.{k}": v for k, v in attrs.items()}))
        (ref,) = self.bench.run(LocalOp(self.bench.vertex(source), self.bench.worker), job=self.job)
        assert ref is not None
        return ref

    def copy(self, base: Ref | None, *actions: Any) -> Ref:
        made = pb.Op(file=pb.FileOp(actions=actions))
        (ref,) = self.bench.run(FileOp(self.bench.vertex(made, 2), self.bench.worker), [base, self.context])
        assert ref is not None
        return ref

    def upper(self, ref: Ref) -> Path:
        return self.bench.cache.snapshots.upper(str(ref.record.snapshot))

    def kept(self) -> Path:
        assert self.context is not None
        return self.upper(self.context)


@pytest.fixture
def builds(bench: Bench, job: Job, source: Path) -> Builds:
    return Builds(bench, job, source)


def inode(path: Path) -> int:
    return path.stat().st_ino


def copied(dest: str, src: str = "/", **more: Any) -> Any:
    return action(input=0, secondary=1, output=0, copy=copy(src, dest, **more))


def base_of(bench: Bench) -> Ref:
    def fill(root: Path) -> None:
        (root / "etc").mkdir()
        (root / "etc/base").write_text("base")
        (root / "app").mkdir()
        (root / "app/d").mkdir()

    return bench.tree(fill)


def test_new_directories_share_and_later_builds_change_nothing(bench: Bench, builds: Builds, source: Path) -> None:
    base = base_of(bench)
    builds.take()
    first = builds.copy(base, copied("/src"))
    assert bench.files(first)["src/d/sub/y"] == "d/sub/y"
    for name in ("a", "d/x", "d/sub/y"):
        assert inode(builds.upper(first) / "src" / name) == inode(builds.kept() / name)
    assert not (builds.upper(first).parent / "stage").exists()
    (source / "d/x").write_text("changed")
    (source / "a").unlink()
    builds.take()
    second = builds.copy(base, copied("/src"))
    assert bench.files(second)["src/d/x"] == "changed"
    assert "src/a" not in bench.files(second)
    assert bench.files(first)["src/d/x"] == "d/x"
    assert bench.files(first)["src/a"] == "a"
    assert inode(builds.upper(second) / "src/d/sub/y") == inode(builds.upper(first) / "src/d/sub/y")


def test_what_runs_on_a_layer_does_not_reach_the_context(bench: Bench, builds: Builds) -> None:
    builds.take()
    first = builds.copy(base_of(bench), copied("/src"))
    child = bench.cache.new(first, description="step")
    with child.mounted() as root:
        with open(root / "src/a", "r+") as file:
            file.write("A")
        os.chmod(root / "src/d/x", 0o600)
    child.release()
    assert (builds.kept() / "a").read_text() == "a"
    assert (builds.kept() / "d/x").stat().st_mode & 0o777 == 0o644


def test_a_new_layer_of_nothing_shares_and_its_tar_has_no_links(bench: Bench, builds: Builds) -> None:
    builds.take()
    first = builds.copy(None, copied("/"))
    assert inode(builds.upper(first) / "d/x") == inode(builds.kept() / "d/x")
    (layer,) = first.layers(compression="uncompressed")
    tar = tarfile.open(fileobj=io.BytesIO(bench.cache.blobs.read(layer.descriptor.digest)))
    assert {m.name.rstrip("/"): m.type for m in tar} == {
        "a": tarfile.REGTYPE,
        "d": tarfile.DIRTYPE,
        "d/sub": tarfile.DIRTYPE,
        "d/sub/y": tarfile.REGTYPE,
        "d/x": tarfile.REGTYPE,
    }


def test_existing_directories_get_copies_and_what_is_new_in_them_shares(bench: Bench, builds: Builds) -> None:
    builds.take()
    made = builds.copy(base_of(bench), copied("/app"))
    assert bench.files(made)["app/a"] == "a"
    assert inode(builds.upper(made) / "app/a") != inode(builds.kept() / "a")
    assert inode(builds.upper(made) / "app/d/sub/y") == inode(builds.kept() / "d/sub/y")
    assert inode(builds.upper(made) / "app/d/x") != inode(builds.kept() / "d/x")


def test_large_files_are_shared_wherever_they_go(bench: Bench, builds: Builds, source: Path) -> None:
    (source / "big").write_bytes(b"b" * 300_000)
    builds.take()
    base = base_of(bench)
    made = [builds.copy(base, copied(dest, "/big")) for dest in ("/big", "/etc/base", "/app/", "/new/")]
    for one, name in zip(made, ("big", "etc/base", "app/big", "new/big"), strict=True):
        assert inode(builds.upper(one) / name) == inode(builds.kept() / "big")
        with one.mounted() as root:
            assert (root / name).read_bytes() == b"b" * 300_000
    child = bench.cache.new(made[0], description="step")
    with child.mounted() as root, open(root / "big", "r+b") as file:
        file.write(b"changed")
    child.release()
    assert (builds.kept() / "big").read_bytes() == b"b" * 300_000


@pytest.mark.parametrize("how", ["chain", "layers", "merge"])
def test_two_paths_of_one_tree_are_never_one_file(how: str, bench: Bench, builds: Builds) -> None:
    builds.take()
    if how == "chain":
        first = action(input=0, secondary=1, copy=copy("/", "/p"))
        second = action(input=2, secondary=1, output=0, copy=copy("/", "/q"))
        made = builds.copy(base_of(bench), first, second)
    elif how == "layers":
        made = builds.copy(builds.copy(base_of(bench), copied("/p")), copied("/q"))
    else:
        parts = [builds.copy(None, copied("/p")), builds.copy(None, copied("/q"))]
        made = bench.cache.merge([base_of(bench), *parts], description="merge")
        bench.keep.append(made)
    with made.mounted() as root:
        for name in ("a", "d/x", "d/sub/y"):
            assert not os.path.samefile(root / "p" / name, root / "q" / name)
            assert (root / "q" / name).read_text() == name


def test_layers_on_the_kept_tree_itself_share_nothing(bench: Bench, builds: Builds) -> None:
    context = builds.take()
    made = builds.copy(context, copied("/again"))
    with made.mounted() as root:
        assert not os.path.samefile(root / "a", root / "again/a")


def test_what_a_copy_changes_is_no_share(bench: Bench, builds: Builds) -> None:
    builds.take()
    for more in ({"mode": 0o600}, {"timestamp": 10**18}, {"modeStr": "u+x"}):
        made = builds.copy(None, copied("/new", **more))
        assert inode(builds.upper(made) / "new/a") != inode(builds.kept() / "a")
    assert (builds.kept() / "a").stat().st_mode & 0o777 == 0o644


def test_a_file_that_the_same_operation_writes_to_is_no_share(bench: Bench, builds: Builds) -> None:
    builds.take()
    first = action(input=0, secondary=1, copy=copy("/", "/p"))
    second = action(input=2, output=0, mkfile=pb.FileActionMkFile(path="/p/a", data=b"written", mode=0o644, timestamp=-1))
    made = builds.copy(base_of(bench), first, second)
    assert bench.files(made)["p/a"] == "written"
    assert (builds.kept() / "a").read_text() == "a"


def known_digests(ref: Ref) -> dict[bytes, bytes]:
    """Of the files of a tree, what is kept."""
    found: dict[bytes, bytes] = {}
    todo: list[Node] = [unpack(ref.get_tree_meta("content.tree"))]
    while todo:
        node = todo.pop()
        todo += node.children.values()
        if node.digest and not node.children and (node.parent is not None):
            found[node.path] = node.digest
    return found


@pytest.fixture(params=["c", "python"])
def trees_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole directories at a time, or entry by entry."""
    monkeypatch.setenv("CHANTIER_TREES", request.param)


@pytest.mark.usefixtures("trees_in")
def test_digests_hold_though_files_got_further_names(bench: Bench, builds: Builds, source: Path) -> None:
    first = content_digest(builds.take(), [Selector(path="/d")])
    builds.copy(None, copied("/"))
    assert builds.context is not None
    known = known_digests(builds.context)
    assert set(known) == {b"a", b"d/x", b"d/sub/y"}
    assert content_digest(builds.take(), [Selector(path="/d")]) == first
    assert known_digests(builds.context) == known
    # Another content of the same size and time.
    info = (source / "d/x").stat()
    (source / "d/x").write_text("D/X")
    os.utime(source / "d/x", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert content_digest(builds.take(), [Selector(path="/d")]) != first
    assert known_digests(builds.context)[b"d/sub/y"] == known[b"d/sub/y"]


@pytest.mark.usefixtures("trees_in")
def test_the_digest_taken_on_the_way_is_the_digest_of_the_file(bench: Bench, builds: Builds, source: Path) -> None:
    (source / "big").write_bytes(b"b" * 300_000)
    (source / "a").chmod(0o4755)
    taken = builds.take()
    assert set(known_digests(taken)) == {b"a", b"d/x", b"d/sub/y"}
    first = content_digest(taken)
    taken.set_tree_meta("content.tree", None)
    again = builds.local(sharedkeyhint="other")
    again.set_tree_meta("content.tree", None)
    assert content_digest(again) == first
