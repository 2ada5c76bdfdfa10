# SPDX-License-Identifier: Apache-2.0
"""A directory over a stream of packets, both halves (protocol.md 2.4 and 2.5).

The sender tells all its entries and then an empty packet; the receiver asks for the files it lacks by their place in that
list, meanwhile; each file's bytes end with an empty piece. FIN from the receiver, FIN back. `Outgo` and `Intake` are the two
halves without a stream, for a worker thread; `send` and `receive` drive them over a call.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby, islice, repeat
from pathlib import Path
from typing import Any

from chantier.errors import ChantierError, SessionError
from chantier.kernel import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from chantier.pb import fsutil_raw_pb2 as pb
from chantier.values import dataclass
from chantier.wire import Call, GrpcError

from .contents import Contents
from .sync import Known, Receiver
from .threads import in_thread
from .walk import Entry, from_go_mode, to_go_mode

Packet = pb.Packet
_STAT, _REQ, _DATA, _FIN, _ERR = Packet.PACKET_STAT, Packet.PACKET_REQ, Packet.PACKET_DATA, Packet.PACKET_FIN, Packet.PACKET_ERR
_PIECE = 32 * 1024  # stock receivers count on it
_BATCH_BYTES = 1 << 20  # read before it is handed to the loop
_STATS = 512
_MOST_LINK = 60_000  # its length travels in 16 bits of an index, with a signature
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
FIN = Packet(type=_FIN).SerializeToString()


def encode_entry(entry: Entry) -> bytes:
    """The STAT packet of an entry."""
    packet = Packet()
    sent = packet.stat
    sent.path = os.fsencode(entry.path)
    sent.mode = to_go_mode(entry.mode)
    sent.size = entry.size
    sent.modTime = entry.mtime_ns
    if entry.link:
        sent.linkname = os.fsencode(entry.link)
    if entry.rdev:
        sent.devmajor, sent.devminor = os.major(entry.rdev), os.minor(entry.rdev)
    for name, value in entry.read_xattrs().items():
        with suppress(ValueError, UnicodeError):  # a name that is not UTF-8 cannot travel
            sent.xattrs[name] = value
    return packet.SerializeToString()


def decode_entry(sent: pb.Stat) -> Entry:
    """Raises SessionError for what no file has."""
    mode = from_go_mode(sent.mode)
    link = os.fsdecode(sent.linkname)
    if b"\0" in sent.path:
        raise SessionError(f"invalid path {os.fsdecode(sent.path)!r} from the client")
    if b"\0" in sent.linkname or len(sent.linkname) > _MOST_LINK:
        raise SessionError(
            f"invalid link of {os.fsdecode(sent.path)!r} from the client: {len(sent.linkname)} bytes {link[:80]!r}"
        )
    if sent.size < 0:
        raise SessionError(f"invalid size {sent.size} of {os.fsdecode(sent.path)!r} from the client")
    if not (0 <= sent.devmajor < 1 << 12 and 0 <= sent.devminor < 1 << 20):  # makedev(3)
        raise SessionError(f"invalid device {sent.devmajor}:{sent.devminor} of {os.fsdecode(sent.path)!r} from the client")
    return Entry(
        os.fsdecode(sent.path),
        mode,
        size=sent.size,
        mtime_ns=sent.modTime,
        link=link,
        hard=bool(link) and stat.S_ISREG(mode),
        rdev=os.makedev(sent.devmajor, sent.devminor) if sent.devmajor or sent.devminor else 0,
        xattrs=dict(sent.xattrs) if sent.xattrs else {},
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_data(id: int, data: bytes) -> bytes:
    """A DATA packet, by hand: the bytes are copied once."""
    head = b"\x08\x02\x18" + _varint(id) if id else b"\x08\x02"
    return b"".join((head, b'"', _varint(len(data)), data)) if data else head


def encode_error(text: str) -> bytes:
    return Packet(type=_ERR, data=text.encode("utf-8", "surrogateescape")).SerializeToString()


# -- sending ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A directory to send. `below` is a directory that all its entries are sent under; `epoch` (seconds) becomes their time."""

    root: Path
    entries: Iterable[Entry]
    below: str = ""
    epoch: int | None = None


def _in_order(trees: Sequence[tuple[int, Tree]]) -> Iterator[tuple[int, Entry]]:
    """All entries in the order that receivers insist on, each with the number of its tree."""
    lists = [zip(repeat(number), tree.entries) for number, tree in trees]
    return heapq.merge(*lists, key=lambda one: os.fsencode(one[1].path).split(b"/")) if len(lists) > 1 else iter(lists[0])


