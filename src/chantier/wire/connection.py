# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 without I/O: bytes go in by `feed`, bytes come out by `write`, streams change in between.

The same class is either end of a socket and either end of the tunnel inside Control.Session. `feed` never raises: what a
peer may not do ends the stream with RST_STREAM or the connection with GOAWAY, and `closed` says why. Any way of cutting
the input gives the same result.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Literal

from . import frames as h2
from .frames import Limits
from .headers import HeaderList, encode
from .reader import FrameReader
from .rules import Bucket, ProtocolError, StreamError, check_headers, check_request, interim, unpad
from .sender import Sender
from .stream import Reset, Stream

_MAX_SETTINGS = 64


def _ignore_stream(_stream: Stream) -> None:
    return None


def _nothing() -> None:
    return None


class Connection:
    """`write` takes bytes to send. `schedule` asks that `flush` be called soon; without it each change is flushed at once."""

    def __init__(
        self,
        role: Literal["client", "server"],
        write: Callable[[bytes], None],
        *,
        limits: Limits | None = None,
        schedule: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = role == "client"
        self.limits = limits or Limits()
        self.streams: dict[int, Stream] = {}
        self.unread = 0
        self.closed: Reset | None = None  # set once, when the connection is of no more use
        self.going: Reset | None = None  # the peer said GOAWAY: no new streams
        self.peer_streams = 100 if self.client else 0
        self.peer_header_list = 1 << 62
        self.running = 0  # handlers, kept by the layer above
        # Hooks of the layer above.
        self.on_stream: Callable[[Stream], None] = _ignore_stream
        self.on_closed: Callable[[], None] = _nothing
        self.on_ping_ack: Callable[[bytes], None] = lambda _data: None
        self.on_room: Callable[[], None] = _nothing  # a stream more may be opened, or none any more
        self.on_goaway: Callable[[], None] = _nothing

        self._sender = Sender(write, schedule, on_end=self._local_end, on_moved=self._moved)
        # A peer that has not read our SETTINGS yet goes by the defaults, so less cannot be granted.
        self._window = max(self.limits.window_bytes, h2.DEFAULT_WINDOW)
        self._total_window = max(self.limits.connection_window_bytes, h2.DEFAULT_WINDOW)
        self._recv_window = self._total_window
        self._peer_window = h2.DEFAULT_WINDOW
        self._next_id = 1
        self._last_id = 0  # of the streams the peer opened
        self._draining_to: int | None = None  # we said GOAWAY: the last stream that is served
        self._reader = FrameReader(self, self.limits, preface=not self.client)
        self._idle = Bucket(self.limits.idle_frames, self.limits.idle_frames_per_s, clock)
        self._resets = Bucket(self.limits.resets, self.limits.resets_per_s, clock)
        self._start()

    def _start(self) -> None:
        limits = self.limits
        values = {
            h2.INITIAL_WINDOW_SIZE: self._window,
            h2.MAX_FRAME_SIZE: limits.frame_bytes,
            h2.MAX_HEADER_LIST_SIZE: limits.header_list_bytes,
        }
        if self.client:
            values[h2.ENABLE_PUSH] = 0
            self._sender.add(h2.PREFACE)
        else:
            values[h2.MAX_CONCURRENT_STREAMS] = limits.streams
        more = self._total_window - h2.DEFAULT_WINDOW
        self._sender.add(h2.settings(values))
        if more > 0:
            self._sender.add(h2.window_update(0, more))
        self._sender.wake()

    # -- what the layer above does

    @property
    def active(self) -> int:
        """Streams that take resources: those that are open, and those whose handler still runs."""
        return max(len(self.streams), self.running)

    @property
    def usable(self) -> bool:
        """Whether a client may open streams at all."""
        return self.closed is None and self.going is None and self._draining_to is None and self._next_id < h2.MAX_STREAM_ID

    @property
    def room(self) -> bool:
        """Whether the peer allows one stream more right now."""
        return len(self.streams) < self.peer_streams

    def open(self, headers: HeaderList, *, end: bool = False) -> Stream:
        """A new stream of a client. Check `usable` and `room` before."""
        stream = Stream(self, self._next_id, self._window, self._peer_window)
        self._next_id += 2
        self.streams[stream.id] = stream
        self.send_headers(stream, headers, end=end)
        return stream

    def send_headers(self, stream: Stream, headers: HeaderList, *, end: bool = False) -> None:
        """Headers that come before all data of this side."""
        if stream.reset is not None or stream.local_closed:
            return
        self._sender.block(stream.id, encode(headers), end=end)
        if end:
            stream.out_end = []
            self._local_end(stream)
        self._sender.wake()

    def reset_stream(self, stream: Stream, code: int, reason: str = "") -> None:
        """End a stream now; what is queued for it is dropped."""
        if stream.reset is None and self.streams.get(stream.id) is stream:
            self._sender.control(h2.rst_stream(stream.id, code))
            self._forget(stream, Reset(code, False, reason))
            self._sender.wake()

    def ping(self, data: bytes) -> None:
        self._sender.control(h2.frame(h2.PING, 0, 0, data))
        self._sender.wake()

    def drain(self, *, final: bool) -> None:
        """Say GOAWAY. First with final=False, which only asks the peer to open no more; streams in flight are served."""
        if self.closed is None:
            last = self._last_id if final else h2.MAX_STREAM_ID
            self._draining_to = last if final else self._draining_to
            self._sender.control(h2.goaway(last, h2.NO_ERROR))
            self._sender.wake()

    def close(self, code: int = h2.NO_ERROR, reason: str = "", *, by_peer: bool = False) -> None:
        """The connection is over: say so, end all streams, write what is left to write."""
        if self.closed is not None:
            return
        if not by_peer:
            self._sender.add(h2.goaway(self._last_id, code, reason))
        self.closed = Reset(code, by_peer, reason)
        for stream in list(self.streams.values()):
            stream.reset = Reset(code, by_peer, reason)
            self._sender.drop(stream)
            stream.changed()
            stream.writable()
        self.streams.clear()
        self._reader.stopped = True
        self._sender.paused = False
        self.flush()
        self.on_closed()
        self.on_room()

    # -- writing

    def ready_to_send(self, stream: Stream) -> None:
        self._sender.ready(stream)

    def flush(self) -> None:
        """Write what may be written now."""
        self._sender.flush()

    @property
    def paused(self) -> bool:
        return self._sender.paused

    def pause(self) -> None:
        """The carrier is full: hold back data until `resume`."""
        self._sender.paused = True

    def resume(self) -> None:
        if self._sender.paused:
            self._sender.paused = False
            self._sender.flush()

    def _moved(self, size: int) -> None:
        if self._idle.level:  # what we send is answered with WINDOW_UPDATE, and by some with PING
            self._idle.relieve(4 + size // 4096)

    def _local_end(self, stream: Stream) -> None:
        stream.local_closed = True
        if stream.remote_closed:
            self._gone(stream)
        elif not self.client:
            # All is said: the rest of the request is not needed (RFC 9113 8.1).
            self._sender.add(h2.rst_stream(stream.id, h2.NO_ERROR))
            stream.remote_closed = True
            self._gone(stream)
            stream.changed()

    def _gone(self, stream: Stream) -> None:
        """Both sides have ended it."""
        if self.streams.pop(stream.id, None) is not None:
            self._resets.relieve(1)
            stream.writable()
            self.on_room()

    def _forget(self, stream: Stream, why: Reset) -> None:
        """It ended before its time. Headers and data that came before stay readable."""
        if self.streams.pop(stream.id, None) is None:
            return
        stream.reset = why
        self._sender.drop(stream)
        stream.changed()
        stream.writable()
        self.on_room()

    # -- windows for the peer

    def consumed(self, stream: Stream, size: int) -> None:
        self.unread -= size
        if self.closed is not None:
            return
        self._grant()
        if stream.remote_closed or stream.reset is not None:
            return
        more = self._window - stream.unread - stream.recv_window
        if more >= self._window >> 2:
            stream.recv_window += more
            self._sender.control(h2.window_update(stream.id, more))
            self._sender.wake()

    def _grant(self) -> None:
        """Let the peer send again over the connection what was consumed."""
        more = self._total_window - self.unread - self._recv_window
        if more >= self._total_window >> 2:
            self._recv_window += more
            self._sender.control(h2.window_update(0, more))
            self._sender.wake()

    # -- reading

    @property
    def received_frames(self) -> int:
        return self._reader.frames

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer, as many or few as there are."""
        if self.closed is not None:
            return
        try:
            whole = self._reader.feed(data)
        except ProtocolError as err:
            self.close(err.code, err.reason)
            return
        if whole and self._sender.control_bytes:
            if self._sender.control_bytes > self.limits.queued_control_bytes:
                self.close(h2.ENHANCE_YOUR_CALM, "too many answers are not read")
                return
            self._sender.wake()

    def on_frame(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        handler = _HANDLERS.get(kind)
        if handler is None:  # RFC 9113 5.5: frames of unknown types are ignored
            self.on_nothing()
            return
        handler(self, flags, id, payload)

    def on_nothing(self) -> None:
        if not self._idle.add():
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "too many frames that move nothing")

    def on_data(self, flags: int, id: int, payload: bytes) -> None:
        length = len(payload)
        self._recv_window -= length
        if self._recv_window < 0:
            raise ProtocolError(h2.FLOW_CONTROL_ERROR, "more data than the connection's window allows")
        stream = self.streams.get(id)
        if stream is None or stream.remote_closed:
            self._data_for_nobody(id, length, stream)
            return
        stream.recv_window -= length
        if stream.recv_window < 0:
            self._fail_stream(stream, h2.FLOW_CONTROL_ERROR, "more data than the stream's window allows")
            return
        if flags & h2.PADDED:
            payload = unpad(payload)
        if payload:
            stream.deliver(payload)
            if self._idle.level:
                self._idle.relieve(4)
        elif not flags & h2.END_STREAM:
            self.on_nothing()
        if length != len(payload):
            self.consumed(stream, 0)
        if flags & h2.END_STREAM:
            self._remote_end(stream)
        stream.changed()

    def on_run(self, id: int, payloads: list[bytes]) -> None:
        stream = self.streams.get(id)
        size = sum(map(len, payloads))
        if stream is None or stream.remote_closed or size > min(self._recv_window, stream.recv_window):
            for payload in payloads:
                self.on_data(0, id, payload)
            return
        self._recv_window -= size
        stream.recv_window -= size
        stream.deliver(payloads[0] if len(payloads) == 1 else b"".join(payloads))
        if self._idle.level:
            self._idle.relieve(4 * len(payloads))
        stream.changed()

    def _data_for_nobody(self, id: int, length: int, stream: Stream | None) -> None:
        if id == 0 or self._is_idle(id):
            raise ProtocolError(h2.PROTOCOL_ERROR, f"data for stream {id}, which was never opened")
        if stream is not None:
            self._fail_stream(stream, h2.STREAM_CLOSED, "data after the end")
        elif not length:
            self.on_nothing()
        self._grant()  # what was on its way to a stream that is gone still counts against the connection

    def _is_idle(self, id: int) -> bool:
        ours = bool(id & 1) == self.client
        return id >= self._next_id if ours else id > self._last_id

    def _remote_end(self, stream: Stream) -> None:
        stream.remote_closed = True
        if stream.local_closed:
            self._gone(stream)
        elif self.client and stream.trailers is not None:
            # The answer is complete: what we still would send is not wanted.
            self._sender.add(h2.rst_stream(stream.id, h2.NO_ERROR))
            stream.drop_output()
            stream.out_end = []
            stream.local_closed = True
            self._gone(stream)
            self._sender.wake()

    def _fail_stream(self, stream: Stream, code: int, reason: str) -> None:
        if not self._resets.add():
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "too many broken streams")
        self._sender.control(h2.rst_stream(stream.id, code))
        self._forget(stream, Reset(code, False, reason))

    # -- headers

    def on_headers(self, id: int, headers: HeaderList, end: bool) -> None:
        self._idle.relieve(4)
        stream = self.streams.get(id)
        if stream is None and not self.client:
            stream = self._accept(id)
        if stream is None:
            if self.client and self._is_idle(id):
                raise ProtocolError(h2.PROTOCOL_ERROR, f"HEADERS for stream {id}, which was never opened")
            return
        try:
            self._take_headers(stream, headers, end=end)
        except StreamError as err:
            self._fail_stream(stream, err.code, err.reason)

    def _accept(self, id: int) -> Stream | None:
        if id & 1 == 0:
            raise ProtocolError(h2.PROTOCOL_ERROR, f"a client opened stream {id}")
        if id <= self._last_id:  # of a stream that is gone
            self.on_nothing()
            return None
        if self._draining_to is not None and id > self._draining_to:
            return None
        self._last_id = id
        if self.active >= self.limits.streams:
            if not self._resets.add():
                raise ProtocolError(h2.ENHANCE_YOUR_CALM, "too many streams")
            self._sender.control(h2.rst_stream(id, h2.REFUSED_STREAM))
            return None
        stream = Stream(self, id, self._window, self._peer_window)
        self.streams[id] = stream
        return stream

    def _take_headers(self, stream: Stream, headers: HeaderList, *, end: bool) -> None:
        if stream.remote_closed:
            raise StreamError(h2.STREAM_CLOSED, "headers after the end")
        first = stream.headers is None
        check_headers(headers, trailers=not first)
        if not first and not end:
            raise StreamError(h2.PROTOCOL_ERROR, "headers in the middle of a stream")
        if first and self.client and interim(headers):
            if end:
                raise StreamError(h2.PROTOCOL_ERROR, "an interim response that ends the stream")
            self.on_nothing()
            return
        if first:
            stream.headers = headers
            if end and self.client:
                stream.trailers = headers  # Trailers-Only
        else:
            stream.trailers = headers
        if end:
            self._remote_end(stream)
        if first and not self.client:
            check_request(headers)
            self.on_stream(stream)
        else:
            stream.changed()

    # -- other frames

    def _on_priority(self, flags: int, id: int, payload: bytes) -> None:
        if id == 0:
            raise ProtocolError(h2.PROTOCOL_ERROR, "PRIORITY for stream 0")
        if len(payload) != 5:
            raise ProtocolError(h2.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")
        self.on_nothing()

    def _on_rst_stream(self, flags: int, id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(h2.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        if id == 0 or self._is_idle(id):
            raise ProtocolError(h2.PROTOCOL_ERROR, f"RST_STREAM for stream {id}, which was never opened")
        stream = self.streams.get(id)
        if stream is None:
            self.on_nothing()
            return
        # CVE-2023-44487: streams opened only to be reset.
        if not self.client and not self._resets.add():
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "too many streams are reset")
        code = int.from_bytes(payload, "big")
        self._forget(stream, Reset(code, True, refused=code == h2.REFUSED_STREAM))

    def _on_settings(self, flags: int, id: int, payload: bytes) -> None:
        if id:
            raise ProtocolError(h2.PROTOCOL_ERROR, "SETTINGS for a stream")
        self.on_nothing()
        if flags & h2.ACK:
            if payload:
                raise ProtocolError(h2.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            return
        if len(payload) % 6:
            raise ProtocolError(h2.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        if len(payload) > 6 * _MAX_SETTINGS:
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "too many settings")
        for key, value in struct.iter_unpack(">HI", payload):
            self._setting(key, value)
        self._sender.control(h2.frame(h2.SETTINGS, h2.ACK, 0))

    def _setting(self, key: int, value: int) -> None:
        if key == h2.INITIAL_WINDOW_SIZE:
            if value > h2.MAX_WINDOW:
                raise ProtocolError(h2.FLOW_CONTROL_ERROR, "initial window too large")
            delta, self._peer_window = value - self._peer_window, value
            for stream in self.streams.values():
                stream.send_window += delta
                if stream.send_window > h2.MAX_WINDOW:
                    raise ProtocolError(h2.FLOW_CONTROL_ERROR, "stream window too large")
                if delta > 0:
                    self._sender.widened(stream)
            self._sender.wake()
        elif key == h2.MAX_FRAME_SIZE:
            if not h2.DEFAULT_FRAME <= value < 1 << 24:
                raise ProtocolError(h2.PROTOCOL_ERROR, f"frame size {value} out of range")
            self._sender.peer_frame = value
        elif key == h2.ENABLE_PUSH:
            if value > 1 or (self.client and value):
                raise ProtocolError(h2.PROTOCOL_ERROR, "bad value of ENABLE_PUSH")
        elif key == h2.MAX_CONCURRENT_STREAMS:
            self.peer_streams = value
            self.on_room()
        elif key == h2.MAX_HEADER_LIST_SIZE:
            self.peer_header_list = value

    def _on_push_promise(self, flags: int, id: int, payload: bytes) -> None:
        raise ProtocolError(h2.PROTOCOL_ERROR, "PUSH_PROMISE is not allowed")

    def _on_ping(self, flags: int, id: int, payload: bytes) -> None:
        if id:
            raise ProtocolError(h2.PROTOCOL_ERROR, "PING for a stream")
        if len(payload) != 8:
            raise ProtocolError(h2.FRAME_SIZE_ERROR, "PING of a wrong size")
        self.on_nothing()
        if flags & h2.ACK:
            self.on_ping_ack(payload)
            return
        self._sender.control(h2.frame(h2.PING, h2.ACK, 0, payload))

    def _on_goaway(self, flags: int, id: int, payload: bytes) -> None:
        if id:
            raise ProtocolError(h2.PROTOCOL_ERROR, "GOAWAY for a stream")
        if len(payload) < 8:
            raise ProtocolError(h2.FRAME_SIZE_ERROR, "GOAWAY of a wrong size")
        self.on_nothing()
        last, code = struct.unpack_from(">II", payload)
        last &= h2.MAX_STREAM_ID
        reason = payload[8:1032].decode("utf-8", "replace")
        self.going = Reset(code, True, reason or f"the peer is going away ({h2.error_name(code)})")
        if self.client:
            for stream in [s for s in self.streams.values() if s.id > last]:
                self._forget(stream, Reset(h2.REFUSED_STREAM, True, self.going.reason, refused=True))
        self.on_goaway()
        self.on_room()

    def _on_window_update(self, flags: int, id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(h2.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        more = int.from_bytes(payload, "big") & h2.MAX_WINDOW
        if id == 0:
            if more == 0:
                raise ProtocolError(h2.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            if self._sender.window + more > h2.MAX_WINDOW:
                raise ProtocolError(h2.FLOW_CONTROL_ERROR, "connection window too large")
            if not self._sender.widen(more):
                self.on_nothing()
            return
        stream = self.streams.get(id)
        if stream is None:
            if self._is_idle(id):
                raise ProtocolError(h2.PROTOCOL_ERROR, f"WINDOW_UPDATE for stream {id}, which was never opened")
            self.on_nothing()
            return
        if more == 0:
            self._fail_stream(stream, h2.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            return
        stream.send_window += more
        if stream.send_window > h2.MAX_WINDOW:
            self._fail_stream(stream, h2.FLOW_CONTROL_ERROR, "stream window too large")
        elif stream.out_bytes:
            self._sender.widened(stream)
            self._sender.wake()
        else:
            self.on_nothing()


_HANDLERS: dict[int, Callable[[Connection, int, int, bytes], None]] = {
    h2.PRIORITY: Connection._on_priority,
    h2.RST_STREAM: Connection._on_rst_stream,
    h2.SETTINGS: Connection._on_settings,
    h2.PUSH_PROMISE: Connection._on_push_promise,
    h2.PING: Connection._on_ping,
    h2.GOAWAY: Connection._on_goaway,
    h2.WINDOW_UPDATE: Connection._on_window_update,
}


__all__ = ["Connection", "Reset", "Stream"]
