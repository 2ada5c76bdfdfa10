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

from hpack import Decoder
from hpack.exceptions import OversizedHeaderListError

from . import frames as h2
from .frames import Limits
from .headers import TABLE_SIZE_ZERO, HeaderList, encode
from .stream import Reset, Stream

_HEADER = h2.HEADER
_FLUSH_BYTES = 65_536
_QUANTUM = 65_536  # of one stream, before others have their turn
_MAX_SETTINGS = 64
_MAX_FRAGMENTS = 512  # CONTINUATION frames of one block; 1 MiB needs 64


class ProtocolError(Exception):
    """The peer broke the protocol: the connection ends with `code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamError(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Bucket:
    """Allows `burst` at once and `rate` a second for long."""

    __slots__ = ("_burst", "_clock", "_rate", "_then", "level")

    def __init__(self, burst: int, rate: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._then = clock()
        self.level = 0.0

    def add(self, amount: int = 1) -> bool:
        """False once there is too much."""
        self.level += amount
        if self.level > self._burst:
            now = self._clock()
            self.level = max(0.0, self.level - (now - self._then) * self._rate)
            self._then = now
        return self.level <= self._burst

    def relieve(self, amount: int) -> None:
        if self.level:
            self.level = max(0.0, self.level - amount)


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
        self.paused = False
        self.closed: Reset | None = None  # set once, when the connection is of no more use
        self.going: Reset | None = None  # the peer said GOAWAY: no new streams
        self.peer_streams = 100 if self.client else 0
        self.peer_header_list = 1 << 62
        self.received_frames = 0
        self.running = 0  # handlers, kept by the layer above
        # Hooks of the layer above.
        self.on_stream: Callable[[Stream], None] = _ignore_stream
        self.on_closed: Callable[[], None] = _nothing
        self.on_ping_ack: Callable[[bytes], None] = lambda _data: None
        self.on_room: Callable[[], None] = _nothing  # a stream more may be opened, or none any more
        self.on_goaway: Callable[[], None] = _nothing

        self._write = write
        self._schedule = schedule
        self._scheduled = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._control_bytes = 0
        self._ready: dict[Stream, None] = {}  # streams with something to send, in turn
        self._starved: dict[Stream, None] = {}  # those that wait for the connection's window
        self._send_window = h2.DEFAULT_WINDOW
        # A peer that has not read our SETTINGS yet goes by the defaults, so less cannot be granted.
        self._window = max(self.limits.window_bytes, h2.DEFAULT_WINDOW)
        self._total_window = max(self.limits.connection_window_bytes, h2.DEFAULT_WINDOW)
        self._recv_window = self._total_window
        self._peer_window = h2.DEFAULT_WINDOW
        self._peer_frame = h2.DEFAULT_FRAME
        self._next_id = 1
        self._last_id = 0  # of the streams the peer opened
        self._draining_to: int | None = None  # we said GOAWAY: the last stream that is served
        self._first_block = True
        self._decoder = Decoder(self.limits.header_list_bytes)
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = h2.HEADER_SIZE if self.client else len(h2.PREFACE)
        self._preface_due = not self.client
        self._settings_due = True
        self._block: list[bytes] | None = None  # fragments of a header block that goes on
        self._block_bytes = 0
        self._block_head = (0, 0)
        self._idle = _Bucket(self.limits.idle_frames, self.limits.idle_frames_per_s, clock)
        self._resets = _Bucket(self.limits.resets, self.limits.resets_per_s, clock)
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
            self._out.append(h2.PREFACE)
        else:
            values[h2.MAX_CONCURRENT_STREAMS] = limits.streams
        more = self._total_window - h2.DEFAULT_WINDOW
        self._out.append(h2.settings(values))
        if more > 0:
            self._out.append(h2.window_update(0, more))
        self._wake()

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
        self._emit_block(stream.id, encode(headers), end=end)
        if end:
            stream.out_end = []
            self._local_end(stream)
        self._wake()

    def reset_stream(self, stream: Stream, code: int, reason: str = "") -> None:
        """End a stream now; what is queued for it is dropped."""
        if stream.reset is None and self.streams.get(stream.id) is stream:
            self._control(h2.rst_stream(stream.id, code))
            self._forget(stream, Reset(code, False, reason))
            self._wake()

    def ping(self, data: bytes) -> None:
        self._control(h2.frame(h2.PING, 0, 0, data))
        self._wake()

    def drain(self, *, final: bool) -> None:
        """Say GOAWAY. First with final=False, which only asks the peer to open no more; streams in flight are served."""
        if self.closed is None:
            last = self._last_id if final else h2.MAX_STREAM_ID
            self._draining_to = last if final else self._draining_to
            self._control(h2.goaway(last, h2.NO_ERROR))
            self._wake()

    def close(self, code: int = h2.NO_ERROR, reason: str = "", *, by_peer: bool = False) -> None:
        """The connection is over: say so, end all streams, write what is left to write."""
        if self.closed is not None:
            return
        if not by_peer:
            self._out.append(h2.goaway(self._last_id, code, reason))
        self.closed = Reset(code, by_peer, reason)
        for stream in list(self.streams.values()):
            stream.reset = Reset(code, by_peer, reason)
            stream.drop_output()
            stream.changed()
            stream.writable()
        self.streams.clear()
        self._ready.clear()
        self._starved.clear()
        self.paused = False
        self.flush()
        self.on_closed()
        self.on_room()

    # -- writing

    def _wake(self) -> None:
        if self._scheduled:
            return
        if self._schedule is None:
            self.flush()
        else:
            self._scheduled = True
            self._schedule()

    def _ready_to_send(self, stream: Stream) -> None:
        self._ready[stream] = None
        if stream.out_bytes >= _FLUSH_BYTES and not self.paused:
            self.flush()
        elif not self._scheduled:
            self._wake()

    def _control(self, data: bytes) -> None:
        self._out.append(data)
        self._control_bytes += len(data)

    def flush(self) -> None:
        """Write what may be written now."""
        self._scheduled = False
        while True:
            moved = bool(self._ready) and not self.paused and self._fill()
            out = self._out
            if not out:
                return
            self._out, self._control_bytes = [], 0
            self._write(out[0] if len(out) == 1 else b"".join(out))
            if not moved:
                return

    def pause(self) -> None:
        """The carrier is full: hold back data until `resume`."""
        self.paused = True

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.flush()

    def _fill(self) -> bool:
        """One turn of each stream that has something to send; False if none could."""
        moved = False
        ready, self._ready = self._ready, {}
        for stream in ready:
            if stream.reset is None and not stream.local_closed:
                moved |= self._emit(stream)
        return moved

    def _emit(self, stream: Stream) -> bool:
        moved = False
        if stream.out_bytes:
            amount = min(stream.out_bytes, stream.send_window, self._send_window, _QUANTUM)
            if amount <= 0:
                if stream.send_window > 0:
                    self._starved[stream] = None
                return False
            was_full = stream.full
            data = stream.take(amount)
            stream.send_window -= amount
            self._send_window -= amount
            last = stream.out_bytes == 0 and stream.out_end == []
            self._emit_data(stream.id, data, last)
            if self._idle.level:  # what we send is answered with WINDOW_UPDATE, and by some with PING
                self._idle.relieve(4 + amount // 4096)
            moved = True
            if last:
                self._local_end(stream)
            elif stream.out_bytes:
                self._ready[stream] = None
            if was_full and not stream.full:
                stream.writable()
            if last:
                return True
        if stream.out_bytes == 0 and stream.out_end is not None:
            if stream.out_end:
                self._emit_block(stream.id, stream.out_end[0], end=True)
            else:
                self._out.append(h2.header(0, h2.DATA, h2.END_STREAM, stream.id))
            self._local_end(stream)
            moved = True
        return moved

    def _emit_data(self, id: int, data: bytes, end: bool) -> None:
        out, most, size = self._out, self._peer_frame, len(data)
        if size <= most:
            out.append(_HEADER.pack(size >> 8, size & 0xFF, h2.DATA, h2.END_STREAM if end else 0, id))
            out.append(data)
            return
        view = memoryview(data)
        for at in range(0, size, most):
            part = view[at : at + most]
            flags = h2.END_STREAM if end and at + most >= size else 0
            out.append(h2.header(len(part), h2.DATA, flags, id))
            out.append(part)  # type: ignore[arg-type]  # joined in flush, or never alone

    def _emit_block(self, id: int, block: bytes, *, end: bool) -> None:
        if self._first_block:
            self._first_block = False
            block = TABLE_SIZE_ZERO + block
        most = self._peer_frame
        flags = h2.END_STREAM if end else 0
        if len(block) <= most:
            self._out.append(h2.frame(h2.HEADERS, flags | h2.END_HEADERS, id, block))
            return
        self._out.append(h2.frame(h2.HEADERS, flags, id, block[:most]))
        for at in range(most, len(block), most):
            last = at + most >= len(block)
            self._out.append(h2.frame(h2.CONTINUATION, h2.END_HEADERS if last else 0, id, block[at : at + most]))

    def _local_end(self, stream: Stream) -> None:
        stream.local_closed = True
        if stream.remote_closed:
            self._gone(stream)
        elif not self.client:
            # All is said: the rest of the request is not needed (RFC 9113 8.1).
            self._out.append(h2.rst_stream(stream.id, h2.NO_ERROR))
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
        stream.drop_output()
        self._ready.pop(stream, None)
        self._starved.pop(stream, None)
        stream.changed()
        stream.writable()
        self.on_room()

    # -- windows for the peer

    def _consumed(self, stream: Stream, size: int) -> None:
        self.unread -= size
        if self.closed is not None:
            return
        self._grant()
        if stream.remote_closed or stream.reset is not None:
            return
        more = self._window - stream.unread - stream.recv_window
        if more >= self._window >> 2:
            stream.recv_window += more
            self._control(h2.window_update(stream.id, more))
            self._wake()

    def _grant(self) -> None:
        """Let the peer send again over the connection what was consumed."""
        more = self._total_window - self.unread - self._recv_window
        if more >= self._total_window >> 2:
            self._recv_window += more
            self._control(h2.window_update(0, more))
            self._wake()

    # -- reading

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer, as many or few as there are."""
        if self.closed is not None:
            return
        if self._have:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._chunks)
        at = 0
        try:
            at = self._parse(data)
        except ProtocolError as err:
            self.close(err.code, err.reason)
            return
        rest = data[at:] if at else data
        self._chunks = [rest] if rest else []
        self._have = len(rest)
        if self._control_bytes:
            if self._control_bytes > self.limits.queued_control_bytes:
                self.close(h2.ENHANCE_YOUR_CALM, "too many answers are not read")
                return
            self._wake()

    def _parse(self, data: bytes) -> int:
        at = 0
        size = len(data)
        if self._preface_due:
            if data[: len(h2.PREFACE)] != h2.PREFACE[:size]:
                raise ProtocolError(h2.PROTOCOL_ERROR, "no HTTP/2 preface")
            if size < len(h2.PREFACE):
                return 0
            self._preface_due = False
            at = len(h2.PREFACE)
        unpack = _HEADER.unpack_from
        most = self.limits.frame_bytes
        while size - at >= 9:
            high, low, kind, flags, id = unpack(data, at)
            length: int = high << 8 | low
            if length > most:
                raise ProtocolError(h2.FRAME_SIZE_ERROR, f"frame of {length} bytes, at most {most} are allowed")
            end = at + 9 + length
            if end > size:
                self._need = 9 + length
                return at
            self.received_frames += 1
            id &= 0x7FFFFFFF
            if kind == 0 and self._block is None and not self._settings_due:
                self._on_data(flags, id, data[at + 9 : end])
            else:
                self._frame(kind, flags, id, data[at + 9 : end])
            at = end
            if self.closed is not None:
                return at
        self._need = 9
        return at

    def _frame(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        if self._block is not None:
            if kind != h2.CONTINUATION or id != self._block_head[0]:
                raise ProtocolError(h2.PROTOCOL_ERROR, "a header block was interrupted")
            self._on_continuation(flags, payload)
            return
        if self._settings_due:
            if kind != h2.SETTINGS or flags & h2.ACK:
                raise ProtocolError(h2.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._settings_due = False
        handler = _HANDLERS.get(kind)
        if handler is None:  # RFC 9113 5.5: frames of unknown types are ignored
            self._count_idle()
            return
        handler(self, flags, id, payload)

    def _count_idle(self, amount: int = 1) -> None:
        if not self._idle.add(amount):
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "too many frames that move nothing")

    def _on_data(self, flags: int, id: int, payload: bytes) -> None:
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
            payload = _unpad(payload)
        if payload:
            stream.deliver(payload)
            if self._idle.level:
                self._idle.relieve(4)
        elif not flags & h2.END_STREAM:
            self._count_idle()
        if length != len(payload):
            self._consumed(stream, 0)
        if flags & h2.END_STREAM:
            self._remote_end(stream)
        stream.changed()

    def _data_for_nobody(self, id: int, length: int, stream: Stream | None) -> None:
        if id == 0 or self._is_idle(id):
            raise ProtocolError(h2.PROTOCOL_ERROR, f"data for stream {id}, which was never opened")
        if stream is not None:
            self._fail_stream(stream, h2.STREAM_CLOSED, "data after the end")
        elif not length:
            self._count_idle()
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
            self._out.append(h2.rst_stream(stream.id, h2.NO_ERROR))
            stream.drop_output()
            stream.out_end = []
            stream.local_closed = True
            self._gone(stream)
            self._wake()

    def _fail_stream(self, stream: Stream, code: int, reason: str) -> None:
        if not self._resets.add():
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "too many broken streams")
        self._control(h2.rst_stream(stream.id, code))
        self._forget(stream, Reset(code, False, reason))

    # -- header blocks

    def _on_headers(self, flags: int, id: int, payload: bytes) -> None:
        if id == 0:
            raise ProtocolError(h2.PROTOCOL_ERROR, "HEADERS for stream 0")
        if flags & h2.PADDED:
            payload = _unpad(payload)
        if flags & h2.PRIORITY_FLAG:
            if len(payload) < 5:
                raise ProtocolError(h2.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            payload = payload[5:]
        self._block_head = (id, flags)
        if flags & h2.END_HEADERS:
            self._on_block(payload)
        else:
            self._block = [payload]
            self._block_bytes = len(payload)
            self._check_block()

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        block = self._block
        assert block is not None
        block.append(payload)
        self._block_bytes += len(payload)
        self._check_block()
        if not payload:
            self._count_idle()
        if flags & h2.END_HEADERS:
            self._block = None
            self._on_block(b"".join(block))

    def _check_block(self) -> None:
        assert self._block is not None
        if self._block_bytes > self.limits.header_list_bytes or len(self._block) > _MAX_FRAGMENTS:
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "header block too large")

    def _on_lone_continuation(self, flags: int, id: int, payload: bytes) -> None:
        raise ProtocolError(h2.PROTOCOL_ERROR, "CONTINUATION without HEADERS")

    def _on_block(self, block: bytes) -> None:
        try:
            fields = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError as err:
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "header list too large") from err
        except Exception as err:
            # Whatever the decoder trips over, the tables of the two sides differ from now on (RFC 9113 4.3).
            raise ProtocolError(h2.COMPRESSION_ERROR, f"bad header block: {err}") from err
        headers: HeaderList = [(bytes(name), bytes(value)) for name, value in fields]
        id, flags = self._block_head
        self._idle.relieve(4)
        stream = self.streams.get(id)
        if stream is None and not self.client:
            stream = self._accept(id)
        if stream is None:
            if self.client and self._is_idle(id):
                raise ProtocolError(h2.PROTOCOL_ERROR, f"HEADERS for stream {id}, which was never opened")
            return
        try:
            self._take_headers(stream, headers, end=bool(flags & h2.END_STREAM))
        except StreamError as err:
            self._fail_stream(stream, err.code, err.reason)

    def _accept(self, id: int) -> Stream | None:
        if id & 1 == 0:
            raise ProtocolError(h2.PROTOCOL_ERROR, f"a client opened stream {id}")
        if id <= self._last_id:  # of a stream that is gone
            self._count_idle()
            return None
        if self._draining_to is not None and id > self._draining_to:
            return None
        self._last_id = id
        if self.active >= self.limits.streams:
            if not self._resets.add():
                raise ProtocolError(h2.ENHANCE_YOUR_CALM, "too many streams")
            self._control(h2.rst_stream(id, h2.REFUSED_STREAM))
            return None
        stream = Stream(self, id, self._window, self._peer_window)
        self.streams[id] = stream
        return stream

    def _take_headers(self, stream: Stream, headers: HeaderList, *, end: bool) -> None:
        if stream.remote_closed:
            raise StreamError(h2.STREAM_CLOSED, "headers after the end")
        first = stream.headers is None
        _check_headers(headers, trailers=not first)
        if not first and not end:
            raise StreamError(h2.PROTOCOL_ERROR, "headers in the middle of a stream")
        if first and self.client:
            status = _pseudo(headers, b":status")
            if status is None or len(status) != 3 or not status.isdigit():
                raise StreamError(h2.PROTOCOL_ERROR, "a response without status")
            if status[:1] == b"1":
                if end:
                    raise StreamError(h2.PROTOCOL_ERROR, "an interim response that ends the stream")
                self._count_idle()
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
            _check_request(headers)
            self.on_stream(stream)
        else:
            stream.changed()

    # -- other frames

    def _on_priority(self, flags: int, id: int, payload: bytes) -> None:
        if id == 0:
            raise ProtocolError(h2.PROTOCOL_ERROR, "PRIORITY for stream 0")
        if len(payload) != 5:
            raise ProtocolError(h2.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")
        self._count_idle()

    def _on_rst_stream(self, flags: int, id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(h2.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        if id == 0 or self._is_idle(id):
            raise ProtocolError(h2.PROTOCOL_ERROR, f"RST_STREAM for stream {id}, which was never opened")
        stream = self.streams.get(id)
        if stream is None:
            self._count_idle()
            return
        # CVE-2023-44487: streams opened only to be reset.
        if not self.client and not self._resets.add():
            raise ProtocolError(h2.ENHANCE_YOUR_CALM, "too many streams are reset")
        code = int.from_bytes(payload, "big")
        self._forget(stream, Reset(code, True, refused=code == h2.REFUSED_STREAM))

    def _on_settings(self, flags: int, id: int, payload: bytes) -> None:
        if id:
            raise ProtocolError(h2.PROTOCOL_ERROR, "SETTINGS for a stream")
        self._count_idle()
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
        self._control(h2.frame(h2.SETTINGS, h2.ACK, 0))

    def _setting(self, key: int, value: int) -> None:
        if key == h2.INITIAL_WINDOW_SIZE:
            if value > h2.MAX_WINDOW:
                raise ProtocolError(h2.FLOW_CONTROL_ERROR, "initial window too large")
            delta, self._peer_window = value - self._peer_window, value
            for stream in self.streams.values():
                stream.send_window += delta
                if stream.send_window > h2.MAX_WINDOW:
                    raise ProtocolError(h2.FLOW_CONTROL_ERROR, "stream window too large")
                if delta > 0 and stream.out_bytes:
                    self._ready[stream] = None
            if self._ready:
                self._wake()
        elif key == h2.MAX_FRAME_SIZE:
            if not h2.DEFAULT_FRAME <= value < 1 << 24:
                raise ProtocolError(h2.PROTOCOL_ERROR, f"frame size {value} out of range")
            self._peer_frame = value
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
        self._count_idle()
        if flags & h2.ACK:
            self.on_ping_ack(payload)
            return
        self._control(h2.frame(h2.PING, h2.ACK, 0, payload))

    def _on_goaway(self, flags: int, id: int, payload: bytes) -> None:
        if id:
            raise ProtocolError(h2.PROTOCOL_ERROR, "GOAWAY for a stream")
        if len(payload) < 8:
            raise ProtocolError(h2.FRAME_SIZE_ERROR, "GOAWAY of a wrong size")
        self._count_idle()
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
            self._send_window += more
            if more == 0:
                raise ProtocolError(h2.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            if self._send_window > h2.MAX_WINDOW:
                raise ProtocolError(h2.FLOW_CONTROL_ERROR, "connection window too large")
            if self._starved:
                self._ready.update(self._starved)
                self._starved.clear()
                self._wake()
            else:
                self._count_idle()
            return
        stream = self.streams.get(id)
        if stream is None:
            if self._is_idle(id):
                raise ProtocolError(h2.PROTOCOL_ERROR, f"WINDOW_UPDATE for stream {id}, which was never opened")
            self._count_idle()
            return
        if more == 0:
            self._fail_stream(stream, h2.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            return
        stream.send_window += more
        if stream.send_window > h2.MAX_WINDOW:
            self._fail_stream(stream, h2.FLOW_CONTROL_ERROR, "stream window too large")
        elif stream.out_bytes:
            self._ready[stream] = None
            self._wake()
        else:
            self._count_idle()


_HANDLERS: dict[int, Callable[[Connection, int, int, bytes], None]] = {
    h2.DATA: Connection._on_data,
    h2.HEADERS: Connection._on_headers,
    h2.PRIORITY: Connection._on_priority,
    h2.RST_STREAM: Connection._on_rst_stream,
    h2.SETTINGS: Connection._on_settings,
    h2.PUSH_PROMISE: Connection._on_push_promise,
    h2.PING: Connection._on_ping,
    h2.GOAWAY: Connection._on_goaway,
    h2.WINDOW_UPDATE: Connection._on_window_update,
    h2.CONTINUATION: Connection._on_lone_continuation,
}


def _unpad(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(h2.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def _pseudo(headers: HeaderList, name: bytes) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value
    return None


_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})


def _check_headers(headers: HeaderList, *, trailers: bool) -> None:
    """RFC 9113 8.2 and 8.3: what makes a message malformed."""
    seen: set[bytes] = set()
    plain = False
    for name, value in headers:
        if name[:1] == b":":
            if plain or trailers or name in seen:
                raise StreamError(h2.PROTOCOL_ERROR, f"misplaced pseudo-header {name!r}")
            seen.add(name)
            continue
        plain = True
        if not name or name != name.lower() or name in _HOP or (name == b"te" and value.lower() != b"trailers"):
            raise StreamError(h2.PROTOCOL_ERROR, f"invalid header {name!r}")


def _check_request(headers: HeaderList) -> None:
    for name in (b":method", b":scheme", b":path"):
        if not _pseudo(headers, name):
            raise StreamError(h2.PROTOCOL_ERROR, f"a request without {name.decode()}")
    if _pseudo(headers, b":status") is not None:
        raise StreamError(h2.PROTOCOL_ERROR, "a request with :status")


__all__ = ["Connection", "ProtocolError", "Reset", "Stream"]
