# SPDX-License-Identifier: Apache-2.0
"""System calls on the real kernel: resolution inside a root, mounts, copies."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chantier import kernel
from chantier.kernel import mounts, paths

Opener = Callable[..., int]


def by_hand(root: Path, path: str, flags: int, mode: int = 0) -> int:
    fd = os.open(root, os.O_PATH)
    try:
        return paths._open_by_hand(fd, os.fsencode(path), flags, mode)
    finally:
        os.close(fd)


@pytest.fixture(params=["openat2", "by hand"])
def opener(request: pytest.FixtureRequest) -> Opener:
    """Both ways to open in a root: the kernel's and the one for kernels without."""
    if request.param == "openat2":
        assert kernel.has_openat2()
        return kernel.open_in_root
    return by_hand


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("outside")
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "f").write_text("f")
    (root / "secret").write_text("inside")
    links = {
        "up": "../secret",
        "abs": "/secret",
        "far": "../../../../../../secret",
        "a/rel": "b/f",
        "a/dir": "../a/b",
        "dangling": "nowhere/x",
        "one": "two",
        "two": "one",
        "chain": "abs",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    return root


def read(fd: int) -> str:
    with os.fdopen(fd) as file:
        return file.read()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("up", "inside"),
        ("abs", "inside"),
        ("far", "inside"),
        ("chain", "inside"),
        ("/secret", "inside"),
        ("../../secret", "inside"),
        ("a/../secret", "inside"),
        ("a/rel", "f"),
        ("a/dir/f", "f"),
        ("a/dir/../b/f", "f"),
        ("a//b/./f", "f"),
    ],
)
def test_open_in_root(tree: Path, opener: Opener, path: str, text: str) -> None:
    assert read(opener(tree, path, os.O_RDONLY)) == text


@pytest.mark.parametrize(
    ("path", "flags", "code"),
    [
        ("nowhere", os.O_RDONLY, errno.ENOENT),
        ("dangling", os.O_RDONLY, errno.ENOENT),
        ("one", os.O_RDONLY, errno.ELOOP),
        ("abs", os.O_RDONLY | os.O_NOFOLLOW, errno.ELOOP),
        ("secret/x", os.O_RDONLY, errno.ENOTDIR),
        ("secret", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
    ],
)
def test_open_in_root_refuses(tree: Path, opener: Opener, path: str, flags: int, code: int) -> None:
    with pytest.raises(OSError) as caught:
        opener(tree, path, flags)
    assert caught.value.errno == code
    assert caught.value.filename is not None


def test_open_in_root_creates_inside(tree: Path, opener: Opener) -> None:
    (tree / "new").symlink_to("/../made")
    os.close(opener(tree, "new", os.O_WRONLY | os.O_CREAT, 0o644))
    assert (tree / "made").exists()
    assert not (tree.parent / "made").exists()
    with pytest.raises(FileExistsError):
        opener(tree, "dangling", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


def test_root_itself(tree: Path, opener: Opener) -> None:
    for path in ("", "/", ".", ".."):
        fd = opener(tree, path or ".", os.O_RDONLY | os.O_DIRECTORY)
        assert os.path.samestat(os.fstat(fd), tree.stat())
        os.close(fd)
    os.close(kernel.open_in_root(tree, "", os.O_RDONLY))


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("", ""),
        ("/", ""),
        ("..", ""),
        ("abs", "secret"),
        ("far", "secret"),
        ("a/dir/f", "a/b/f"),
        ("a/dir/no/such", "a/b/no/such"),
        ("a/dir/no/../../x", "a/x"),
        ("dangling", "nowhere/x"),
        ("dangling/more", "nowhere/x/more"),
        ("secret/x", "secret/x"),
        ("/a/./b/", "a/b"),
    ],
)
def test_resolve_in_root(tree: Path, path: str, resolved: str) -> None:
    assert kernel.resolve_in_root(tree, path) == resolved


def test_resolve_in_root_last_link(tree: Path) -> None:
    assert kernel.resolve_in_root(tree, "abs", follow_last=False) == "abs"
    assert kernel.resolve_in_root(tree, "a/dir/", follow_last=False) == "a/dir"
    with pytest.raises(OSError) as caught:
        kernel.resolve_in_root(tree, "one")
    assert caught.value.errno == errno.ELOOP


