# SPDX-License-Identifier: Apache-2.0
"""The receiving half of a directory in bulk: chunks of packets go to the library of `kernel.trees` as they come.

What that leaves (links, devices, attributes, large files, whatever fails or is not allowed) goes entry by entry to a Receiver, as
everything does in `fsutil.Intake`. The results and the words are the same.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chantier.errors import SessionError
from chantier.kernel.packets import BAD_ORDER, BAD_PATH, NO_DIRECTORY, NO_TARGET, NONE, ODD, Rows
from chantier.kernel.trees import Trees
from chantier.wire import Call, GrpcError

from .contents import Contents
from .follow import Followed, noting
from .fsutil import FIN, Packet, decode_entry, telling
from .rows import entry_at, path_at, time_at, value_at
from .sync import Known, Receiver, is_hard, pack_rows, row
from .threads import in_thread
from .walk import Entry

_STAT, _DATA, _FIN, _ERR = Packet.PACKET_STAT, Packet.PACKET_DATA, Packet.PACKET_FIN, Packet.PACKET_ERR
_OWNER = (0, 0)
_PREFIX = 5
_CHUNK = 1 << 20
_INTERNAL = 13


class BulkIntake:
    """For a worker thread, as `fsutil.Intake`: chunks of messages in, messages out, all with their prefixes."""

    def __init__(
        self,
        library: Trees,
        into: Path,
        before: bytes,
        *,
        digest: Callable[[int, bytes], bytes],
        changing: Callable[[], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        """`before` are the rows of what is in `into`. The rest as in `follow.follow`."""
        known: Known = {}
        times: dict[str, int] = {}
        self._receiver = Receiver(into, known, changing=changing, directories=times)
        self._known = known  # of what differs; the Receiver's as well
        self._times = times  # of the directories so far; the Receiver's as well
        self._digests: dict[bytes, bytes] = {}
        self._contents = Contents(self._receiver, noting(self._digests, digest))
        self._packets = library.packets(before)
        self._before = before
        self._rows = bytearray()
        self._changed: list[bytes] = []
        self._hard: list[int] = []  # further names of files, which may come before their bytes
        self._special: dict[int, Entry] = {}  # entries whose rows may not tell all, by their rows
        self._writing: dict[int, Entry] = {}  # of open files
        self._on_bytes = on_bytes
        self._listed = False
        self._finished = False
        self.done = False

    def close(self) -> None:
        self._contents.close()
        self._packets.close()
        self._receiver.__exit__(None, None, None)

    def followed(self) -> Followed:
        """What it led to. Call it once `done`."""
        if not self._changed and self._before:
            return Followed(index=None, digests={})
        return Followed(index=pack_rows(bytes(self._rows)), changed=self._changed, digests=self._digests)

    def take(self, chunk: bytes) -> bytes:
        """Raises SessionError for what the sender may not send, and for its own errors; OSError for ours."""
        answers: list[bytes] = []
        at = packets = 0
        while at < len(chunk):
            taken = self._packets.take(self._receiver.root, _OWNER, chunk, at)
            at = taken.at
            packets += taken.packets
            self._note(taken.rows, answers)
            for offset, digest in taken.done:
                path = path_at(self._rows, offset)
                self._receiver.wrote(os.fsdecode(path))
                if digest:
                    self._digests[path] = digest
            for start, size in zip(taken.left[::2], taken.left[1::2], strict=True):
                packet = _parse(chunk[start : start + size])
                self._data(packet.ID, packet.data)
            if taken.stop == ODD:
                start = at + _PREFIX
                at = start + int.from_bytes(chunk[at + 1 : start], "big")
                packets += 1
                self._odd(_parse(chunk[start:at]), answers)
        if self._listed and not self._packets.waiting and not self._finished:
            self._finish()
            answers.append(len(FIN).to_bytes(_PREFIX, "big") + FIN)
        self._on_bytes(len(chunk) - packets * _PREFIX)
        return b"".join(answers)

    def _odd(self, packet: Any, answers: list[bytes]) -> None:
        kind = packet.type
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

    def _stat(self, packet: Any, answers: list[bytes]) -> None:
        if self._listed:
            raise SessionError("the sender goes on with a list it had ended")
        if not packet.HasField("stat"):
            self._listed = True
            self._note(self._packets.rest(), answers)
            return
        entry = decode_entry(packet.stat)
        if stat.S_ISSOCK(entry.mode):
            self._packets.put(b"", wanted=False)
            return
        offset = len(self._rows)
        rows = self._packets.put(row(entry), wanted=entry.has_content)
        if rows.said == BAD_PATH:
            raise SessionError(f"invalid path {entry.path!r} from the client")
        if rows.said == BAD_ORDER:
            raise SessionError(f'changes out of order: "{entry.path}" "{os.fsdecode(self._last)}"')
        if rows.said == NO_DIRECTORY:
            raise SessionError(f"invalid path {entry.path!r} from the client: its directory was not sent")
        if rows.said == NO_TARGET:
            raise SessionError(f"invalid hard link {entry.path} to {entry.link}: that was not sent")
        if rows.pairs:
            self._special[offset] = entry
        self._note(rows, answers)

    @property
    def _last(self) -> bytes:
        """The path of the last entry."""
        at = last = 0
        while at < len(self._rows):
            last, at = at, at + len(path_at(self._rows, at)) + 3 + len(value_at(self._rows, at))
        return path_at(self._rows, last)

    def _note(self, found: Rows, answers: list[bytes]) -> None:
        """Entries that differ: make all but files with content, for which the sender was asked."""
        self._rows += found.fresh
        answers.append(found.answers)
        for offset in found.directories:
            self._times[os.fsdecode(path_at(self._rows, offset))] = time_at(self._rows, offset)
        if found.pairs:
            self._receiver.begin()
        for new, old in zip(found.pairs[::2], found.pairs[1::2], strict=True):
            path = path_at(self._rows, new) if new != NONE else path_at(self._before, old)
            self._changed.append(path)
            if old != NONE:
                self._known[os.fsdecode(path)] = value_at(self._before, old)
            if new == NONE:
                continue
            value = value_at(self._rows, new)
            if is_hard(value):
                self._hard.append(new)
            elif not stat.S_ISREG(int.from_bytes(value[:4], "little")):
                self._receiver.want(self._entry(new))

    def _entry(self, offset: int) -> Entry:
        found = self._special.pop(offset, None)
        if found is None:
            found = entry_at(self._rows, offset)
            found.xattrs = {}
        return found

    def _data(self, id: int, data: bytes) -> None:
        offset = self._packets.file(id, done=not data)
        if offset is None:
            raise SessionError(f"invalid file id {id} from the sender")
        if id not in self._contents:
            self._writing[id] = entry = self._entry(offset)
            self._receiver.want(entry)  # clears its place
        if self._contents.take(id, self._writing[id], data):
            del self._writing[id]

    def _finish(self) -> None:
        for offset in self._hard:
            self._receiver.want(self._entry(offset))
        self._receiver.finish()
        self._finished = True


def _parse(data: bytes) -> Any:
    try:
        return Packet.FromString(data)
    except Exception as err:
        # protobuf's DecodeError, as `wire.Call` has it.
        raise GrpcError(_INTERNAL, f"grpc: error unmarshalling request: {err}") from err


async def receive_bulk(call: Call, intake: BulkIntake) -> Followed:
    """As `fsutil.receive`; its messages' sizes and prefixes stay with them. Closes `intake`."""
    try:
        with telling(call):
            while not intake.done:
                chunk = await call.read_framed(_CHUNK)
                if not chunk:
                    raise SessionError("the sender ended the transfer before it was complete")
                answers = await in_thread(intake.take, chunk)
                if answers:
                    call.send_framed(answers)
                if call.full:
                    await call.room()
            return intake.followed()
    finally:
        intake.close()


__all__ = ["BulkIntake", "receive_bulk"]
