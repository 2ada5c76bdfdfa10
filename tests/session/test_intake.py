# SPDX-License-Identifier: Apache-2.0
"""Receiving in bulk does what receiving packet by packet does, whatever comes and however it is cut."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chantier.cache.file_digest import small_digest
from chantier.errors import ChantierError, SessionError
from chantier.kernel.trees import Trees, trees
from chantier.session.follow import differing, noting
from chantier.session.fsutil import FIN, Intake, Packet, decode_entry, encode_data, encode_entry
from chantier.session.intake import BulkIntake
from chantier.session.local import LocalSession
from chantier.session.sync import Known, Receiver, pack, pack_rows, rows_of, signature, unpack
from chantier.session.types import FilesRequest, Followed
from chantier.session.walk import Entry

from .remote_peers import joined, run
from .test_remote_files import HOSTILE, make, picture

pytestmark = [pytest.mark.root, pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")]


@pytest.fixture
def library() -> Trees:
    found = trees()
    assert found is not None
    return found


def framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(5, "big") + packet


def unframed(chunk: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(chunk):
        end = at + 5 + int.from_bytes(chunk[at : at + 5], "big")
        yield chunk[at + 5 : end]
        at = end


class ByPacket:
    """`BulkIntake`'s doings by `Intake`."""

    def __init__(self, into: Path, known: Known) -> None:
        self.known = known
        self.digests: dict[bytes, bytes] = {}
        self.counted = 0
        self.was_odd = False  # a packet came that would be written otherwise
        self.receiver = Receiver(into, dict(known))
        self.intake = Intake(self.receiver, on_bytes=self._count, on_file=noting(self.digests, small_digest))

    def _count(self, n: int) -> None:
        self.counted += n

    @property
    def done(self) -> bool:
        return self.intake.done

    def take(self, chunk: bytes) -> bytes:
        answers = []
        for raw in unframed(chunk):
            packet = Packet.FromString(raw)
            self.was_odd |= packet.ByteSize() != len(raw)
            answers += self.intake.take([packet])
        return b"".join(map(framed, answers))

    def followed(self) -> Followed:
        now = self.intake.known
        return Followed(index=pack(now), changed=differing(self.known, now), digests=self.digests)

    def close(self) -> None:
        self.intake.close()
        self.receiver.__exit__(None, None, None)


class InBulk(BulkIntake):
    def __init__(self, library: Trees, into: Path, known: Known) -> None:
        self.counted = 0
        super().__init__(library, into, rows_of(known), digest=small_digest, changing=lambda: None, on_bytes=self._count)

    def _count(self, n: int) -> None:
        self.counted += n


# -- senders made of chance ----------------------------------------------------------------------------------------------

NAMES = ("a", "a.b", "b", "-", "é", "\udce9", "x" * 200)
KINDS = (stat.S_IFREG,) * 12 + (stat.S_IFDIR,) * 5 + (stat.S_IFLNK, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK)


def entries(chance: random.Random) -> list[Entry]:
    out: list[Entry] = []
    files: list[str] = []

    def fill(above: str, depth: int) -> None:
        for name in sorted({chance.choice(NAMES) for _ in range(chance.randrange(6))}, key=os.fsencode):
            path, kind = above + name, chance.choice(KINDS)
            entry = Entry(path, kind | chance.choice((0o644, 0o4755, 0o600, 0o1777)), mtime_ns=chance.randrange(-(10**9), 10**18))
            entry.xattrs = {"user.x": b"\0y"} if chance.random() < 0.1 and kind in (stat.S_IFREG, stat.S_IFDIR) else {}
            if kind == stat.S_IFLNK:
                entry.link = chance.choice(("a", "../..", "/etc"))
            elif kind == stat.S_IFCHR:
                entry.rdev = os.makedev(1, 3)
            elif kind == stat.S_IFREG and files and chance.random() < 0.15:
                entry.hard, entry.link = True, chance.choice(files)
            elif kind == stat.S_IFREG:
                entry.size = chance.choice((0, 0, 1, 7, 300, 40_000))
                files.append(path)
            out.append(entry)
            if kind == stat.S_IFDIR and depth < 3:
                fill(path + "/", depth + 1)

    fill("", 0)
    return out


