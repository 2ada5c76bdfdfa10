# SPDX-License-Identifier: Apache-2.0
"""What tests of the wire share: an echo service, servers of ours and of grpcio, and two connections without I/O."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from chantier.pb import control_pb2 as pb
from chantier.wire import Channel, Connection, Detail, GrpcError, Health, Limits, Server, ServerCall, Service, Stub
from chantier.wire.stream import MessageReader, Stream

CONTROL = "moby.buildkit.v1.Control"
Bytes = pb.BytesMessage
BIG = (16 << 20) - 64  # with its tag and length just within the limit
GRPCIO = [
    ("grpc.max_receive_message_length", 1 << 25),
    ("grpc.max_send_message_length", 1 << 25),
    ("grpc.max_metadata_size", 1 << 21),
    ("grpc.absolute_max_metadata_size", 1 << 21),
    ("grpc.default_authority", "localhost"),
]


def run(made: Any, *, seconds: float = 120) -> Any:
    async def within() -> Any:
        async with asyncio.timeout(seconds):
            return await made

    return asyncio.run(within())


class Echo:
    """Handlers of every kind, on the shapes of Control's methods; what happened to them is kept."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.used = 0
        self.usable = asyncio.Event()
        self.seen: list[Any] = []

    def service(self) -> Service:
        return Service(
            CONTROL,
            {"Info": self.info, "Status": self.status, "Session": self.session, "Solve": self.solve, "DiskUsage": self.usage},
        )

    async def info(self, request: pb.InfoRequest, call: ServerCall) -> pb.InfoResponse:
        self.seen.append((call.metadata, call.remaining_s, call.peer))
        call.set_initial_metadata({"x-initial": "i", "x-initial-bin": b"\x00\xff"})
        call.set_trailing_metadata([("x-trailing", "t1"), ("x-trailing", "t2"), ("x-trailing-bin", b"\x01")])
        answer = pb.InfoResponse()
        answer.buildkitVersion.version = call.metadata.text("x-say", "none")
        return answer

    async def status(self, request: pb.StatusRequest, call: ServerCall) -> None:
        """As many answers as Ref says; then waits for ever if it says `hang`."""
        count, _, rest = request.Ref.partition(" ")
        for n in range(int(count or 0)):
            answer = pb.StatusResponse()
            answer.logs.add(msg=b"%d" % n)
            await call.send(answer)
        if rest == "hang":
            await self._hang()

    async def _hang(self) -> None:
        self.started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def session(self, call: ServerCall) -> None:
        async for message in call:
            await call.send(message)

    async def solve(self, request: pb.SolveRequest, call: ServerCall) -> pb.SolveResponse:
        """Fails as told: Ref is CODE TEXT, Frontend the number of bytes of a detail."""
        if request.Ref == "hang":
            await self._hang()
        if request.Ref == "bug":
            raise KeyError("oops")
        code, _, text = request.Ref.partition(" ")
        size = int(request.Frontend or 0)
        raise GrpcError(int(code), text, [Detail("github.com/moby/buildkit/errdefs.Vertex+json", b"v" * size)] if size else [])

    async def usage(self, request: pb.DiskUsageRequest, call: ServerCall) -> pb.DiskUsageResponse:
        self.used += 1
        await self.usable.wait()
        return pb.DiskUsageResponse()


@asynccontextmanager
async def our_server(path: Path, echo: Echo | None = None, **options: Any) -> AsyncIterator[tuple[Server, str]]:
    server = Server([(echo or Echo()).service(), Health().service()], **options)
    listener = await server.listen(f"unix://{path}/s")
    try:
        yield server, listener.address
    finally:
        await server.close(0.5)


@asynccontextmanager
async def our_stub(path: Path, **options: Any) -> AsyncIterator[Stub]:
    channel = Channel.unix(f"{path}/s", **options)
    try:
        yield Stub(channel, CONTROL)
    finally:
        await channel.close()


@asynccontextmanager
async def their_channel(path: Path) -> AsyncIterator[aio.Channel]:
    async with aio.insecure_channel(f"unix:{path}/s", options=GRPCIO) as channel:
        yield channel


