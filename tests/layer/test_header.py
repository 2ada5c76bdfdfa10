# SPDX-License-Identifier: Apache-2.0
"""Headers as Go writes them, judged by tarfile, GNU tar and known bytes."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chantier.layer import Entry, TarReader, encode
from chantier.layer.header import DIRECTORY, HARDLINK, REGULAR, SYMLINK, TRAILER, split_ustar


def source(data: bytes, size: int = 1 << 20) -> object:
    stream = io.BytesIO(data)
    return lambda: stream.read(size)


def test_plain_file_is_one_ustar_block() -> None:
    block = encode(Entry(b"etc/passwd", mode=0o644, uid=1, gid=2, size=5, mtime_ns=1_600_000_000_999_999_999))
    assert len(block) == 512
    assert block[:10] == b"etc/passwd"
    assert block[100:124] == b"0000644\x000000001\x000000002\x00"
    assert block[124:136] == b"00000000005\x00"
    assert block[136:148] == b"13727410000\x00"  # whole seconds
    assert block[156:157] == b"0"
    assert block[257:265] == b"ustar\x0000"
    assert block[265:329] == bytes(64)  # no names of owners
    assert block[329:345] == b"0000000\x000000000\x00"
    assert block[148:156] == b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)


def test_whiteout_is_all_zero() -> None:
    block = encode(Entry(b"d/.wh.gone"))
    assert block[100:108] == b"0000000\x00"
    assert block[136:148] == b"00000000000\x00"


@pytest.mark.parametrize(
    ("name", "kind", "blocks"),
    [
        (b"a" * 100, REGULAR, 1),
        (b"a" * 101, REGULAR, 3),  # no slash to split at: PAX
        (b"a" * 99, DIRECTORY, 1),
        (b"a" * 100, DIRECTORY, 3),
        (b"d" * 90 + b"/" + b"f" * 100, REGULAR, 1),  # ustar's prefix
        (b"d" * 155 + b"/" + b"f" * 100, REGULAR, 1),
        (b"d" * 156 + b"/" + b"f" * 100, REGULAR, 3),
        (b"d" * 90 + b"/" + b"f" * 101, REGULAR, 3),
        ("ü".encode(), REGULAR, 3),
        (b"\xff", REGULAR, 3),
    ],
)
def test_extended_header_only_if_needed(name: bytes, kind: bytes, blocks: int) -> None:
    data = encode(Entry(name, kind))
    assert len(data) == 512 * blocks
    (entry,) = TarReader(source(data + TRAILER))
    assert (entry.name, entry.type) == (name, kind)


def test_extended_header() -> None:
    data = encode(
        Entry("d/ü".encode() * 60, mode=0o600, uid=2**21, xattrs={"security.capability": b"\0\n="}, mtime_ns=-5 * 10**9)
    )
    assert data[:100].rstrip(b"\0").startswith(b"d/d/d/d/")
    assert b"PaxHeaders.0" in encode(Entry("d/ü".encode()))[:100]
    assert data[156:157] == b"x"
    assert data[100:108] == data[108:116] == b"0000000\0"
    records = data[512:]
    order = [
        records.index(key)
        for key in (b"SCHILY.xattr.security.capability=\0\n=\n", b" mtime=-5\n", b" path=d/", b" uid=2097152\n")
    ]
    assert order == sorted(order)


def test_record_lengths_count_themselves() -> None:
    for length in range(80, 120):
        name = b"n" * length + "é".encode()
        (entry,) = TarReader(source(encode(Entry(name)) + TRAILER))
        assert entry.name == name


def test_long_names_cut_in_the_main_header_do_not_look_like_directories() -> None:
    data = encode(Entry(b"d" * 99 + b"/" + "éx".encode()))
    assert data[-512:][:100] == b"d" * 99 + b"\0"


def test_what_no_tar_can_hold() -> None:
    with pytest.raises(ValueError, match="a tar cannot hold"):
        encode(Entry(b"a\0b"))
    with pytest.raises(ValueError, match="too long"):
        encode(Entry(b"a", xattrs={"user.a": bytes(1 << 20)}))


def test_split() -> None:
    assert split_ustar(b"short") is None
    assert split_ustar(b"p" * 50 + b"/" + b"n" * 60) == (b"p" * 50, b"n" * 60)
    assert split_ustar(b"/" + b"n" * 101) is None


_names = st.lists(st.binary(min_size=1, max_size=90).filter(lambda b: b not in (b".", b"..")), min_size=1, max_size=4).map(
    lambda parts: b"/".join(part.replace(b"/", b"_").replace(b"\0", b"_") for part in parts)
)
_entries = st.builds(
    Entry,
    name=_names,
    type=st.sampled_from([REGULAR, DIRECTORY, SYMLINK, HARDLINK]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    mtime_ns=st.integers(-(2**33), 2**36).map(lambda s: s * 10**9),
    link=_names,
    size=st.just(0),
    major=st.just(0),
    minor=st.just(0),
    sparse=st.none(),
    real_size=st.just(0),
    xattrs=st.dictionaries(st.sampled_from(["user.a", "security.capability"]), st.binary(max_size=300), max_size=2),
)


@given(st.lists(_entries, max_size=5), st.integers(1, 2000))
def test_what_is_written_is_read(entries: list[Entry], chunk: int) -> None:
    entries = [e if e.type in (SYMLINK, HARDLINK) else e._replace(link=b"") for e in entries]
    data = b"".join(encode(entry) for entry in entries) + TRAILER
    assert list(TarReader(source(data, chunk))) == entries
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape", encoding="utf-8") as tar:
        for entry, info in zip(entries, tar, strict=True):
            assert info.name.encode("utf-8", "surrogateescape") == entry.name
            assert info.linkname.encode("utf-8", "surrogateescape") == entry.link
            assert (info.mode, info.uid, info.gid) == (entry.mode, entry.uid, entry.gid)
            assert info.mtime == entry.mtime_ns // 10**9


def test_gnu_tar_reads_it(tmp_path: Path) -> None:
    entries = [
        Entry(b"d", DIRECTORY, 0o755),
        Entry(b"d/" + b"x" * 200, mode=0o644),
        Entry(b"d/l", SYMLINK, 0o777, link=b"y" * 150),
    ]
    (tmp_path / "t.tar").write_bytes(b"".join(encode(entry) for entry in entries) + TRAILER)
    shown = subprocess.run(["tar", "-tvf", tmp_path / "t.tar"], capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    assert ["x" * 200 in line for line in shown.stdout.splitlines()] == [False, True, False]
    assert shown.stdout.splitlines()[2].endswith("d/l -> " + "y" * 150)
