# SPDX-License-Identifier: Apache-2.0
"""Our client, against grpcio's server and against our own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chantier.errors import CancelledError_, ChantierError, DiskFullError, NotFoundError, Source, SourceRange, StepError
from chantier.pb import control_pb2 as pb
from chantier.wire import Channel, GrpcError, Keepalive, Server, Stub, dial, error_of, json_detail, status_of

from .peers import (
    BIG,
    CONTROL,
    Bytes,
    Echo,
    TheirEcho,
    our_server,
    our_stub,
    run,
    their_server,
)


def test_grpcio_unary_with_metadata_both_ways(tmp_path: Path) -> None:
    async def body() -> None:
        async with their_server(tmp_path), our_stub(tmp_path) as stub:
            metadata = [("x-say", "hello"), ("x-say-bin", b"\x00\x01\xfe")]
            answer = await stub.unary("Info", pb.InfoRequest(), metadata=metadata, timeout_s=60)
            assert answer.buildkitVersion.version == "hello"
            assert answer.buildkitVersion.revision == "0001fe"
            async with stub.stream("Info") as call:
                await call.send(pb.InfoRequest())
                call.close_send()
                assert (await call.initial_metadata()).binary("x-initial-bin") == b"\x00\xff"
                assert await call.read() is not None
                assert await call.read() is None
                trailing = await call.status()
                assert trailing.text("x-trailing") == "t1" and trailing.binary("x-trailing-bin") == b"\x01"

    run(body())


def test_grpcio_streams_of_each_kind(tmp_path: Path) -> None:
    async def body() -> None:
        async with their_server(tmp_path), our_stub(tmp_path) as stub:
            async with stub.stream("Status") as call:
                await call.send(pb.StatusRequest(Ref="3000"))
                call.close_send()
                assert [m.logs[0].msg async for m in call] == [b"%d" % n for n in range(3000)]
            async with stub.stream("Session") as call:
                for n in (0, 1, 70_000, BIG):
                    await call.send(Bytes(data=bytes([n % 251]) * n))
                    assert (await call.read()).data == bytes([n % 251]) * n
                call.close_send()
                assert await call.read() is None

    run(body())


def test_grpcio_large_error_details(tmp_path: Path) -> None:
    async def body() -> None:
        async with their_server(tmp_path), our_stub(tmp_path) as stub:
            for size in (0, 100, 100_000, 700_000):
                with pytest.raises(GrpcError) as caught:
                    await stub.unary("Solve", pb.SolveRequest(Ref='5 "/nö\n%": not found', Frontend=str(size)))
                assert caught.value.code == 5
                assert caught.value.message == '"/nö\n%": not found'
                assert [len(d.value) for d in caught.value.details] == ([size] if size else [])

    run(body())


def test_grpcio_deadline_and_cancellation(tmp_path: Path) -> None:
    async def body() -> None:
        echo = TheirEcho()
        async with their_server(tmp_path, echo), our_stub(tmp_path) as stub:
            with pytest.raises(GrpcError) as caught:
                await stub.unary("Solve", pb.SolveRequest(Ref="hang"), timeout_s=0.2)
            assert caught.value.code == 4  # theirs or ours, whichever is told first
            async with stub.stream("Status") as call:
                await call.send(pb.StatusRequest(Ref="1 hang"))
                call.close_send()
                assert await call.read() is not None
            await asyncio.wait_for(echo.cancelled.wait(), 60)

    run(body())


def test_cancelling_a_task_cancels_its_call(tmp_path: Path) -> None:
    async def body() -> None:
        echo = Echo()
        async with our_server(tmp_path, echo), our_stub(tmp_path) as stub:
            task = asyncio.create_task(stub.unary("Solve", pb.SolveRequest(Ref="hang")))
            await echo.started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(echo.cancelled.wait(), 60)

    run(body())


def test_many_calls_at_once_share_one_connection(tmp_path: Path) -> None:
    async def body() -> None:
        async with our_server(tmp_path) as (server, _), our_stub(tmp_path) as stub:
            answers = await asyncio.gather(
                *(stub.unary("Info", pb.InfoRequest(), metadata=[("x-say", str(n))]) for n in range(1500))
            )
            assert [a.buildkitVersion.version for a in answers] == [str(n) for n in range(1500)]
            assert server.connections == 1

    run(body())


def test_writers_wait_for_readers(tmp_path: Path) -> None:
    """A peer that does not read holds a writer back; what is queued stays small."""

    async def body() -> None:
        async with our_server(tmp_path), our_stub(tmp_path) as stub, stub.stream("Session") as call:
            sent = 0

            async def write() -> None:
                nonlocal sent
                while sent < 200:
                    await call.send(Bytes(data=bytes(1 << 20)))
                    sent += 1
                call.close_send()

            writer = asyncio.create_task(write())
            last = -1
            while last != sent:  # until it stands still
                last = sent
                await asyncio.sleep(0.2)
            assert sent < 80  # two windows and some buffers
            assert call.stream.out_bytes < 4 << 20
            received = 0
            async for message in call:
                received += len(message.data)
            assert received == 200 << 20
            await writer

    run(body())


def test_errors_of_connecting_name_the_place(tmp_path: Path) -> None:
    async def body() -> None:
        with pytest.raises(GrpcError, match=f"failed to connect to unix://{tmp_path}/none: no such file") as caught:
            await Channel.unix(f"{tmp_path}/none").unary("/a/B", b"")
        assert caught.value.code == 14
        with pytest.raises(GrpcError, match=r"failed to connect to tcp://127\.0\.0\.1:1: "):
            await dial("tcp://127.0.0.1:1").connect()

    run(body())


def test_a_channel_dials_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with our_stub(tmp_path) as stub:
            for _ in range(2):
                async with our_server(tmp_path):
                    await stub.unary("Info", pb.InfoRequest())
                while stub.channel.current is not None and stub.channel.current.usable:
                    await asyncio.sleep(0.01)

    run(body())


def test_a_lost_server_fails_calls_and_is_named(tmp_path: Path) -> None:
    async def body() -> None:
        echo = Echo()
        async with our_server(tmp_path, echo) as (server, _), our_stub(tmp_path) as stub:
            task = asyncio.create_task(stub.unary("Solve", pb.SolveRequest(Ref="hang")))
            await echo.started.wait()
            for endpoint in list(server._endpoints):
                endpoint._hang_up()
            with pytest.raises(GrpcError) as caught:
                await asyncio.wait_for(task, 60)
            assert caught.value.code == 14
            assert f"unix://{tmp_path}/s" in caught.value.message

    run(body())


def test_a_silent_server_is_noticed(tmp_path: Path) -> None:
    async def body() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(bytes.fromhex("000000040000000000"))  # SETTINGS, and then nothing
            await asyncio.sleep(3600)

        silent = await asyncio.start_unix_server(accept, f"{tmp_path}/s")
        async with our_stub(tmp_path, keepalive=Keepalive(interval_s=0.1, timeout_s=0.2)) as stub:
            with pytest.raises(GrpcError, match="no answer for") as caught:
                await asyncio.wait_for(stub.unary("Info", pb.InfoRequest()), 60)
            assert caught.value.code == 14
        silent.close()

    run(body())


def test_keepalive_leaves_a_living_peer_alone(tmp_path: Path) -> None:
    async def body() -> None:
        async with our_server(tmp_path), our_stub(tmp_path, keepalive=Keepalive(interval_s=0.05, timeout_s=60)) as stub:
            await stub.unary("Info", pb.InfoRequest())
            endpoint = stub.channel.current
            assert endpoint is not None
            while endpoint._asked_at is None or endpoint.last_heard <= endpoint._asked_at:  # it has asked and was answered
                await asyncio.sleep(0.01)
            endpoint._tick()
            assert endpoint.usable
            assert await endpoint.ping(60) >= 0

    run(body())


def test_a_server_that_is_no_grpc_server(tmp_path: Path) -> None:
    async def body() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        server = await asyncio.start_unix_server(accept, f"{tmp_path}/s")
        async with our_stub(tmp_path) as stub:
            with pytest.raises(GrpcError) as caught:
                await asyncio.wait_for(stub.unary("Info", pb.InfoRequest()), 60)
            assert caught.value.code == 14
        server.close()

    run(body())


def test_over_any_byte_stream(tmp_path: Path) -> None:
    """A process's pipes, here two queues."""

    class End:
        def __init__(self, inbox: asyncio.Queue[bytes], outbox: asyncio.Queue[bytes]) -> None:
            self.inbox, self.outbox = inbox, outbox

        async def read(self) -> bytes:
            return await self.inbox.get()

        async def write(self, data: bytes, /) -> None:
            await self.outbox.put(data)

        async def close(self) -> None:
            self.outbox.put_nowait(b"")

    async def body() -> None:
        one: asyncio.Queue[bytes] = asyncio.Queue()
        two: asyncio.Queue[bytes] = asyncio.Queue()
        server = Server([Echo().service()])
        serving = asyncio.create_task(server.serve_stream(End(one, two)))

        async def connect() -> End:
            return End(two, one)

        channel = Channel.over(connect, name="a process")
        stub = Stub(channel, CONTROL)
        async with stub.stream("Session") as call:
            await call.send(Bytes(data=bytes(5_000_000)))
            assert len((await call.read()).data) == 5_000_000
        await channel.close()
        await asyncio.wait_for(serving, 60)

    run(body())


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [(1, CancelledError_, 130), (5, NotFoundError, 1), (8, DiskFullError, 102), (2, ChantierError, 1), (13, ChantierError, 100)],
)
def test_a_status_becomes_an_error_of_ours(code: int, kind: type[ChantierError], exit_code: int) -> None:
    if kind is CancelledError_:
        made = error_of(GrpcError(code, "context canceled"))
    else:
        made = error_of(GrpcError(code, "it failed"))
    assert isinstance(made, kind)
    assert (made.grpc_code, made.exit_code) == (code, exit_code)


def test_errors_survive_the_wire() -> None:
    first = StepError('process "x" did not complete successfully: exit code: 7', exit_status=7, hint="look").at(
        Source("Dockerfile", b"\xff", (SourceRange(2, 3, 4, 5), SourceRange(9, 9)))
    )
    first.vertex = "sha256:12"
    back = error_of(status_of(first))
    assert isinstance(back, StepError)
    assert (back.brief, back.exit_status, back.vertex, back.sources, back.hint) == (
        first.brief,
        7,
        "sha256:12",
        first.sources,
        "look",
    )
    assert status_of(back).details == status_of(first).details


def test_details_are_passed_on_once() -> None:
    first = NotFoundError("not there").at(Source("Dockerfile", b"x", (SourceRange(1, 1),)))
    first.vertex = "sha256:12"
    told = status_of(first, [json_detail("errdefs.Solve", {"inputIDs": ["a"]})])
    again = status_of(error_of(told))
    assert sorted(d.name for d in again.details) == ["errdefs.Solve", "errdefs.Source", "errdefs.Vertex"]
    assert again.code == 5
