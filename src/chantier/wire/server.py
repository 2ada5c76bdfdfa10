# SPDX-License-Identifier: Apache-2.0
"""The serving side: from a stream's headers to a handler, from what a handler returns or raises to a status."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .call import ServerCall
from .endpoint import ByteStream, Endpoint, Keepalive, Peer, SocketCarrier, StreamCarrier
from .frames import Limits
from .headers import HeaderList, decode_timeout
from .listen import Listener, bind
from .service import Handler, Method, Service
from .status import CANCELLED, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, UNIMPLEMENTED, UNKNOWN, GrpcError, status_of
from .stream import Stream

_log = logging.getLogger(__name__)
_MAX_DEADLINE_S = 365 * 86400.0


class Server:
    """Serves the same services on any number of sockets, byte streams and tunnels. Belongs to one event loop."""

    def __init__(
        self,
        services: Iterable[Service],
        *,
        limits: Limits | None = None,
        keepalive: Keepalive | None = None,
        on_error: Callable[[ServerCall, BaseException], GrpcError | None] | None = None,
    ) -> None:
        """`keepalive` is for peers behind TCP. `on_error` may turn what a handler raised into a status of its own making."""
        self.services = {service.name: service for service in services}
        self.limits = limits or Limits()
        self._keepalive = keepalive
        self._on_error = on_error
        self._listeners: list[Listener] = []
        self._endpoints: set[Endpoint] = set()
        self._calls: set[ServerCall] = set()
        self._closing = False

    def add(self, service: Service) -> None:
        self.services[service.name] = service

    @property
    def calls(self) -> frozenset[ServerCall]:
        """Calls whose handlers run."""
        return frozenset(self._calls)

    @property
    def connections(self) -> int:
        return len(self._endpoints)

    # -- where it listens

    async def listen(
        self,
        address: str | socket.socket,
        *,
        tls: ssl.SSLContext | None = None,
        uid: int | None = None,
        gid: int | None = None,
        mode: int = 0o660,
    ) -> Listener:
        """Serve on `unix://PATH`, `tcp://HOST:PORT`, `fd://N`, or a listening socket. Raises ChantierError if it cannot be had.

        `uid`, `gid` and `mode` are those of a unix socket's file. The listener's `address` has the port the kernel chose.
        """
        bound = await asyncio.to_thread(bind, address, uid=uid, gid=gid, mode=mode)
        loop = asyncio.get_running_loop()
        listener = Listener(bound.address, bound.path, bound.inode)
        unix = bound.sock.family == socket.AF_UNIX

        def carrier() -> asyncio.Protocol:
            return SocketCarrier(lambda write, close, peer: self._endpoint(write, close, peer, None if unix else self._keepalive))

        options: dict[str, Any] = {"ssl": tls, "backlog": 1024}
        if tls is not None:
            options["ssl_handshake_timeout"] = 10.0
        if unix:
            listener.server = await loop.create_unix_server(carrier, sock=bound.sock, **options)
        else:
            listener.server = await loop.create_server(carrier, sock=bound.sock, **options)
        self._listeners.append(listener)
        return listener

    async def serve_stream(self, stream: ByteStream, *, name: str = "the peer") -> None:
        """Serve one peer over a stream of bytes until it ends."""
        carrier = StreamCarrier(stream)
        carrier.endpoint = self._endpoint(carrier.write, carrier.hang_up, Peer(address=name), None)
        await carrier.run()

    def attach(self, write: Callable[[bytes], None], hang_up: Callable[[], None], *, name: str = "the peer") -> Endpoint:
        """An endpoint for a carrier of the caller's own (see `tunnel`)."""
        return self._endpoint(write, hang_up, Peer(address=name), None)

    def _endpoint(
        self, write: Callable[[bytes], None], hang_up: Callable[[], None], peer: Peer, keepalive: Keepalive | None
    ) -> Endpoint:
        endpoint = Endpoint(
            "server",
            write,
            hang_up,
            name=peer.address or "the client",
            peer=peer,
            limits=self.limits,
            keepalive=keepalive,
            on_stream=self._on_stream,
        )
        self._endpoints.add(endpoint)
        endpoint.closed.add_done_callback(lambda _done: self._endpoints.discard(endpoint))
        if self._closing:
            endpoint.fail("the server is shutting down")
        return endpoint

    # -- calls

    def _on_stream(self, endpoint: Endpoint, stream: Stream) -> None:
        headers = dict(reversed(stream.headers or ()))
        if not _is_grpc(endpoint, stream, headers):
            return
        path = headers[b":path"].decode("latin-1")
        stream.declared_encoding = headers.get(b"grpc-encoding", b"identity")
        found, missing = self._find(path)
        timeout = decode_timeout(headers[b"grpc-timeout"]) if b"grpc-timeout" in headers else None
        deadline = None if timeout is None else endpoint.loop.time() + min(timeout, _MAX_DEADLINE_S)
        decode = found[0].request.FromString if found else bytes
        call = ServerCall(endpoint, stream, path, decode, self.limits.message_bytes, deadline)
        if b"grpc-timeout" in headers and timeout is None:
            missing = GrpcError(INTERNAL, f"malformed grpc-timeout {headers[b'grpc-timeout'].decode('latin-1')!r}")
        if found is None or missing is not None:
            call.finish(missing)
            stream.discard()
            return
        conn = endpoint.conn
        conn.running += 1
        self._calls.add(call)
        call.task = endpoint.loop.create_task(self._run(call, *found), name=path)
        call.task.add_done_callback(lambda _task: self._over(call))

    def _over(self, call: ServerCall) -> None:
        call.endpoint.conn.running -= 1
        self._calls.discard(call)
        call.stream.discard()
        if call.stream.open_to_write:  # cancelled before it began
            call.finish(GrpcError(CANCELLED, "context canceled"))

    def _find(self, path: str) -> tuple[tuple[Method, Handler] | None, GrpcError | None]:
        name, _, method = path.removeprefix("/").rpartition("/")
        if not path.startswith("/") or not name:
            return None, GrpcError(UNIMPLEMENTED, f"malformed method name: {path!r}")
        service = self.services.get(name)
        if service is None:
            return None, GrpcError(UNIMPLEMENTED, f"unknown service {name}")
        found = service.handlers.get(method)
        if found is None:
            return None, GrpcError(UNIMPLEMENTED, f"unknown method {method} for service {name}")
        return found, None

    async def _run(self, call: ServerCall, shape: Method, handler: Handler) -> None:
        timer = None
        if call.deadline is not None:
            timer = call.endpoint.loop.call_at(call.deadline, self._deadline, call)
        try:
            call.finish(await self._answer(call, shape, handler))
        finally:
            if timer is not None:
                timer.cancel()

    async def _answer(self, call: ServerCall, shape: Method, handler: Handler) -> GrpcError | None:
        try:
            if shape.client_streaming:
                response = await handler(call)
            else:
                request = await call.read()
                if request is None:
                    raise GrpcError(INTERNAL, "the client sent no request")
                response = await handler(request, call)
            if not shape.server_streaming:
                if response is None:
                    raise GrpcError(INTERNAL, f"{shape.path} gave no response")
                call.send_nowait(response)
        except asyncio.CancelledError:
            return _why_cancelled(call)
        except Exception as err:
            # Whatever a handler raises is the status of its call, and of no other.
            if call.timed_out:
                return _why_cancelled(call)
            status = self._on_error(call, err) if self._on_error is not None else None
            if status is None:
                status = status_of(err)
                if status.code == UNKNOWN and not hasattr(err, "grpc_code"):
                    _log.exception("%s failed", shape.path)
            return status
        return None

    @staticmethod
    def _deadline(call: ServerCall) -> None:
        call.timed_out = True
        if call.task is not None:
            call.task.cancel()

    # -- the end

    async def close(self, grace_s: float = 5.0) -> None:
        """Stop listening, let calls in flight end for at most `grace_s`, then cancel what is left and close all connections."""
        self._closing = True
        for listener in self._listeners:
            listener.close()
        await asyncio.gather(*(endpoint.drain(grace_s) for endpoint in list(self._endpoints)))
        tasks = [call.task for call in self._calls if call.task is not None]
        for call in list(self._calls):
            call.shut_down = True
            if call.task is not None:
                call.task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        for endpoint in list(self._endpoints):
            endpoint.fail("the server is shutting down")
        for listener in self._listeners:
            await listener.wait_closed()
        self._listeners.clear()


def _why_cancelled(call: ServerCall) -> GrpcError:
    if call.timed_out:
        return GrpcError(DEADLINE_EXCEEDED, "context deadline exceeded")
    if call.shut_down:
        return GrpcError(UNAVAILABLE, "the server is shutting down")
    return GrpcError(CANCELLED, "context canceled")


def _is_grpc(endpoint: Endpoint, stream: Stream, headers: dict[bytes, bytes]) -> bool:
    """Answers what is no gRPC request as HTTP would."""
    answer: HeaderList | None = None
    kind = headers.get(b"content-type", b"")
    if headers[b":method"] != b"POST":
        answer = [(b":status", b"405"), (b"allow", b"POST")]
    elif kind != b"application/grpc" and not kind.startswith((b"application/grpc+proto", b"application/grpc;")):
        answer = [(b":status", b"415")]
    if answer is None:
        return True
    endpoint.conn.send_headers(stream, answer, end=True)
    stream.discard()
    return False


def serve_paths(services: Sequence[Service]) -> list[str]:
    """`/service/Method` of all that is served."""
    return [path for service in services for path in service.paths]


__all__ = ["Server", "serve_paths"]
