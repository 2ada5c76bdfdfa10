# SPDX-License-Identifier: Apache-2.0
"""What changed between stacks of layers, and the tars that say it; judged by tarfile and by unpacking them again."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chantier import kernel
from chantier.errors import CancelledError_
from chantier.layer import View, changes, compare, pack_diff, unpack, write_layer
from chantier.layer.diff import has_redirects
from chantier.spec import EMPTY_LAYER, digest_of

from .trees import describe, make_everything

pytestmark = pytest.mark.root


def pack(lower: Sequence[Path], upper: Sequence[Path], *, plain: bool = False) -> bytes:
    out = io.BytesIO()
    pack_diff(lower, upper, out.write, plain=plain)
    return out.getvalue()


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        return [f"{info.name} => {info.linkname}" if info.islnk() else info.name + "/" * info.isdir() for info in tar]


class Overlaid:
    """A writable overlay over some lower directories."""

    def __init__(self, tmp_path: Path, lowers: Sequence[Path], name: str = "up") -> None:
        self.lowers = list(lowers)
        self.upper, self.work, self.tree = (tmp_path / f"{name}-{part}" for part in ("upper", "work", "tree"))
        for path in (self.upper, self.work, self.tree):
            path.mkdir()

    def __enter__(self) -> Path:
        options = ["index=off", "metacopy=off", "redirect_dir=off"]
        kernel.overlay(str(self.tree), [*map(str, self.lowers)], upper=str(self.upper), work=str(self.work), options=options)
        return self.tree

    def __exit__(self, *_: object) -> None:
        kernel.umount(str(self.tree))

    @property
    def stack(self) -> list[Path]:
        return [self.upper, *self.lowers]


def test_empty_layer(tmp_path: Path) -> None:
    assert digest_of(pack([], [tmp_path])) == EMPTY_LAYER
    assert digest_of(pack([], [])) == EMPTY_LAYER
    blob = io.BytesIO()
    written = write_layer([], [tmp_path], blob.write)
    assert written.diff_id == EMPTY_LAYER
    assert written.uncompressed_size == 1024
    assert blob.getvalue().startswith(bytes.fromhex("1f8b08000000000000ff"))


def test_everything(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_everything(tree)
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(tree, os.O_RDONLY)
        sock.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    os.setxattr(tree / "dir" / "file", "user.dropped", b"x")
    data = pack([], [tree])
    assert data == pack([], [tree])
    (tmp_path / "out").mkdir()
    unpack(io.BytesIO(data), tmp_path / "out")
    os.unlink(tree / "socket")
    os.removexattr(tree / "dir" / "file", "user.dropped")
    assert describe(tmp_path / "out") == describe(tree)
    (tmp_path / "gnu").mkdir()
    command = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", tmp_path / "gnu", "-xpf", "-"]
    complaints = subprocess.run(command, input=data, check=True, capture_output=True).stderr.splitlines()
    assert [line for line in complaints if b"implausibly old time stamp" not in line] == []
    assert describe(tmp_path / "gnu") == describe(tree)


def test_form_of_entries(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b").touch()
    os.link(tmp_path / "d" / "b", tmp_path / "d" / "a")
    (tmp_path / "e.x").touch()
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "f").touch()
    data = pack([], [tmp_path])
    assert names(data) == ["d/", "d/a", "d/b => d/a", "e/", "e/f", "e.x"]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            assert info.uname == info.gname == ""
            assert info.mtime == int(info.mtime)
            assert info.pax_headers == {}


def base_tree(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    (base / "d" / "sub").mkdir(parents=True)
    for name in ("a", "b", "d/x", "d/y", "d/sub/z"):
        (base / name).write_text(name)
    (base / "old").mkdir()
    (base / "old" / "f").touch()
    return base


def test_changes_through_an_overlay(tmp_path: Path) -> None:
    base = base_tree(tmp_path)
    over = Overlaid(tmp_path, [base])
    with over as tree:
        (tree / "a").unlink()
        (tree / "b").write_text("changed")
        (tree / "d" / "x").chmod(0o600)
        (tree / "d" / "new").touch()
        shutil.rmtree(tree / "d" / "sub")
        (tree / "n" / "m").mkdir(parents=True)
        os.link(tree / "d" / "new", tree / "n" / "m" / "link")
        (tree / "d" / "y").touch()
        os.utime(tree / "d" / "y", ns=(0, (base / "d" / "y").stat().st_mtime_ns))  # copied up, but the same
    data = pack([base], over.stack)
    expected = [".wh.a", "b", "d/", "d/new", "d/.wh.sub", "d/x", "n/", "n/m/", "n/m/link => d/new"]
    assert names(data) == expected
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        info = tar.getmember(".wh.a")
        assert (info.type, info.mode, info.mtime, info.size, info.uid) == (tarfile.REGTYPE, 0, 0, 0, 0)
    # The parents that did not change are there, before what is in them; compared the slow way it is the same.
    out = io.BytesIO()
    from chantier.layer import Changes
    from chantier.layer import pack as pack_changes

    view = View(over.stack)
    pack_changes(Changes(compare(View([base]), view), view), out.write)
    assert out.getvalue() == data


def test_opaque_directories_become_whiteouts(tmp_path: Path) -> None:
    base = base_tree(tmp_path)
    over = Overlaid(tmp_path, [base])
    with over as tree:
        shutil.rmtree(tree / "d")
        (tree / "d" / "sub").mkdir(parents=True)
        (tree / "d" / "y").write_text("other")
        (tree / "d" / "sub" / "w").touch()
    assert os.getxattr(over.upper / "d", "trusted.overlay.opaque") == b"y"
    data = pack([base], over.stack)
    assert [name for name in names(data) if "opq" in name] == []
    assert names(data) == ["d/", "d/sub/", "d/sub/w", "d/sub/.wh.z", "d/.wh.x", "d/y"]


def test_directory_becomes_file_and_back(tmp_path: Path) -> None:
    base = base_tree(tmp_path)
    over = Overlaid(tmp_path, [base])
    with over as tree:
        shutil.rmtree(tree / "d")
        (tree / "d").write_text("file")
        (tree / "b").unlink()
        (tree / "b").mkdir()
        (tree / "b" / "in").touch()
    data = pack([base], over.stack)
    assert names(data) == ["b/", "b/in", "d"]
    check_round_trip(tmp_path, [base], over.stack)


def test_links_of_an_unchanged_file(tmp_path: Path) -> None:
    """Two trees compared: an unchanged name of an inode whose other name is new becomes a link to that."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("same")
        (tmp_path / name / "c").write_text("same")
        os.utime(tmp_path / name / "a", (5, 5))
        os.utime(tmp_path / name / "c", (5, 5))
    os.link(tmp_path / "two" / "a", tmp_path / "two" / "b")
    data = pack([tmp_path / "one"], [tmp_path / "two"], plain=True)
    assert names(data) == ["b", "a => b"]