def altered(chance: random.Random, old: list[Entry]) -> list[Entry]:
    """Another list, which has much of the one before."""
    kept: dict[str, Entry] = {entry.path: entry for entry in old if chance.random() < 0.8}
    for entry in entries(chance)[:4]:
        kept[entry.path] = entry
    out: list[Entry] = []
    directories = {""}
    for path in sorted(kept, key=lambda p: os.fsencode(p).split(b"/")):
        entry = kept[path]
        if path.rpartition("/")[0] not in directories or (
            entry.hard and entry.link not in {e.path for e in out if e.has_content}
        ):
            continue
        if stat.S_ISDIR(entry.mode):
            directories.add(path)
        elif chance.random() < 0.1:
            entry.mtime_ns += 1
        out.append(entry)
    return out


def broken(chance: random.Random, packets: list[bytes]) -> list[bytes]:
    packets = list(packets)
    for _ in range(chance.choice((0, 1, 1, 2))):
        at = chance.randrange(len(packets))
        how = chance.randrange(6)
        if how == 0:
            packets.insert(at, packets[chance.randrange(len(packets))])
        elif how == 1:
            del packets[at]
        elif how == 2:
            packets[at : at + 2] = packets[at : at + 2][::-1]
        elif how == 3 and packets[at]:
            raw = bytearray(packets[at])
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            packets[at] = bytes(raw)
        elif how == 4:
            packets[at] += bytes(chance.randrange(256) for _ in range(3))
        else:
            packets[at] = packets[at][: chance.randrange(len(packets[at]) + 1)]
        if not packets:
            break
    return packets or [b""]


def content(chance: random.Random, ids: list[int], sizes: dict[int, int]) -> list[bytes]:
    """Packets of the files asked for, several at a time; some are not as large as was said."""
    left = {id: [b"%d" % (id % 10) * n for n in pieces(chance, sizes.get(id, 3))] + [b""] for id in ids}
    out = []
    while left:
        id = chance.choice(list(left)[:4])
        data = left[id].pop(0)
        if not left[id]:
            del left[id]
        out.append(encode_data(id, data))
    return out


