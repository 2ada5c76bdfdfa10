# SPDX-License-Identifier: Apache-2.0
"""The history of a daemon, ours or a stock one (protocol.md 4.6, 4.7): its records as values, logs, attachments, removal."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.errors import NotFoundError
from chantier.pb import content_pb2
from chantier.pb import control_pb2 as pb
from chantier.progress import Event
from chantier.record import CANCELED, COMPLETED, ERROR, RUNNING, Attachment, BuildRecord
from chantier.wire import GrpcError, Stub, error_of
from chantier.wire.status import CANCELLED

from .events import events_of
from .solve import CONTROL

if TYPE_CHECKING:
    from .client import Client

_CONTENT = "containerd.services.content.v1.Content"
_LENGTH = struct.Struct("<I")


async def records(client: Client, ref: str = "") -> list[BuildRecord]:
    """Of all builds, or of one; the newest first."""
    found: dict[str, BuildRecord] = {}
    try:
        async with Stub(client.channel, CONTROL).stream("ListenBuildHistory") as call:
            await call.send(pb.BuildHistoryRequest(EarlyExit=True, Ref=ref))
            call.close_send()
            async for event in call:
                found[event.record.Ref] = record_of(event.record)
    except GrpcError as err:
        raise error_of(err) from err
    return sorted(found.values(), key=lambda record: (-record.started, record.ref))


async def events(client: Client, ref: str) -> AsyncIterator[Event]:
    """All that a build said, from its start; of one that runs, until it ends."""
    try:
        async with Stub(client.channel, CONTROL).stream("Status") as call:
            await call.send(pb.StatusRequest(Ref=ref))
            call.close_send()
            async for message in call:
                for event in events_of(message):
                    yield event
    except GrpcError as err:
        raise error_of(err) from err


async def remove(client: Client, ref: str) -> None:
    try:
        await Stub(client.channel, CONTROL).unary("UpdateBuildHistory", pb.UpdateBuildHistoryRequest(Ref=ref, Delete=True))
    except GrpcError as err:
        raise error_of(err) from err


async def finalize(client: Client, ref: str) -> None:
    """Let the daemon keep the trace of a build now, and not some seconds after it has ended."""
    try:
        await Stub(client.channel, CONTROL).unary("UpdateBuildHistory", pb.UpdateBuildHistoryRequest(Ref=ref, Finalize=True))
    except GrpcError as err:
        raise error_of(err) from err


async def blob(client: Client, digest: str) -> AsyncIterator[bytes]:
    """The bytes of an attachment. Raises NotFoundError."""
    try:
        async with Stub(client.channel, _CONTENT).stream("Read") as call:
            await call.send(content_pb2.ReadContentRequest(digest=digest))
            call.close_send()
            async for message in call:
                yield message.data
    except GrpcError as err:
        raise error_of(err) from err


def record_of(sent: Any) -> BuildRecord:
    """A BuildHistoryRecord as a value. What only the engine knows of a build (why steps ran) is not among it."""
    status = RUNNING
    if sent.HasField("CompletedAt"):
        status = COMPLETED if not sent.HasField("error") else CANCELED if sent.error.code == CANCELLED else ERROR
    kept = [sent.logs, sent.trace, sent.externalError, *sent.Result.Attestations]
    kept += [one for info in sent.Results.values() for one in info.Attestations]
    return BuildRecord(
        ref=sent.Ref,
        status=status,
        started=sent.CreatedAt.ToNanoseconds(),
        completed=sent.CompletedAt.ToNanoseconds() if sent.HasField("CompletedAt") else 0,
        frontend=sent.Frontend,
        attrs=dict(sent.FrontendAttrs),
        exporters=tuple((one.Type, dict(one.Attrs)) for one in sent.Exporters),
        metadata=dict(sent.ExporterResponse),
        error=sent.error.message,
        code=sent.error.code,
        total=sent.numTotalSteps,
        done=sent.numCompletedSteps,
        cached=sent.numCachedSteps,
        warnings=sent.numWarnings,
        pinned=sent.pinned,
        generation=sent.Generation,
        results={str(number): _descriptor(one) for number, one in sent.Result.Results.items()},
        attachments=tuple(
            Attachment(media_type=one.media_type, digest=one.digest, size=one.size, annotations=dict(one.annotations))
            for one in kept
            if one.digest
        ),
    )


def _descriptor(sent: Any) -> dict[str, Any]:
    found = {"mediaType": sent.media_type, "digest": sent.digest, "size": sent.size}
    return {**found, "annotations": dict(sent.annotations)} if sent.annotations else found


def read_log(path: Path) -> Iterator[Event]:
    """The events of a log as it is kept. The last message of one may be torn: its writer was killed."""
    with path.open("rb") as file:
        while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            data = file.read(length)
            if len(data) < length:
                return
            yield from events_of(pb.StatusResponse.FromString(data))


def missing(ref: str) -> NotFoundError:
    return NotFoundError(f"no record found for ref {ref!r}")


__all__ = ["blob", "events", "finalize", "missing", "read_log", "record_of", "records", "remove"]
