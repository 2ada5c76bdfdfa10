# SPDX-License-Identifier: Apache-2.0
"""What happens in a build, as a file of status messages that any number of clients follow, from its start (protocol.md 4).

    length (uint32, little endian)  StatusResponse  length  StatusResponse …

That is also the form in which history keeps it (4.6). Memory does not grow with the log: those who follow read the file.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

from chantier.pb import control_pb2 as pb
from chantier.pb import ops_pb2
from chantier.progress import Event, Log, Status, Vertex, Warning, now
from chantier.values import dataclass, replace

_DELAY_S = 0.05  # what comes within it goes out together
_SPLIT_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 20


@dataclass(slots=True)
class Seen:
    """What is known of a vertex."""

    vertex: Vertex
    active_at: int = 0  # when it last said anything


class Progress:
    """A Reporter that writes to `path` (created; unlinked by nobody but its owner). Made in the loop it belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: dict[str, Seen] = {}
        self.warnings = 0
        self.active_at = now()
        self.ended = False
        self._file = open(path, "ab", buffering=0)
        self._size = 0
        self._loop = asyncio.get_running_loop()
        self._mutex = threading.Lock()
        self._events: list[Event] = []
        self._armed = False
        self._waiters: list[asyncio.Future[None]] = []

    # -- reporting

    def emit(self, event: Event) -> None:
        """From any thread."""
        with self._mutex:
            self._events.append(event)
            if self._armed:
                return
            self._armed = True
        try:
            self._loop.call_soon_threadsafe(self._arm)
        except RuntimeError:
            return  # the loop is closed: nobody listens any more

    def _arm(self) -> None:
        self._loop.call_later(_DELAY_S, self._flush)

    def _flush(self) -> None:
        with self._mutex:
            events, self._events = self._events, []
            self._armed = False
        if self._file.closed:
            return
        for event in events:
            self._note(event)
        for message in to_messages(events):
            self._append(message)
        self._wake()

    def _append(self, message: pb.StatusResponse) -> None:
        data = message.SerializeToString()
        self._file.write(_LENGTH.pack(len(data)) + data)
        self._size += _LENGTH.size + len(data)

    def _note(self, event: Event) -> None:
        self.active_at = at = now()
        if isinstance(event, Warning):
            self.warnings += 1
            return
        digest = event.digest if isinstance(event, Vertex) else event.vertex
        known = self.seen.get(digest)
        if isinstance(event, Vertex):
            if known is None:
                self.seen[digest] = Seen(event, at)
                return
            known.vertex = event
        if known is not None:
            known.active_at = at

    def close(self) -> None:
        """All is said: what was started and has not ended is given an end (4.1)."""
        if self.ended:
            return
        self._flush()
        end = now()
        for known in list(self.seen.values()):
            vertex = known.vertex
            if vertex.started is not None and vertex.completed is None:
                self.emit(replace(vertex, completed=end, error="" if vertex.cached else "context canceled"))
        self._flush()
        self.ended = True
        self._file.close()
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def move(self, path: Path) -> None:
        """Let the file lie elsewhere on its file system from now on; who follows it is not disturbed. Raises OSError."""
        os.rename(self.path, path)
        self.path = path

    # -- following

    async def follow(self) -> AsyncIterator[pb.StatusResponse]:
        """All messages from the first on, until the end."""
        with open(self.path, "rb", buffering=0) as file:
            at = 0
            while True:
                while at < self._size:
                    (length,) = _LENGTH.unpack(os.pread(file.fileno(), _LENGTH.size, at))
                    data = os.pread(file.fileno(), length, at + _LENGTH.size)
                    at += _LENGTH.size + length
                    yield pb.StatusResponse.FromString(data)
                if self.ended:
                    return
                waiter: asyncio.Future[None] = self._loop.create_future()
                self._waiters.append(waiter)
                await waiter

    # -- counting, for history

    @property
    def total(self) -> int:
        return len(self.seen)

    @property
    def completed(self) -> int:
        return sum(known.vertex.completed is not None for known in self.seen.values())

    @property
    def cached(self) -> int:
        return sum(known.vertex.cached for known in self.seen.values())


