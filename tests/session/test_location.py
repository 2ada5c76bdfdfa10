# SPDX-License-Identifier: Apache-2.0
"""A directory is read where it lies only for those who prove that they may read whatever this process may."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import NotFoundError
from chantier.pb import directories_pb2 as pb
from chantier.session.local import LocalSession
from chantier.session.location import Elsewhere, Proof, tell
from chantier.session.serve import Offered, attach
from chantier.session.sessions import Sessions
from chantier.wire import Channel, Server, Service

from .remote_peers import CONTROL, joined, run

pytestmark = pytest.mark.root

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN = 1, 2, 19, 21

# What a client in a process of its own answers. The rights are dropped once all modules are read.
CLIENT = """
import os, sys
from pathlib import Path
from chantier import kernel
from chantier.pb import directories_pb2 as pb
from chantier.session.location import tell
pid, fd, directory, drop = sys.argv[1:]
request = pb.LocateRequest(name="context", pid=int(pid), fd=int(fd))
pb.Location(), pb.LocateResponse()
exec(drop)
answer = tell("s", request, Path(directory))
sys.stdout.buffer.write(answer.SerializeToString())
"""


def ask(proof: Proof, directory: Path, *, drop: str = "", wrapped: tuple[str, ...] = ()) -> pb.LocateResponse:
    argv = [*wrapped, sys.executable, "-c", CLIENT, str(proof.pid), str(proof.fd), str(directory), drop]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return pb.LocateResponse.FromString(done.stdout)


def caps_without(*numbers: int) -> str:
    gone = sum(1 << number for number in numbers)
    return f"left = kernel.process.capget()[0] & ~{gone}; kernel.process.capset(left, left, 0)"


def test_who_may_read_what_we_may_proves_it(tmp_path: Path) -> None:
    with Proof() as proof:
        assert proof.check("s", "context", ask(proof, tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("drop", "why"),
    [
        (
            "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)",
            "may not look into the daemon",
        ),
        ("os.setresuid(65534, 65534, 65534)", "may not look into the daemon"),
        ("os.setegid(65534); kernel.process.capset(0, 0, 0)", "may not look into the daemon"),
        (caps_without(CAP_SYS_PTRACE, CAP_SYS_ADMIN), "may not look into the daemon"),
        (caps_without(CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH), "may not read what the daemon may"),
        ("kernel.process.capset(0, 0, 0)", "may not look into the daemon"),
    ],
    ids=["nobody", "uid", "gid", "less", "cannot-read-all", "bare-root"],
)
def test_who_has_fewer_rights_cannot(tmp_path: Path, drop: str, why: str) -> None:
    with Proof() as proof:
        answer = ask(proof, tmp_path, drop=drop)
        assert why in answer.refusal
        assert not answer.location and not answer.mac
        with pytest.raises(Elsewhere, match=why):
            proof.check("s", "context", answer)


@pytest.mark.parametrize(
    ("wrapped", "why"),
    [
        (("unshare", "--mount"), "sees other mounts"),
        (("unshare", "--pid", "--fork", "--mount-proc"), "may not look into the daemon|are others than those the client sees"),
        (("unshare", "--user", "--map-root-user"), "may not look into the daemon"),
    ],
    ids=["mounts", "processes", "users"],
)
def test_who_sees_another_machine_cannot(tmp_path: Path, wrapped: tuple[str, ...], why: str) -> None:
    with Proof() as proof, pytest.raises(Elsewhere, match=why):
        proof.check("s", "context", ask(proof, tmp_path, wrapped=wrapped))


def test_another_root_directory(tmp_path: Path) -> None:
    """A client in a chroot(2) that has /proc: its paths mean something else."""
    (tmp_path / "jail/proc").mkdir(parents=True)
    (tmp_path / "jail/ctx").mkdir()
    drop = f"os.system('mount -t proc proc {tmp_path}/jail/proc'); os.chroot('{tmp_path}/jail')"
    with Proof() as proof:
        answer = ask(proof, Path("/ctx"), drop=drop, wrapped=("unshare", "--mount", "--propagation", "slave"))
        told = pb.Location.FromString(answer.location)
        assert told.path == b"/ctx"
        told.mounts = os.readlink("/proc/self/ns/mnt")  # all else is right
        with pytest.raises(Elsewhere, match="another root directory"):
            proof.check("s", "context", signed(proof, told))


def signed(proof: Proof, told: pb.Location) -> pb.LocateResponse:
    location = told.SerializeToString()
    return pb.LocateResponse(location=location, mac=hmac.digest(proof._secret, location, "sha256"))


def test_what_is_told_must_fit(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    with Proof() as proof:
        request = pb.LocateRequest(name="context", pid=proof.pid, fd=proof.fd)
        right = tell("s", request, tmp_path)
        assert proof.check("s", "context", right) == tmp_path
        assert proof.check("s", "context", tell("s", request, tmp_path / "link")) == tmp_path / "link"

        def refused(why: str, **changes: Any) -> None:
            told = pb.Location.FromString(right.location)
            for name, value in changes.items():
                setattr(told, name, value)
            with pytest.raises(Elsewhere, match=why):
                proof.check("s", "context", signed(proof, told))

        refused("another session or directory", session="t")
        refused("another session or directory", name="dockerfile")
        refused("other mounts", mounts="mnt:[1]")
        refused("another root directory", root_inode=1)
        refused("no absolute path", path=b"ctx")
        refused("no such file", path=os.fsencode(tmp_path / "none"))
        refused("not a directory", path=os.fsencode(tmp_path / "file"))
        refused("another directory here", inode=1)
        refused("another directory here", path=b"/etc")
        forged = pb.LocateResponse(location=right.location.replace(b"context", b"another"), mac=right.mac)
        for answer in (forged, pb.LocateResponse(location=right.location), pb.LocateResponse()):
            with pytest.raises(Elsewhere, match="has not proved"):
                proof.check("s", "context", answer)
    with Proof() as other, pytest.raises(Elsewhere, match="has not proved"):
        other.check("s", "context", right)  # each question has its own proof


def test_a_daemon_learns_nothing_of_what_is_no_proof(tmp_path: Path) -> None:
    """Whatever process and descriptor it names."""
    (tmp_path / "secret").write_bytes(b"s" * 32)
    os.mkfifo(tmp_path / "pipe")  # opening it to read would wait for ever
    fds = [os.open(tmp_path / "secret", os.O_RDONLY), os.open(tmp_path / "pipe", os.O_RDWR), os.memfd_create("other")]
    short = os.memfd_create("chantier-proof")
    try:
        for fd in (*fds, short, 99_999):
            answer = tell("s", pb.LocateRequest(name="context", pid=os.getpid(), fd=fd), tmp_path)
            assert answer.refusal and not answer.location and not answer.mac
        assert tell("s", pb.LocateRequest(name="context", pid=-1, fd=0), tmp_path).refusal
    finally:
        for fd in (*fds, short):
            os.close(fd)


def test_where_no_proof_can_be_made() -> None:
    """The directory then comes over the session."""
    script = """
