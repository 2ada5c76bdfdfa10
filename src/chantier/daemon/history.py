# SPDX-License-Identifier: Apache-2.0
"""What clients are told of the engine's history: its records as messages, each with a log in the clients' form (protocol.md 4.6).

Builds of other engines on the same root are among them: their logs are put into that form when they are first asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from chantier.engine import SERVED, SolveResult
from chantier.engine.history import History as Store
from chantier.engine.recording import Recording, predicates
from chantier.errors import ChantierError, NotFoundError, UsageError
from chantier.pb import common_pb2
from chantier.pb import control_pb2 as pb
from chantier.record import ATTESTATION_TYPE, CANCELED, ERROR_TYPE, LOG_TYPE, OF_IMAGE, PLATFORM, TRACE_TYPE, BuildRecord
from chantier.values import dataclass
from chantier.wire import GrpcError
from chantier.wire.status import CANCELLED, UNKNOWN

from .history_filters import compile_filters
from .progress import packed, timed

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

    def __init__(self, store: Store) -> None:
        self.store = store
        self._running: dict[str, pb.BuildHistoryRecord] = {}
        self._listeners: set[asyncio.Queue[pb.BuildHistoryEvent]] = set()
        loop = asyncio.get_running_loop()

        def removed(record: BuildRecord) -> None:
            loop.call_soon_threadsafe(self._tell, DELETED, message_of(record))

        store.on_removed = removed

    # -- a build's way

    def started(self, record: BuildRecord) -> None:
        self._running[record.ref] = message_of(record)
        self._tell(STARTED, self._running[record.ref])

    async def finish(
        self, recording: Recording, result: SolveResult | None, error: BaseException | None, status: GrpcError | None
    ) -> None:
        """Keep the log, and how the build ended; `status` is what was answered for an error."""
        ref = recording.record.ref
        try:
            written = await asyncio.to_thread(_keep, recording, result, error, status)
        finally:
            self._running.pop(ref, None)
        record = await asyncio.to_thread(self.store.find, ref) if written else None
        if record is not None:
            self._tell(COMPLETE, message_of(record))

    # -- what is kept

    async def log_of(self, ref: str) -> Path | None:
        """The file with the messages of a build that has ended."""
        return await asyncio.to_thread(self._log_of, ref)

    def _log_of(self, ref: str) -> Path | None:
        try:
            record = self.store.find(ref)
        except ChantierError:
            return None
        if record is None or not record.completed:
            return None
        log = self._with_log(record).attached(LOG_TYPE)
        return self.store.attachment(ref, log.digest) if log is not None else None

    def _with_log(self, record: BuildRecord) -> BuildRecord:
        """The record of a build of any engine, its log and its provenance attached as clients look for them. A disk that is
        full, or a record that is just removed, leaves it as it is."""
        if record.attached(LOG_TYPE) is not None:
            return record
        try:
            for data, notes in predicates(record.provenances or ({"": record.provenance} if record.provenance else {})):
                self.store.attach(record.ref, ATTESTATION_TYPE, data, notes)
            adopted = self.store.adopt_log(record.ref, LOG_TYPE)
            if adopted.attached(LOG_TYPE) is not None:
                return adopted
            return self.store.attach(record.ref, LOG_TYPE, packed(self.store.events(record.ref)))
        except (ChantierError, OSError) as err:
            _log.debug("no log of build %s: %s", record.ref, err)
            return record

    def blob(self, digest: str) -> Blob | None:
        """Raises UsageError for what is no digest."""
        for ref in self.store.refs():
            if (path := self.store.attachment(ref, digest)) is not None and (found := _blob(digest, path)) is not None:
                return found
        return None

    def blobs(self) -> list[Blob]:
        found = dict(self.store.attached())
        return [blob for digest, path in sorted(found.items()) if (blob := _blob(digest, path)) is not None]

    # -- changes

    async def record(self, ref: str) -> BuildRecord:
        """All that is kept of a build that has ended. Raises NotFoundError."""
        return await asyncio.to_thread(self._with_log, await self._known(ref))

    async def finalize(self, ref: str) -> None:
        """Make the trace of a build that has ended. Of one that runs, or that nobody knows, there is nothing to be made."""
        record = await asyncio.to_thread(self.store.find, ref) if ref else None
        if record is not None and record.completed and record.attached(TRACE_TYPE) is None:
            self._tell(COMPLETE, message_of(await asyncio.to_thread(self._with_trace, record)))

    def _with_trace(self, record: BuildRecord) -> BuildRecord:
        log = self.store.log(record.ref)
        return self.store.trace(record.ref, timed(log) if log is not None else None)

    async def pin(self, ref: str, pinned: bool) -> None:
        await self._known(ref)
        record = await asyncio.to_thread(self.store.pin, ref, pinned=pinned)
        self._tell(COMPLETE, message_of(record))

    async def delete(self, ref: str) -> None:
        record = await self._known(ref)
        await asyncio.to_thread(self.store.remove, ref)
        self._tell(DELETED, message_of(record))

    async def _known(self, ref: str) -> BuildRecord:
        record = await asyncio.to_thread(self.store.find, ref) if ref else None
        if record is None:
            raise NotFoundError(f"failed to retrieve ref {ref}: not found" if ref else "no ref was given")
        return record

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
                for record in await asyncio.to_thread(self._finished, request, wanted):
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
        """Oldest first; with a limit the newest, newest first."""
        newest_first = [r for r in self._some(request.Ref) if r.completed and wanted(message_of(r))]
        chosen = newest_first[: request.Limit] if request.Limit > 0 else newest_first[::-1]
        return [message_of(self._shown(record, alone=bool(request.Ref))) for record in chosen]

    def _shown(self, record: BuildRecord, *, alone: bool) -> BuildRecord:
        """A record as it is listed; with its trace if it is asked for by name: some clients look for that without `finalize`."""
        record = self._with_log(record)
        if alone:
            try:
                return self._with_trace(record)
            except (ChantierError, OSError) as err:  # the disk is full, or it is just removed
                _log.debug("no trace of build %s: %s", record.ref, err)
        return record

    def _some(self, ref: str) -> list[BuildRecord]:
        """All records, newest first, or the one of a reference. A reference that no build can have is nobody's."""
        if not ref:
            return self.store.records()
        try:
            record = self.store.find(ref)
        except UsageError:
            return []
        return [] if record is None else [record]


