# SPDX-License-Identifier: Apache-2.0
"""ADD of archives: recognised whatever the name, extracted inside the destination only."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from chantier.errors import ChantierError
from chantier.layer.copy import CopyOptions, copy_tree

pytestmark = pytest.mark.root

Row = tuple[str, bytes, dict[str, object]]


def member(name: str, kind: bytes = tarfile.REGTYPE, data: str = "", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, len(data), 1_000_000_000
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, data.encode()


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


PLAIN = archive(
    member("p", tarfile.DIRTYPE, mode=0o750, uid=12, gid=34),
    member("p/f", data="file", mode=0o600, uid=12, gid=34),
    member("top", mode=0o4755),
    member("p/l", tarfile.SYMTYPE, linkname="../top"),
)


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout


@pytest.fixture
def dirs(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "s").mkdir()
    (tmp_path / "t").mkdir()
    return tmp_path / "s", tmp_path / "t"


def add(dirs: tuple[Path, Path], data: bytes, dest: str = "/x/", **options: object) -> dict[str, str]:
    (dirs[0] / "file.bin").write_bytes(data)
    copy_tree(dirs[0], "file.bin", dirs[1], dest, CopyOptions(create_dest_path=True, unpack=True, **options))  # type: ignore[arg-type]
    found = {}
    for base, names, files in os.walk(dirs[1]):
        for name in names + files:
            info = os.lstat(os.path.join(base, name))
            found[os.path.relpath(os.path.join(base, name), dirs[1])] = f"{info.st_mode:o} {info.st_uid}:{info.st_gid}"
    return found


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd], ids=lambda f: f.__name__)
def test_compressions(dirs: tuple[Path, Path], pack: object) -> None:
    got = add(dirs, pack(PLAIN), mode=0o700)  # type: ignore[operator]
    assert got == {
        "x": "40755 0:0",
        "x/p": "40750 12:34",
        "x/p/f": "100600 12:34",
        "x/p/l": "120777 0:0",
        "x/top": "104755 0:0",
    }
    assert os.stat(dirs[1] / "x/p").st_mtime == os.lstat(dirs[1] / "x/p/l").st_mtime == 1_000_000_000


def test_owner_overrides_all(dirs: tuple[Path, Path]) -> None:
    got = add(dirs, PLAIN, "/n", owner=(1000, 50))
    assert {row.split()[1] for row in got.values()} == {"1000:50"}


@pytest.mark.parametrize(
    "data",
    [b"", b"text\n" * 400, archive(), gzip.compress(b"not a tar" * 99), b"\x1f\x8b\x08broken", b"BZhx"],
    ids=["empty", "text", "archive", "gzip", "broken gzip", "broken bzip2"],  # compressed bytes hold the time
)
def test_what_is_no_archive_is_copied(dirs: tuple[Path, Path], data: bytes) -> None:
    assert sorted(add(dirs, data)) == ["x", "x/file.bin"]
    assert (dirs[1] / "x/file.bin").read_bytes() == data


def test_names_stay_inside(dirs: tuple[Path, Path], tmp_path: Path) -> None:
    data = archive(
        member("ok"),
        member("../up"),
        member("/abs/f"),
        member("./e"),
        member("esc", tarfile.SYMTYPE, linkname=str(tmp_path)),
        member("esc/f", data="inside"),
        member("back", tarfile.SYMTYPE, linkname="../../.."),
        member("back/g"),
    )
    got = add(dirs, data, "/x/y/")
    inside = "x/y" + str(tmp_path)
    assert {"x/y/ok", "x/y/up", "x/y/abs/f", "x/y/e", "x/y/g", inside + "/f"} < got.keys()
    assert sorted(os.listdir(tmp_path)) == ["s", "t"]


def test_hard_links_take_their_own_header(dirs: tuple[Path, Path]) -> None:
    data = archive(
        member("d", tarfile.DIRTYPE),
        member("d/a", mode=0o640),
        member("d/b", tarfile.LNKTYPE, linkname="d/a"),
        member("s", tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("h", tarfile.LNKTYPE, linkname="s"),
    )
    got = add(dirs, data)
    assert got["x/d/a"] == got["x/d/b"] == "100644 0:0"
    assert os.readlink(dirs[1] / "x/h") == "/etc/passwd"
    with pytest.raises(ChantierError, match=r"no such file"):
        add(dirs, archive(member("h", tarfile.LNKTYPE, linkname="../../../../etc/passwd")), "/y/")


def test_over_what_is_there(dirs: tuple[Path, Path]) -> None:
    x = dirs[1] / "x"
    (x / "dir/full").mkdir(parents=True)
    (x / "e").mkdir(mode=0o700)
    (x / "e/old").write_text("o")
    (x / "kept").write_text("k")
    (x / "l").symlink_to("kept")
    data = archive(
        member("dir", data="now a file"),
        member("e", tarfile.DIRTYPE),
        member("e/n"),
        member("l", data="L"),
        member(".wh.kept", data="w"),
        member("fifo", tarfile.FIFOTYPE),
    )
    got = add(dirs, data)
    assert got["x/dir"] == got["x/l"] == got["x/.wh.kept"] == "100644 0:0"
    assert got["x/e"] == "40755 0:0"
    assert {"x/e/old", "x/e/n", "x/kept"} < got.keys()
    assert got["x/fifo"] == "10644 0:0"
    assert (x / "kept").read_text() == "k"


def test_a_link_that_becomes_a_directory(dirs: tuple[Path, Path]) -> None:
    data = archive(
        member("real", tarfile.DIRTYPE),
        member("l", tarfile.SYMTYPE, linkname="real"),
        member("l/1"),
        member("l", tarfile.DIRTYPE),
        member("l/2"),
    )
    got = add(dirs, data)
    assert {"x/real/1", "x/l/2"} < got.keys()
    assert "x/real/2" not in got


def test_attributes_and_exact_times(dirs: tuple[Path, Path]) -> None:
    info, data = member("f")
    info.pax_headers = {"SCHILY.xattr.user.k": "v", "mtime": "12.123456789"}
    info.mtime = 12.123456789  # type: ignore[assignment]
    add(dirs, archive((info, data)))
    assert os.getxattr(dirs[1] / "x/f", "user.k") == b"v"
    assert os.stat(dirs[1] / "x/f").st_mtime_ns == 12_123_456_789


def test_destination_that_is_a_file(dirs: tuple[Path, Path]) -> None:
    (dirs[1] / "f").write_text("f")
    with pytest.raises(ChantierError, match=r"^mkdir /f: not a directory$"):
        add(dirs, PLAIN, "/f")


def test_truncated_archive_fails(dirs: tuple[Path, Path]) -> None:
    big = archive(member("big", data="x" * 9000))
    with pytest.raises(ChantierError, match="unexpected"):
        add(dirs, big[:2000])
    with pytest.raises(ChantierError, match="failed"):
        add(dirs, gzip.compress(archive(member("big", data=os.urandom(90000).hex())))[:-3000])


def test_link_to_an_archive_and_wildcards(dirs: tuple[Path, Path]) -> None:
    (dirs[0] / "w1.tar").write_bytes(PLAIN)
    (dirs[0] / "w2").write_text("plain")
    (dirs[0] / "l").symlink_to("w1.tar")
    copy_tree(dirs[0], "l", dirs[1], "/l/", CopyOptions(create_dest_path=True, unpack=True, follow_links=True))
    assert sorted(os.listdir(dirs[1] / "l")) == ["p", "top"]
    copy_tree(dirs[0], "w*", dirs[1], "/w/", CopyOptions(create_dest_path=True, unpack=True, wildcard=True))
    assert sorted(os.listdir(dirs[1] / "w")) == ["p", "top", "w2"]


def test_a_directory_is_copied_with_the_archives_in_it(dirs: tuple[Path, Path]) -> None:
    (dirs[0] / "d").mkdir()
    (dirs[0] / "d/a.tar").write_bytes(PLAIN)
    (dirs[0] / "loop").symlink_to("loop")
    copy_tree(dirs[0], "d", dirs[1], "/x", CopyOptions(create_dest_path=True, unpack=True, dir_contents=True))
    assert os.listdir(dirs[1] / "x") == ["a.tar"]
    with pytest.raises(ChantierError):
        copy_tree(dirs[0], "loop", dirs[1], "/x", CopyOptions(create_dest_path=True, unpack=True, follow_links=True))
