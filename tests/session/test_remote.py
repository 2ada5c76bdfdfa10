# SPDX-License-Identifier: Apache-2.0
"""Everything else of a session through the tunnel, and its life: who comes, who goes, who is silent."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import NotFoundError, SessionError, UsageError
from chantier.pb import control_pb2
from chantier.session import serve
from chantier.session.local import LocalSession, SecretSource
from chantier.session.remote import HEALTH_KEY, ID_KEY
from chantier.session.serve import Offered, attach
from chantier.session.types import Credentials, FilesRequest
from chantier.wire import Channel, GrpcError, Server, Service, Stub, Tunnel

from .remote_peers import CONTROL, book, joined, run


async def whole(made: Any) -> bytes:
    return b"".join([chunk async for chunk in await made])


def test_secrets_and_credentials(tmp_path: Path) -> None:
    def credentials(host: str) -> Credentials | None:
        known = {"docker.io": Credentials(username="u", secret="s"), "b": Credentials(username="", secret="token")}
        return known.get(host)

    async def body() -> None:
        secrets = {"a": SecretSource(value=b"\0value"), "big": SecretSource(value=bytes(600_000))}
        local = LocalSession(secrets=secrets, credentials=credentials)
        async with joined(tmp_path, local) as (session, _):
            assert session.shared_key == local.shared_key
            assert await session.secret("a") == b"\0value"
            assert await session.secret("none") is None
            with pytest.raises(SessionError, match=r"failed to get secret big: .*invalid secret size"):
                await session.secret("big")
            assert await session.credentials("docker.io") == Credentials(username="u", secret="s")
            assert await session.credentials("b") == Credentials(username="", secret="token")
            assert await session.credentials("c") is None
            assert await session.token("b", "https://b/token", "b", ["pull"]) is None
            assert session.supports("/moby.filesync.v1.FileSync/diffcopy")
            assert not session.supports("/moby.exporter.v1.Exporter/FindExporters")

    run(body())


def test_an_agent_is_reached(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data.upper())
        writer.close()

    async def body() -> None:
        agent = await asyncio.start_unix_server(serve, tmp_path / "agent")
        async with joined(tmp_path, LocalSession(agents={"default": tmp_path / "agent"})) as (session, _):
            assert await session.has_agent("") and not await session.has_agent("other")
            stream = await session.agent("")
            await stream.write(b"hello")
            assert await stream.read() == b"HELLO"
            await stream.write(b"a" * 100_000)
            assert len(b"".join([await stream.read() for _ in range(4)])) > 30_000
            await stream.close()
            with pytest.raises((NotFoundError, SessionError), match="unset ssh forward key other"):
                await (await session.agent("other")).read()
        agent.close()

    run(body())


def test_uploads_are_read_once(tmp_path: Path) -> None:
    async def body() -> None:
        local = LocalSession(uploads={"id": (io.BytesIO(b"x" * 5_000_000), b"head")})
        async with joined(tmp_path, local) as (session, _):
            assert await whole(session.upload("id")) == b"head" + b"x" * 5_000_000
            with pytest.raises(NotFoundError, match="no such upload: id"):
                await session.upload("id")

    run(body())


@pytest.mark.parametrize("known", [True, False])
def test_a_result_that_is_there_already_is_not_sent(tmp_path: Path, known: bool) -> None:
    did: list[str | int] = []

    class Engine:
        """A session.KnowingSink."""

        async def has_it(self) -> bool:
            return known

        async def has_layers(self, diff_ids: Sequence[str]) -> int:
            return len(diff_ids) - 1

        async def write(self, data: bytes | memoryview, /) -> None:
            did.append(len(data))

        async def close(self) -> None:
            did.append("closed")

        async def abort(self) -> None:
            did.append("aborted")

    async def body() -> None:
        async with joined(tmp_path, LocalSession(outputs=[lambda _metadata: Engine()])) as (session, _):
            for sizes in ((10,), (), (1 << 20,) * 40):
                did.clear()
                sink = await session.send_file(0, {})
                for size in sizes:
                    await sink.write(bytes(size))
                await sink.close()
                assert did == (["closed"] if known else [*sizes, "closed"])
            assert await session.known_layers(0, {}, ["sha256:a", "sha256:b"]) == 1

    run(body())


def test_results_as_files(tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    told: dict[str, str] = {}

    class Nothing:
        async def write(self, data: bytes | memoryview, /) -> None:
            raise GrpcError(6, "have it")

        async def close(self) -> None: ...
        async def abort(self) -> None: ...

    def opened(metadata: Any) -> Nothing:
        told.update(metadata)
        return Nothing()

    async def body() -> None:
        async with joined(tmp_path, LocalSession(outputs=[out, opened])) as (session, _):
            sink = await session.send_file(0, {"containerimage.digest": "sha256:12"})
            await sink.write(b"a" * 5_000_000)
            await sink.write(memoryview(b"bc")[:1])
            assert not out.exists()
            await sink.close()
            assert out.read_bytes() == b"a" * 5_000_000 + b"b"

            sink = await session.send_file(0, {})
            await sink.write(b"x")
            await sink.abort()
            while set(os.listdir(tmp_path)) != {"daemon.sock", "out.tar"}:  # what was begun is taken away
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert out.stat().st_size == 5_000_001

            # A client that has the image already ends the call with AlreadyExists.
            sink = await session.send_file(1, {"config": "{" + "x" * 50_000 + "}"})
            for _ in range(40):
                await sink.write(bytes(1 << 20))
            await sink.close()
            assert len(told["config"]) == 50_002

            sink = await session.send_file(7, {})
            with pytest.raises(NotFoundError, match="exporter 7 not found"):
                await sink.close()

    run(body())


def test_content_stores_of_the_client(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    body_ = os.urandom(2_500_000)
    digest = "sha256:" + hashlib.sha256(body_).hexdigest()

    async def body() -> None:
        async with joined(tmp_path, LocalSession(), stores={"oci:base": layout, "local:x y": layout}) as (session, _):
            assert await session.blob_size("base", digest) is None
            with pytest.raises(NotFoundError):
                await session.blob("base", digest)
            pieces = [body_[:1_000_000], body_[1_000_000:]]
            assert await session.write_blob("local:x y", digest, len(body_), pieces, ref="layer-1") is True
            assert await session.write_blob("local:x y", digest, len(body_), pieces) is False
            assert (layout / "blobs/sha256" / digest[7:]).read_bytes() == body_
            assert (layout / "oci-layout").exists() and not (layout / "ingest").exists()
            assert await session.blob_size("base", digest) == len(body_)
            assert await whole(session.blob("base", digest)) == body_
            wrong = "sha256:" + "0" * 64
            with pytest.raises(SessionError, match="unexpected commit digest"):
                await session.write_blob("local:x y", wrong, 3, [b"abc"])
            with pytest.raises(SessionError, match="unexpected commit size 3, expected 4"):
                await session.write_blob("local:x y", wrong, 4, [b"abc"])
            with pytest.raises(NotFoundError, match="unknown content store oci:other"):
                await session.blob_size("other", digest)
            with pytest.raises((SessionError, UsageError), match="digest"):
                await session.blob_size("base", "sha256:../../../etc/passwd")
            empty = "sha256:" + hashlib.sha256(b"").hexdigest()
            assert await session.write_blob("local:x y", empty, 0, []) is True
            assert await whole(session.blob("base", empty)) == b""

    run(body())


# -- lives ---------------------------------------------------------------------------------------------------------------


def test_a_session_is_waited_for(tmp_path: Path) -> None:
    async def body() -> None:
        async with book(tmp_path) as (sessions, _):
            with pytest.raises(SessionError, match=r"^no active session for nobody: context deadline exceeded$"):
                await sessions.get("nobody", timeout_s=0.1)
            local = LocalSession()
            waiting = asyncio.create_task(sessions.get(f"prefix:{local.id}", timeout_s=60))
            await asyncio.sleep(0.05)
            channel = Channel.unix(f"{tmp_path}/daemon.sock")
            async with attach(channel, Offered(local)):
                session = await waiting
                assert sessions.find(local.id) is session and len(sessions) == 1 and list(sessions) == [session]
                with pytest.raises(GrpcError, match="only one connection allowed"):
                    async with Stub(channel, CONTROL).stream("Session", metadata=[(ID_KEY, local.id)]) as call:
                        await call.read()
            while len(sessions):
                await asyncio.sleep(0.01)
            assert sessions.find(local.id) is None
            with pytest.raises(SessionError, match=r"the client .* ended"):
                await session.secret("a")
            await channel.close()

    run(body())


def test_a_client_that_goes_fails_what_waits_for_it(tmp_path: Path) -> None:
    class Slow(LocalSession):
        async def secret(self, id: str) -> bytes | None:
            asked.set()
            await asyncio.sleep(3600)
            return None

    asked = asyncio.Event()

    async def body() -> None:
        async with book(tmp_path) as (sessions, _):
            local = Slow()
            channel = Channel.unix(f"{tmp_path}/daemon.sock")
            attached = attach(channel, Offered(local))
            await attached.__aenter__()
            session = await sessions.get(local.id, timeout_s=60)
            waiting = asyncio.create_task(session.secret("a"))
            await asked.wait()
            await channel.close()  # the process was killed
            with pytest.raises(SessionError, match=f"failed to get secret a: .*session {local.id}.* ended") as caught:
                await asyncio.wait_for(waiting, 60)
            assert caught.value.hint
            await attached.__aexit__(None, None, None)

    run(body())


def test_a_daemon_that_goes_is_named(tmp_path: Path) -> None:
    async def body() -> None:
        async with book(tmp_path) as (sessions, server):
            local = LocalSession()
            channel = Channel.unix(f"{tmp_path}/daemon.sock")
            async with attach(channel, Offered(local)) as attached:
                await sessions.get(local.id, timeout_s=60)
                work = asyncio.create_task(asyncio.sleep(3600))
                for endpoint in list(server._endpoints):
                    endpoint.fail("killed")
                with pytest.raises(SessionError, match=f"the session was lost: unix://{tmp_path}/daemon.sock: "):
                    await attached.watch(work)
                assert work.cancelled()
            await channel.close()

    run(body())


def test_a_silent_daemon_is_noticed(tmp_path: Path) -> None:
    async def session(call: Any) -> None:
        async for _ in call:
            pass

    async def body() -> None:
        server = Server([Service(CONTROL, {"Session": session})])
        await server.listen(f"unix://{tmp_path}/daemon.sock")
        channel = Channel.unix(f"{tmp_path}/daemon.sock")
        async with attach(channel, Offered(LocalSession()), silence_s=0.3) as attached:
            reason = await asyncio.wait_for(asyncio.shield(attached.lost), 60)
            assert "nothing was heard of unix://" in reason
        await channel.close()
        await server.close(0)

    run(body())


def test_a_silent_client_is_noticed(tmp_path: Path) -> None:
    async def body() -> None:
        async with book(tmp_path, health_every_s=0.1, health_timeout_s=0.2) as (sessions, _):
            channel = Channel.unix(f"{tmp_path}/daemon.sock")
            async with Stub(channel, CONTROL).stream("Session", metadata=[(ID_KEY, "silent")]) as call:
                session = await sessions.get("silent", timeout_s=60)
                waiting = asyncio.create_task(session.credentials("x"))
                with pytest.raises(SessionError, match="session healthcheck failed fatally"):
                    await asyncio.wait_for(waiting, 60)
                async for _ in call:
                    pass
            await channel.close()

    run(body())


def test_healthy_sessions_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tunnels: list[Tunnel] = []

    class Kept(Tunnel):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            tunnels.append(self)

    monkeypatch.setattr(serve, "Tunnel", Kept)

    async def body() -> None:
        async with book(tmp_path, health_every_s=0.02, health_timeout_s=60) as (sessions, _):
            local = LocalSession(secrets={"a": SecretSource(value=b"x")})
            channel = Channel.unix(f"{tmp_path}/daemon.sock")
            async with attach(channel, Offered(local), silence_s=60):
                session = await sessions.get(local.id, timeout_s=60)
                (client,) = tunnels
                heard = set()
                while len(heard) < 5:  # it is asked again and again, and so knows of the daemon
                    heard.add(client.endpoint.last_heard)
                    await asyncio.sleep(0.01)
                assert await session.secret("a") == b"x"
            await channel.close()

    run(body())


def test_the_test_hook_of_stock_clients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One missed check is fatal with `x-buildkit-session-health-custom-timeout`."""

    async def body() -> None:
        async with book(tmp_path) as (sessions, _):
            channel = Channel.unix(f"{tmp_path}/daemon.sock")
            metadata = [(ID_KEY, "hooked"), (HEALTH_KEY, "100")]  # at least a second
            async with Stub(channel, CONTROL).stream("Session", metadata=metadata) as call:
                await sessions.get("hooked", timeout_s=60)
                start = asyncio.get_running_loop().time()
                while await asyncio.wait_for(call.read(), 60) is not None:
                    pass
                assert asyncio.get_running_loop().time() - start > 0.9
            await channel.close()

    run(body())
    assert len([one for one in caplog.messages if "healthcheck failed" in one]) == 1