def test_names_that_are_not_text(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
    name = os.fsdecode(b"\xff\xfe")
    assert kernel.resolve_in_root(tmp_path, name) == name
    os.close(kernel.open_in_root(tmp_path, name, os.O_RDONLY))


def test_makedirs_in_root(tree: Path) -> None:
    root = os.open(tree, os.O_RDONLY)
    for path, made in (("x/y/z", "x/y/z"), ("up2/n", "../up2/n"), ("dangling/m", "nowhere/x/m"), ("a/b", "a/b")):
        fd = kernel.makedirs_in_root(root, path)
        assert os.path.samestat(os.fstat(fd), (tree / Path(made.removeprefix("../"))).stat())
        os.close(fd)
    with pytest.raises(NotADirectoryError):
        kernel.makedirs_in_root(root, "secret/x")
    with pytest.raises(NotADirectoryError):
        kernel.makedirs_in_root(root, "secret")
    os.close(root)


@pytest.mark.slow
def test_swapped_links_never_lead_outside(tree: Path, opener: Opener) -> None:
    """Somebody replaces a directory by a link to the outside, over and over, while we open below it."""
    (tree.parent / "b").mkdir()
    (tree.parent / "b" / "f").write_text("outside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(tree / "a", tree / "kept")
            os.symlink("../../..", tree / "a")
            os.unlink(tree / "a")
            os.symlink(tree.parent, tree / "a")
            os.unlink(tree / "a")
            os.rename(tree / "kept", tree / "a")

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    end = time.monotonic() + 60  # the directory is itself for a moment of each round: it may take a while to meet it
    tried = 0
    try:
        while tried < 1500 or (not seen and time.monotonic() < end):
            tried += 1
            try:
                seen.add(read(opener(tree, "a/b/f", os.O_RDONLY)))
            except OSError as err:
                assert err.errno in (errno.ENOENT, errno.EAGAIN, errno.ELOOP)
    finally:
        stop.set()
        thread.join()
    assert seen == {"f"}


def test_overlay_option_text() -> None:
    names = ["/plain", "/with:colon", "/with,comma", "/with\\backslash"]
    assert mounts.split_lowers(":".join(mounts.escape(name) for name in names)) == names


@pytest.mark.root
@pytest.mark.parametrize("way", ["page", "fsconfig", "descriptors"])
def test_overlay_ways(tmp_path: Path, way: str) -> None:
    """One page of options, layer by layer, or by descriptors: the same tree, odd names included."""
    lowers = []
    for name in ("a:b", "c,d", "e\\f"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"from {name}").touch()
        lowers.append(str(tmp_path / name))
    for name in ("upper,x", "work:x", "target"):
        (tmp_path / name).mkdir()
    upper, work, target = str(tmp_path / "upper,x"), str(tmp_path / "work:x"), str(tmp_path / "target")
    if way == "page":
        kernel.overlay(target, lowers, upper=upper, work=work)
    elif way == "fsconfig":
        if not mounts._overlay_by_fsconfig(target, lowers, upper, work, 0, ["index=off"]):
            assert os.uname().release < "6.8"
            return
    else:
        extra = [f"upperdir={mounts.escape(upper)}", f"workdir={mounts.escape(work)}"]
        mounts._overlay_by_descriptors(target, lowers, extra, 0)
    try:
        assert len(os.listdir(target)) == 3
        (tmp_path / "target" / "new").touch()
        assert os.listdir(upper) == ["new"]
    finally:
        kernel.umount(target)


@pytest.mark.root
@pytest.mark.parametrize("name_length", [40, 200])
def test_overlay_of_many_layers(tmp_path: Path, name_length: int) -> None:
    lowers = []
    for number in range(150):
        lower = tmp_path / f"{number:0{name_length}}"
        lower.mkdir()
        (lower / str(number)).touch()
        lowers.append(str(lower))
    (tmp_path / "target").mkdir()
    kernel.overlay(str(tmp_path / "target"), lowers, flags=kernel.MS_RDONLY)
    try:
        assert len(os.listdir(tmp_path / "target")) == 150
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "target" / "x").touch()
    finally:
        kernel.umount(str(tmp_path / "target"))


@pytest.mark.root
def test_mount_errors_name_the_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        kernel.mount(str(tmp_path / "no"), str(tmp_path / "where"), None, kernel.MS_BIND)
    assert caught.value.filename == str(tmp_path / "no")
    assert caught.value.filename2 == str(tmp_path / "where")
    with pytest.raises(OSError) as other:
        kernel.umount(str(tmp_path))
    assert other.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="longer than a page"):
        kernel.mount("none", str(tmp_path), "tmpfs", 0, "x" * 5000)


