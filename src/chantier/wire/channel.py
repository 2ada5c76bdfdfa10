# SPDX-License-Identifier: Apache-2.0
"""The calling side: a channel dials when it is first used, and again when its connection is gone."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from chantier.errors import UsageError

from . import frames as h2
from .call import Call, Decode, as_is
from .endpoint import ByteStream, Endpoint, Keepalive, SocketCarrier, StreamCarrier
from .frames import Limits
from .headers import HeaderList, Metadata, MetadataLike, MetadataValue, decode_metadata, encode_metadata, encode_timeout
from .listen import split_host
from .service import Method, methods
from .status import DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, GrpcError, http_error, read_status
from .stream import Stream

Dial = Callable[[], Awaitable[Endpoint]]
_USER_AGENT = b"chantier"
_CONNECT_S = 20.0
_CLOSE_S = 8.0


class ClientCall(Call):
    """`async with channel.stream(...) as call`. Leaving the block before the end cancels the call.

    `read` gives messages, then None if the status is OK, else raises it. `close_send` says that no more is sent.
    """

    def __init__(self, channel: Channel, path: str, decode: Decode, headers: HeaderList, timeout_s: float | None) -> None:
        # The stream is opened in __aenter__: until then there is nothing to read or write.
        self._channel = channel
        self.path = path
        self._make_decode = decode
        self._headers = headers
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._failure: GrpcError | None = None

    async def __aenter__(self) -> Self:
        start = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout_s):
                endpoint = await self._channel.endpoint()
        except TimeoutError as err:
            raise GrpcError(DEADLINE_EXCEEDED, f"context deadline exceeded while connecting to {self._channel.name}") from err
        headers = self._headers
        if self._timeout_s is not None:
            left = self._timeout_s - (endpoint.loop.time() - start)
            headers = [*headers, (b"grpc-timeout", encode_timeout(left))]
            self._timer = endpoint.loop.call_later(max(left, 0), self._deadline)
        stream = endpoint.conn.open(headers)
        super().__init__(endpoint, stream, self._make_decode, self._channel.limits.message_bytes)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.cancel()
        self.stream.discard()

    def cancel(self) -> None:
        """End the call now, if it has not ended."""
        self.endpoint.conn.reset_stream(self.stream, h2.CANCEL, "context canceled")

    def _deadline(self) -> None:
        if not (self.stream.remote_closed or self.stream.reset):
            self._failure = GrpcError(DEADLINE_EXCEEDED, "context deadline exceeded")
            self.cancel()

    def close_send(self) -> None:
        self.stream.end()

    async def initial_metadata(self) -> Metadata:
        """The response's headers. Raises the call's status if it ended without them."""
        while self.stream.headers is None:
            if self.stream.finished_reading:
                raise self.status_now() or GrpcError(INTERNAL, "the server sent no headers")
            await self._news()
        return decode_metadata(self.stream.headers)

    async def status(self) -> Metadata:
        """Wait for the end, leaving out messages that were not read. Gives the trailing metadata; raises the status."""
        while not self.stream.finished_reading:
            self.stream.discard()
            await self._news()
        error = self.status_now()
        if error is not None:
            raise error
        return decode_metadata(self.stream.trailers or [])

    def status_now(self) -> GrpcError | None:
        """The status of a call that has ended."""
        stream = self.stream
        if self._failure is not None:
            return self._failure
        if stream.trailers is not None:
            return self._header_error(stream) or read_status(stream.trailers)
        if stream.reset is not None:
            return self.endpoint.reset_error(stream.reset)
        return self._header_error(stream) or GrpcError(INTERNAL, "server closed the stream without sending trailers")

    def _header_error(self, stream: Stream) -> GrpcError | None:
        headers = dict(reversed(stream.headers or ()))
        status = headers.get(b":status", b"200")
        if status != b"200" and b"grpc-status" not in headers:
            return http_error(status)
        return None

    def _next(self) -> bytes | None:
        stream = self.stream
        if stream.headers is not None and stream.inbox_bytes:
            headers = dict(stream.headers)
            stream.declared_encoding = headers.get(b"grpc-encoding", b"identity")
            if headers.get(b":status") != b"200" or not headers.get(b"content-type", b"").startswith(b"application/grpc"):
                raise self._header_error(stream) or GrpcError(INTERNAL, "the answer is no gRPC answer")
            self._next = self._reader.next  # type: ignore[method-assign]  # looked at once
        return self._reader.next()

    def _at_end(self) -> None:
        error = self.status_now()
        if error is None and self._reader.partial:
            error = GrpcError(INTERNAL, "unexpected EOF in a message")
        if error is not None:
            raise error

    def _cannot_send(self) -> GrpcError:
        if self.stream.finished_reading:
            return self.status_now() or GrpcError(INTERNAL, "the call has ended")
        return super()._cannot_send()


class Channel:
    """Calls to one server. Make it with `unix`, `tcp`, `over`, `on` or `dial`; belongs to one event loop."""

    def __init__(
        self, name: str, dial: Dial, *, limits: Limits | None = None, authority: str = "localhost", secure: bool = False
    ) -> None:
        self.name = name
        self.is_unix = False  # a socket of this machine: what listens there may be a proxy all the same
        self.limits = limits or Limits()
        self._dial = dial
        self._endpoint: Endpoint | None = None
        self._lock = asyncio.Lock()
        self._scheme = b"https" if secure else b"http"
        self._authority = authority.encode()
        self._closed = False
        self._carriers: set[asyncio.Task[None]] = set()

    @classmethod
    def unix(cls, path: str, *, limits: Limits | None = None, keepalive: Keepalive | None = None) -> Channel:
        async def dial() -> Endpoint:
            loop = asyncio.get_running_loop()
            carrier = SocketCarrier(make)
            await loop.create_unix_connection(lambda: carrier, path)
            assert carrier.endpoint is not None
            return carrier.endpoint

        name = f"unix://{path}"
        make = _maker(name, limits, keepalive)
        channel = cls(name, dial, limits=limits)
        channel.is_unix = True
        return channel

    @classmethod
    def tcp(
        cls,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        limits: Limits | None = None,
        keepalive: Keepalive | None = None,
    ) -> Channel:
        """`server_name` is what the server's certificate must be for, if not `host`."""

        async def dial() -> Endpoint:
            loop = asyncio.get_running_loop()
            carrier = SocketCarrier(make)
            transport, _ = await loop.create_connection(
                lambda: carrier, host, port, ssl=tls, server_hostname=(server_name or host) if tls else None
            )
            found = transport.get_extra_info("ssl_object")
            if found is not None and found.selected_alpn_protocol() not in ("h2", None):
                transport.abort()
                raise GrpcError(UNAVAILABLE, f"{name} does not speak HTTP/2")
            assert carrier.endpoint is not None
            return carrier.endpoint

        name = f"tcp://{host}:{port}"
        make = _maker(name, limits, keepalive)
        return cls(name, dial, limits=limits, authority=server_name or f"{host}:{port}", secure=tls is not None)

    @classmethod
    def over(
        cls,
        connect: Callable[[], Awaitable[ByteStream]],
        *,
        name: str,
        limits: Limits | None = None,
        keepalive: Keepalive | None = None,
    ) -> Channel:
        """Over any stream of bytes; `connect` is called for each connection."""

        async def dial() -> Endpoint:
            carrier = StreamCarrier(await connect())
            carrier.endpoint = _maker(name, limits, keepalive)(carrier.write, carrier.hang_up, None)
            task = asyncio.create_task(carrier.run())
            channel._carriers.add(task)
            task.add_done_callback(channel._carriers.discard)
            return carrier.endpoint

        channel = cls(name, dial, limits=limits)
        return channel

    @classmethod
    def on(cls, endpoint: Endpoint, *, limits: Limits | None = None) -> Channel:
        """Over a connection that is there already, such as a tunnel; once it is gone, calls fail."""

        async def dial() -> Endpoint:
            if not endpoint.usable:
                raise endpoint.gone()
            return endpoint

        return cls(endpoint.name, dial, limits=limits)

    @property
    def current(self) -> Endpoint | None:
        """The connection that was used last."""
        return self._endpoint

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what runs and say goodbye."""
        self._closed = True
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.fail("the channel was closed")
        if self._carriers:  # programs and connections of the caller's own end in order
            await asyncio.wait(self._carriers, timeout=_CLOSE_S)

    async def connect(self) -> None:
        """Dial now, to learn whether it works. Raises GrpcError with Unavailable."""
        await self.endpoint()

    async def endpoint(self) -> Endpoint:
        """A connection with room for a call."""
        while True:
            found = self._endpoint
            if found is None or not found.usable:
                found = await self._connect()
            if found.conn.room or await found.room():
                return found

    async def _connect(self) -> Endpoint:
        async with self._lock:
            if self._closed:
                raise GrpcError(UNAVAILABLE, f"the channel to {self.name} is closed")
            if self._endpoint is not None and self._endpoint.usable:
                return self._endpoint
            try:
                async with asyncio.timeout(_CONNECT_S):
                    self._endpoint = await self._dial()
            except GrpcError:
                raise
            except TimeoutError as err:
                raise GrpcError(UNAVAILABLE, f"failed to connect to {self.name}: no answer in {_CONNECT_S:.0f} s") from err
            except ssl.SSLError as err:
                raise GrpcError(UNAVAILABLE, f"failed to connect to {self.name}: {_tls_text(err)}") from err
            except OSError as err:
                raise GrpcError(UNAVAILABLE, f"failed to connect to {self.name}: {_os_text(err)}") from err
            return self._endpoint

    # -- calls

    def stream(
        self,
        path: str,
        response: Any = None,
        *,
        metadata: MetadataLike = (),
        timeout_s: float | None = None,
    ) -> ClientCall:
        """A call of any kind. `response` is the class of its answers; without it they are bytes."""
        headers: HeaderList = [
            (b":method", b"POST"),
            (b":scheme", self._scheme),
            (b":path", path.encode()),
            (b":authority", self._authority),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"user-agent", _USER_AGENT),
            (b"grpc-accept-encoding", b"gzip"),
            *encode_metadata(metadata),
        ]
        return ClientCall(self, path, as_is if response is None else response.FromString, headers, timeout_s)

    async def unary(
        self,
        path: str,
        request: Any,
        response: Any = None,
        *,
        metadata: MetadataLike = (),
        timeout_s: float | None = None,
    ) -> Any:
        """One request, one answer. Raises GrpcError."""
        try:
            return await self._unary(path, request, response, metadata, timeout_s)
        except _Refused:
            # The server did nothing with it, as it was about to close the connection: another one may.
            try:
                return await self._unary(path, request, response, metadata, timeout_s)
            except _Refused as err:
                raise err.error from None

    async def _unary(self, path: str, request: Any, response: Any, metadata: MetadataLike, timeout_s: float | None) -> Any:
        async with self.stream(path, response, metadata=metadata, timeout_s=timeout_s) as call:
            try:
                call.send_nowait(request)
                call.close_send()
                answer = await call.read()
                await call.status()
            except GrpcError as err:
                if call.stream.reset is not None and call.stream.reset.refused:
                    raise _Refused(err) from err
                raise
            if answer is None:
                raise GrpcError(INTERNAL, f"{path} gave no answer")
            return answer


class _Refused(Exception):
    def __init__(self, error: GrpcError) -> None:
        super().__init__(str(error))
        self.error = error


class Stub:
    """A service's methods by name, with message classes from its description: `await stub.unary("Info", request)`."""

    def __init__(self, channel: Channel, service: str, *, metadata: MetadataLike = ()) -> None:
        """`metadata` goes with every call."""
        self.channel = channel
        self._methods = methods(service)
        self._metadata: list[tuple[str, MetadataValue]] = list(metadata.items() if isinstance(metadata, Mapping) else metadata)

    def __getitem__(self, method: str) -> Method:
        return self._methods[method]

    async def unary(
        self, method: str, request: Any, *, metadata: Iterable[tuple[str, MetadataValue]] = (), timeout_s: float | None = None
    ) -> Any:
        shape = self._methods[method]
        both = [*self._metadata, *metadata]
        return await self.channel.unary(shape.path, request, shape.response, metadata=both, timeout_s=timeout_s)

    def stream(
        self, method: str, *, metadata: Iterable[tuple[str, MetadataValue]] = (), timeout_s: float | None = None
    ) -> ClientCall:
        """A call that streams either way; for one that streams answers only, `send` the request and `close_send`."""
        shape = self._methods[method]
        both = [*self._metadata, *metadata]
        return self.channel.stream(shape.path, shape.response, metadata=both, timeout_s=timeout_s)


