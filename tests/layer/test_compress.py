# SPDX-License-Identifier: Apache-2.0
"""Compression: the same bytes for any number of threads, read by other tools; decompression of what other tools wrote."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import subprocess
import zlib
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chantier.errors import IntegrityError, UnsupportedError, UsageError
from chantier.layer import Compressor, LayerWriter, convert_layer, decompressor, sniff

TEXT = (b"".join(b"line %d of many\n" % number for number in range(200_000)) + random.Random(1).randbytes(1_500_000))[:4_500_001]


def compressed(kind: str, data: bytes, *, level: int | None = None, threads: int | None = None, chunk: int = 100_000) -> bytes:
    out = io.BytesIO()
    compressor = Compressor(kind, out.write, level=level, threads=threads)
    for at in range(0, len(data), chunk):
        compressor.write(data[at : at + chunk])
    compressor.finish()
    return out.getvalue()


def opened(data: bytes, media_type: str | None = None) -> BinaryIO:
    return decompressor(io.BytesIO(data), media_type)


@pytest.mark.parametrize("level", [None, -2, -1, 0, 1, 2, 3, 4, 9])
def test_gzip_levels(level: int | None) -> None:
    data = TEXT[:2_300_000]
    packed = compressed("gzip", data, level=level)
    assert packed.startswith(bytes.fromhex("1f8b08000000000000ff"))
    assert gzip.decompress(packed) == data
    assert opened(packed).read() == data


def test_gzip_is_the_same_for_any_number_of_threads_and_pieces() -> None:
    made = {
        compressed("gzip", TEXT, threads=threads, chunk=chunk)
        for threads, chunk in ((1, 1 << 20), (2, 77_777), (8, 3_000_000), (None, 1 << 20))
    }
    assert len(made) == 1
    assert subprocess.run(["gzip", "-dc"], input=made.pop(), capture_output=True, check=True).stdout == TEXT


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 2 << 20])
def test_sizes_around_a_block(size: int) -> None:
    data = TEXT[:size]
    packed = compressed("gzip", data)
    assert gzip.decompress(packed) == data
    assert zlib.decompressobj(31).decompress(packed) == data


def test_zstd() -> None:
    made = {
        compressed("zstd", TEXT, threads=threads, chunk=chunk) for threads, chunk in ((1, 1 << 20), (2, 77_777), (4, 3_000_000))
    }
    assert len(made) == 1
    packed = made.pop()
    assert subprocess.run(["zstd", "-dc"], input=packed, capture_output=True, check=True).stdout == TEXT
    assert opened(packed).read() == TEXT
    assert len(compressed("zstd", TEXT[:300_000], level=19)) < len(compressed("zstd", TEXT[:300_000], level=1))
    assert compressed("zstd", TEXT[:100], level=99)


def test_kinds() -> None:
    assert compressed("uncompressed", b"abc") == b"abc"
    with pytest.raises(UsageError, match="unsupported layer compression type 'lz4'"):
        compressed("lz4", b"")
    with pytest.raises(UsageError, match="invalid gzip compression level 10"):
        compressed("gzip", b"", level=10)


@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda data: subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout, "zstd"),
        (lambda data: data, "uncompressed"),
    ],
)
def test_what_others_wrote(pack, kind: str) -> None:  # type: ignore[no-untyped-def]
    data = TEXT[:300_000]
    packed = pack(data)
    assert sniff(packed[:6]) == kind
    assert opened(packed).read() == data
    if kind != "uncompressed":
        assert opened(packed + packed).read() == data * 2  # members one after another
        with pytest.raises(IntegrityError, match=f"the {kind} stream is cut off"):
            opened(packed[:-5]).read()
        broken = bytearray(packed)
        broken[len(broken) // 2] ^= 0x55
        with pytest.raises(IntegrityError, match=r"damaged|cut off"):
            if opened(bytes(broken)).read() != data:
                raise AssertionError("damage was not noticed")
        with pytest.raises(IntegrityError, match=r"damaged|cut off"):
            opened(packed + b"garbage").read()
    if kind in ("gzip", "xz"):
        assert opened(packed + bytes(512)).read() == data


def test_skippable_frames_of_zstd() -> None:
    frame = compressed("zstd", b"data")
    skippable = b"\x5a\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"skipped"
    assert sniff(skippable) == "zstd"
    assert opened(skippable + frame + skippable).read() == b"data"


def test_reading_in_small_pieces() -> None:
    reader = opened(compressed("gzip", TEXT[:50_000]))
    parts = []
    while part := reader.read(777):
        assert len(part) <= 777
        parts.append(part)
    assert b"".join(parts) == TEXT[:50_000]
    assert reader.read(10) == b""
    plain = opened(b"plain text")
    assert (plain.read(3), plain.read(), plain.read()) == (b"pla", b"in text", b"")
    assert opened(b"").read() == b""


def test_a_bomb_costs_only_what_is_read() -> None:
    packed = compressed("gzip", bytes(200_000_000), chunk=10_000_000)
    reader = opened(packed)
    assert reader.read(1000) == bytes(1000)


def test_media_types() -> None:
    packed = compressed("gzip", b"data")
    assert opened(packed, "application/vnd.oci.image.layer.v1.tar+gzip").read() == b"data"
    # The bytes decide: registries hold layers whose type is wrong.
    assert opened(packed, "application/vnd.oci.image.layer.v1.tar").read() == b"data"
    assert opened(b"data", "application/vnd.docker.image.rootfs.diff.tar.gzip").read() == b"data"
    with pytest.raises(UnsupportedError, match="media type 'application/json'"):
        opened(packed, "application/json")


@pytest.mark.parametrize("kind", ["gzip", "zstd", "uncompressed"])
@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_layer_writer(kind: str, size: int) -> None:
    data, out = TEXT[:size], io.BytesIO()
    with LayerWriter(out.write, compression=kind) as writer:
        for at in range(0, size, 300_000):
            writer.write(data[at : at + 300_000])
        written = writer.finish()
    assert written.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
    assert written.digest == "sha256:" + hashlib.sha256(out.getvalue()).hexdigest()
    assert (written.size, written.uncompressed_size) == (len(out.getvalue()), size)
    again = io.BytesIO()
    converted = convert_layer(opened(out.getvalue()), again.write, compression=kind)
    assert converted == written
    assert again.getvalue() == out.getvalue()


def test_failing_writer() -> None:
    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), LayerWriter(full) as writer:
        for _ in range(20):
            writer.write(os.urandom(1 << 20))


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zXZ\0"]))
def test_any_bytes(data: bytes, magic: bytes) -> None:
    try:
        opened(magic + data).read()
    except IntegrityError:
        pass