def _keep(recording: Recording, result: SolveResult | None, error: BaseException | None, status: GrpcError | None) -> bool:
    try:
        recording.attach_log(LOG_TYPE)
        if status is not None:
            recording.attach(ERROR_TYPE, bytes(status_message(status).SerializeToString()))
    except OSError as err:  # the build is not to fail for it
        _log.error("failed to keep the log of build %s: %s", recording.record.ref, err)
    code, text = (status.code, status.message) if status is not None else (0, "")
    written = recording.end(result, error, code=code, text=text)
    if not written:
        _log.error("failed to keep the record of build %s", recording.record.ref)
    return written


def message_of(record: BuildRecord) -> pb.BuildHistoryRecord:
    """A record as clients know it."""
    made = pb.BuildHistoryRecord(
        Ref=record.ref,
        Frontend=record.frontend,
        FrontendAttrs=dict(record.attrs),
        Exporters=[pb.Exporter(Type=kind, Attrs=dict(attrs)) for kind, attrs in record.exporters],
        ExporterResponse=dict(record.metadata),
        Generation=record.generation,
        pinned=record.pinned,
        numCachedSteps=record.cached,
        numTotalSteps=record.total,
        numCompletedSteps=record.done,
        numWarnings=record.warnings,
    )
    made.CreatedAt.FromNanoseconds(record.started)
    if record.completed:
        made.CompletedAt.FromNanoseconds(record.completed)
    if SERVED in record.response:
        made.ExporterResponse[SERVED] = record.response[SERVED]
    if record.error:
        made.error.code = record.code or (CANCELLED if record.status == CANCELED else UNKNOWN)
        made.error.message = record.error
    elif record.completed:
        made.Result.CopyFrom(_result(record))
    for one in record.attachments:
        if OF_IMAGE in one.annotations:  # clients find these by the image's descriptor
            continue
        notes = dict(one.annotations)
        platform = notes.pop(PLATFORM, "")
        descriptor = pb.Descriptor(media_type=one.media_type, digest=one.digest, size=one.size, annotations=notes)
        if one.media_type == LOG_TYPE:
            made.logs.CopyFrom(descriptor)
        elif one.media_type == TRACE_TYPE:
            made.trace.CopyFrom(descriptor)
        elif one.media_type == ERROR_TYPE:
            made.externalError.CopyFrom(descriptor)
        elif one.media_type == ATTESTATION_TYPE:
            (made.Results[platform] if platform else made.Result).Attestations.append(descriptor)
    return made


def _result(record: BuildRecord) -> pb.BuildResultInfo:
    info = pb.BuildResultInfo()
    for number, value in record.results.items():
        info.Results[int(number)].CopyFrom(
            pb.Descriptor(
                media_type=value.get("mediaType", ""),
                digest=value.get("digest", ""),
                size=value.get("size", 0),
                annotations=value.get("annotations") or {},
            )
        )
        if not info.HasField("ResultDeprecated"):
            info.ResultDeprecated.CopyFrom(info.Results[int(number)])
    return info


def _blob(digest: str, path: Path) -> Blob | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return Blob(digest=digest, size=info.st_size, path=path, created=info.st_mtime_ns)


def status_message(error: GrpcError) -> common_pb2.Status:
    """google.rpc.Status with its details."""
    status = common_pb2.Status(code=error.code, message=error.message)
    for detail in error.details:
        status.details.add(type_url=detail.type_url, value=detail.value)
    return status


__all__ = ["Blob", "History", "message_of", "status_message"]