import resource
from chantier.session.location import Elsewhere, Proof
resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    Proof()
except Elsewhere as reason:
    print(reason)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "no proof can be asked for: too many open files\n", done.stderr


# -- in a session


def reason(caplog: pytest.LogCaptureFixture) -> str:
    return caplog.messages[-1]


def test_a_session_beside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ctx").mkdir()
    caplog.set_level(logging.DEBUG, "chantier.session.remote")

    async def body() -> None:
        local = LocalSession(directories={"context": tmp_path / "ctx", "gone": tmp_path / "gone"}, files={"held": {"f": b"x"}})
        async with joined(tmp_path, local, in_place=True) as (session, _):
            assert await session.locate("context") == tmp_path / "ctx"
            assert f"directory context is read in place: {tmp_path}/ctx" in reason(caplog)
            held = await session.locate("held")
            assert held is not None and (held / "f").read_bytes() == b"x"
            with pytest.raises(NotFoundError, match=r'^no access allowed to dir "other"$'):
                await session.locate("other")
            assert await session.locate("gone") is None
            assert "comes over the session: the client cannot tell: no such file or directory" in reason(caplog)

    run(body())


def test_the_config_says_no(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "chantier.session.remote")

    async def body() -> None:
        async with joined(tmp_path, LocalSession(directories={"context": tmp_path})) as (session, _):
            assert await session.locate("context") is None
            assert "readInPlace = false" in reason(caplog)

    run(body())


