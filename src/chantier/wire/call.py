# SPDX-License-Identifier: Apache-2.0
"""A call as those who take part in it see it: messages to read, messages to send, metadata, an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from .endpoint import Endpoint, Peer
from .headers import HeaderList, Metadata, MetadataLike, decode_metadata, encode, encode_metadata, list_bytes
from .status import INTERNAL, GrpcError, status_headers
from .stream import MessageReader, Stream

_BATCH = 1024
Decode = Callable[[bytes], Any]
RESPONSE = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def as_is(data: bytes) -> bytes:
    return data


class Call:
    """Either side. Reading and sending may go on at the same time, each by one task.

    Messages are protobuf messages, or bytes where the call was made without message classes.
    """

    def __init__(self, endpoint: Endpoint, stream: Stream, decode: Decode, message_bytes: int) -> None:
        self.endpoint = endpoint
        self.stream = stream
        self._decode = decode
        self._reader = MessageReader(stream, message_bytes)
        self._read_waiters: list[asyncio.Future[None]] = []
        self._write_waiters: list[asyncio.Future[None]] = []
        self._stopped = False
        self.on_writable: Callable[[], None] | None = None  # for a tunnel: room again
        stream.changed = self._changed
        stream.writable = self._writable

    @property
    def peer(self) -> Peer:
        return self.endpoint.peer

    # -- reading

    def reads(self, message: Any) -> None:
        """Messages are of this class from now on: fsutil's packets travel where BytesMessages are declared."""
        self._decode = message.FromString

    async def read(self) -> Any | None:
        """The next message; None at the end. Raises GrpcError: the call's status, or what broke it."""
        while True:
            raw = self._next()
            if raw is not None:
                return self.parse(raw)
            if self._stopped:
                return None
            if self._drained():
                self._at_end()
                return None
            await self._news()

    async def read_many(self) -> list[Any]:
        """All messages that are there, at least one; empty at the end. Cheaper than `read` where messages are small."""
        while True:
            found = self.read_ready()
            if found:
                return found
            if self._stopped:
                return []
            if self._drained():
                self._at_end()
                return []
            await self._news()

    async def read_framed(self, most: int) -> bytes:
        """Whole messages as they came, each with its prefix (a byte 0, its size in 4): at least one, until they are `most` bytes or
        more; empty at the end. For those who read many small ones in one go. Raises GrpcError.
        """
        while True:
            found = self._reader.framed(most)
            if found or self._stopped:
                return found
            if self._drained():
                self._at_end()
                return b""
            await self._news()

    def stop_reading(self) -> None:
        """For whoever reads, this is the end."""
        self._stopped = True
        self._changed()

    def read_ready(self) -> list[Any]:
        """What can be read without waiting."""
        raws: list[bytes] = []
        while len(raws) < _BATCH and (raw := self._next()) is not None:
            raws.append(raw)
        return [self.parse(raw) for raw in raws]

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is None:
            raise StopAsyncIteration
        return message

    def _next(self) -> bytes | None:
        return self._reader.next()

    def parse(self, raw: bytes) -> Any:
        """A message of this call's. Raises GrpcError."""
        try:
            return self._decode(raw)
        except GrpcError:
            raise
        except Exception as err:
            # protobuf's DecodeError, without importing protobuf here.
            raise GrpcError(INTERNAL, f"grpc: error unmarshalling request: {err}") from err

    def _drained(self) -> bool:
        return self.stream.finished_reading and not self.stream.inbox_bytes

    def _at_end(self) -> None:
        raise NotImplementedError

    async def _news(self) -> None:
        waiter = self.endpoint.loop.create_future()
        self._read_waiters.append(waiter)
        await waiter

    def _changed(self) -> None:
        if self._read_waiters:
            waiters, self._read_waiters = self._read_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # -- sending

    async def send(self, message: Any) -> None:
        """Queue a message; waits while the peer takes no more. Raises GrpcError once the call is over."""
        self.send_nowait(message)
        if self.stream.full:
            await self.room()

    def send_nowait(self, message: Any) -> None:
        """Queue a message without waiting, whatever is queued already: see `full`."""
        if not self.stream.open_to_write:
            raise self._cannot_send()
        self._before_first()
        self.stream.write(message if type(message) is bytes else message.SerializeToString())

    def send_framed(self, messages: bytes) -> None:
        """As `send_nowait`, messages that have their prefixes."""
        if not self.stream.open_to_write:
            raise self._cannot_send()
        self._before_first()
        self.stream.write_framed(messages)

    @property
    def full(self) -> bool:
        """Whether a writer should wait for `room`."""
        return self.stream.full

    async def room(self) -> None:
        while self.stream.full and self.stream.open_to_write:
            waiter = self.endpoint.loop.create_future()
            self._write_waiters.append(waiter)
            await waiter
        if not self.stream.open_to_write:
            raise self._cannot_send()

    def _before_first(self) -> None:
        return None

    def _cannot_send(self) -> GrpcError:
        reset = self.stream.reset
        return self.endpoint.reset_error(reset) if reset else GrpcError(INTERNAL, "the call's sending side is closed")

    def _writable(self) -> None:
        if self._write_waiters:
            waiters, self._write_waiters = self._write_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        if self.on_writable is not None:
            self.on_writable()


