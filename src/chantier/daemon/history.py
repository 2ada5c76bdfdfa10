# SPDX-License-Identifier: Apache-2.0
"""What was built: a record and the whole log of each build, kept within bounds of age and number (protocol.md 4.6, 4.7).

    ROOT/history/HEX      blobs of records by sha256: logs, errors, provenance

Records stand in the state's database. Files that no record names are removed at the start.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from google.rpc import status_pb2

from chantier.config import HistoryConfig
from chantier.errors import NotFoundError, UsageError
from chantier.pb import control_pb2 as pb
from chantier.progress import now
from chantier.wire import GrpcError
from chantier.wire.status import CANCELLED, UNKNOWN

LOG_TYPE = "application/vnd.buildkit.status.v0"
ERROR_TYPE = "application/vnd.googeapis.google.rpc.status+proto"  # the wire's own spelling (protocol.md 9.3)
_KEEP_S = 48 * 3600.0
_KEEP = 50
_SCHEMA = """
CREATE TABLE IF NOT EXISTS daemon_history (
  ref TEXT PRIMARY KEY, created INTEGER NOT NULL, completed INTEGER NOT NULL, pinned INTEGER NOT NULL, record BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS daemon_history_blob (ref TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (ref, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS daemon_history_blob_digest ON daemon_history_blob (digest)
"""
_log = logging.getLogger(__name__)
STARTED, COMPLETE, DELETED = (
    pb.BuildHistoryEventType.Value("STARTED"),
    pb.BuildHistoryEventType.Value("COMPLETE"),
    pb.BuildHistoryEventType.Value("DELETED"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    digest: str
    size: int
    path: Path
    created: int


class History:
    """Belongs to the daemon's loop; what may wait for a disk goes to a thread."""

    def __init__(self, root: Path, db: Any, config: HistoryConfig) -> None:
        self._directory = root / "history"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._db = db
        self.config = config
        self._running: dict[str, pb.BuildHistoryRecord] = {}
        self._lock = asyncio.Lock()
        self._listeners: set[asyncio.Queue[pb.BuildHistoryEvent]] = set()
        db.ensure(_SCHEMA)
        self._remove_orphans()

    # -- a build's way

    def start(self, record: pb.BuildHistoryRecord) -> None:
        record.Generation = 1
        self._running[record.Ref] = record
        self._tell(STARTED, record)

    async def finish(self, record: pb.BuildHistoryRecord, log: Path, blobs: Sequence[tuple[pb.Descriptor, bytes]] = ()) -> None:
        """Keep the record, the file `log` as its log (it is used up), and blobs whose descriptors the record has."""
        record.Generation += 1
        async with self._lock:
            await asyncio.to_thread(self._keep, record, log, blobs)
        self._running.pop(record.Ref, None)
        self._tell(COMPLETE, record)
        await self.collect()

    def _keep(self, record: pb.BuildHistoryRecord, log: Path, blobs: Sequence[tuple[pb.Descriptor, bytes]]) -> None:
        digest, size = self._adopt(log)
        record.logs.CopyFrom(pb.Descriptor(media_type=LOG_TYPE, digest=digest, size=size))
        for descriptor, data in blobs:
            self._write(descriptor.digest.removeprefix("sha256:"), data)
        self._save(record)

    def abandon(self, ref: str) -> None:
        """A build that is not to be remembered."""
        self._running.pop(ref, None)

    def _write(self, name: str, data: bytes) -> None:
        partial = self._directory / f"{name}.{os.getpid()}"
        partial.write_bytes(data)
        os.rename(partial, self._directory / name)

    def _adopt(self, path: Path) -> tuple[str, int]:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        os.rename(path, self._directory / digest)
        return f"sha256:{digest}", size

    def _save(self, record: pb.BuildHistoryRecord) -> None:
        with self._db.write() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO daemon_history VALUES (?, ?, ?, ?, ?)",
                (
                    record.Ref,
                    record.CreatedAt.ToNanoseconds(),
                    record.CompletedAt.ToNanoseconds(),
                    int(record.pinned),
                    record.SerializeToString(),
                ),
            )
            cursor.execute("DELETE FROM daemon_history_blob WHERE ref = ?", (record.Ref,))
            cursor.executemany(
                "INSERT OR IGNORE INTO daemon_history_blob VALUES (?, ?)", [(record.Ref, d) for d in _digests(record)]
            )

    # -- what is kept

    def get(self, ref: str) -> pb.BuildHistoryRecord | None:
        rows = self._db.read("SELECT record FROM daemon_history WHERE ref = ?", (ref,))
        return pb.BuildHistoryRecord.FromString(rows[0][0]) if rows else None

    def records(self) -> list[pb.BuildHistoryRecord]:
        """Oldest first."""
        return [
            pb.BuildHistoryRecord.FromString(row[0])
            for row in self._db.read("SELECT record FROM daemon_history ORDER BY created")
        ]

    def log_of(self, ref: str) -> Path | None:
        """The file with a finished build's messages."""
        record = self.get(ref)
        if record is None or not record.logs.digest:
            return None
        path = self._path(record.logs.digest)
        return path if path.exists() else None

    def blob(self, digest: str) -> Blob | None:
        path = self._path(digest)
        try:
            info = path.stat()
        except OSError:
            return None
        return Blob(digest=digest, size=info.st_size, path=path, created=info.st_mtime_ns)

    def blobs(self) -> list[Blob]:
        found = [
            self.blob(f"sha256:{name}") for name in sorted(os.listdir(self._directory)) if re.fullmatch("[0-9a-f]{64}", name)
        ]
        return [blob for blob in found if blob is not None]

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        if not re.fullmatch("[0-9a-f]{64}", name):
            raise UsageError(f"invalid digest {digest!r}")
        return self._directory / name

    # -- changes

    async def pin(self, ref: str, pinned: bool) -> None:
        record = self._known(ref)
        record.pinned = pinned
        record.Generation += 1
        await asyncio.to_thread(self._save, record)
        self._tell(COMPLETE, record)

    async def delete(self, ref: str) -> None:
        record = self._known(ref)
        async with self._lock:
            await asyncio.to_thread(self._delete, [ref])
        self._tell(DELETED, record)

    def _known(self, ref: str) -> pb.BuildHistoryRecord:
        record = self.get(ref)
        if record is None:
            raise NotFoundError(f"failed to retrieve ref {ref}: not found" if ref else "no ref was given")
        return record

    def _delete(self, refs: Sequence[str]) -> None:
        """Records, and those of their blobs that no other record names."""
        gone: set[str] = set()
        with self._db.write() as cursor:
            for ref in refs:
                gone |= {row[0] for row in cursor.execute("SELECT digest FROM daemon_history_blob WHERE ref = ?", (ref,))}
                cursor.execute("DELETE FROM daemon_history_blob WHERE ref = ?", (ref,))
                cursor.execute("DELETE FROM daemon_history WHERE ref = ?", (ref,))
            kept = {
                d for d in gone if cursor.execute("SELECT 1 FROM daemon_history_blob WHERE digest = ? LIMIT 1", (d,)).fetchone()
            }
        for digest in gone - kept:
            self._path(digest).unlink(missing_ok=True)

    def _remove_orphans(self) -> None:
        used: set[str] = set()
        for record in [*self.records(), *self._running.values()]:
            used |= {digest.removeprefix("sha256:") for digest in _digests(record)}
        for name in os.listdir(self._directory):
            if name not in used:
                (self._directory / name).unlink(missing_ok=True)

    async def collect(self) -> None:
        """Delete what is too old and too much: neither among the newest, nor younger than the age, nor pinned."""
        newest = self.config.max_entries or _KEEP
        age_s = self.config.max_age_s or _KEEP_S
        since = time.time_ns() - int(age_s * 1e9)
        rows = self._db.read("SELECT ref, completed FROM daemon_history WHERE pinned = 0 ORDER BY completed DESC")
        gone = [ref for number, (ref, completed) in enumerate(rows) if number >= newest and completed < since]
        for ref in gone:
            await self.delete(ref)

    # -- listening

    def _tell(self, kind: int, record: pb.BuildHistoryRecord) -> None:
        event = pb.BuildHistoryEvent(type=kind, record=record)  # type: ignore[arg-type]  # an enum's number
        for queue in self._listeners:
            queue.put_nowait(event)

    async def listen(self, request: pb.BuildHistoryRequest) -> AsyncIterator[pb.BuildHistoryEvent]:
        wanted = compile_filters(list(request.Filter))
        queue: asyncio.Queue[pb.BuildHistoryEvent] = asyncio.Queue()
        if not request.EarlyExit:
            self._listeners.add(queue)
        try:
            for record in list(self._running.values()):
                if request.Ref in ("", record.Ref):
                    yield pb.BuildHistoryEvent(type=pb.STARTED, record=record)
            if not request.ActiveOnly:
                for record in self._finished(request, wanted):
                    yield pb.BuildHistoryEvent(type=pb.COMPLETE, record=record)
            if request.EarlyExit:
                return
            while True:
                event = await queue.get()
                if request.Ref not in ("", event.record.Ref):
                    continue
                if request.ActiveOnly and event.type != STARTED and request.Ref == "":
                    continue
                yield event
                if event.type == DELETED and request.Ref:
                    raise GrpcError(UNKNOWN, f"ref {request.Ref} is deleted")
        finally:
            self._listeners.discard(queue)

    def _finished(
        self, request: pb.BuildHistoryRequest, wanted: Callable[[pb.BuildHistoryRecord], bool]
    ) -> list[pb.BuildHistoryRecord]:
        found = [r for r in self.records() if request.Ref in ("", r.Ref) and wanted(r)]
        if request.Limit > 0:
            found = sorted(found, key=lambda r: r.CreatedAt.ToNanoseconds(), reverse=True)[: request.Limit]
        return found


def _digests(record: pb.BuildHistoryRecord) -> Iterable[str]:
    for descriptor in (record.logs, record.trace, record.externalError):
        if descriptor.digest:
            yield descriptor.digest
    for info in (record.Result, *record.Results.values()):
        for descriptor in info.Attestations:
            yield descriptor.digest


def status_of_record(record: pb.BuildHistoryRecord) -> str:
    if not record.HasField("CompletedAt"):
        return "running"
    if not record.HasField("error"):
        return "completed"
    return "canceled" if record.error.code == CANCELLED else "error"


# -- filters (4.7)

_TERM = re.compile(r"(?P<key>\w+)\s*(?P<op>==|!=|~=|>=|<=|>|<|=)\s*(?P<value>.*)\Z")
Record = pb.BuildHistoryRecord


def compile_filters(filters: Sequence[str]) -> Callable[[Record], bool]:
    """Terms within one text are all to hold, of several texts any. Raises UsageError."""
    alternatives = [[_term(term.strip()) for term in text.split(",") if term.strip()] for text in filters]
    alternatives = [terms for terms in alternatives if terms]
    return lambda record: not alternatives or any(all(term(record) for term in terms) for terms in alternatives)


def _term(text: str) -> Callable[[Record], bool]:
    match = _TERM.match(text)
    if match is None:
        raise UsageError(f"invalid history filter {text!r}", hint="such as status==error, startedAt>24h, duration<5m")
    key, op, value = match["key"], match["op"], match["value"].strip("\"'")
    if key in ("ref", "status", "repository"):
        get = {"ref": lambda r: r.Ref, "status": status_of_record, "repository": _repository}[key]
        return _text_test(text, get, op, value)
    if key in ("startedAt", "completedAt"):
        limit = _time(text, value)
        field = "CreatedAt" if key == "startedAt" else "CompletedAt"
        # An age is compared as an age: startedAt<24h are builds of the last day.
        flip = not value[:4].isdigit() or "-" not in value
        return lambda r: _compare(getattr(r, field).ToNanoseconds(), _flipped(op) if flip else op, limit)
    if key == "duration":
        nanoseconds = int(_duration(text, value) * 1e9)
        return lambda r: _compare(_ended(r) - r.CreatedAt.ToNanoseconds(), op, nanoseconds)
    raise UsageError(f"unknown history filter {key!r}", hint="ref, status, repository, startedAt, completedAt, duration")


def _text_test(text: str, get: Callable[[Record], str], op: str, value: str) -> Callable[[Record], bool]:
    if op in ("==", "="):
        return lambda r: get(r) == value
    if op == "!=":
        return lambda r: get(r) != value
    if op == "~=":
        try:
            pattern = re.compile(value)
        except re.error as err:
            raise UsageError(f"invalid history filter {text!r}: {err}") from err
        return lambda r: pattern.search(get(r)) is not None
    raise UsageError(f"invalid history filter {text!r}: {op} is for times and durations")


def _repository(record: Record) -> str:
    attrs = record.FrontendAttrs
    found = attrs.get("vcs:source") or attrs.get("context", "")
    return found if "://" in found or found.startswith("git@") else ""


def _ended(record: Record) -> int:
    return record.CompletedAt.ToNanoseconds() if record.HasField("CompletedAt") else now()


def _flipped(op: str) -> str:
    return {">": "<", "<": ">", ">=": "<=", "<=": ">="}.get(op, op)


def _compare(left: int, op: str, right: int) -> bool:
    return {
        ">": left > right,
        "<": left < right,
        ">=": left >= right,
        "<=": left <= right,
        "==": left == right,
        "=": left == right,
        "!=": left != right,
        "~=": False,
    }[op]


def _time(text: str, value: str) -> int:
    try:
        return int(datetime.fromisoformat(value).timestamp() * 1e9)
    except ValueError:
        return now() - int(_duration(text, value) * 1e9)


_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(text: str, value: str) -> float:
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d)", value)
    if not parts or "".join(a + b for a, b in parts) != value:
        raise UsageError(f"invalid history filter {text!r}: {value!r} is neither a time nor a duration")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def descriptor_of(data: bytes, media_type: str) -> pb.Descriptor:
    return pb.Descriptor(media_type=media_type, digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))


def status_message(error: GrpcError) -> status_pb2.Status:
    """google.rpc.Status with its details."""
    status = status_pb2.Status(code=error.code, message=error.message)
    for detail in error.details:
        status.details.add(type_url=detail.type_url, value=detail.value)
    return status


def pack_status(error: GrpcError) -> bytes:
    """The blob `externalError`."""
    return bytes(status_message(error).SerializeToString())


__all__ = [
    "ERROR_TYPE",
    "LOG_TYPE",
    "Blob",
    "History",
    "compile_filters",
    "descriptor_of",
    "pack_status",
    "status_message",
    "status_of_record",
]