@pytest.mark.parametrize("how", ["tcp", "stream"])
def test_a_client_on_another_way_is_not_asked(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Not by a port, and not through a program that passes bytes on to our socket."""
    caplog.set_level(logging.DEBUG, "chantier.session.remote")

    class Bytes:
        def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.reader, self.writer = reader, writer

        async def read(self) -> bytes:
            return await self.reader.read(65536)

        async def write(self, data: bytes, /) -> None:
            self.writer.write(data)
            await self.writer.drain()

        async def close(self) -> None:
            self.writer.close()

    async def connect() -> Bytes:
        return Bytes(*await asyncio.open_unix_connection(tmp_path / "daemon.sock"))

    async def body() -> None:
        sessions = Sessions(in_place=lambda: True)
        server = Server([Service(CONTROL, {"Session": sessions.handle})])
        port = await server.listen("tcp://127.0.0.1:0")
        await server.listen(f"unix://{tmp_path}/daemon.sock")
        local = LocalSession(directories={"context": tmp_path})
        host, _, number = port.address.removeprefix("tcp://").rpartition(":")
        channel = Channel.tcp(host, int(number)) if how == "tcp" else Channel.over(connect, name="there")
        async with attach(channel, Offered(local)):
            assert await (await sessions.get(local.id, timeout_s=60)).locate("context") is None
            assert "the client does not tell where it lies" in reason(caplog)
        offered = Offered(again := LocalSession(directories={"context": tmp_path}))
        offered.beside()  # one that tells all the same
        async with attach(channel, offered):
            session = await sessions.get(again.id, timeout_s=60)
            if how == "tcp":
                assert await session.locate("context") is None
                assert "has not come by a unix socket" in reason(caplog)
            else:  # it is here after all, and proves it
                assert await session.locate("context") == tmp_path
        await channel.close()
        await server.close(0.2)

    run(body())


STRANGER = """
import asyncio, os, sys
from pathlib import Path
from chantier import kernel
from chantier.pb import control_pb2, directories_pb2 as pb, health_pb2
from chantier.session.local import LocalSession
from chantier.session.serve import Offered, attach
from chantier.wire import Channel

path, directory, drop = sys.argv[1:]

class Lying(Offered):
    async def _locate(self, request, call):
        answer = await super()._locate(request, call)
        if answer.refusal:  # it cannot prove anything, and says that the directory is one it may not read
            info = os.stat(directory)
            view = os.readlink("/proc/self/ns/mnt"), os.stat("/")
            told = pb.Location(session=self.session.id, name=request.name, path=os.fsencode(directory), device=info.st_dev)
            told.inode, told.mounts, told.root_device, told.root_inode = info.st_ino, view[0], view[1].st_dev, view[1].st_ino
            return pb.LocateResponse(location=told.SerializeToString(), mac=bytes(32))
        return answer

async def main():
    local = LocalSession(directories={"context": Path(directory)})
    local.id = "stranger"
    async with attach(Channel.unix(path), Lying(local)) as attached:
        await attached.lost

for message in (control_pb2.BytesMessage, pb.LocateRequest, pb.LocateResponse, pb.Location, health_pb2.HealthCheckRequest):
    message()
exec(drop)
asyncio.run(main())
"""


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that another user gets to."""
    with tempfile.TemporaryDirectory(prefix="chantier-test-", dir="/tmp") as made:
        os.chmod(made, 0o711)
        yield Path(made)


@pytest.mark.parametrize(
    ("drop", "relayed", "why"),
    [
        ("os.setresuid(65534, 65534, 65534)", False, "the client is user 65534, this process is 0"),
        ("os.setresuid(65534, 65534, 65534)", True, "has not proved that it may read what this process may"),
        ("kernel.process.capset(0, 0, 0)", False, "has not proved that it may read what this process may"),
    ],
    ids=["another-user", "behind-a-proxy-of-ours", "bare-root"],
)
def test_a_client_that_lies(reachable: Path, drop: str, relayed: bool, why: str, caplog: pytest.LogCaptureFixture) -> None:
    """It names a directory that it may not read; the daemon, which may, does not read it for this client."""
    caplog.set_level(logging.DEBUG, "chantier.session.remote")
    (reachable / "private").mkdir(mode=0o700)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(reachable / "daemon.sock")
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer), return_exceptions=True)

    async def body() -> None:
        sessions = Sessions(in_place=lambda: True)
        server = Server([Service(CONTROL, {"Session": sessions.handle})])
        await server.listen(f"unix://{reachable}/daemon.sock", mode=0o666)
        proxy = await asyncio.start_unix_server(relay, reachable / "proxy.sock")
        (reachable / "proxy.sock").chmod(0o666)
        path = reachable / ("proxy.sock" if relayed else "daemon.sock")
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", STRANGER, path, reachable / "private", drop)
        try:
            session = await sessions.get("stranger", timeout_s=60)
            assert await session.locate("context") is None
            assert why in reason(caplog)
        finally:
            client.kill()
            await client.wait()
            proxy.close()
            await server.close(0.2)

    run(body())