def _maker(name: str, limits: Limits | None, keepalive: Keepalive | None) -> Callable[..., Endpoint]:
    def make(write: Callable[[bytes], None], hang_up: Callable[[], None], _peer: object) -> Endpoint:
        return Endpoint("client", write, hang_up, name=name, limits=limits, keepalive=keepalive)

    return make


def client_endpoint(
    write: Callable[[bytes], None], hang_up: Callable[[], None], *, name: str, limits: Limits | None = None
) -> Endpoint:
    """The calling end of a connection on a carrier of the caller's own (see `tunnel`)."""
    return Endpoint("client", write, hang_up, name=name, limits=limits)


def dial(
    address: str,
    *,
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
    limits: Limits | None = None,
    keepalive: Keepalive | None = None,
) -> Channel:
    """A channel to `unix://PATH` or `tcp://HOST:PORT`. Nothing is connected yet. Raises UsageError for other addresses."""
    scheme, colon, rest = address.partition("://")
    if colon and scheme == "unix":
        return Channel.unix(rest, limits=limits, keepalive=keepalive)
    if colon and scheme == "tcp":
        host, port = split_host(rest)
        return Channel.tcp(host, port, tls=tls, server_name=server_name, limits=limits, keepalive=keepalive)
    raise UsageError(f"invalid address {address!r}: expected unix://PATH or tcp://HOST:PORT")


def _tls_text(err: ssl.SSLError) -> str:
    verify = getattr(err, "verify_message", "")
    return f"tls: {verify or err.reason or err}".lower()


def _os_text(err: OSError) -> str:
    if isinstance(err, socket.gaierror):
        return (err.strerror or "name not known").lower()
    return (err.strerror or str(err)).lower()


__all__ = ["Channel", "ClientCall", "Stub", "client_endpoint", "dial"]
