# SPDX-License-Identifier: Apache-2.0
"""Directories through the tunnel, both ways."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import ChantierError, NotFoundError, SessionError
from chantier.pb import fsutil_raw_pb2 as pb
from chantier.session.fsutil import Intake, Outgo, Packet, Tree, encode_data, encode_entry
from chantier.session.local import LocalSession
from chantier.session.remote import SHARED_KEY, RemoteSession
from chantier.session.sync import Receiver, look
from chantier.session.types import FilesRequest, SentTree
from chantier.session.walk import Entry, walk
from chantier.wire import Metadata

from .remote_peers import joined, run


def make(root: Path) -> Path:
    """One of everything a directory may hold."""
    (root / "a/deep/er").mkdir(parents=True)
    (root / "a/deep/er/file").write_bytes(b"x" * 100_000)
    (root / "a.txt").write_text("sorts after a/")
    (root / "empty").touch()
    (root / "exact").write_bytes(b"e" * 32_768)
    (root / "big").write_bytes(os.urandom(3_000_001))
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o4755)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    (root / "link").symlink_to("a/deep")
    (root / "dangling").symlink_to("/no/such\nplace")
    (root / "h1").write_text("hard")
    os.link(root / "h1", root / "z-h2")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "sock"))
    with open(os.fsencode(root) + b"/caf\xe9", "wb") as file:
        file.write(b"no utf-8")
    (root / "ünï").write_text("utf-8")
    if os.geteuid() == 0:
        os.setxattr(root / "a.txt", "user.color", b"red\0")
        os.chown(root / "a.txt", 1000, 1000)
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for path in [p for p in root.rglob("*") if not p.is_symlink()]:
        os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    return root


def picture(root: Path) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            body: Any = None
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    body = file.read()
            elif stat.S_ISLNK(info.st_mode):
                body = os.readlink(path)
            elif stat.S_ISCHR(info.st_mode):
                body = info.st_rdev
            time = 0 if stat.S_ISLNK(info.st_mode) else info.st_mtime_ns
            xattrs = {x: os.getxattr(path, x, follow_symlinks=False) for x in os.listxattr(path, follow_symlinks=False)}
            links = info.st_nlink if stat.S_ISREG(info.st_mode) else 0
            found[os.path.relpath(path, root)] = (info.st_mode, time, body, xattrs, links)
    return found


@pytest.mark.root
def test_everything_arrives_as_it_is(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    into = tmp_path / "into"
    into.mkdir()

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": source})) as (session, _):
            assert await session.locate("context") is None
            await session.receive(FilesRequest(name="context"), into)
            first, second = picture(source), picture(into)
            first["sock"] = (stat.S_IFREG | stat.S_IMODE(first["sock"][0]), first["sock"][1], b"", {}, 1)
            assert second == first
            assert all(os.lstat(p).st_uid == 0 for p in into.rglob("*"))
            assert os.stat(into / "h1").st_ino == os.stat(into / "z-h2").st_ino

            # Again: only what changed is taken, what is gone goes.
            before = os.stat(into / "big").st_ino
            (source / "exact").write_bytes(b"changed")
            (source / "empty").unlink()
            counted = 0

            def count(n: int) -> None:
                nonlocal counted
                counted += n

            await session.receive(FilesRequest(name="context"), into, on_bytes=count)
            assert os.stat(into / "big").st_ino == before
            assert (into / "exact").read_bytes() == b"changed" and not (into / "empty").exists()
            assert counted < 5000

    run(body())


def test_patterns_and_links_are_followed(tmp_path: Path) -> None:
    source, into = make(tmp_path / "source"), tmp_path / "into"
    into.mkdir()
    requests = [
        FilesRequest(name="context", include=("a/deep", "e*"), exclude=("exact",)),
        FilesRequest(name="context", exclude=("*", "!ünï", "!a/deep/er/file")),
        FilesRequest(name="context", follow=("link/er", "missing")),
        FilesRequest(name="context", include=("nothing",)),
    ]
    expected = [
        {"a", "a/deep", "a/deep/er", "a/deep/er/file", "empty"},
        {"a", "a/deep", "a/deep/er", "a/deep/er/file", "ünï"},
        {"a", "a/deep", "a/deep/er", "a/deep/er/file", "link"},
        set(),
    ]

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": source})) as (session, _):
            for request, names in zip(requests, expected, strict=True):
                await session.receive(request, into)
                assert set(picture(into)) == names

    run(body())


def test_what_cannot_be_sent(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    into = tmp_path / "into"
    into.mkdir()

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": tmp_path / "source", "gone": tmp_path / "no"})) as (
            s,
            _,
        ):
            with pytest.raises(NotFoundError, match=r'^no access allowed to dir "other"$'):
                await s.receive(FilesRequest(name="other"), into)
            bad = r"rpc error: code = Unknown desc = invalid includepatterns: \[\[a\]: syntax error in pattern"
            with pytest.raises(SessionError, match=bad):
                await s.receive(FilesRequest(name="context", include=("[a",)), into)
            with pytest.raises(SessionError, match=r"failed to read .*/no: no such file"):
                await s.receive(FilesRequest(name="gone"), into)

    run(body())


def test_our_own_failures_are_told(tmp_path: Path) -> None:
    source, into = make(tmp_path / "source"), tmp_path / "into"
    into.mkdir()

    def refuse(_entry: Entry) -> bool:
        raise OSError(28, "No space left on device", "/into/file")

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": source})) as (session, _):
            with pytest.raises(ChantierError, match="failed to write /into/file: no space left on device"):
                await session.receive(FilesRequest(name="context"), into, wants=refuse)
            await session.receive(FilesRequest(name="context", include=("a",)), into)  # the session lives on

    run(body())


def test_cancelling_a_transfer_leaves_the_session_usable(tmp_path: Path) -> None:
    source, into = tmp_path / "source", tmp_path / "into"
    source.mkdir()
    into.mkdir()
    for n in range(2000):
        (source / f"f{n}").write_bytes(b"x" * 2000)

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": source})) as (session, _):
            task = asyncio.create_task(session.receive(FilesRequest(name="context"), into))
            while not os.listdir(into):
                await asyncio.sleep(0)
            assert len(os.listdir(into)) < 2000
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await session.receive(FilesRequest(name="context"), into)
            assert len(os.listdir(into)) == 2000

    run(body())


def test_metadata_only(tmp_path: Path) -> None:
    source, into = make(tmp_path / "source"), tmp_path / "into"
    into.mkdir()
    stats: list[bytes] = []

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": source})) as (session, _):
            request = FilesRequest(name="context", include=("a", "big"))
            await session.receive(request, into, wants=lambda entry: entry.path == "big", on_stat=stats.append)

    run(body())
    assert (into / "big").stat().st_size == 3_000_001
    assert (into / "a/deep/er/file").stat().st_size == 0
    assert [pb.Stat.FromString(s).path for s in stats] == [b"a", b"a/deep", b"a/deep/er", b"a/deep/er/file", b"big"]


# -- results -------------------------------------------------------------------------------------------------------------


def test_trees_are_written_at_the_client(tmp_path: Path) -> None:
    result, out = make(tmp_path / "result"), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("stays")

    async def body() -> None:
        local = LocalSession(outputs=[None, out])
        async with joined(tmp_path, local, directories={1: out}) as (session, _):
            await session.send_trees(1, [SentTree(root=result)])
            first, second = picture(result), picture(out)
            del second["mine"]
            first["sock"] = (stat.S_IFREG | stat.S_IMODE(first["sock"][0]), first["sock"][1], b"", {}, 1)
            assert second == first
            await asyncio.gather(
                session.send_trees(1, [SentTree(root=result, below="linux_amd64", epoch=1_000_000_000)]),
                session.send_trees(1, [SentTree(root=result, below="linux_arm64", epoch=1_000_000_000)]),
            )
            for name in ("linux_amd64", "linux_arm64"):
                assert (out / name / "a/deep/er/file").read_bytes() == b"x" * 100_000
                assert (out / name / "a/deep/er/file").stat().st_mtime == 1_000_000_000
                assert (out / name / "a").stat().st_mtime == 1_000_000_000
                assert os.stat(out / name / "h1").st_ino == os.stat(out / name / "z-h2").st_ino

    run(body())


def test_delete_mode_removes_what_is_in_no_tree(tmp_path: Path) -> None:
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    for root in (one, two):
        root.mkdir()
        (root / "same").write_text(root.name)
    (out / "linux_amd64").mkdir(parents=True)
    (out / "linux_amd64/old").touch()
    (out / "other").touch()

    async def body() -> None:
        async with joined(tmp_path, LocalSession(), directories={0: out}, delete=frozenset({0})) as (session, _):
            trees = [
                Tree(root=two, entries=walk(two), below="linux_arm64", epoch=None),
                Tree(root=one, entries=walk(one), below="linux_amd64", epoch=None),
            ]
            await session.send_directories(0, trees, remove_others=True)
            with pytest.raises(SessionError, match="refusing to delete"):
                await session.send_trees(0, [SentTree(root=one)])  # as daemons do that know no delete mode

    run(body())
    assert set(picture(out)) == {"linux_amd64", "linux_amd64/same", "linux_arm64", "linux_arm64/same"}
    assert (out / "linux_arm64/same").read_text() == "two"


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    result = tmp_path / "result"
    result.mkdir()
    (tmp_path / "file").touch()

    async def body() -> None:
        async with joined(tmp_path, LocalSession(), directories={0: tmp_path / "file/out"}) as (session, _):
            with pytest.raises(SessionError, match=r"failed to write .*/file/out: not a directory"):
                await session.send_trees(0, [SentTree(root=result)])
            with pytest.raises(NotFoundError, match="exporter 5 not found"):
                await session.send_trees(5, [SentTree(root=result)])

    run(body())


# -- packets of peers that misbehave -------------------------------------------------------------------------------------


def stat_packet(path: str, mode: int = 0o100644, **rest: Any) -> pb.Packet:
    return Packet.FromString(encode_entry(Entry(path, mode, xattrs={}, **rest)))


END = Packet()


def data_packet(id: int, body: bytes) -> pb.Packet:
    return Packet.FromString(encode_data(id, body))


HOSTILE: dict[str, tuple[list[pb.Packet], str]] = {
    "absolute": ([stat_packet("/etc/passwd")], "invalid path"),
    "parent": ([stat_packet("../x")], "invalid path"),
    "inner parent": ([stat_packet("a", 0o040755), stat_packet("a/../../x")], "invalid path"),
    "empty": ([stat_packet("")], "invalid path"),
    "order": ([stat_packet("b"), stat_packet("a")], 'changes out of order: "a" "b"'),
    "twice": ([stat_packet("a"), stat_packet("a")], "changes out of order"),
    "no directory": ([stat_packet("a/b")], "its directory was not sent"),
    "below a link": ([stat_packet("a", 0o120777, link="/etc"), stat_packet("a/b")], "its directory was not sent"),
    "link to nowhere": ([stat_packet("a", link="b", hard=True)], "invalid hard link"),
    "mode": ([Packet(stat=pb.Stat(path=b"a", mode=1 << 19 | 1 << 25 | 1 << 27))], "unknown file mode"),
    "nul": ([Packet(stat=pb.Stat(path=b"a\0b"))], "invalid path"),
    "nul and a row": ([Packet(stat=pb.Stat(path=b"x\0\x2d\0" + b"\xff" * 45))], "invalid path"),
    "nul in a link": ([Packet(stat=pb.Stat(path=b"a", mode=1 << 27, linkname=b"x\0y"))], "invalid link of 'a'"),
    "endless link": ([Packet(stat=pb.Stat(path=b"a", mode=1 << 27, linkname=b"x" * 60_001))], "invalid link of 'a'"),
    "negative size": ([Packet(stat=pb.Stat(path=b"a", size=-1))], "invalid size -1 of 'a'"),
    "device": ([Packet(stat=pb.Stat(path=b"a", mode=1 << 26, devmajor=1 << 40))], "invalid device 1099511627776:0 of 'a'"),
    "data unasked": ([data_packet(0, b"x")], "invalid file id 0"),
    "data twice": ([stat_packet("a"), data_packet(0, b""), data_packet(0, b"")], "invalid file id 0"),
    "after the end": ([END, stat_packet("a")], "goes on with a list"),
    "goodbye too early": ([stat_packet("a"), Packet(type=3)], "before it was complete"),
    "error": ([Packet(type=4, data=b"it hurts")], "^error from sender: it hurts$"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_senders_that_misbehave(tmp_path: Path, name: str) -> None:
    packets, text = HOSTILE[name]
    with Receiver(tmp_path) as receiver:
        intake = Intake(receiver)
        with pytest.raises(SessionError, match=text):
            intake.take(packets)
        intake.close()
    assert not (tmp_path.parent / "x").exists()


def test_too_many_files_at_once(tmp_path: Path) -> None:
    with Receiver(tmp_path) as receiver:
        intake = Intake(receiver)
        intake.take([stat_packet(f"{n:04}") for n in range(300)])
        with pytest.raises(SessionError, match="too many files at once"):
            intake.take([data_packet(n, b"x") for n in range(300)])
        intake.close()


def test_any_batching_of_packets_gives_the_same_tree(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for n in range(20):
        (source / f"d/f{n}").write_bytes(bytes([n]) * n * 5000)
    for size in (1, 3, 1000):
        into = tmp_path / f"into{size}"
        into.mkdir()
        outgo = Outgo(Tree(root=source, entries=walk(source)))
        with Receiver(into, look(into)) as receiver:
            intake = Intake(receiver)
            answers: list[bytes] = []
            queue = outgo.stats()
            while not intake.done:
                batch, queue = queue[:size], queue[size:]
                for raw in intake.take([Packet.FromString(p) for p in batch]):
                    answer = Packet.FromString(raw)
                    answers.append(raw)
                    if answer.type == Packet.PACKET_REQ:
                        outgo.want(answer.ID)
                    else:
                        queue.append(raw)
                if outgo.busy:
                    queue += outgo.contents()
        outgo.close()
        assert {p: v[2] for p, v in picture(into).items()} == {p: v[2] for p, v in picture(source).items()}
        assert len(answers) == 21


def test_a_receiver_may_ask_once_for_what_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("x")
    outgo = Outgo(Tree(root=tmp_path, entries=walk(tmp_path)))
    outgo.stats()
    for id in (0, 7):
        with pytest.raises(SessionError, match=f"invalid file id {id}"):
            outgo.want(id)
    outgo.want(1)
    with pytest.raises(SessionError, match="invalid file id 1"):
        outgo.want(1)
    outgo.close()


def test_a_file_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d/f").write_text("plain")
    (root / "g").write_text("plain")
    outgo = Outgo(Tree(root=root, entries=walk(root)))
    outgo.stats()
    (root / "d/f").unlink()
    (root / "d").rmdir()
    (root / "d").symlink_to(tmp_path)
    (root / "g").unlink()
    (root / "g").symlink_to("../secret")
    outgo.want(1)
    outgo.want(2)
    found = [Packet.FromString(p) for p in outgo.contents()]
    assert [(p.ID, p.data) for p in found] == [(1, b""), (2, b"")]
    outgo.close()


def test_a_client_without_files() -> None:
    session = RemoteSession(None, Metadata([(SHARED_KEY, "k")]))  # type: ignore[arg-type]
    with pytest.raises(SessionError, match="no local sources enabled"):
        asyncio.run(session.locate("context"))