class ServerCall(Call):
    """What a handler gets. Its task is cancelled when the client cancels, its deadline passes or the connection is lost."""

    def __init__(
        self, endpoint: Endpoint, stream: Stream, method: str, decode: Decode, message_bytes: int, deadline: float | None
    ) -> None:
        super().__init__(endpoint, stream, decode, message_bytes)
        assert stream.headers is not None
        self.method = method
        self.metadata = decode_metadata(stream.headers)
        self.deadline = deadline  # in the loop's time
        self.task: asyncio.Task[None] | None = None
        self.timed_out = False
        self.shut_down = False
        self._initial: HeaderList = []
        self._trailing: HeaderList = []
        self._started = False

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the client's deadline; None if it set none."""
        return None if self.deadline is None else max(0.0, self.deadline - self.endpoint.loop.time())

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.stream.reset is not None

    def set_initial_metadata(self, metadata: MetadataLike) -> None:
        """Goes with the response headers, which go out with the first message, or by `send_initial_metadata`."""
        self._initial += encode_metadata(metadata)

    def set_trailing_metadata(self, metadata: MetadataLike) -> None:
        self._trailing += encode_metadata(metadata)

    def send_initial_metadata(self, metadata: MetadataLike = ()) -> None:
        """Send the response headers now."""
        self.set_initial_metadata(metadata)
        self._before_first()

    def _before_first(self) -> None:
        if not self._started:
            self._started = True
            self.endpoint.conn.send_headers(self.stream, RESPONSE + self._initial if self._initial else RESPONSE)

    def _at_end(self) -> None:
        if self.stream.reset is not None:
            raise self.endpoint.reset_error(self.stream.reset)
        if self._reader.partial:
            raise GrpcError(INTERNAL, "unexpected EOF in a message")

    def _changed(self) -> None:
        super()._changed()
        if self.stream.reset is not None and self.task is not None:
            self.task.cancel()

    def finish(self, error: GrpcError | None) -> None:
        """End the call with a status."""
        if not self.stream.open_to_write:
            return
        most = min(self.endpoint.conn.peer_header_list, 1 << 20)
        trailers = self._trailing
        if error is not None:
            trailers = trailers + _sendable(error.metadata)
        # What a handler adds may be more than the peer takes; the status may not.
        room = most - list_bytes(trailers) - 512
        if room < 1024:
            trailers, room = [], most - 512
        headers = status_headers(error, room) + trailers
        if self._started:
            self.stream.end(encode(headers))
        else:
            self._started = True
            self.endpoint.conn.send_headers(self.stream, RESPONSE + self._initial + headers, end=True)


def _sendable(metadata: Metadata) -> HeaderList:
    """Metadata that came with another call's status: what no header may have is left out."""
    out: HeaderList = []
    for item in metadata:
        try:
            out += encode_metadata([item])
        except ValueError:
            continue
    return out


__all__ = ["Call", "Decode", "ServerCall", "as_is"]
