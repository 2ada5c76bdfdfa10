# SPDX-License-Identifier: Apache-2.0
"""A connection inside a call: the outer server calls what the outer client serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chantier.pb import control_pb2 as pb
from chantier.wire import Channel, Endpoint, GrpcError, Server, ServerCall, Service, Stub, Tunnel, client_endpoint

from .peers import BIG, CONTROL, Bytes, Echo, our_stub, run, their_server

Work = Callable[[Stub, Endpoint], Awaitable[None]]


@asynccontextmanager
async def daemon(path: Path, work: Work) -> AsyncIterator[asyncio.Future[None]]:
    """A server whose Session handler does `work` with the client behind it."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def session(call: ServerCall) -> None:
        call.send_initial_metadata()
        tunnel = Tunnel(call, lambda write, end: client_endpoint(write, end, name="the client"), Bytes)
        working = asyncio.create_task(within(tunnel))
        await tunnel.run()
        await working

    async def within(tunnel: Tunnel) -> None:
        try:
            await work(Stub(Channel.on(tunnel.endpoint), CONTROL), tunnel.endpoint)
            done.set_result(None)
        except BaseException as err:
            done.set_exception(err)
        finally:
            tunnel.endpoint.fail("client transport shutdown")

    server = Server([Service(CONTROL, {"Session": session})])
    await server.listen(f"unix://{path}/s")
    try:
        yield done
    finally:
        await server.close(0.2)


async def serve_inside(stub: Stub, echo: Echo, message: Any = Bytes) -> None:
    """The client's half: our server in the tunnel."""
    server = Server([echo.service()])
    async with stub.stream("Session") as call:
        await Tunnel(call, server.attach, message).run()
        call.close_send()
        await call.status()


async def all_kinds(stub: Stub, endpoint: Endpoint, started: asyncio.Event | None = None) -> None:
    answer = await stub.unary("Info", pb.InfoRequest(), metadata=[("x-say", "inside")], timeout_s=60)
    assert answer.buildkitVersion.version == "inside"
    async with stub.stream("Status") as call:
        await call.send(pb.StatusRequest(Ref="5000"))
        call.close_send()
        assert [m.logs[0].msg async for m in call] == [b"%d" % n for n in range(5000)]
    async with stub.stream("Session") as call:
        for n in (0, 1, 100_000, BIG):
            await call.send(Bytes(data=bytes(n)))
            assert len((await call.read()).data) == n
        call.close_send()
        assert await call.read() is None
    with pytest.raises(GrpcError) as caught:
        await stub.unary("Solve", pb.SolveRequest(Ref="5 not there", Frontend="100000"))
    assert (caught.value.code, len(caught.value.details[0].value)) == (5, 100_000)
    for seconds in (0.2, 2, 20):  # a deadline may pass before the call has reached anybody
        with pytest.raises(GrpcError) as caught:
            await stub.unary("Solve", pb.SolveRequest(Ref="hang"), timeout_s=seconds)
        assert caught.value.code == 4
        if started is None or started.is_set():
            break
    assert await endpoint.ping(60) >= 0


def test_both_ends_are_ours(tmp_path: Path) -> None:
    async def body() -> None:
        echo = Echo()
        work = partial(all_kinds, started=echo.started)
        async with daemon(tmp_path, work) as done, our_stub(tmp_path) as stub:
            await serve_inside(stub, echo)
            await done
            await asyncio.wait_for(echo.cancelled.wait(), 60)

    run(body())


def test_messages_may_be_written_otherwise(tmp_path: Path) -> None:
    """With fields of another time, lengths longer than they need to be, or nothing in them."""
    count = 0

    def written(*, data: bytes) -> bytes:
        nonlocal count
        count += 1
        length = bytes(len(data) >> 7 * n & 127 | (128 if n < 4 else 0) for n in range(5))
        plain = Bytes(data=data).SerializeToString()
        unknown = b"\x98\x06\x01"  # field 99
        return (plain, b"\n" + length + data, plain + unknown, unknown + plain, b"\n\0" + plain)[count % 5]

    async def body() -> None:
        echo = Echo()
        work = partial(all_kinds, started=echo.started)
        async with daemon(tmp_path, work) as done, our_stub(tmp_path) as stub:
            await serve_inside(stub, echo, written)
            await done
            assert count > 5

    run(body())


