# SPDX-License-Identifier: Apache-2.0
"""Single blobs as sources: `docker-image+blob://NAME@DIGEST` of a registry, `oci-layout+blob://NAME@DIGEST` of a client's store.

The digest is the key, so nothing is asked of anybody until the file itself is needed (semantics.md 3.8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from chantier.errors import IntegrityError, NotFoundError, SessionError, UsageError
from chantier.llb.definition import LoadedVertex
from chantier.solver.types import CacheMap
from chantier.spec import Digest, Reference, digest_of, dumps
from chantier.values import dataclass

from .image import source_key
from .one_file import FileAttrs, FileResult
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import Ref
    from chantier.registry.types import BlobWriter
    from chantier.solver.types import JobContext

IN_REGISTRY, IN_LAYOUT = "docker-image+blob", "oci-layout+blob"
_RECORD_TYPES = ("regular", "internal", "frontend")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobPlace:
    """Where a blob is: a repository, or the content store `store` of a client (of the client `session`, if that is named)."""

    scheme: str
    ref: Reference
    store: str = ""
    session: str = ""

    @classmethod
    def parse(cls, locator: str, attrs: Mapping[str, str]) -> BlobPlace:
        """Raises UsageError for what is no blob's name, ReferenceError_ for a name without sense."""
        scheme, separator, rest = locator.partition("://")
        if scheme not in (IN_REGISTRY, IN_LAYOUT) or not separator:
            raise UsageError(f"{locator!r} names no blob: want {IN_REGISTRY}://NAME@DIGEST or {IN_LAYOUT}://NAME@DIGEST")
        ref = Reference.parse(rest)
        if ref.tag:
            raise UsageError(f"tagged image reference not allowed for blob reference: {rest}")
        if not ref.digest:
            raise UsageError(f"checksum required in blob reference: {rest}")
        if scheme == IN_REGISTRY:
            return cls(scheme=scheme, ref=ref)
        store = attrs.get("oci.store", "") or rest.partition("@")[0]
        return cls(scheme=scheme, ref=ref, store=store, session=attrs.get("oci.session", ""))

    @property
    def digest(self) -> Digest:
        return Digest(self.ref.digest)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.ref}"


class BlobOp:
    """Implements `solver.types.Op`: a result with one file."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        source = vertex.op.source
        self._worker = worker
        self._place = BlobPlace.parse(source.identifier, source.attrs)
        self._file = FileAttrs.of(source.attrs)
        self._record_type = source.attrs.get("image.recordtype", "") or "regular"
        if self._record_type not in _RECORD_TYPES:
            raise UsageError(f"invalid record type {self._record_type}")
        self.pin = str(self._place.digest)

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        file = self._file
        detail = dumps({"Digest": self.pin, "Filename": file.name, "Perm": file.mode, "UID": file.uid, "GID": file.gid})
        return CacheMap(digest=source_key(str(digest_of(detail))), detail=detail), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        """Raises NotFoundError where nobody has the blob, IntegrityError if it is another."""
        worker, digest = self._worker, self._place.digest
        result = FileResult(
            worker.cache,
            self._file,
            self._file.name or digest.hex,
            job.step,
            description=f"blob {self._place.ref}",
            record_type=self._record_type,
            algorithm=digest.algorithm,
        )
        await worker.threaded(lambda _: result.open())
        try:
            await fetch_blob(worker, self._place, result, job.sessions)
            return [await worker.threaded(lambda _: result.commit(), lambda ref: ref.release())]
        except BaseException:
            await worker.threaded(lambda _: result.abort())
            raise


async def fetch_blob(worker: Worker, place: BlobPlace, writer: BlobWriter, sessions: Sequence[Any]) -> None:
    """Have the blob in the writer, verified. Raises NotFoundError, IntegrityError, RegistryError, SessionError."""
    if place.scheme == IN_REGISTRY:
        await worker.threaded(lambda cancelled: _from_registry(worker, place, writer, sessions, cancelled))
    else:
        await _from_session(worker, place, writer, sessions)


def _from_registry(
    worker: Worker, place: BlobPlace, writer: BlobWriter, sessions: Sequence[Any], cancelled: Callable[[], bool]
) -> None:
    registry = worker.registry(sessions)
    found = registry.resolve(place.ref, cancelled=cancelled)
    registry.fetch_blob(place.ref, found.descriptor, writer, cancelled=cancelled)


async def _from_session(worker: Worker, place: BlobPlace, writer: BlobWriter, sessions: Sequence[Any]) -> None:
    missing: Exception | None = None
    for session in worker.sessions_of(place.session, sessions):
        try:
            chunks = await session.blob(place.store, place.ref.digest)
        except (NotFoundError, SessionError) as err:
            missing = err
            continue
        async for chunk in chunks:
            await worker.threaded(lambda _, data=chunk: writer.write(data))  # type: ignore[misc]
        if writer.digest() != place.ref.digest:
            raise IntegrityError(f"{place.ref.digest} in the content store {place.store} has other content: {writer.digest()}")
        return
    raise NotFoundError(f"{place.ref.digest}: not found in the content store {place.store}") from missing


__all__ = ["IN_LAYOUT", "IN_REGISTRY", "BlobOp", "BlobPlace", "fetch_blob"]
