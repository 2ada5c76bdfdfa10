# SPDX-License-Identifier: Apache-2.0
"""The library in C: what it says of directories, and from where it is loaded."""

from __future__ import annotations

import os
import shutil
from array import array
from pathlib import Path

import pytest

from chantier.kernel.compiled import CompileError, compiled
from chantier.kernel.trees import _BESIDE, _FLAGS, _SOURCE, NONE, Trees, _load, trees

pytestmark = [pytest.mark.root, pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")]


@pytest.fixture
def library() -> Trees:
    found = trees()
    assert found is not None
    return found


def test_it_is_compiled_once_and_only_ours_is_loaded(tmp_path: Path) -> None:
    path = compiled(_SOURCE, tmp_path / "cache", "trees", flags=_FLAGS, beside=_BESIDE)
    made = path.stat().st_ino
    assert compiled(_SOURCE, tmp_path / "cache", "trees", flags=_FLAGS, beside=_BESIDE).stat().st_ino == made
    assert os.listdir(tmp_path / "cache") == [path.name]
    _load(path)
    path.chmod(0o777)
    with pytest.raises(PermissionError):
        _load(path)
    path.chmod(0o755)
    os.chown(path, 7, 7)
    with pytest.raises(PermissionError):
        _load(path)


def test_what_the_compiler_said(tmp_path: Path) -> None:
    source = tmp_path / "x.c"
    source.write_text("no C at all")
    with pytest.raises(CompileError, match="error"):
        compiled(source, tmp_path / "cache", "x", flags=())
    assert os.listdir(tmp_path / "cache") == []


def test_it_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANTIER_TREES", "python")
    assert trees() is None


def test_deep_directories(library: Trees, tmp_path: Path) -> None:
    """As deep as descriptors reach; the rest is an error with a path."""
    deep = tmp_path / "deep"
    deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    top = os.open(deep, os.O_RDONLY)
    try:
        assert library.walk(top, lambda: False).count(b"\0" + (45).to_bytes(2, "little")) == 300
    finally:
        os.close(top)
        shutil.rmtree(deep)


def row(path: bytes, text: bytes = b"", mode: int = 0o100644) -> bytes:
    value = mode.to_bytes(4, "little") + bytes(41) + text
    return path + b"\0" + len(value).to_bytes(2, "little") + value


def test_comparing(library: Trees) -> None:
    before = [row(b"a", mode=0o040755), row(b"a/x"), row(b"a/y"), row(b"a.txt"), row(b"c")]
    after = [row(b"a", mode=0o040755), row(b"a/x", b"other"), row(b"a/z"), row(b"a.txt"), row(b"b")]
    old, new = b"".join(before), b"".join(after)
    found = library.compare(old, new)
    assert found is not None
    pairs, directories = found
    assert list(directories) == [0]
    assert [(n if n == NONE else new[n:].split(b"\0")[0], o if o == NONE else old[o:].split(b"\0")[0]) for n, o in pairs] == [
        (b"a/x", b"a/x"),
        (NONE, b"a/y"),
        (b"a/z", NONE),
        (b"b", NONE),
        (NONE, b"c"),
    ]
    for junk in (b"x", b"x\0", b"x\0\xff\xff", old[:-1]):
        assert library.compare(junk, new) is None
        assert library.compare(old, junk) is None


def test_linking(library: Trees, tmp_path: Path) -> None:
    for name in ("from/sub", "to"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a", "b", "c", "d"):
        (tmp_path / "from" / name).write_text(name)
    (tmp_path / "from/l").symlink_to("a")
    (tmp_path / "to/b").write_text("there")
    os.chown(tmp_path / "from/d", 7, 7)
    inode = {name: (tmp_path / "from" / name).stat().st_ino for name in "abcd"}
    source, target = (os.open(tmp_path / name, os.O_RDONLY) for name in ("from", "to"))
    try:
        linked, rest = library.link(source, target, array("Q", [inode["c"]]), (0, 0))
    finally:
        os.close(source)
        os.close(target)
    assert list(linked) == [inode["a"]]
    assert rest == [b"b", b"c", b"d", b"l", b"sub"]
    assert sorted(os.listdir(tmp_path / "to")) == ["a", "b"]
