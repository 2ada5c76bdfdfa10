# SPDX-License-Identifier: Apache-2.0
"""Tars that others write, and tars that are none."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chantier.errors import IntegrityError
from chantier.layer import Entry, TarReader, encode, unpack

from .trees import make_tar


def reader(data: bytes, size: int = 1 << 20) -> TarReader:
    stream = io.BytesIO(data)
    return TarReader(lambda: stream.read(size))


def read_all(data: bytes, size: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    tar = reader(data, size)
    found = [(entry, b"".join(tar.data())) for entry in tar]
    tar.drain()
    return found


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("chunk", [1, 511, 512, 1000, 1 << 20])
def test_formats_of_python(format: int, chunk: int) -> None:
    long = "d" * 90 + "/" + "e" * 90
    data = make_tar("a", "d/", "l -> x", "h => a", long, ("big", {"data": b"z" * 5000, "uid": 77}), format=format)
    found = read_all(data, chunk)
    assert [entry.name.decode() for entry, _ in found] == ["a", "d", "l", "h", long, "big"]
    assert found[0][1] == b"content of a"
    assert found[5][1] == b"z" * 5000
    assert [entry.type for entry, _ in found] == [b"0", b"5", b"2", b"1", b"0", b"0"]
    assert found[2][0].link == b"x"


def test_gnu_long_names_and_large_numbers() -> None:
    fields = {"uid": 2**31, "mtime": -7, "linkname": "t" * 300}
    data = make_tar(("n" * 300 + " -> x", fields), format=tarfile.GNU_FORMAT)
    ((entry, _),) = read_all(data)
    assert entry.name == b"n" * 300
    assert entry.link == b"t" * 300
    assert (entry.uid, entry.mtime_ns) == (2**31, -7 * 10**9)


@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_formats_of_gnu_tar(tmp_path: Path, format: str) -> None:
    (tmp_path / "t" / "dir").mkdir(parents=True)
    (tmp_path / "t" / "dir" / ("f" * 70)).write_text("text")
    (tmp_path / "t" / "link").symlink_to("dir")
    command = ["tar", f"--format={format}", "--sort=name", "-C", tmp_path / "t", "-cf", "-", "dir", "link"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    found = read_all(data)
    assert [(entry.name, entry.type) for entry, _ in found] == [(b"dir", b"5"), (b"dir/" + b"f" * 70, b"0"), (b"link", b"2")]
    assert found[1][1] == b"text"
    assert found[1][0].uid == os.geteuid()


@pytest.mark.parametrize("how", ["gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("pieces", [0, 1, 3, 60])
def test_sparse_files_of_gnu_tar(tmp_path: Path, how: str, pieces: int) -> None:
    with open(tmp_path / "s", "wb") as file:
        for number in range(pieces):
            file.seek(number * 65536 + 8192)
            file.write(b"%d" % number * 100)
        file.truncate(pieces * 65536 + 100_000)
    format = ["--format=gnu"] if how == "gnu" else ["--format=posix", f"--sparse-version={how}"]
    command = ["tar", "-S", *format, "-C", tmp_path, "-cf", "-", "s"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    (tmp_path / "out").mkdir()
    for chunk in (700, 1 << 20):
        stream = io.BytesIO(data)
        stream.read = lambda size, read=stream.read, chunk=chunk: read(min(size, chunk))  # type: ignore[method-assign]
        unpack(stream, tmp_path / "out")
        assert (tmp_path / "out" / "s").read_bytes() == (tmp_path / "s").read_bytes()
    if pieces:
        assert (tmp_path / "out" / "s").stat().st_blocks * 512 < (tmp_path / "s").stat().st_size


def test_global_headers_are_read_over() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "c", "path": "evil"}) as tar:
        tar.addfile(tarfile.TarInfo("good"))
    assert [entry.name for entry, _ in read_all(out.getvalue())] == [b"good"]


def test_skipping_data() -> None:
    data = make_tar(("a", {"data": b"x" * 100_000}), "b")
    assert [entry.name for entry in reader(data, 777)] == [b"a", b"b"]
    tar = reader(data, 777)
    for entry in tar:
        if entry.name == b"a":
            next(iter(tar.data()))  # only part of it


def test_ends() -> None:
    whole = make_tar("a")
    cut = whole[:1024]
    for tail in (b"", bytes(512), bytes(1024), bytes(1024) + b"anything"):
        assert len(read_all(cut + tail)) == 1
    assert read_all(b"") == read_all(bytes(1024)) == []


def sealed(block: bytes) -> bytes:
    """A block whose checksum is right."""
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def edit(at: int, data: bytes) -> Callable[[], bytes]:
    def build() -> bytes:
        block = encode(Entry(b"name", mode=0o644, size=3))
        return sealed(block[:at] + data + block[at + len(data) :]) + b"abc" + bytes(509) + bytes(1024)

    return build


def pax(records: bytes, after: bytes = b"", kind: bytes = b"x") -> Callable[[], bytes]:
    head = encode(Entry(b"x", size=len(records)))
    head = sealed(head[:156] + kind + head[157:])
    return lambda: head + records + bytes(-len(records) % 512) + (after or encode(Entry(b"n")) + bytes(1024))


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n"
    size = len(body) + 2
    return f"{size}{body}".encode() if size > 9 else f"{len(body) + 1}{body}".encode()


def gnu_sparse(offset: bytes, length: bytes, real: bytes) -> Callable[[], bytes]:
    block = bytearray(encode(Entry(b"s", size=512)))
    block[156:157] = b"S"
    block[386:398], block[398:410], block[483:495] = offset, length, real
    return lambda: sealed(bytes(block)) + bytes(512 + 1024)


_SPARSE = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.realsize", "10")

MALFORMED: dict[str, tuple[Callable[[], bytes], str]] = {
    "no tar": (lambda: b"this is no tar" * 100, "no octal number|wrong header checksum"),
    "half a header": (lambda: encode(Entry(b"a"))[:300], "ends within"),
    "half the data": (lambda: encode(Entry(b"a", size=100)) + b"x" * 50, "ends within"),
    "arbitrary": (lambda: bytes(range(256)) * 8, "octal|checksum"),
    "checksum": (lambda: b"b" + encode(Entry(b"a"))[1:] + bytes(1024), "wrong header checksum"),
    "zero block between": (lambda: bytes(512) + encode(Entry(b"a")) + bytes(1024), "zero block"),
    "size not octal": (edit(124, b"9999999"), "size is no octal"),
    "size letters": (edit(124, b"hello"), "size is no octal"),
    "size with sign": (edit(124, b"-1"), "size is no octal"),
    "size negative": (edit(124, b"\xff" * 12), "size of -1"),
    "size enormous": (edit(124, b"\x80\xff" + b"\xff" * 10), "out of range"),
    "size beyond the end": (edit(124, b"77777777777\0"), "ends within"),
    "mode": (edit(100, b"rwxr-xr"), "mode is no octal"),
    "owner negative": (edit(108, b"\xff" * 8), "has the owner -1"),
    "owner too large": (edit(108, b"\x80\0\0\xff\xff\xff\xff\xff"), "has the owner"),
    "time letters": (edit(136, b"yesterday"), "mtime is no octal"),
    "unknown type": (edit(156, b"Z"), "unhandled tar header type 90"),
    "multi volume": (edit(156, b"M"), "unhandled tar header type 77"),
    "no name": (edit(0, bytes(100)), "no name"),
    "link to nothing": (edit(156, b"2"), "has no target"),
    "hard link to nothing": (edit(156, b"1"), "has no target"),
    "record without length": (pax(b"path=x\n"), "no length"),
    "record too long": (pax(b"99 path=x\n"), "longer than its header"),
    "record of length 0": (pax(b"0 path=x\n"), "longer than its header"),
    "record with a wrong length": (pax(b"8 path=x\n"), "longer than its header"),
    "record without equals": (pax(b"9 pathxx\n"), "no key|longer"),
    "record with a huge length": (pax(b"99999999999999999999 a=b\n"), "no length|longer"),
    "record without key": (pax(b"6 =ab\n"), "no key"),
    "NUL in a path": (pax(b"12 path=a\0b\n"), "contains NUL"),
    "size record": (pax(record("size", "-5")), "size of -5"),
    "size record letters": (pax(record("size", "many")), "size is no number"),
    "owner record": (pax(record("uid", "1e5")), "uid is no number"),
    "time record": (pax(record("mtime", "now")), "time is no number"),
    "time record of digits only": (pax(record("mtime", "9" * 40)), "time is no number"),
    "extended header alone": (pax(record("path", "x"), bytes(1024)), "followed by nothing"),
    "extended header cut": (lambda: pax(record("path", "x"))()[:600], "ends within"),
    "extended header enormous": (
        lambda: sealed(edit(124, b"77777777777\0")()[:156] + b"x" + edit(124, b"77777777777\0")()[157:512]),
        "bytes",
    ),
    "GNU name enormous": (
        lambda: sealed(edit(124, b"77777777777\0")()[:156] + b"L" + edit(124, b"77777777777\0")()[157:512]),
        "bytes",
    ),
    "sparse overlap": (gnu_sparse(b"00000001000\0", b"00000001000\0", b"00000000100\0"), "out of order"),
    "sparse sum": (gnu_sparse(b"00000000000\0", b"00000000100\0", b"00000001000\0"), "does not fit"),
    "sparse negative": (gnu_sparse(b"\xff" * 12, b"00000001000\0", b"00000001000\0"), "out of order"),
    "sparse map odd": (pax(record("GNU.sparse.map", "1,2,3") + record("GNU.sparse.size", "9")), "odd"),
    "sparse map letters": (pax(record("GNU.sparse.map", "a,b") + record("GNU.sparse.size", "9")), "no number"),
    "sparse without size": (pax(record("GNU.sparse.map", "1,2")), "without its size"),
    "sparse numbers odd": (pax(record("GNU.sparse.offset", "1") + record("GNU.sparse.size", "9")), "odd"),
    "sparse map without end": (pax(_SPARSE), "does not end"),
    "sparse map endless": (pax(_SPARSE, encode(Entry(b"n", size=2048)) + b"1" * 2048 + bytes(1024)), "does not end"),
    "sparse map too long": (
        pax(_SPARSE, encode(Entry(b"n", size=512)) + b"99999999\n".ljust(512, b"\0") + bytes(1024)),
        "too long",
    ),
    "sparse version": (pax(record("GNU.sparse.major", "7") + record("GNU.sparse.realsize", "9")), "unknown format"),
    "sparse directory": (pax(record("GNU.sparse.map", "1,2"), encode(Entry(b"n", b"5")) + bytes(1024)), "what is no file"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str, tmp_path: Path) -> None:
    build, cause = MALFORMED[name]
    data = build()
    with pytest.raises(IntegrityError, match=cause) as caught:
        read_all(data)
    assert caught.value.brief.startswith("failed to read tar at byte ")
    assert "\n" not in caught.value.brief
    for chunk in (1, 100, 512):
        with pytest.raises(IntegrityError):
            read_all(data, chunk)
    with pytest.raises(IntegrityError):
        unpack(io.BytesIO(data), tmp_path)


def test_sums_of_signed_characters() -> None:
    block = bytearray(encode(Entry(b"a")))
    block[0] = 0xE9
    block[148:156] = b" " * 8
    total = sum(byte - 256 if byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % total
    ((entry, _),) = read_all(bytes(block) + bytes(1024))
    assert entry.name == b"\xe9"


@given(st.binary(max_size=3000))
def test_any_bytes(data: bytes) -> None:
    try:
        read_all(data)
    except IntegrityError:
        pass


@given(st.integers(0, 4095), st.integers(1, 255), st.integers(1, 5000))
def test_any_damage(at: int, change: int, chunk: int) -> None:
    """One byte of a good tar, extended headers and all, changed: read as something else or refused, nothing else."""
    data = bytearray(make_tar("a" * 150, ("b", {"uid": 2**31}), "l -> x"))
    data[at % len(data)] ^= change
    try:
        read_all(bytes(data), chunk)
    except IntegrityError:
        pass


def test_base256_numbers() -> None:
    tar = reader(b"")
    assert tar._number(b"\x80" + (12345).to_bytes(7, "big"), "x") == 12345
    assert tar._number(b"\xff" * 8, "x") == -1
    assert tar._number(struct.pack(">q", -300), "x") == -300
    assert tar._number(b"  17 \0\0\0", "x") == 15
    assert tar._number(bytes(8), "x") == 0


def test_a_tar_that_was_never_closed() -> None:
    """As umoci insert writes it: no padding after the last data, no end marker."""
    chunks = iter([encode(Entry(b"a", size=3)) + b"abc", b""])
    reader = TarReader(lambda: next(chunks))
    assert [(e.name, b"".join(bytes(d) for d in reader.data())) for e in reader] == [(b"a", b"abc")]