def test_same_second_without_nanoseconds_compares_contents(tmp_path: Path) -> None:
    for name, text in (("one", "aaa"), ("two", "bbb")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(text)
        (tmp_path / name / "g").write_text("same")
        (tmp_path / name / "h").write_text(text)
        (tmp_path / name / "l").symlink_to(text)
        for file in ("f", "g", "l"):
            os.utime(tmp_path / name / file, (7, 7), follow_symlinks=False)
        os.utime(tmp_path / name / "h", ns=(7, 7))  # to the nanosecond the same: believed
    assert names(pack([tmp_path / "one"], [tmp_path / "two"], plain=True)) == ["f", "l"]


def test_diff_of_unrelated_stacks(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path, files in ((one, ["a", "d/x", "d/e/y", "q/z"]), (two, ["b", "d/x2", "d/e/y"])):
        for file in files:
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text(file)
            os.utime(path / file, (1, 1))
    data = pack([one], [two])
    assert names(data) == [".wh.a", "b", "d/", "d/.wh.x", "d/x2", ".wh.q"]
    assert names(pack([one], [])) == [".wh.a", ".wh.d", ".wh.q"]


def test_redirected_directories_are_compared_the_slow_way(tmp_path: Path) -> None:
    base = base_tree(tmp_path)
    over = Overlaid(tmp_path, [base])
    assert not has_redirects(over.upper)
    (over.upper / "moved").mkdir()
    os.setxattr(over.upper / "moved", "trusted.overlay.redirect", b"/d")
    assert has_redirects(over.upper)


def test_cancelled(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3_000_000))
    with pytest.raises(CancelledError_):
        write_layer([], [tmp_path], lambda data: None, cancelled=lambda: True)


def check_round_trip(tmp_path: Path, lowers: Sequence[Path], stack: Sequence[Path]) -> None:
    """diff, pack, unpack over the same lowers: overlayfs shows the same tree, and so does a tree it is applied to."""
    data = pack(lowers, stack)
    new = tmp_path / f"again-{os.urandom(4).hex()}"
    new.mkdir()
    unpack(io.BytesIO(data), new, lowers=lowers)
    wanted = shown(tmp_path, stack)
    # A new link to a file that did not change otherwise is told as a file, as upstream does: only a whole tree keeps all links.
    fields = 6 if lowers else 7
    found = shown(tmp_path, [new, *lowers])
    assert {key: value[:fields] for key, value in found.items()} == {key: value[:fields] for key, value in wanted.items()}
    assert pack(lowers, stack) == data
    if not lowers:
        assert pack([], [new]) == data
    plain = tmp_path / f"plain-{os.urandom(4).hex()}"
    plain.mkdir()
    unpack(io.BytesIO(pack([], lowers)), plain, convert="apply")
    unpack(io.BytesIO(data), plain, convert="apply")
    assert {key: value[:6] for key, value in describe(plain).items()} == {key: value[:6] for key, value in wanted.items()}


def shown(tmp_path: Path, stack: Sequence[Path]) -> dict[str, tuple[object, ...]]:
    target, nothing = tmp_path / "shown", tmp_path / "nothing"
    target.mkdir(exist_ok=True)
    nothing.mkdir(exist_ok=True)
    kernel.overlay(str(target), [*map(str, stack), str(nothing)], flags=kernel.MS_RDONLY)
    try:
        return describe(target)
    finally:
        kernel.umount(str(target))


_PATHS = [b"a", b"b", b"a/c", b"a/\xff", b"a/c/d", b"b/" + b"n" * 150]
_actions = st.lists(
    st.tuples(
        st.sampled_from(["file", "dir", "link", "hard", "delete", "chmod", "chown", "node", "cap", "rename"]),
        st.sampled_from(_PATHS),
        st.sampled_from(_PATHS),
        st.integers(0, 3),
    ),
    max_size=8,
)


def act(root: Path, action: tuple[str, bytes, bytes, int]) -> None:
    """One random thing done to a tree; what cannot be done is not."""
    what, name, other, number = action
    path, second = os.fsencode(root) + b"/" + name, os.fsencode(root) + b"/" + other
    try:
        if what == "file":
            with open(path, "wb") as file:
                file.write(b"%d" % number * number)
        elif what == "dir":
            os.mkdir(path)
        elif what == "link":
            os.symlink(other, path)
        elif what == "hard":
            os.link(second, path, follow_symlinks=False)
        elif what == "delete":
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        elif what == "chmod" and not os.path.islink(path):
            os.chmod(path, [0o600, 0o755, 0o4711, 0o1777][number])
        elif what == "chown":
            os.chown(path, number, number * 1000, follow_symlinks=False)
        elif what == "node":
            os.mknod(path, 0o020644, os.makedev(1, number + 1))
        elif what == "cap" and os.path.isfile(path) and not os.path.islink(path):
            os.setxattr(path, "security.capability", bytes.fromhex(f"010000020{number}040000000000000000000000000000"))
        elif what == "rename":
            os.rename(path, second)
    except OSError:
        pass


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(_actions, _actions, _actions)
def test_random_trees(tmp_path: Path, first: list, second: list, third: list) -> None:  # type: ignore[type-arg]
    work = tmp_path / os.urandom(8).hex()
    (work / "base").mkdir(parents=True)
    for action in first:
        act(work / "base", action)
    check_round_trip(work, [], [work / "base"])
    over = Overlaid(work, [work / "base"])
    with over as tree:
        for action in second:
            act(tree, action)
    check_round_trip(work, [work / "base"], over.stack)
    again = Overlaid(work, over.stack, "more")
    with again as tree:
        for action in third:
            act(tree, action)
    check_round_trip(work, over.stack, again.stack)
    check_round_trip(work, [work / "base"], again.stack)  # two layers at once: the double walk
    kernel.remove_tree(work)


def test_changes_knows_the_way(tmp_path: Path) -> None:
    base = base_tree(tmp_path)
    over = Overlaid(tmp_path, [base])
    with over as tree:
        (tree / "n").touch()
    assert [(change.kind, change.path) for change in changes([base], over.stack).entries] == [("add", b"n")]
    assert [(change.kind, change.path) for change in changes(over.stack, [base]).entries] == [("delete", b"n")]