def test_a_message_that_is_none_ends_the_tunnel(tmp_path: Path) -> None:
    async def work(_stub: Stub, endpoint: Endpoint) -> None:
        await endpoint.closed

    async def body() -> None:
        for junk in (b"\0", b"\n\x05x", b"\n"):
            async with daemon(tmp_path, work) as done, our_stub(tmp_path) as stub, stub.stream("Session") as call:
                call.send_nowait(Bytes(data=b""))
                call.send_nowait(junk)
                await asyncio.wait_for(done, 60)

    run(body())


def test_grpcio_serves_inside(tmp_path: Path) -> None:
    """Bytes relayed by hand between the outer call and a server of another make."""

    async def body() -> None:
        inner = tmp_path / "inner"
        inner.mkdir()
        async with their_server(inner), daemon(tmp_path, all_kinds) as done, our_stub(tmp_path) as stub:
            reader, writer = await asyncio.open_unix_connection(f"{inner}/s")
            async with stub.stream("Session") as call:

                async def back() -> None:
                    while data := await reader.read(30_000):
                        await call.send(Bytes(data=data))

                answers = asyncio.create_task(back())
                async for message in call:
                    writer.write(message.data)
                    await writer.drain()
                answers.cancel()
                writer.close()
            await done

    run(body())


def test_a_slow_reader_inside_holds_its_writer_back(tmp_path: Path) -> None:
    async def work(stub: Stub, endpoint: Endpoint) -> None:
        async with stub.stream("Session") as slow:
            sent = 0

            async def write() -> None:
                nonlocal sent
                for _ in range(150):
                    await slow.send(Bytes(data=bytes(1 << 20)))
                    sent += 1
                slow.close_send()

            writer = asyncio.create_task(write())
            last = -1
            while last != sent:
                last = sent
                await asyncio.sleep(0.2)
            assert sent < 80
            # Others go on meanwhile.
            await stub.unary("Info", pb.InfoRequest(), timeout_s=60)
            assert sum([len(m.data) async for m in slow]) == 150 << 20
            await writer

    async def body() -> None:
        async with daemon(tmp_path, work) as done, our_stub(tmp_path) as stub:
            await serve_inside(stub, Echo())
            await done

    run(body())


def test_a_client_that_hangs_up_fails_what_runs(tmp_path: Path) -> None:
    async def work(stub: Stub, endpoint: Endpoint) -> None:
        with pytest.raises(GrpcError, match="connection to the client ended") as caught:
            await stub.unary("Solve", pb.SolveRequest(Ref="hang"))
        assert caught.value.code == 14
        assert endpoint.closed.done()
        with pytest.raises(GrpcError) as caught:
            await stub.unary("Info", pb.InfoRequest())
        assert caught.value.code == 14

    async def body() -> None:
        echo = Echo()
        async with daemon(tmp_path, work) as done, our_stub(tmp_path) as stub:
            serving = asyncio.create_task(serve_inside(stub, echo))
            await echo.started.wait()
            await stub.channel.close()
            with pytest.raises(GrpcError):
                await serving
            await asyncio.wait_for(asyncio.shield(done), 60)

    run(body())


def test_rubbish_in_the_tunnel_ends_the_tunnel_only(tmp_path: Path) -> None:
    async def work(stub: Stub, endpoint: Endpoint) -> None:
        await asyncio.wait_for(asyncio.shield(endpoint.closed), 60)
        assert endpoint.conn.closed is not None and not endpoint.conn.closed.by_peer

    async def body() -> None:
        async with daemon(tmp_path, work) as done, our_stub(tmp_path) as stub:
            async with stub.stream("Session") as call:
                await call.send(Bytes(data=b"\xff" * 100))
                await done
                async for _ in call:
                    pass
            endpoint = stub.channel.current
            assert endpoint is not None and endpoint.usable

    run(body())
