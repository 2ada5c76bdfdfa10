# SPDX-License-Identifier: Apache-2.0
"""containerd.services.content.v1.Content, to read only: the blobs of the cache and of history (protocol.md 1.1, 1.7)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.errors import ChantierError
from chantier.pb import common_pb2
from chantier.pb import content_pb2 as pb
from chantier.values import dataclass
from chantier.wire import GrpcError, ServerCall, Service
from chantier.wire.status import FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, OUT_OF_RANGE

from .filters import matches

if TYPE_CHECKING:
    from .daemon import Daemon

NAME = "containerd.services.content.v1.Content"
_CHUNK = 1 << 20
_BATCH = 100


@dataclass(frozen=True, slots=True)
class _Found:
    digest: str
    size: int
    created: int
    path: Path
    labels: dict[str, str]

    def message(self) -> pb.Info:
        info = pb.Info(digest=self.digest, size=self.size, labels=self.labels)
        info.created_at.FromNanoseconds(self.created)
        info.updated_at.FromNanoseconds(self.created)
        return info


class Content:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def service(self) -> Service:
        return Service(
            NAME,
            {
                "Info": self._info,
                "List": self._list,
                "Read": self._read,
                "Update": self._refuse,
                "Delete": self._refuse,
                "Abort": self._refuse,
                "Write": self._refuse_stream,
                "Status": self._status,
                "ListStatuses": self._list_statuses,
            },
        )

    async def _info(self, request: pb.InfoRequest, call: ServerCall) -> pb.InfoResponse:
        return pb.InfoResponse(info=(await self._find(request.digest)).message())

    async def _list(self, request: pb.ListContentRequest, call: ServerCall) -> None:
        await self._daemon.engine()
        found = await asyncio.to_thread(lambda: list(self._all()))
        wanted = [f for f in found if matches(list(request.filters), {"digest": f.digest, "size": str(f.size)})]
        for at in range(0, len(wanted), _BATCH):
            await call.send(pb.ListContentResponse(info=[f.message() for f in wanted[at : at + _BATCH]]))

    async def _read(self, request: pb.ReadContentRequest, call: ServerCall) -> None:
        found = await self._find(request.digest)
        if request.offset > found.size or request.offset < 0:
            raise GrpcError(OUT_OF_RANGE, f"read past object length {found.size} bytes")
        left = found.size - request.offset
        if request.size > 0:
            if request.size > left:
                raise GrpcError(OUT_OF_RANGE, f"read past object length {found.size} bytes")
            left = request.size
        at = request.offset
        with found.path.open("rb") as file:
            file.seek(at)
            while left > 0:
                data = await asyncio.to_thread(file.read, min(left, _CHUNK))
                if not data:
                    break
                await call.send(pb.ReadContentResponse(offset=at, data=data))
                at += len(data)
                left -= len(data)

    async def _find(self, digest: str) -> _Found:
        engine = await self._daemon.engine()
        try:
            kept = self._daemon.history.blob(digest)
            if kept is not None:
                return _Found(kept.digest, kept.size, kept.created, kept.path, {})
            info = await asyncio.to_thread(engine.blobs.stat, digest)
        except ChantierError as err:
            raise GrpcError(INVALID_ARGUMENT, str(err)) from err
        if info is None:
            raise GrpcError(NOT_FOUND, f"content {digest}: not found")
        return _Found(str(info.digest), info.size, info.created, engine.blobs.path(digest), dict(info.labels))

    def _all(self) -> Iterator[_Found]:
        engine = self._daemon.opened_engine
        for kept in self._daemon.history.blobs():
            yield _Found(kept.digest, kept.size, kept.created, kept.path, {})
        for info in engine.blobs.walk():
            digest = str(info.digest)
            yield _Found(digest, info.size, info.created, engine.blobs.path(digest), dict(info.labels))

    async def _refuse(self, request: Any, call: ServerCall) -> common_pb2.Empty:
        raise GrpcError(FAILED_PRECONDITION, "read-only content store")

    async def _refuse_stream(self, call: ServerCall) -> None:
        raise GrpcError(FAILED_PRECONDITION, "read-only content store")

    async def _status(self, request: pb.StatusRequest, call: ServerCall) -> pb.StatusResponse:
        raise GrpcError(NOT_FOUND, f"no ingest {request.ref}: not found")

    async def _list_statuses(self, request: pb.ListStatusesRequest, call: ServerCall) -> pb.ListStatusesResponse:
        return pb.ListStatusesResponse()


__all__ = ["NAME", "Content"]
