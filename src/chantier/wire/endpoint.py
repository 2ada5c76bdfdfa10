# SPDX-License-Identifier: Apache-2.0
"""A Connection in an event loop: when it is flushed, when its peer counts as gone, and how it hangs on a carrier of bytes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Literal, Protocol

from chantier.values import dataclass

from . import frames as h2
from .connection import Connection
from .frames import Limits
from .status import CANCELLED, INTERNAL, PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNAVAILABLE, GrpcError
from .stream import Reset, Stream

_log = logging.getLogger(__name__)
_PREFACE_S = 20.0
_HIGH_WATER = 512 << 10
_LAST_WORDS_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """After `interval_s` without a byte from the peer it is asked for one; after `timeout_s` more it counts as gone."""

    interval_s: float = 10.0
    timeout_s: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end. `uid` and `pid` of a unix socket's peer, `names` of a TLS client certificate's subject."""

    address: str = ""
    uid: int | None = None
    pid: int | None = None
    names: tuple[str, ...] = ()


class ByteStream(Protocol):
    """Bytes both ways. `read` gives b"" at the end; both may raise OSError or a ChantierError."""

    async def read(self) -> bytes: ...
    async def write(self, data: bytes, /) -> None: ...
    async def close(self) -> None: ...


class Endpoint:
    """One end of a connection. A carrier calls `feed`, `lost`, `pause`, `resume`; all in the loop's thread."""

    def __init__(
        self,
        role: Literal["client", "server"],
        write: Callable[[bytes], None],
        hang_up: Callable[[], None],
        *,
        name: str = "the peer",
        peer: Peer | None = None,
        limits: Limits | None = None,
        keepalive: Keepalive | None = None,
        on_stream: Callable[[Endpoint, Stream], None] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.name = name
        self.peer = peer or Peer()
        self.closed: asyncio.Future[None] = self.loop.create_future()  # done when the connection is over
        self.last_heard = self.loop.time()
        self.opened_at = self.last_heard
        self._hang_up = hang_up
        self._lost = False
        self._room: list[asyncio.Future[None]] = []
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        self._ping_count = 0
        self._keepalive = keepalive
        self._asked_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write = write
        self.conn = Connection(role, self._send, limits=limits, schedule=self._schedule)
        self.conn.on_closed = self._on_closed
        self.conn.on_ping_ack = self._on_ping_ack
        self.conn.on_room = self._on_room
        if on_stream is not None:
            self.conn.on_stream = lambda stream: on_stream(self, stream)
        if keepalive is not None:
            self._timer = self.loop.call_later(keepalive.interval_s, self._tick)
        self._preface = None if self.conn.client else self.loop.call_later(_PREFACE_S, self._expect_preface)

    # -- what a carrier calls

    def feed(self, data: bytes) -> None:
        self.last_heard = self.loop.time()
        self.conn.feed(data)

    def pause(self) -> None:
        self.conn.pause()

    def resume(self) -> None:
        self.conn.resume()

    def lost(self, reason: str) -> None:
        """The carrier brings no more bytes."""
        self._lost = True
        self.conn.close(h2.NO_ERROR, reason, by_peer=True)

    # -- what others call

    @property
    def usable(self) -> bool:
        return self.conn.usable

    def fail(self, reason: str, code: int = h2.NO_ERROR) -> None:
        """End the connection now; calls in flight fail with UNAVAILABLE and the reason."""
        self.conn.close(code, reason)

    async def room(self) -> bool:
        """Wait until the peer allows one stream more; False if the connection takes no more at all."""
        while self.conn.usable and not self.conn.room:
            waiter = self.loop.create_future()
            self._room.append(waiter)
            await waiter
        return self.conn.usable

    async def ping(self, timeout_s: float = 10.0) -> float:
        """Seconds a round takes. Raises TimeoutError, or GrpcError if the connection is over."""
        if self.conn.closed is not None:
            raise self.gone()
        self._ping_count += 1
        data = struct.pack(">Q", self._ping_count)
        waiter = self._pings[data] = self.loop.create_future()
        start = self.loop.time()
        try:
            self.conn.ping(data)
            async with asyncio.timeout(timeout_s):
                await waiter
        finally:
            self._pings.pop(data, None)
        return self.loop.time() - start

    async def drain(self, grace_s: float = 5.0) -> None:
        """Let streams in flight end, for at most that long; then close."""
        conn = self.conn
        try:
            async with asyncio.timeout(grace_s):
                if not conn.client:
                    conn.drain(final=False)
                    try:
                        await self.ping(1.0)  # what the peer opened before it read this has arrived then
                    except (TimeoutError, GrpcError):
                        pass
                conn.drain(final=True)
                while conn.closed is None and (conn.streams or conn.running):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pass
        self.fail("the connection is closing")

    def gone(self) -> GrpcError:
        """The error of calls on a connection that is over."""
        closed = self.conn.closed or self.conn.going
        reason = closed.reason if closed is not None else ""
        return GrpcError(UNAVAILABLE, f"connection to {self.name} ended: {reason or 'closed'}")

    def reset_error(self, reset: Reset) -> GrpcError:
        """What a stream that ended before its time means."""
        if self.conn.closed is not None and reset == self.conn.closed:
            return self.gone()
        if not reset.by_peer:
            code = CANCELLED if reset.code == h2.CANCEL else INTERNAL
            return GrpcError(code, reset.reason or "context canceled")
        if reset.refused:
            return GrpcError(UNAVAILABLE, reset.reason or f"{self.name} refused the call")
        code = _CODE_OF_RESET.get(reset.code, INTERNAL)
        return GrpcError(code, f"stream terminated by RST_STREAM with error code: {h2.error_name(reset.code)}")

    # -- inside

    def _schedule(self) -> None:
        self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.conn.flush()

    def _send(self, data: bytes) -> None:
        if not self._lost:
            self._write(data)

    def _on_closed(self) -> None:
        for timer in (self._timer, self._preface):
            if timer is not None:
                timer.cancel()
        for waiter in list(self._pings.values()):
            if not waiter.done():
                waiter.set_exception(self.gone())
        if not self._lost:
            self._hang_up()
        if not self.closed.done():
            self.closed.set_result(None)

    def _on_room(self) -> None:
        waiters, self._room = self._room, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _on_ping_ack(self, data: bytes) -> None:
        waiter = self._pings.get(data)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _tick(self) -> None:
        keepalive = self._keepalive
        assert keepalive is not None
        now = self.loop.time()
        silent = now - self.last_heard
        if self._asked_at is not None and self._asked_at > self.last_heard:
            wait = self._asked_at + keepalive.timeout_s - now
            if wait <= 0:
                self.fail(f"no answer for {silent:.0f} s")
                return
        elif silent >= keepalive.interval_s:
            self._asked_at = now
            self.conn.ping(b"keepaliv")
            wait = keepalive.timeout_s
        else:
            wait = keepalive.interval_s - silent
        self._timer = self.loop.call_later(max(wait, 0.01), self._tick)

    def _expect_preface(self) -> None:
        if not self.conn.received_frames:
            self.fail("the client does not speak HTTP/2")


_CODE_OF_RESET = {
    h2.CANCEL: CANCELLED,
    h2.REFUSED_STREAM: UNAVAILABLE,
    h2.ENHANCE_YOUR_CALM: RESOURCE_EXHAUSTED,
    h2.INADEQUATE_SECURITY: PERMISSION_DENIED,
}


class SocketCarrier(asyncio.Protocol):
    """A socket's bytes into an Endpoint, which is made once the socket is connected."""

    def __init__(self, make: Callable[[Callable[[bytes], None], Callable[[], None], Peer], Endpoint]) -> None:
        self._make = make
        self._transport: asyncio.Transport | None = None
        self._abort: asyncio.TimerHandle | None = None
        self.endpoint: Endpoint | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            notice_dead_peers(sock)
        self.endpoint = self._make(transport.write, self._hang_up, _peer_of(transport))

    def _hang_up(self) -> None:
        """Let the last words go out, but do not wait long for a peer that does not read them."""
        transport = self._transport
        if transport is not None:
            transport.close()
            self._abort = asyncio.get_running_loop().call_later(_LAST_WORDS_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        assert self.endpoint is not None
        self.endpoint.feed(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._abort is not None:
            self._abort.cancel()
        if self.endpoint is not None:
            reason = getattr(exc, "strerror", None) or (str(exc) if exc else "the other side closed it")
            self.endpoint.lost(reason[:1].lower() + reason[1:])

    def pause_writing(self) -> None:
        if self.endpoint is not None:
            self.endpoint.pause()

    def resume_writing(self) -> None:
        if self.endpoint is not None:
            self.endpoint.resume()


def notice_dead_peers(sock: Any) -> None:
    """Let the kernel find out in seconds that the machine at the other end is gone (tcp(7))."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
    except OSError:  # no TCP socket, such as vsock
        _log.debug("no keepalive on this socket", exc_info=True)


def _peer_of(transport: asyncio.Transport) -> Peer:
    sock = transport.get_extra_info("socket")
    address = transport.get_extra_info("peername")
    if sock is not None and sock.family == socket.AF_UNIX:
        pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(address=f"unix:pid={pid},uid={uid}", uid=uid, pid=pid)
    text = f"{address[0]}:{address[1]}" if isinstance(address, tuple) and len(address) >= 2 else os.fsdecode(address or "")
    certificate = transport.get_extra_info("peercert") or {}
    names = tuple(value for rdn in certificate.get("subject", ()) for key, value in rdn if key == "commonName")
    return Peer(address=text, names=names)


class StreamCarrier:
    """A ByteStream's bytes into an Endpoint: standard streams of a process, an upgraded HTTP connection, a pipe."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._queue: list[bytes] = []
        self._queued = 0
        self._news = asyncio.Event()
        self._hung_up = False
        self.endpoint: Endpoint | None = None

    def write(self, data: bytes) -> None:
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > _HIGH_WATER and self.endpoint is not None:
            self.endpoint.pause()
        self._news.set()

    def hang_up(self) -> None:
        self._hung_up = True
        self._news.set()

    async def run(self) -> None:
        """Until the connection is over. Cancelling it ends the connection."""
        assert self.endpoint is not None
        writer = asyncio.create_task(self._pump_out())
        reader = asyncio.create_task(self._pump_in())
        try:
            await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
            if not writer.done() and self._hung_up:
                await asyncio.wait((writer,), timeout=5)
        finally:
            self.endpoint.lost("the stream ended")
            for task in (writer, reader):
                task.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)
            await self._stream.close()

    async def _pump_out(self) -> None:
        endpoint = self.endpoint
        assert endpoint is not None
        while True:
            await self._news.wait()
            self._news.clear()
            while self._queue:
                data = b"".join(self._queue)
                self._queue.clear()
                self._queued = 0
                try:
                    await self._stream.write(data)
                except Exception as err:  # whatever the stream is made of: it is broken
                    endpoint.lost(str(err) or type(err).__name__)
                    return
                endpoint.resume()
            if self._hung_up:
                return

    async def _pump_in(self) -> None:
        endpoint = self.endpoint
        assert endpoint is not None
        reason = "the other side closed it"
        try:
            while data := await self._stream.read():
                endpoint.feed(data)
        except Exception as err:  # as above
            reason = str(err) or type(err).__name__
        endpoint.lost(reason)


__all__ = ["ByteStream", "Endpoint", "Keepalive", "Peer", "SocketCarrier", "StreamCarrier", "notice_dead_peers"]
