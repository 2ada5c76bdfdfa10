# SPDX-License-Identifier: Apache-2.0
"""The copy action on real trees: what goes where, with which owner, mode and time."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from chantier.errors import CancelledError_, ChantierError
from chantier.layer.chmod import parse_mode
from chantier.layer.copy import CopyOptions, clean_path, copy_tree

pytestmark = pytest.mark.root

COPY = {"dir_contents": True, "follow_links": True, "create_dest_path": True, "wildcard": True, "empty_wildcard": True}


def copy(source: Path, src: str, target: Path, dest: str, **options: object) -> dict[str, str]:
    """As COPY does, then what the target holds."""
    copy_tree(source, src, target, dest, CopyOptions(**{**COPY, **options}))  # type: ignore[arg-type]
    return tree(target)


def tree(root: Path) -> dict[str, str]:
    """path -> type, mode, owner, content or link."""
    found = {}
    for base, dirs, files in os.walk(root):
        for name in dirs + files:
            path = os.path.join(base, name)
            info = os.lstat(path)
            kind = {stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFREG: "f", stat.S_IFIFO: "p", stat.S_IFCHR: "c"}[
                stat.S_IFMT(info.st_mode)
            ]
            row = f"{kind} {info.st_mode & 0o7777:o} {info.st_uid}:{info.st_gid}"
            if kind == "f":
                row += " " + Path(path).read_text()
            if kind == "l":
                row += " " + os.readlink(path)
            found[os.path.relpath(path, root)] = row
    return found


def make(root: Path, **files: str) -> Path:
    """Files by path (`__` is `/`); a value `-> x` is a link, `/` a directory."""
    root.mkdir(exist_ok=True)
    for name, value in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if value.startswith("-> "):
            path.symlink_to(value[3:])
        elif value == "/":
            path.mkdir(exist_ok=True)
        else:
            path.write_text(value)
    return root


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return make(tmp_path / "src", a="A", b="B", d__x="X", d__sub__y="Y")


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return make(tmp_path / "dst")


D = "d 755 0:0"


@pytest.mark.parametrize(
    ("path", "want"),
    [("a", "/a"), ("/a/../b/", "/b/"), ("", "/"), (".", "/."), ("/", "/"), ("a/.", "/a/."), ("../x", "/x"), ("//x", "/x")],
)
def test_clean_path(path: str, want: str) -> None:
    assert clean_path(path) == want


def test_file_to_new_name_makes_parents(src: Path, dst: Path) -> None:
    assert copy(src, "a", dst, "/x/y/n") == {"x": D, "x/y": D, "x/y/n": "f 644 0:0 A"}


def test_file_into_directory(src: Path, dst: Path) -> None:
    make(dst, old="/")
    assert copy(src, "a", dst, "/new/") | {} == {"old": D, "new": D, "new/a": "f 644 0:0 A"}
    assert copy(src, "b", dst, "/old")["old/b"] == "f 644 0:0 B"


def test_trailing_slash_of_a_file_source(src: Path, dst: Path) -> None:
    assert copy(src, "a/", dst, "/x") == {"x": "f 644 0:0 A"}


@pytest.mark.parametrize(("source", "dest"), [("d", "/t"), ("d/", "/t"), ("/d/.", "/t/."), ("d", "/t/")])
def test_directory_contents(src: Path, dst: Path, source: str, dest: str) -> None:
    os.chmod(src / "d", 0o700)
    os.chmod(src / "d/sub", 0o750)
    assert copy(src, source, dst, dest) == {"t": D, "t/x": "f 644 0:0 X", "t/sub": "d 750 0:0", "t/sub/y": "f 644 0:0 Y"}


def test_directory_itself(src: Path, dst: Path) -> None:
    os.chmod(src / "d", 0o710)
    os.utime(src / "d", ns=(5, 5_000_000_007))
    assert copy(src, "d", dst, "/t", dir_contents=False)["t"] == "d 710 0:0"
    assert os.stat(dst / "t").st_mtime_ns == 5_000_000_007
    assert "t/d/sub/y" in copy(src, "d", dst, "/t", dir_contents=False)


def test_merge_keeps_the_destination_and_takes_the_source_below(src: Path, dst: Path) -> None:
    make(dst, t__sub__old="o")
    os.chmod(dst / "t", 0o711)
    os.chmod(dst / "t/sub", 0o700)
    os.chown(dst / "t/sub", 4, 5)
    got = copy(src, "d", dst, "/t")
    assert got["t"] == "d 711 0:0"
    assert got["t/sub"] == "d 755 0:0"
    assert got["t/sub/old"] == "f 644 0:0 o"


def test_times(src: Path, dst: Path) -> None:
    for path in ("d/x", "d/sub", "d"):
        os.utime(src / path, ns=(1_000_000_001, 2_000_000_002))
    copy(src, "d", dst, "/t")
    assert [os.stat(dst / p).st_mtime_ns for p in ("t", "t/sub", "t/x")] == [2_000_000_002] * 3
    copy(src, "d", dst, "/u", time_ns=7)
    assert [os.stat(dst / p).st_mtime_ns for p in ("u", "u/sub", "u/x")] == [7] * 3


def test_owner_and_octal_mode_reach_made_parents(src: Path, dst: Path) -> None:
    got = copy(src, "d", dst, "/m/n/", owner=(3, 4), mode=0o1750)
    assert got["m"] == got["m/n"] == "d 750 3:4"
    assert got["m/n/sub"] == "d 1750 3:4"
    assert got["m/n/x"] == "f 1750 3:4 X"


def test_symbolic_mode_leaves_made_parents(src: Path, dst: Path) -> None:
    got = copy(src, "d", dst, "/n", mode_text="u+x,go-r")
    assert got == {"n": D, "n/x": "f 700 0:0 X", "n/sub": "d 711 0:0", "n/sub/y": "f 700 0:0 Y"}


@pytest.mark.parametrize(
    ("text", "mode", "want"),
    [
        ("u=rwX,go=rX", 0o100600, 0o644),
        ("u=rwX,go=rX", 0o100700, 0o755),
        ("u=rwX,go=rX", 0o040700, 0o755),
        ("a+x,o=", 0o100644, 0o750),
        ("+w", 0o100444, 0o666),
        ("=", 0o107777, 0o1000),
        ("u+s,g+s,+t", 0o100755, 0o7755),
        ("o+s", 0o100755, 0o755),
        ("a-s", 0o106755, 0o755),
        ("g=u,o=g", 0o100740, 0o777),
        ("u+x-w", 0o100644, 0o544),
        ("4755", 0o100000, 0o4755),
    ],
)
def test_chmod(text: str, mode: int, want: int) -> None:
    assert oct(parse_mode(text)(mode)) == oct(want)


@pytest.mark.parametrize("text", ["rwxr", "u", "u+q", "9", "10000", "", "u=r,", "+x,,"])
def test_chmod_refuses(text: str) -> None:
    with pytest.raises(ChantierError, match=r"^invalid syntax$"):
        parse_mode(text)


def test_links_stay_links_and_take_the_owner(src: Path, dst: Path) -> None:
    make(src, d__l="-> x", d__abs="-> /etc/passwd", d__none="-> nowhere")
    got = copy(src, "d", dst, "/t", owner=(8, 9), mode=0o600)
    assert got["t/l"] == "l 777 8:9 x"
    assert got["t/abs"] == "l 777 8:9 /etc/passwd"
    assert got["t/none"] == "l 777 8:9 nowhere"


def test_named_link_is_followed_within_the_root(src: Path, dst: Path) -> None:
    make(src, l="-> /../../d", f="-> d/x")
    assert "t/sub/y" in copy(src, "l", dst, "/t")
    assert copy(src, "f", dst, "/u/")["u/f"] == "f 644 0:0 X"
    assert copy(src, "f", dst, "/v", follow_links=False)["v"] == "l 777 0:0 d/x"


def test_hostile_links_never_lead_outside(tmp_path: Path, src: Path, dst: Path) -> None:
    outside = make(tmp_path / "outside", hidden="S")
    make(src, s=f"-> {outside}/hidden", up="-> ../outside/hidden", dir=f"-> {outside}")
    for name in ("s", "up", "dir/hidden", "dir/*"):
        with pytest.raises(ChantierError, match="no such file"):
            copy(src, name, dst, "/t/")
    make(dst, out=f"-> {outside}", rel="-> ../../../outside", file=f"-> {outside}/hidden")
    copy(src, "a", dst, "/out/")
    copy(src, "d", dst, "/rel")
    copy(src, "a", dst, "/file")
    assert tree(outside) == {"hidden": "f 644 0:0 S"}
    assert (dst / str(outside)[1:] / "a").read_text() == "A"


def test_dangling_destination_link_is_made_inside(src: Path, dst: Path) -> None:
    make(dst, l="-> /gone/f", d="-> dir")
    assert copy(src, "a", dst, "/l")["gone/f"] == "f 644 0:0 A"
    assert copy(src, "a", dst, "/d/")["dir/a"] == "f 644 0:0 A"


def test_destination_link_to_file_and_directory(src: Path, dst: Path) -> None:
    make(dst, real="old", l="-> /real", usr__share="/", share="-> usr/share")
    got = copy(src, "a", dst, "/l")
    assert (got["real"], got["l"]) == ("f 644 0:0 A", "l 777 0:0 /real")
    assert copy(src, "a", dst, "/share")["usr/share/a"] == "f 644 0:0 A"
    assert copy(src, "d", dst, "/share")["usr/share/sub/y"] == "f 644 0:0 Y"


def test_links_inside_a_merged_directory_are_replaced(src: Path, dst: Path) -> None:
    make(dst, kept="K", t__x="-> /kept")
    got = copy(src, "d", dst, "/t")
    assert got["t/x"] == "f 644 0:0 X"
    assert got["kept"] == "f 644 0:0 K"


def test_existing_file_loses_mode_and_owner(src: Path, dst: Path) -> None:
    make(dst, f="old")
    os.chown(dst / "f", 7, 8)
    os.chmod(dst / "f", 0o4711)
    assert copy(src, "a", dst, "/f")["f"] == "f 644 0:0 A"


def test_special_bits_survive(src: Path, dst: Path) -> None:
    os.chown(src / "d/x", 5, 6)
    os.chmod(src / "d/x", 0o6755)
    os.chmod(src / "d/sub", 0o3775)
    got = copy(src, "d", dst, "/t")
    assert got["t/x"] == "f 6755 5:6 X"
    assert got["t/sub"] == "d 3775 0:0"


def test_hard_links_within_one_source(src: Path, dst: Path) -> None:
    os.link(src / "d/x", src / "d/sub/h")
    os.link(src / "d/x", src / "o")
    copy(src, "d", dst, "/t")
    copy(src, "o", dst, "/o")
    assert os.stat(dst / "t/x").st_ino == os.stat(dst / "t/sub/h").st_ino
    assert os.stat(dst / "t/x").st_nlink == 2
    assert os.stat(dst / "o").st_nlink == 1


def test_nodes_and_attributes(src: Path, dst: Path) -> None:
    os.mkfifo(src / "d/p", 0o640)
    os.chmod(src / "d/p", 0o640)
    os.mknod(src / "d/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(src / "d/gone", stat.S_IFCHR | 0o600, 0)
    os.setxattr(src / "d/x", "trusted.overlay.opaque", b"y")
    os.setxattr(src / "d/x", "trusted.mine", b"v")
    got = copy(src, "d", dst, "/t", owner=(1, 2))
    assert got["t/p"] == "p 640 1:2"
    assert got["t/null"] == "c 600 1:2"
    assert os.stat(dst / "t/null").st_rdev == os.makedev(1, 3)
    assert "t/gone" not in got  # a whiteout of a layer seen from below
    assert os.listxattr(dst / "t/x") == ["trusted.mine"]


def test_large_and_sparse_files(src: Path, dst: Path) -> None:
    data = os.urandom(1 << 20)
    (src / "big").write_bytes(data)
    with open(src / "hole", "wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    copy_tree(src, "/big", dst, "/big")
    copy_tree(src, "/hole", dst, "/hole")
    assert (dst / "big").read_bytes() == data
    info = os.stat(dst / "hole")
    assert info.st_size == (64 << 20) + 3
    assert info.st_blocks * 512 < 1 << 20
    with open(dst / "hole", "rb") as file:
        file.seek(64 << 20)
        assert file.read() == b"end"


def names(got: dict[str, str]) -> list[str]:
    return sorted(name for name, row in got.items() if not row.startswith("d"))


def test_wildcards(tmp_path: Path, dst: Path) -> None:
    src = make(tmp_path / "w", **{".dot.txt": ".", "a1.txt": "1", "a2.txt": "2", "b1.md": "m", "s1__f": "f", "s1__a3.txt": "3"})
    assert names(copy(src, "*.txt", dst, "/1/")) == ["1/.dot.txt", "1/a1.txt", "1/a2.txt"]
    assert names(copy(src, "**/*.txt", dst, "/1/"))[3:] == ["1/a3.txt"]
    assert names(copy(src, "[^a.]*", dst, "/2/"))[4:] == ["2/a3.txt", "2/b1.md", "2/f"]
    assert copy(src, "none*", dst, "/3/").keys() == tree(dst).keys()
    assert copy(src, "a1*", dst, "/renamed")["renamed"] == "f 644 0:0 1"
    with pytest.raises(ChantierError, match=r"^/none\* not found$"):
        copy(src, "none*", dst, "/3/", empty_wildcard=False)
    with pytest.raises(ChantierError, match=r"^syntax error in pattern$"):
        copy(src, "[a", dst, "/3/")
    with pytest.raises(ChantierError, match=r"^lstat /nodir: no such file or directory$"):
        copy(src, "nodir/*", dst, "/3/")


def test_excludes(tmp_path: Path, dst: Path) -> None:
    src = make(tmp_path / "e", **{"d__a.md": "a", "d__b": "b", "d__s__c.md": "c", "d__s__keep": "k", "d__s__drop": "d"})
    assert names(copy(src, "d", dst, "/1", exclude=("**/*.md", "s/drop"))) == ["1/b", "1/s/keep"]
    assert names(copy(src, "d", dst, "/2", exclude=("s", "!s/keep")))[2:] == ["2/a.md", "2/b", "2/s/keep"]
    assert copy(src, "d", dst, "/3", exclude=("*",))["3"] == D
    assert "4/a.md" in copy(src, "d/*.md", dst, "/4/", exclude=("a.md",))


def test_includes_make_parents_from_the_source(tmp_path: Path, dst: Path) -> None:
    src = make(tmp_path / "i", d__s__f="f", d__s__g="g", d__t__h="h", e="e")
    os.chmod(src / "d", 0o700)
    os.chown(src / "d/s", 8, 9)
    os.utime(src / "d/s", ns=(1, 1_000_000_000))
    got = copy(src, "/", dst, "/x/", include=("d/s/f",))
    assert got == {"x": D, "x/d": "d 700 0:0", "x/d/s": "d 755 8:9", "x/d/s/f": "f 644 0:0 f"}
    assert os.stat(dst / "x/d/s").st_mtime_ns == 1_000_000_000
    got = copy(src, "/", dst, "/y/", include=("d/s/f",), owner=(1, 2), mode=0o751)
    assert {row[:9] for name, row in got.items() if name.startswith("y")} == {"d 751 1:2", "f 751 1:2"}
    with pytest.raises(ChantierError, match=r'^"/d/none": not found$'):
        copy(src, "/", dst, "/z/", include=("d/none",), required=("/d/none",))


def test_included_parent_that_exists_takes_the_mode(tmp_path: Path, dst: Path) -> None:
    src = make(tmp_path / "i", d__s__f="f")
    os.chmod(src / "d", 0o711)
    make(dst, d__s__old="o")
    os.chown(dst / "d", 3, 3)
    got = copy(src, "/", dst, "/", include=("d/s/f",))
    assert got["d"] == "d 711 3:3"
    assert got["d/s/f"] == "f 644 0:0 f"


@pytest.mark.parametrize(
    ("source", "dest", "text"),
    [
        ("nofile", "/x", "lstat /nofile: no such file or directory"),
        ("a/b", "/x", "lstat /a/b: not a directory"),
        ("a", "/file/new", "mkdir /file: not a directory"),
        ("d", "/file", "cannot copy to non-directory: /file"),
        ("a", "/link/x/y", "mkdir /file: not a directory"),
        ("d", "/clash", "cannot replace to directory /clash/x with file"),
        ("loop", "/x", "too many levels of symbolic links"),
    ],
)
def test_errors(src: Path, dst: Path, source: str, dest: str, text: str) -> None:
    make(src, loop="-> loop")
    make(dst, file="f", link="-> file", clash__x="/")
    with pytest.raises(ChantierError, match=text + "$"):
        copy(src, source, dst, dest)


def test_replace_ends_conflicts(src: Path, dst: Path) -> None:
    make(dst, t__x__deep="d", t__sub="f")
    got = copy(src, "d", dst, "/t", replace=True)
    assert (got["t/x"], got["t/sub/y"]) == ("f 644 0:0 X", "f 644 0:0 Y")


def test_missing_parent_is_refused_without_create(src: Path, dst: Path) -> None:
    with pytest.raises(ChantierError, match=r"^failed to stat /x/y: lstat /x: no such file or directory$"):
        copy(src, "a", dst, "/x/y", create_dest_path=False)


def test_empty_source(dst: Path) -> None:
    with pytest.raises(ChantierError, match=r"^lstat /x: no such file or directory$"):
        copy_tree(None, "x", dst, "/y", CopyOptions(**COPY))
    copy_tree(None, "/", dst, "/here/", CopyOptions(**COPY))  # its root is there: a directory with nothing in it
    assert [path.name for path in dst.iterdir()] == ["here"]
    assert not list((dst / "here").iterdir())
    (dst / "here").rmdir()
    copy_tree(None, "x*", dst, "/y", CopyOptions(**COPY))
    assert tree(dst) == {}


def test_names_that_are_not_text(src: Path, dst: Path) -> None:
    os.mkdir(os.fsencode(src) + b"/n")
    for name in (b"\xff\xfe", b"new\nline", b"back\\slash", b" lead"):
        with open(os.fsencode(src) + b"/n/" + name, "wb"):
            pass
    copy(src, "n", dst, "/n")
    assert sorted(os.listdir(os.fsencode(dst) + b"/n")) == sorted([b"\xff\xfe", b"new\nline", b"back\\slash", b" lead"])


def test_cancel(src: Path, dst: Path) -> None:
    with pytest.raises(CancelledError_):
        copy_tree(src, "/d", dst, "/t", CopyOptions(**COPY), cancelled=lambda: True)
