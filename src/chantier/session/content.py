# SPDX-License-Identifier: Apache-2.0
"""A content store that is an OCI layout on this machine, served to the engine: cache folders, layouts, unpacked outputs.

    ROOT/oci-layout, ROOT/blobs/ALGORITHM/HEX, and while a blob is written ROOT/ingest/sha256(REF)

`index.json` is not touched here: who asked for the build writes it from the build's answer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from chantier.errors import ChantierError, IntegrityError, NotFoundError, ReferenceError_, UsageError
from chantier.kernel import write_all
from chantier.kernel.trace import point
from chantier.pb import content_pb2 as pb
from chantier.spec import Digest
from chantier.wire import GrpcError, Handler, ServerCall, Service

from .threads import in_thread

NAME = "containerd.services.content.v1.Content"
STORE_KEY = "buildkit-attachable-store-id"
_PIECE = 1 << 20
_ALREADY_EXISTS = 6
_INVALID_ARGUMENT = 3
T = TypeVar("T")


class LayoutStore:
    """Blobs of one OCI layout. Not written until `write`; sync, for worker threads."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Raises UsageError for what is no digest."""
        try:
            parsed = Digest.parse(digest)
        except ReferenceError_ as err:
            raise UsageError(str(err)) from err
        return self.root / "blobs" / parsed.algorithm / parsed.hex

    def size(self, digest: str) -> int:
        """Raises NotFoundError."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as err:
            raise NotFoundError(f"content {digest}: not found") from err

    def read(self, digest: str, offset: int, size: int) -> bytes:
        try:
            with open(self.path(digest), "rb") as file:
                return os.pread(file.fileno(), size, offset)
        except FileNotFoundError as err:
            raise NotFoundError(f"content {digest}: not found") from err

    def ingest(self, ref: str) -> Path:
        return self.root / "ingest" / hashlib.sha256(ref.encode()).hexdigest()

    def offset(self, ref: str) -> int:
        try:
            return self.ingest(ref).stat().st_size
        except FileNotFoundError:
            return 0

    def write(self, ref: str, offset: int, data: bytes) -> int:
        """Append; gives the new offset. An offset of 0 begins anew."""
        path = self.ingest(ref)
        if not path.parent.is_dir():
            self._create()
        have = self.offset(ref)
        if offset == 0 and have:
            path.unlink()
        elif offset != have:
            raise UsageError(f"write of {ref} at offset {offset}, but {have} bytes are there")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
        return offset + len(data)

    def _create(self) -> None:
        (self.root / "ingest").mkdir(parents=True, exist_ok=True)
        layout = self.root / "oci-layout"
        if not layout.exists():
            layout.write_text('{"imageLayoutVersion":"1.0.0"}')

    def commit(self, ref: str, total: int, expected: str) -> str:
        """Verify and name what was written; gives its digest. Raises GrpcError AlreadyExists, IntegrityError."""
        path = self.ingest(ref)
        if not path.exists():
            self._create()
            path.touch()
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            algorithm = expected.partition(":")[0] or "sha256"
            digest = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
            os.fsync(file.fileno())
        if total and size != total:
            path.unlink()
            raise IntegrityError(f"unexpected commit size {size}, expected {total}")
        if expected and digest != expected:
            path.unlink()
            raise IntegrityError(f"unexpected commit digest {digest}, expected {expected}")
        place = self.path(digest)
        if place.exists():
            path.unlink()
            raise GrpcError(_ALREADY_EXISTS, f"content {digest}: already exists")
        place.parent.mkdir(parents=True, exist_ok=True)
        point("content.written")
        os.replace(path, place)
        point("content.named")
        with suppress(OSError):  # not empty: something else is being written
            path.parent.rmdir()
        return digest

    def abort(self, ref: str) -> None:
        self.ingest(ref).unlink(missing_ok=True)


def service(stores: Mapping[str, Path]) -> Service:
    """The Content service of the stores by their id: `export`, `local:PATH`, `oci:NAME`."""
    return _Content({id: LayoutStore(path) for id, path in stores.items()}).service()


class _Content:
    def __init__(self, stores: Mapping[str, LayoutStore]) -> None:
        self._stores = stores

    def service(self) -> Service:
        handlers: dict[str, Handler] = {
            "Info": self._info,
            "Read": self._read,
            "Status": self._status,
            "Write": self._write,
            "Abort": self._abort,
        }
        return Service(NAME, handlers)

    def _store(self, call: ServerCall) -> LayoutStore:
        id = call.metadata.text(STORE_KEY)
        if not id:
            raise GrpcError(_INVALID_ARGUMENT, "request is missing a content store id")
        store = self._stores.get(id)
        if store is None:
            raise NotFoundError(f"unknown content store {id}")
        return store

    async def _info(self, request: pb.InfoRequest, call: ServerCall) -> pb.InfoResponse:
        size = await in_thread(self._store(call).size, request.digest)
        return pb.InfoResponse(info=pb.Info(digest=request.digest, size=size))

    async def _read(self, request: pb.ReadContentRequest, call: ServerCall) -> None:
        store = self._store(call)
        size = await in_thread(store.size, request.digest)
        if request.offset > size:
            raise GrpcError(11, f"read past the end of {request.digest}")
        at = request.offset
        end = min(size, at + request.size) if request.size else size
        while at < end:
            data = await in_thread(store.read, request.digest, at, min(_PIECE, end - at))
            if not data:
                raise IntegrityError(f"content {request.digest} became shorter while it was read")
            await call.send(pb.ReadContentResponse(offset=at, data=data))
            at += len(data)

    async def _status(self, request: pb.StatusRequest, call: ServerCall) -> pb.StatusResponse:
        store = self._store(call)
        offset = await in_thread(store.offset, request.ref)
        if not offset:
            raise NotFoundError(f"ingest {request.ref}: not found")
        return pb.StatusResponse(status=pb.Status(ref=request.ref, offset=offset))

    async def _write(self, call: ServerCall) -> None:
        store = self._store(call)
        ref, total, expected, offset = "", 0, "", -1
        async for request in call:
            ref = request.ref or ref
            total, expected = request.total or total, request.expected or expected
            if not ref:
                raise GrpcError(_INVALID_ARGUMENT, "first message must have a reference")
            if offset < 0:
                offset = await in_thread(store.offset, ref)
                if expected and await _exists(store, expected):
                    raise GrpcError(_ALREADY_EXISTS, f"content {expected}: already exists")
            answer = pb.WriteContentResponse(action=request.action, offset=offset, total=total)
            if request.action in (pb.WRITE, pb.COMMIT) and (request.data or request.action == pb.WRITE):
                offset = await _disk(in_thread(store.write, ref, request.offset, request.data))
                answer.offset = offset
            if request.action == pb.COMMIT:
                answer.digest = await _disk(in_thread(store.commit, ref, total, expected))
                await call.send(answer)
                return
            await call.send(answer)

    async def _abort(self, request: pb.AbortRequest, call: ServerCall) -> Any:
        from chantier.pb.common_pb2 import Empty

        await in_thread(self._store(call).abort, request.ref)
        return Empty()


async def _exists(store: LayoutStore, digest: str) -> bool:
    return await in_thread(store.path(digest).exists)


async def _disk(work: Awaitable[T]) -> T:
    try:
        return await work
    except OSError as err:
        where = os.fsdecode(err.filename) if err.filename else "the content store"
        raise ChantierError(f"failed to write {where}: {(err.strerror or str(err)).lower()}") from err


__all__ = ["NAME", "STORE_KEY", "LayoutStore", "service"]