async def replay(path: Path) -> AsyncIterator[pb.StatusResponse]:
    """The messages of a file that nobody writes to any more. Its last one may be torn: its writer was killed."""
    with open(path, "rb") as file:
        while len(head := await asyncio.to_thread(file.read, _LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            data = await asyncio.to_thread(file.read, length)
            if len(data) < length:
                return
            yield pb.StatusResponse.FromString(data)


def timed(path: Path) -> Iterator[Event]:
    """Of such a file what says when something began and ended: the steps, and what went on in them."""
    with open(path, "rb") as file:
        while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            data = file.read(length)
            if len(data) < length:
                return
            message = pb.StatusResponse.FromString(data)
            for vertex in message.vertexes:
                yield Vertex(
                    digest=vertex.digest,
                    name=vertex.name,
                    inputs=tuple(vertex.inputs),
                    started=_ns(vertex, "started"),
                    completed=_ns(vertex, "completed"),
                    cached=vertex.cached,
                    error=vertex.error,
                )
            for status in message.statuses:
                yield Status(
                    id=status.ID,
                    vertex=status.vertex,
                    name=status.name,
                    current=status.current,
                    total=status.total,
                    timestamp=_ns(status, "timestamp") or 0,
                    started=_ns(status, "started"),
                    completed=_ns(status, "completed"),
                )


def _ns(message: pb.Vertex | pb.VertexStatus, field: str) -> int | None:
    return int(getattr(message, field).ToNanoseconds()) if message.HasField(field) else None


def packed(events: Iterable[Event]) -> bytes:
    """Events that are past, in the form of such a file."""
    found = bytearray()
    for message in to_messages(list(events)):
        data = message.SerializeToString()
        found += _LENGTH.pack(len(data)) + data
    return bytes(found)


# -- events to messages


def to_messages(events: list[Event]) -> list[pb.StatusResponse]:
    """In as few messages as may be; each is cut once its logs are over 1 MiB (4.1).

    Of several updates of one interval of a vertex, or of one status, only the last is sent.
    """
    vertices: dict[tuple[str, int | None], Vertex] = {}
    statuses: dict[tuple[str, str], Status] = {}
    logs: list[Log] = []
    warnings: list[Warning] = []
    for event in events:
        if isinstance(event, Vertex):
            if event.started is not None:  # an interval says all that the first sight did
                vertices.pop((event.digest, None), None)
            vertices[event.digest, event.started] = event
        elif isinstance(event, Status):
            statuses[event.vertex, event.id] = event
        elif isinstance(event, Log):
            logs.append(event)
        else:
            warnings.append(event)
    messages = [pb.StatusResponse()]
    messages[0].vertexes.extend(vertex_message(v) for v in sorted(vertices.values(), key=lambda v: v.started or 0))
    messages[0].statuses.extend(_status(s) for s in sorted(statuses.values(), key=lambda s: s.timestamp))
    messages[0].warnings.extend(_warning(w) for w in warnings)
    size = 0
    for log in sorted(logs, key=lambda entry: entry.timestamp):
        if size > _SPLIT_BYTES:
            messages.append(pb.StatusResponse())
            size = 0
        added = messages[-1].logs.add(vertex=log.vertex, stream=log.stream, msg=log.data)
        added.timestamp.FromNanoseconds(log.timestamp)
        size += len(log.data)
    return messages if events else []


def vertex_message(vertex: Vertex) -> pb.Vertex:
    made = pb.Vertex(digest=vertex.digest, inputs=vertex.inputs, name=vertex.name, cached=vertex.cached, error=vertex.error)
    if vertex.started is not None:
        made.started.FromNanoseconds(vertex.started)
    if vertex.completed is not None:
        made.completed.FromNanoseconds(vertex.completed)
    if vertex.group is not None:
        made.progressGroup.CopyFrom(ops_pb2.ProgressGroup(id=vertex.group.id, name=vertex.group.name, weak=vertex.group.weak))
    return made


def _status(status: Status) -> pb.VertexStatus:
    made = pb.VertexStatus(ID=status.id, vertex=status.vertex, name=status.name, current=status.current, total=status.total)
    made.timestamp.FromNanoseconds(status.timestamp)
    if status.started is not None:
        made.started.FromNanoseconds(status.started)
    if status.completed is not None:
        made.completed.FromNanoseconds(status.completed)
    return made


def _warning(warning: Warning) -> pb.VertexWarning:
    made = pb.VertexWarning(
        vertex=warning.vertex, level=warning.level, short=warning.short, detail=warning.detail, url=warning.url
    )
    if warning.source is not None:
        source = warning.source
        made.info.CopyFrom(ops_pb2.SourceInfo(filename=source.filename, data=source.data, language=source.language))
        for place in source.ranges:
            made.ranges.add(
                start=ops_pb2.Position(line=place.start, character=place.start_column),
                end=ops_pb2.Position(line=place.end, character=place.end_column),
            )
    return made


__all__ = ["Progress", "Seen", "packed", "replay", "to_messages", "vertex_message"]