@pytest.mark.root
def test_readonly_bind_covers_submounts(tmp_path: Path) -> None:
    (tmp_path / "s" / "sub").mkdir(parents=True)
    (tmp_path / "t").mkdir()
    kernel.mount("tmpfs", str(tmp_path / "s" / "sub"), "tmpfs")
    kernel.bind(str(tmp_path / "s"), str(tmp_path / "t"), readonly=True)
    try:
        for place in ("t", "t/sub"):
            with pytest.raises(OSError, match="Read-only"):
                (tmp_path / place / "x").touch()
        (tmp_path / "s" / "sub" / "x").touch()
    finally:
        kernel.umount(str(tmp_path / "t"), kernel.MNT_DETACH)
        kernel.umount(str(tmp_path / "s" / "sub"))


def test_working_directory_of_a_thread() -> None:
    before = os.getcwd()
    seen: list[str] = []
    kernel.in_directory("/proc", lambda: seen.append(os.getcwd()))
    assert seen == ["/proc"]
    assert os.getcwd() == before
    with pytest.raises(FileNotFoundError):
        kernel.in_directory("/no such directory", lambda: None)


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_copy_file(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    with open(tmp_path / "a", "rb") as src, open(tmp_path / "b", "wb") as dst:
        assert kernel.copy_file(src.fileno(), dst.fileno(), size) == size
    assert (tmp_path / "b").read_bytes() == data


def test_copy_file_from_proc_and_to_a_pipe(tmp_path: Path) -> None:
    with open("/proc/self/status", "rb") as src, open(tmp_path / "b", "wb") as dst:
        assert kernel.copy_file(src.fileno(), dst.fileno(), 0) > 100
    (tmp_path / "a").write_text("hello")
    read_end, write_end = os.pipe()
    with open(tmp_path / "a", "rb") as src:
        kernel.copy_file(src.fileno(), write_end, 5)
    os.close(write_end)
    assert read(read_end) == "hello"


def test_xattrs(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert kernel.get_xattr(tmp_path / "f", "user.a") is None
    kernel.set_xattr(tmp_path / "f", "user.a", b"1")
    assert kernel.list_xattrs(tmp_path / "f") == ["user.a"]
    with open(tmp_path / "f") as file:
        assert kernel.get_xattr(file.fileno(), "user.a") == b"1"
    directory = os.open(tmp_path, os.O_RDONLY)
    assert kernel.get_xattr(kernel.at(directory, "f"), "user.a") == b"1"
    os.close(directory)
    kernel.remove_xattr(tmp_path / "f", "user.a")
    kernel.remove_xattr(tmp_path / "f", "user.a")
    assert kernel.list_xattrs(tmp_path / "f") == []


@pytest.mark.root
def test_nodes_and_times(tmp_path: Path) -> None:
    kernel.mknod(tmp_path / "w", stat.S_IFCHR, kernel.WHITEOUT_DEV)
    assert kernel.is_whiteout((tmp_path / "w").lstat())
    kernel.mknod(tmp_path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert not kernel.is_whiteout((tmp_path / "null").lstat())
    (tmp_path / "l").symlink_to("w")
    kernel.utimens(tmp_path / "l", 1, 2_000_000_003)
    assert (tmp_path / "l").lstat().st_mtime_ns == 2_000_000_003
    assert (tmp_path / "w").lstat().st_mtime_ns != 2_000_000_003


def test_remove_tree_deep_and_foreign(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("keep")
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(tmp_path)
    fd = os.open(top, os.O_RDONLY)
    for _ in range(1500):  # deeper than Python's stack, and than any path may be long
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        os.close(os.open("file", os.O_CREAT, 0o600, dir_fd=fd))
    os.close(fd)
    kernel.remove_tree(top)
    kernel.remove_tree(top)
    assert os.listdir(tmp_path) == ["keep"]
    with pytest.raises(NotADirectoryError):
        kernel.remove_tree(tmp_path / "keep")


def test_id_map() -> None:
    assert kernel.parse_id_map("         0       1000          1\n         1     100000      65536\n") == (
        kernel.IdRange(inside=0, outside=1000, size=1),
        kernel.IdRange(inside=1, outside=100000, size=65536),
    )


def test_import_is_cheap() -> None:
    code = "import sys, chantier.kernel; print('ctypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