def test_a_client_that_serves_nothing(tmp_path: Path) -> None:
    """Only HTTP/2 and no methods: each question has an answer."""

    async def body() -> None:
        async with book(tmp_path) as (sessions, _):
            from chantier.wire import Tunnel

            inner = Server([])
            channel = Channel.unix(f"{tmp_path}/daemon.sock")
            async with Stub(channel, CONTROL).stream("Session", metadata=[(ID_KEY, "bare")]) as call:
                task = asyncio.create_task(Tunnel(call, inner.attach, control_pb2.BytesMessage).run())
                session = await sessions.get("bare", timeout_s=60)
                assert await session.secret("a") is None
                assert await session.credentials("h") is None
                assert await session.token("h", "r", "s", []) is None
                assert not await session.has_agent("a")
                with pytest.raises(SessionError, match="no local sources enabled"):
                    await session.receive(FilesRequest(name="context"), tmp_path)
                with pytest.raises(SessionError, match="FileSend/diffcopy not supported by the client"):
                    await session.send_file(0, {})
                task.cancel()
            await channel.close()

    run(body())


def test_no_id_is_no_session(tmp_path: Path) -> None:
    async def body() -> None:
        async with book(tmp_path):
            channel = Channel.unix(f"{tmp_path}/daemon.sock")
            with pytest.raises(GrpcError, match="session id is required"):
                async with Stub(channel, CONTROL).stream("Session") as call:
                    await call.read()
            await channel.close()

    run(body())