def their_call(channel: aio.Channel, kind: str, method: str, response: Any) -> Any:
    return getattr(channel, kind)(
        f"/{CONTROL}/{method}", request_serializer=lambda m: m.SerializeToString(), response_deserializer=response.FromString
    )


class TheirEcho(grpc.GenericRpcHandler):
    """The same service by grpcio, without knowledge of messages but where it needs it."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        return {
            "Info": grpc.unary_unary_rpc_method_handler(self.info),
            "Status": grpc.unary_stream_rpc_method_handler(self.status),
            "Session": grpc.stream_stream_rpc_method_handler(self.session),
            "Solve": grpc.unary_unary_rpc_method_handler(self.solve),
        }.get(method)

    async def info(self, raw: bytes, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        await context.send_initial_metadata([("x-initial", "i"), ("x-initial-bin", b"\x00\xff")])
        context.set_trailing_metadata([("x-trailing", "t1"), ("x-trailing-bin", b"\x01")])
        answer = pb.InfoResponse()
        answer.buildkitVersion.version = metadata.get("x-say", "none")
        answer.buildkitVersion.revision = metadata.get("x-say-bin", b"").hex()
        return answer.SerializeToString()

    async def status(self, raw: bytes, context: Any) -> AsyncIterator[bytes]:
        count, _, rest = pb.StatusRequest.FromString(raw).Ref.partition(" ")
        # Before the first answer: the caller may cancel as soon as it has that.
        context.add_done_callback(lambda _context: self.cancelled.set())
        for n in range(int(count)):
            answer = pb.StatusResponse()
            answer.logs.add(msg=b"%d" % n)
            yield answer.SerializeToString()
        if rest == "hang":
            await asyncio.sleep(3600)

    async def session(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for raw in requests:
            yield raw

    async def solve(self, raw: bytes, context: Any) -> bytes:
        request = pb.SolveRequest.FromString(raw)
        if request.Ref == "hang":
            await asyncio.sleep(3600)
        code, _, text = request.Ref.partition(" ")
        codes = {c.value[0]: c for c in grpc.StatusCode}
        size = int(request.Frontend or 0)
        if size:
            context.set_trailing_metadata([("grpc-status-details-bin", status_bytes(int(code), text, size))])
        await context.abort(codes[int(code)], text)
        return b""


def status_bytes(code: int, text: str, size: int) -> bytes:
    from google.rpc import status_pb2

    status = status_pb2.Status(code=code, message=text)
    status.details.add(type_url="github.com/moby/buildkit/errdefs.Vertex+json", value=b"v" * size)
    return bytes(status.SerializeToString())


@asynccontextmanager
async def their_server(path: Path, echo: TheirEcho | None = None) -> AsyncIterator[aio.Server]:
    server = aio.server(options=GRPCIO)
    server.add_generic_rpc_handlers((echo or TheirEcho(),))
    server.add_insecure_port(f"unix:{path}/s")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0.5)


class Pair:
    """A client's and a server's Connection, joined by hand. `cut` says how many bytes go over at once."""

    def __init__(
        self, *, client: Limits | None = None, server: Limits | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self.to_server: list[bytes] = []
        self.to_client: list[bytes] = []
        options: dict[str, Any] = {} if clock is None else {"clock": clock}
        self.client = Connection("client", self.to_server.append, limits=client, **options)
        self.server = Connection("server", self.to_client.append, limits=server, **options)
        self.accepted: list[Stream] = []
        self.server.on_stream = self.accepted.append

    def move(self, cut: int = 0) -> None:
        """Until nothing moves any more."""
        while self.to_server or self.to_client:
            for queue, end in ((self.to_server, self.server), (self.to_client, self.client)):
                data = b"".join(queue)
                queue.clear()
                for at in range(0, len(data), cut or max(len(data), 1)):
                    end.feed(data[at : at + cut] if cut else data)


REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/M"), (b":authority", b"localhost")]


def messages(stream: Stream, limit: int = 1 << 24) -> list[bytes]:
    reader = MessageReader(stream, limit)
    found = []
    while (message := reader.next()) is not None:
        found.append(message)
    return found
