# SPDX-License-Identifier: Apache-2.0
"""Our server, called by grpcio and by ourselves."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from chantier.errors import ChantierError, NotFoundError, Source, SourceRange, StepError, UsageError
from chantier.pb import control_pb2 as pb
from chantier.pb import health_pb2
from chantier.wire import Channel, GrpcError, Health, Server, ServerCall, Service, Stub, json_detail, reflection
from chantier.wire import frames as h2
from chantier.wire.headers import encode

from .peers import BIG, CONTROL, Bytes, Echo, our_server, our_stub, run, their_call, their_channel


def test_grpcio_unary_with_metadata_both_ways(tmp_path: Path) -> None:
    async def body() -> None:
        echo = Echo()
        async with our_server(tmp_path, echo), their_channel(tmp_path) as channel:
            call = their_call(channel, "unary_unary", "Info", pb.InfoResponse)(
                pb.InfoRequest(), metadata=[("x-say", "hello"), ("x-raw-bin", b"\x00\x01\xfe")], timeout=5
            )
            assert (await call).buildkitVersion.version == "hello"
            assert ("x-initial-bin", b"\x00\xff") in list(await call.initial_metadata())
            trailing = list(await call.trailing_metadata())
            assert [v for k, v in trailing if k == "x-trailing"] == ["t1", "t2"]
            assert ("x-trailing-bin", b"\x01") in trailing
            metadata, remaining, peer = echo.seen[0]
            assert metadata.binary("x-raw-bin") == b"\x00\x01\xfe"
            assert 3 < remaining <= 5
            assert peer.uid == os.geteuid() and peer.pid == os.getpid()

    run(body())


def test_grpcio_streams_of_each_kind(tmp_path: Path) -> None:
    async def body() -> None:
        async with our_server(tmp_path), their_channel(tmp_path) as channel:
            answers = their_call(channel, "unary_stream", "Status", pb.StatusResponse)(pb.StatusRequest(Ref="3000"))
            assert [m.logs[0].msg async for m in answers] == [b"%d" % n for n in range(3000)]
            both = their_call(channel, "stream_stream", "Session", Bytes)()
            for n in (0, 1, 70_000, BIG):
                await both.write(Bytes(data=bytes([n % 251]) * n))
                assert (await both.read()).data == bytes([n % 251]) * n
            await both.done_writing()
            assert await both.read() is grpc.aio.EOF
            assert await both.code() is grpc.StatusCode.OK

    run(body())


def test_grpcio_reads_large_error_details(tmp_path: Path) -> None:
    async def body() -> None:
        async with our_server(tmp_path), their_channel(tmp_path) as channel:
            for size in (0, 100, 100_000, 700_000):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await their_call(channel, "unary_unary", "Solve", pb.SolveResponse)(
                        pb.SolveRequest(Ref='5 "/nö\n%": not found', Frontend=str(size))
                    )
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
                assert caught.value.details() == '"/nö\n%": not found'
                raw = dict(caught.value.trailing_metadata()).get("grpc-status-details-bin")
                if size:
                    found = status_pb2.Status.FromString(raw)
                    assert found.details[0].value == b"v" * size
                else:
                    assert raw is None

    run(body())


def test_details_a_peer_would_not_take_are_left_out(tmp_path: Path) -> None:
    """C-core takes 8 KiB of headers unless told otherwise: the status must arrive all the same."""

    async def body() -> None:
        async with our_server(tmp_path), grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
            for text in ("short", "long " * 20_000):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await their_call(channel, "unary_unary", "Solve", pb.SolveResponse)(
                        pb.SolveRequest(Ref=f"5 {text}", Frontend="20000")
                    )
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
                assert caught.value.details().startswith(text[:5])

    run(body())


def test_grpcio_deadline_and_cancellation_reach_the_handler(tmp_path: Path) -> None:
    async def body() -> None:
        echo = Echo()
        async with our_server(tmp_path, echo) as (server, _), their_channel(tmp_path) as channel:
            solve = their_call(channel, "unary_unary", "Solve", pb.SolveResponse)
            for seconds in (0.2, 2, 20):  # a deadline may pass before the call has reached anybody
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await solve(pb.SolveRequest(Ref="hang"), timeout=seconds)
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                if echo.started.is_set():
                    break
            await asyncio.wait_for(echo.cancelled.wait(), 60)
            echo.cancelled.clear()
            echo.started.clear()
            call = their_call(channel, "unary_stream", "Status", pb.StatusResponse)(pb.StatusRequest(Ref="1 hang"))
            await call.read()
            await asyncio.wait_for(echo.started.wait(), 60)
            call.cancel()
            await asyncio.wait_for(echo.cancelled.wait(), 60)
            while server.calls:
                await asyncio.sleep(0.01)

    run(body())


def test_grpcio_gzip_is_understood(tmp_path: Path) -> None:
    async def body() -> None:
        async with our_server(tmp_path), their_channel(tmp_path) as channel:
            both = their_call(channel, "stream_stream", "Session", Bytes)(compression=grpc.Compression.Gzip)
            await both.write(Bytes(data=b"a" * 1_000_000))
            assert (await both.read()).data == b"a" * 1_000_000
            await both.done_writing()
            assert await both.code() is grpc.StatusCode.OK

    run(body())


def test_what_handlers_raise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing = ChantierError("it failed", hint="try again").at(Source("Dockerfile", b"FROM x\n", (SourceRange(1, 1),)))
    failing.vertex = "sha256:1234"
    step = StepError('process "/bin/false" did not complete successfully: exit code: 3', exit_status=3)
    raised: dict[str, BaseException] = {
        "a": failing,
        "b": NotFoundError("gone"),
        "c": step,
        "d": KeyError("oops"),
        "e": TimeoutError(),
    }

    async def solve(request: pb.SolveRequest, call: ServerCall) -> pb.SolveResponse:
        raise raised[request.Ref]

    async def body() -> None:
        server = Server([Service(CONTROL, {"Solve": solve})])
        await server.listen(f"unix://{tmp_path}/s")
        async with our_stub(tmp_path) as stub:
            errors: dict[str, GrpcError] = {}
            for ref in raised:
                with pytest.raises(GrpcError) as caught:
                    await stub.unary("Solve", pb.SolveRequest(Ref=ref))
                errors[ref] = caught.value
            with pytest.raises(GrpcError) as caught:
                await stub.unary("Info", pb.InfoRequest())
            assert (caught.value.code, caught.value.message) == (12, f"unknown method Info for service {CONTROL}")
            with pytest.raises(GrpcError) as caught:
                await stub.channel.unary("/no.Such/Method", b"")
            assert (caught.value.code, caught.value.message) == (12, "unknown service no.Such")
        await server.close()
        return errors

    errors = run(body())
    assert [errors[ref].code for ref in "abcde"] == [2, 5, 2, 2, 4]
    assert errors["a"].message == "it failed"
    details = {d.name: d.json() for d in errors["a"].details}
    assert details["errdefs.Vertex"] == {"digest": "sha256:1234"}
    assert details["errdefs.Source"] == {
        "info": {"filename": "Dockerfile", "data": "RlJPTSB4Cg==", "language": "Dockerfile"},
        "ranges": [{"start": {"line": 1}, "end": {"line": 1}}],
    }
    assert [d.type_url for d in errors["c"].details] == ["github.com/moby/buildkit/gatewayapi.ExitMessage+json"]
    assert errors["c"].details[0].json() == {"Code": 3}
    assert "oops" in caplog.text


def test_health_and_reflection_by_grpcio(tmp_path: Path) -> None:
    async def body() -> None:
        from chantier.pb import reflection_pb2, reflection_v1alpha_pb2

        health = Health()
        server = Server([Echo().service(), health.service()])
        for service in reflection.services(lambda: server.services):
            server.add(service)
        await server.listen(f"unix://{tmp_path}/s")
        async with their_channel(tmp_path) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(health_pb2.HealthCheckRequest(service="nope"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            watch = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == 1
            health.set(health_pb2.HealthCheckResponse.NOT_SERVING)
            assert (await watch.read()).status == 2
            watch.cancel()
            for version, pb2 in (("v1", reflection_pb2), ("v1alpha", reflection_v1alpha_pb2)):
                asks = channel.stream_stream(
                    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                    request_serializer=lambda m: m.SerializeToString(),
                    response_deserializer=pb2.ServerReflectionResponse.FromString,
                )()
                await asks.write(pb2.ServerReflectionRequest(list_services="*"))
                names = [s.name for s in (await asks.read()).list_services_response.service]
                assert CONTROL in names and f"grpc.reflection.{version}.ServerReflection" in names
                await asks.write(pb2.ServerReflectionRequest(file_containing_symbol=CONTROL))
                files = (await asks.read()).file_descriptor_response.file_descriptor_proto
                assert any(CONTROL.rpartition(".")[0].encode() in f for f in files)
                await asks.write(pb2.ServerReflectionRequest(file_containing_symbol="no.such"))
                assert (await asks.read()).error_response.error_code == 5
                await asks.done_writing()
        await server.close(1)

    run(body())


def test_a_socket_has_its_owner_before_anybody_can_connect(tmp_path: Path) -> None:
    async def body() -> None:
        server = Server([Echo().service()])
        path = tmp_path / "deep/s"
        listener = await server.listen(f"unix://{path}", gid=12 if os.geteuid() == 0 else None, mode=0o660)
        found = os.stat(path)
        assert stat.S_IMODE(found.st_mode) == 0o660
        if os.geteuid() == 0:
            assert found.st_gid == 12
        with pytest.raises(ChantierError, match="another process listens there"):
            await Server([]).listen(f"unix://{path}")
        assert os.listdir(path.parent) == ["s"]
        listener.close()
        assert not path.exists()
        # A file left by a process that was killed is no obstacle.
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(path))
        left.close()
        await server.listen(f"unix://{path}")
        async with our_stub(path.parent) as stub:
            await stub.unary("Info", pb.InfoRequest())
        await server.close(1)

    run(body())


@pytest.mark.parametrize("address", ["s.sock", "http://x:1", "unix://relative", "tcp://nohost", "fd://missing"])
def test_addresses_that_cannot_be_listened_on(address: str) -> None:
    with pytest.raises(UsageError):
        run(Server([]).listen(address))


def test_an_inherited_socket_is_served(tmp_path: Path) -> None:
    async def body() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        server = Server([Echo().service()])
        listener = await server.listen(f"fd://{os.dup(sock.fileno())}")
        assert listener.address == f"tcp://127.0.0.1:{port}"
        channel = Channel.tcp("127.0.0.1", port)
        await Stub(channel, CONTROL).unary("Info", pb.InfoRequest())
        await channel.close()
        await server.close(1)
        sock.close()

    run(body())


def test_closing_lets_calls_end_and_refuses_new_ones(tmp_path: Path) -> None:
    async def body() -> None:
        echo = Echo()
        async with our_server(tmp_path, echo) as (server, _), our_stub(tmp_path) as stub, their_channel(tmp_path) as channel:
            await stub.unary("Info", pb.InfoRequest())
            ours = asyncio.create_task(stub.unary("DiskUsage", pb.DiskUsageRequest()))
            theirs = their_call(channel, "unary_unary", "DiskUsage", pb.DiskUsageResponse)(pb.DiskUsageRequest())
            while echo.used < 2:
                await asyncio.sleep(0.01)
            closing = asyncio.create_task(server.close(grace_s=60))
            with pytest.raises(GrpcError) as caught:
                while True:  # what comes before it is told is answered
                    await stub.unary("Info", pb.InfoRequest())
            assert caught.value.code == 14 and caught.value.transient
            echo.usable.set()
            await ours
            await theirs
            await closing

    run(body())


def test_closing_cancels_what_does_not_end(tmp_path: Path) -> None:
    async def body() -> None:
        echo = Echo()
        async with our_server(tmp_path, echo) as (server, _), our_stub(tmp_path) as stub:
            call = asyncio.create_task(stub.unary("Solve", pb.SolveRequest(Ref="hang")))
            await echo.started.wait()
            await server.close(grace_s=0.2)
            assert echo.cancelled.is_set()
            with pytest.raises(GrpcError) as caught:
                await call
            assert caught.value.code == 14

    run(body())


def test_json_detail_is_compact() -> None:
    assert json_detail("errdefs.Vertex", {"a": 1}).value == b'{"a":1}'


def test_no_task_is_left(tmp_path: Path) -> None:
    async def body() -> Any:
        async with our_server(tmp_path), our_stub(tmp_path) as stub:
            for _ in range(20):
                await stub.unary("Info", pb.InfoRequest())
        left = lambda: [t for t in asyncio.all_tasks() if t is not asyncio.current_task() and "within" not in repr(t)]  # noqa: E731
        for _ in range(500):
            if not left():
                break
            await asyncio.sleep(0.01)
        return left()

    assert run(body()) == []


def test_a_peer_that_does_not_read_cannot_hold_a_closed_connection(tmp_path: Path) -> None:
    async def body() -> None:
        async with our_server(tmp_path) as (server, _):
            _reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/s")
            writer.transport.pause_reading()
            call = encode(
                [(b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/{CONTROL}/Session".encode())]
                + [(b"content-type", b"application/grpc")]
            )
            writer.write(h2.PREFACE + h2.settings({h2.INITIAL_WINDOW_SIZE: h2.MAX_WINDOW}) + h2.window_update(0, 1 << 30))
            writer.write(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, call))
            payload = Bytes(data=bytes(250_000)).SerializeToString()
            part = b"\0" + len(payload).to_bytes(4, "big") + payload
            for _ in range(20):
                writer.write(h2.frame(h2.DATA, 0, 1, part))
                await asyncio.sleep(0.01)
            writer.write(b"\xff" * 100)
            while server.connections:
                await asyncio.sleep(0.02)
            await asyncio.sleep(3.2)
            with pytest.raises(OSError):
                while True:
                    writer.write(bytes(1000))
                    await writer.drain()
                    await asyncio.sleep(0.01)

    run(body())