def pieces(chance: random.Random, size: int) -> list[int]:
    how = chance.random()
    if how < 0.1:
        return []
    if how < 0.2:
        return [size + 1]
    if how < 0.3 or size > 32768:
        return [size // 2 + 1, size - size // 2 + 1]
    return [size] if size else []


def exchange(intake: Any, packets: list[bytes], seed: int, cut: int) -> tuple[str, list[bytes], Followed | None]:
    """Everything a sender would do; what went wrong if anything did, the answers, and what it led to."""
    chance = random.Random(seed)
    sizes = {}
    for id, raw in enumerate(packets):
        try:
            sizes[id] = decode_entry(Packet.FromString(raw).stat).size
        except Exception:  # broken on purpose
            continue
    answers: list[bytes] = []

    def put(some: list[bytes]) -> None:
        chunks = [some[at : at + cut] for at in range(0, len(some), cut)]
        for chunk in chunks:
            answers.extend(unframed(intake.take(b"".join(map(framed, chunk)))))

    try:
        put([*packets, b""])
        ids = [Packet.FromString(raw).ID for raw in answers if raw != FIN]
        sent = content(chance, ids, sizes)
        if chance.random() < 0.15:
            sent = broken(chance, sent or [b""])
        put(sent)
        put([FIN])
        assert intake.done
        return "", answers, intake.followed()
    except ChantierError as err:
        return str(err), answers, None
    except OSError as err:
        return err.strerror or "?", answers, None
    except Exception as err:
        assert type(err).__name__ == "DecodeError", err
        return "DecodeError", answers, None
    finally:
        intake.close()


def same(said: str) -> str:
    """Protobuf's errors come through the wire's words where packets are parsed in bulk."""
    return "DecodeError" if "unmarshalling" in said else said


@pytest.mark.parametrize("block", range(8))
def test_as_packet_by_packet(library: Trees, tmp_path: Path, block: int) -> None:
    failed = succeeded = 0
    for seed in range(block * 40, block * 40 + 40):
        chance = random.Random(seed)
        one, two = tmp_path / f"one{seed}", tmp_path / f"two{seed}"
        one.mkdir()
        two.mkdir()
        known: Known = {}
        told = entries(chance)
        for again in range(3):
            packets = [encode_entry(entry) for entry in told]
            if again and chance.random() < 0.7 and packets:
                packets = broken(chance, packets)
            cut = chance.choice((1, 2, 3, 7, 1000))
            first, second = ByPacket(one, known), InBulk(library, two, known)
            said, asked, led = exchange(first, packets, seed, cut)
            said_too, asked_too, led_too = exchange(second, packets, seed, cut)
            what = f"seed {seed}, round {again}"
            hard = any(entry.hard for entry in told)
            if said or said_too:
                # A further name is made when all is there, so other trouble may come before that.
                assert bool(said) == bool(said_too), (what, said, said_too)
                assert hard or said == same(said_too), what
                failed += 1
                break
            succeeded += 1
            assert led is not None
            assert led_too is not None
            assert asked == asked_too, what
            assert picture(one) == picture(two), what
            if not first.was_odd:
                assert first.counted == second.counted, what
            now, now_too = unpack(led.index), unpack(led_too.index) if led_too.index is not None else known
            assert now == now_too, what
            assert sorted(set(led.changed)) == sorted(set(led_too.changed)) or hard, what
            assert led.digests.items() <= led_too.digests.items(), what
            assert hard or led.digests == led_too.digests, what
            assert now is not None
            known = now
            told = altered(chance, told)
    assert failed
    assert succeeded


def test_a_packet_may_be_anything(library: Trees, tmp_path: Path) -> None:
    """The parser in C reads only what protobuf reads as well, and the same."""
    chance = random.Random(8)
    for n in range(3000):
        packet = bytes(chance.choice((8, 10, 18, 24, 34, 0, 1, 2, 5, 47, 97, 128, 255)) for _ in range(chance.randrange(14)))
        one, two = tmp_path / "one", tmp_path / "two"
        one.mkdir()
        two.mkdir()
        first, second = ByPacket(one, {}), InBulk(library, two, {})
        said, asked, _ = exchange(first, [packet], n, 5)
        said_too, asked_too, _ = exchange(second, [packet], n, 5)
        assert (said, asked) == (same(said_too), asked_too), packet
        assert picture(one) == picture(two), packet
        shutil.rmtree(one)
        shutil.rmtree(two)


@pytest.mark.parametrize("name", HOSTILE)
def test_senders_that_misbehave(library: Trees, tmp_path: Path, name: str) -> None:
    packets, text = HOSTILE[name]
    chunk = b"".join(framed(packet.SerializeToString()) for packet in packets)
    into = tmp_path / "into"
    into.mkdir()
    intake = InBulk(library, into, {})
    with pytest.raises(SessionError, match=text):
        intake.take(chunk)
    intake.close()
    assert os.listdir(tmp_path) == ["into"]


def test_what_was_kept_is_not_followed_out_of_the_tree(library: Trees, tmp_path: Path) -> None:
    """A directory that became a link in the tree, whoever did it, is not gone through."""
    into, other = tmp_path / "into", tmp_path / "other"
    into.mkdir()
    other.mkdir()
    directory = Entry("d", stat.S_IFDIR | 0o755)
    (into / "d").symlink_to(other)
    intake = InBulk(library, into, {"d": signature(directory)})
    file = Entry("d/f", stat.S_IFREG | 0o644, size=1, xattrs={})
    sent = [encode_entry(directory), encode_entry(file), encode_data(1, b"x"), encode_data(1, b"")]
    with pytest.raises(NotADirectoryError):
        intake.take(b"".join(map(framed, sent)))
    intake.close()
    assert os.listdir(other) == []


def test_nothing_is_made_below_what_could_not_be(library: Trees, tmp_path: Path) -> None:
    intake = InBulk(library, tmp_path, {})
    sent = [encode_entry(Entry("n" * 300, stat.S_IFREG | 0o644, size=1, xattrs={})), encode_data(0, b"x"), encode_data(0, b"")]
    with pytest.raises(OSError, match="File name too long"):
        intake.take(b"".join(map(framed, sent)))
    intake.close()


# -- through the tunnel --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["c", "python"])
def trees_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANTIER_TREES", request.param)


def nothing() -> None:
    return None


def must_not() -> None:
    raise AssertionError("nothing changes")


@pytest.mark.usefixtures("trees_in")
def test_everything_arrives_and_then_what_changed(tmp_path: Path) -> None:
    source, into = make(tmp_path / "source"), tmp_path / "into"
    into.mkdir()
    request = FilesRequest(name="context", exclude=("sock",))

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": source})) as (session, _):
            first = await session.follow(request, into, None, digest=small_digest, changing=nothing)
            there = picture(source)
            del there["sock"]
            assert picture(into) == there
            assert {os.fsdecode(path) for path in first.changed} == set(there)
            assert first.digests[b"run"] == small_digest(0o4755, b"#!/bin/sh\n")
            assert first.digests[b"empty"] == small_digest(0o644, b"")
            assert not {b"big", b"a.txt"} & set(first.digests)  # large; with attributes
            assert all(os.lstat(p).st_uid == 0 for p in into.rglob("*"))
            assert os.stat(into / "h1").st_ino == os.stat(into / "z-h2").st_ino

            again = await session.follow(request, into, first.index, digest=small_digest, changing=must_not)
            assert again == Followed(index=None, digests={})

            before = os.stat(into / "big").st_ino
            (source / "exact").write_bytes(b"changed")
            (source / "empty").unlink()
            (source / "run").unlink()
            (source / "run").mkdir()
            (source / "run/in").write_bytes(b"in")
            (source / "link").unlink()
            (source / "link").write_bytes(b"none")
            told: list[str] = []
            counted: list[int] = []
            third = await session.follow(
                request, into, first.index, digest=small_digest, changing=lambda: told.append("once"), on_bytes=counted.append
            )
            assert told == ["once"]
            assert sum(counted) < 5000
            # By packets, further names of files always count.
            assert {*third.changed} - {b"z-h2"} == {b"empty", b"exact", b"link", b"run", b"run/in"}
            assert third.digests.keys() == {b"exact", b"link", b"run/in"}
            assert os.stat(into / "big").st_ino == before
            there = picture(source)
            del there["sock"]
            assert picture(into) == there

    run(body())


@pytest.mark.usefixtures("trees_in")
def test_an_index_of_another_time_is_looked_after(tmp_path: Path) -> None:
    """Without an index, or with one that says nothing, what is there is looked at."""
    source, into = tmp_path / "source", tmp_path / "into"
    (source / "d").mkdir(parents=True)
    (source / "d/f").write_text("f")
    (into / "old").mkdir(parents=True)
    (into / "old/f").write_text("old")

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": source})) as (session, _):
            for index in (None, b"junk", pack_rows(b"no rows")):
                (into / "stray").write_text("stray")
                await session.follow(FilesRequest(name="context"), into, index, digest=small_digest, changing=nothing)
                assert picture(into) == picture(source)

    run(body())


@pytest.mark.usefixtures("trees_in")
def test_cancelling_leaves_the_session_usable(tmp_path: Path) -> None:
    source, into = tmp_path / "source", tmp_path / "into"
    source.mkdir()
    into.mkdir()
    for n in range(2000):
        (source / f"f{n}").write_bytes(b"x" * 2000)

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": source})) as (session, _):
            request = FilesRequest(name="context")
            task = asyncio.create_task(session.follow(request, into, None, digest=small_digest, changing=nothing))
            while not os.listdir(into) and not task.done():
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await session.follow(request, into, None, digest=small_digest, changing=nothing)
            assert len(os.listdir(into)) == 2000

    run(body())


@pytest.mark.usefixtures("trees_in")
def test_our_own_failures_are_told(tmp_path: Path) -> None:
    source, into = tmp_path / "source", tmp_path / "into"
    source.mkdir()
    into.mkdir()
    (source / "f").write_text("f")

    def refuse() -> None:
        raise OSError(28, "No space left on device", "/into/file")

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": source})) as (session, _):
            request = FilesRequest(name="context")
            with pytest.raises(ChantierError, match="failed to write /into/file: no space left on device"):
                await session.follow(request, into, None, digest=small_digest, changing=refuse)
            await session.follow(request, into, None, digest=small_digest, changing=nothing)
            assert (into / "f").read_text() == "f"

    run(body())