class Outgo:
    """The sending half of one or several trees. `stats` and `contents` are for a worker thread, one call at a time each."""

    def __init__(self, *trees: Tree) -> None:
        """Trees that go below one directory may share directories, and nothing else."""
        self._trees = sorted(trees, key=lambda tree: os.fsencode(tree.below).split(b"/"))
        self._roots: list[int] = []
        self._files: dict[int, tuple[int, str]] = {}  # what may still be asked for: tree and path in it, by id
        self._count = 0
        self._wanted: deque[tuple[int, int, str]] = deque()
        self._open: tuple[int, int] | None = None  # the file that is being read
        self._packets = self._list()
        try:
            for tree in self._trees:
                self._roots.append(os.open(tree.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Once no thread works on it."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None
        self._packets.close()
        while self._roots:
            os.close(self._roots.pop())

    def _list(self) -> Generator[bytes, None, None]:
        above: set[str] = set()
        for below, group in groupby(enumerate(self._trees), lambda one: one[1].below):
            trees = list(group)
            epoch = trees[0][1].epoch
            top = ""
            for part in filter(None, below.split("/")):
                top += part
                if top not in above:
                    above.add(top)
                    yield self._told(Entry(top, stat.S_IFDIR | 0o755, mtime_ns=(epoch or 0) * 1_000_000_000, xattrs={}))
                top += "/"
            before = ""
            for number, entry in _in_order(trees):
                if entry.path == before and stat.S_ISDIR(entry.mode):
                    continue
                before = entry.path
                epoch = self._trees[number].epoch
                if entry.has_content:
                    self._files[self._count] = (number, entry.path)
                entry.read_xattrs()
                if epoch is not None:
                    entry.mtime_ns = epoch * 1_000_000_000
                entry.path = top + entry.path
                if entry.hard:
                    entry.link = top + entry.link
                yield self._told(entry)

    def _told(self, entry: Entry) -> bytes:
        self._count += 1
        return encode_entry(entry)

    def stats(self) -> list[bytes]:
        """The next packets of the list; an empty one ends it, and after that there are none."""
        out = list(islice(self._packets, _STATS))
        if len(out) < _STATS:
            out.append(b"")
        return out

    def want(self, id: int) -> None:
        """The receiver asks for a file. Raises SessionError for one it may not ask for (again)."""
        place = self._files.pop(id, None)
        if place is None:
            raise SessionError(f"invalid file id {id}")
        self._wanted.append((id, *place))

    @property
    def busy(self) -> bool:
        return bool(self._wanted) or self._open is not None

    def contents(self) -> list[bytes]:
        """Packets of files that were asked for, about a megabyte of them."""
        out: list[bytes] = []
        size = 0
        while size < _BATCH_BYTES:
            if self._open is None:
                if not self._wanted:
                    break
                id, tree, path = self._wanted.popleft()
                fd = self._open_file(tree, path)
                if fd < 0:
                    out.append(encode_data(id, b""))
                    size += 64
                    continue
                self._open = (id, fd)
            id, fd = self._open
            try:
                data = os.read(fd, _PIECE)
            except OSError:  # as stock senders do: what cannot be read ends here
                data = b""
            if data:
                out.append(encode_data(id, data))
                size += len(data) + 64
            if len(data) < _PIECE:  # regular files give all they have
                out.append(encode_data(id, b""))
                os.close(fd)
                self._open = None
        return out

    def _open_file(self, tree: int, path: str) -> int:
        """-1 for what cannot be opened, or is no file any more."""
        try:
            fd = openat2(self._roots[tree], path, _READ, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
        except OSError:  # gone or changed since it was listed, or unreadable
            return -1
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return -1
        return fd


async def send(call: Call, outgo: Outgo, *, on_bytes: Callable[[int], None] = lambda _n: None) -> None:
    """Send a directory over a call whose messages are packets; returns once the receiver has all. Closes `outgo`.

    Raises SessionError if the receiver fails, or what the walk raises (the receiver is told).
    """
    sender = _Sender(call, outgo, on_bytes)
    try:
        await sender.run()
    finally:
        outgo.close()


class _Sender:
    def __init__(self, call: Call, outgo: Outgo, on_bytes: Callable[[int], None]) -> None:
        self._call = call
        self._outgo = outgo
        self._on_bytes = on_bytes
        self._asked = asyncio.Event()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                stats = group.create_task(self._stats())
                contents = group.create_task(self._contents())
                await self._requests()
                stats.cancel()
                contents.cancel()
        except BaseExceptionGroup as failed:
            error = next((e for e in failed.exceptions if not isinstance(e, GrpcError)), failed.exceptions[0])
            self._tell(error)
            raise error from None

    def _tell(self, err: BaseException) -> None:
        if not isinstance(err, GrpcError) and self._call.stream.open_to_write:
            self._call.send_nowait(encode_error(str(err)))

    async def _stats(self) -> None:
        while True:
            packets = await in_thread(self._outgo.stats)
            await self._put(packets)
            if packets[-1] == b"":
                return

    async def _contents(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._outgo.busy:
                await self._put(await in_thread(self._outgo.contents))

    async def _put(self, packets: Sequence[bytes]) -> None:
        call, total = self._call, 0
        for packet in packets:
            call.send_nowait(packet)
            total += len(packet)
            if call.full:
                await call.room()
        self._on_bytes(total)

    async def _requests(self) -> None:
        call = self._call
        while packets := await call.read_many():
            for packet in packets:
                kind = packet.type
                if kind == _REQ:
                    self._outgo.want(packet.ID)
                elif kind == _FIN:
                    call.send_nowait(FIN)
                    return
                elif kind == _ERR:
                    raise SessionError(f"error from receiver: {packet.data.decode('utf-8', 'replace')}")
            self._asked.set()
        raise SessionError("the receiver ended the transfer before it was complete")


# -- receiving ----------------------------------------------------------------------------------------------------------


class Intake:
    """The receiving half, for a worker thread: packets in, answers out. `done` once the sender has said goodbye."""

    def __init__(
        self,
        receiver: Receiver,
        *,
        wants: Callable[[Entry], bool] | None = None,
        on_bytes: Callable[[int], None] = lambda _n: None,
        on_stat: Callable[[bytes], None] | None = None,
        on_file: Callable[[Entry, int, bytes], None] | None = None,
    ) -> None:
        """`wants` may leave a file's content out: it stays empty. `on_bytes` counts packets, `on_stat` gets each entry's Stat,
        `on_file` the bytes of files that came in one packet, with their inodes.
        """
        self._receiver = receiver
        self._wants = wants
        self._on_bytes = on_bytes
        self._on_stat = on_stat
        self._contents = Contents(receiver, on_file)
        self._count = 0
        self._asked: dict[int, Entry] = {}
        self._ids: dict[str, int] = {}  # of what was asked for, by path
        self._made: set[int] = set()  # files that exist already, for further names of them
        self._listed = False
        self._finished = False
        self.known: Known = {}
        self.done = False

    def close(self) -> None:
        self._contents.close()

    def take(self, packets: Sequence[Any]) -> list[bytes]:
        """Raises SessionError for what the sender may not send, and for its own errors; OSError for ours."""
        answers: list[bytes] = []
        total = 0
        for packet in packets:
            kind = packet.type
            total += packet.ByteSize()
            if kind == _DATA:
                self._data(packet.ID, packet.data)
            elif kind == _STAT:
                self._stat(packet, answers)
            elif kind == _FIN:
                if not self._finished:
                    raise SessionError("the sender ended the transfer before it was complete")
                self.done = True
            elif kind == _ERR:
                raise SessionError(f"error from sender: {packet.data.decode('utf-8', 'replace')}")
        if self._listed and not self._asked and not self._finished:
            self.known = self._receiver.finish()
            self._finished = True
            answers.append(FIN)
        if total:
            self._on_bytes(total)
        return answers

    def _stat(self, packet: Any, answers: list[bytes]) -> None:
        if self._listed:
            raise SessionError("the sender goes on with a list it had ended")
        if not packet.HasField("stat"):
            self._listed = True
            return
        id, self._count = self._count, self._count + 1
        if self._on_stat is not None:
            self._on_stat(packet.stat.SerializeToString())
        entry = decode_entry(packet.stat)
        if entry.hard:
            self._make(self._ids.get(entry.link))
        if stat.S_ISSOCK(entry.mode) or not self._receiver.want(entry):
            return
        if self._wants is not None and not self._wants(entry):
            self._receiver.close_file(entry, self._receiver.open(entry))
            return
        self._asked[id] = entry
        self._ids[entry.path] = id
        answers.append(b"\x08\x01\x18" + _varint(id) if id else b"\x08\x01")

    def _make(self, id: int | None) -> None:
        """A file that was asked for has another name, which may come before its bytes."""
        if id is not None and id not in self._contents and id not in self._made:
            os.close(self._receiver.open(self._asked[id]))
            self._made.add(id)

    def _data(self, id: int, data: bytes) -> None:
        entry = self._asked.get(id)
        if entry is None:
            raise SessionError(f"invalid file id {id} from the sender")
        if self._contents.take(id, entry, data, again=id in self._made):
            del self._asked[id], self._ids[entry.path]
            self._made.discard(id)


async def receive(call: Call, intake: Intake) -> Known:
    """Take a directory over a call whose messages are packets. Closes `intake`.

    Raises SessionError for the sender's faults and ChantierError for what cannot be written; the sender is told.
    """
    try:
        with telling(call):
            while not intake.done:
                packets = await call.read_many()
                if not packets:
                    raise SessionError("the sender ended the transfer before it was complete")
                for answer in await in_thread(intake.take, packets):
                    call.send_nowait(answer)
                if call.full:
                    await call.room()
    finally:
        intake.close()
    return intake.known


@contextmanager
def telling(call: Call) -> Iterator[None]:
    """The sender is told what fails here. Raises ChantierError instead of OSError."""
    try:
        yield
    except (ChantierError, OSError) as err:
        error = err if isinstance(err, ChantierError) else _disk_error(err)
        if not isinstance(err, GrpcError) and call.stream.open_to_write:
            call.send_nowait(encode_error(str(error)))
        raise error from (None if error is err else err)


def _disk_error(err: OSError) -> ChantierError:
    what = f" {os.fsdecode(err.filename)}" if err.filename else " a file"
    return ChantierError(f"failed to write{what}: {(err.strerror or str(err)).lower()}")


__all__ = [
    "FIN",
    "Intake",
    "Outgo",
    "Packet",
    "Tree",
    "decode_entry",
    "encode_data",
    "encode_entry",
    "receive",
    "send",
    "telling",
]
