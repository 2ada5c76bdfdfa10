# SPDX-License-Identifier: Apache-2.0
"""What goes out on a connection: whose turn it is, what the windows allow, and when it is written (RFC 9113 section 5.2)."""

from __future__ import annotations

from collections.abc import Callable

from . import frames as h2
from .headers import TABLE_SIZE_ZERO
from .stream import Stream

_FLUSH_BYTES = 65_536
_QUANTUM = 65_536  # of one stream, before others have their turn


class Sender:
    """`write` takes bytes to send. `schedule` asks that `flush` be called soon; without it each change is flushed at once.

    `on_end` hears of each stream whose last frame was written; `on_moved` of bytes of data that were.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        schedule: Callable[[], None] | None,
        *,
        on_end: Callable[[Stream], None],
        on_moved: Callable[[int], None],
    ) -> None:
        self.paused = False  # the carrier is full: only frames that are no data go out
        self.window = h2.DEFAULT_WINDOW  # of the whole connection
        self.peer_frame = h2.DEFAULT_FRAME  # the largest payload the peer takes
        self.control_bytes = 0  # of answers that wait to be written
        self._write = write
        self._schedule = schedule
        self._on_end = on_end
        self._on_moved = on_moved
        self._scheduled = False
        self._out: list[bytes | memoryview] = []
        self._ready: dict[Stream, None] = {}  # streams with something to send, in turn
        self._starved: dict[Stream, None] = {}  # those that wait for the connection's window
        self._first_block = True

    # -- what is to be sent

    def add(self, frame: bytes) -> None:
        """Goes out with the next flush."""
        self._out.append(frame)

    def control(self, frame: bytes) -> None:
        """As `add`, for what a peer can make us say."""
        self._out.append(frame)
        self.control_bytes += len(frame)

    def block(self, id: int, block: bytes, *, end: bool) -> None:
        """A header block, in as many frames as it needs."""
        if self._first_block:
            self._first_block = False
            block = TABLE_SIZE_ZERO + block
        most = self.peer_frame
        flags = h2.END_STREAM if end else 0
        if len(block) <= most:
            self._out.append(h2.frame(h2.HEADERS, flags | h2.END_HEADERS, id, block))
            return
        self._out.append(h2.frame(h2.HEADERS, flags, id, block[:most]))
        for at in range(most, len(block), most):
            last = at + most >= len(block)
            self._out.append(h2.frame(h2.CONTINUATION, h2.END_HEADERS if last else 0, id, block[at : at + most]))

    def ready(self, stream: Stream) -> None:
        """The stream has more to send."""
        self._ready[stream] = None
        if stream.out_bytes >= _FLUSH_BYTES and not self.paused:
            self.flush()
        elif not self._scheduled:
            self.wake()

    def widened(self, stream: Stream) -> None:
        """The stream's own window grew; `wake` after it."""
        if stream.out_bytes:
            self._ready[stream] = None

    def widen(self, more: int) -> bool:
        """The connection's window grows; False if nobody waited for it."""
        self.window += more
        if not self._starved:
            return False
        self._ready.update(self._starved)
        self._starved.clear()
        self.wake()
        return True

    def drop(self, stream: Stream) -> None:
        stream.drop_output()
        self._ready.pop(stream, None)
        self._starved.pop(stream, None)

    # -- when

    def wake(self) -> None:
        if self._scheduled:
            return
        if self._schedule is None:
            self.flush()
        else:
            self._scheduled = True
            self._schedule()

    def flush(self) -> None:
        """Write what may be written now."""
        self._scheduled = False
        while True:
            moved = bool(self._ready) and not self.paused and self._fill()
            out = self._out
            if not out:
                return
            self._out, self.control_bytes = [], 0
            self._write(bytes(out[0]) if len(out) == 1 else b"".join(out))
            if not moved:
                return

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
            amount = min(stream.out_bytes, stream.send_window, self.window, _QUANTUM)
            if amount <= 0:
                if stream.send_window > 0:
                    self._starved[stream] = None
                return False
            was_full = stream.full
            data = stream.take(amount)
            stream.send_window -= amount
            self.window -= amount
            last = stream.out_bytes == 0 and stream.out_end == []
            self._data(stream.id, data, last)
            self._on_moved(amount)
            moved = True
            if last:
                self._on_end(stream)
            elif stream.out_bytes:
                self._ready[stream] = None
            if was_full and not stream.full:
                stream.writable()
            if last:
                return True
        if stream.out_bytes == 0 and stream.out_end is not None:
            if stream.out_end:
                self.block(stream.id, stream.out_end[0], end=True)
            else:
                self._out.append(h2.header(0, h2.DATA, h2.END_STREAM, stream.id))
            self._on_end(stream)
            moved = True
        return moved

    def _data(self, id: int, data: bytes, end: bool) -> None:
        out, most, size = self._out, self.peer_frame, len(data)
        if size <= most:
            out.append(h2.header(size, h2.DATA, h2.END_STREAM if end else 0, id))
            out.append(data)
            return
        view = memoryview(data)
        for at in range(0, size, most):
            part = view[at : at + most]
            flags = h2.END_STREAM if end and at + most >= size else 0
            out.append(h2.header(len(part), h2.DATA, flags, id))
            out.append(part)


__all__ = ["Sender"]
