# SPDX-License-Identifier: Apache-2.0
"""Files from the web as sources (semantics.md 3.12): ADD of a URL, contexts that are URLs or standard input.

The key is what the file holds, so a file is fetched to know its key; with a checksum the checksum is the key and nothing is
asked. Files that came with an ETag are kept under their URL and asked for conditionally the next time.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import posixpath
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from chantier.errors import (
    IntegrityError,
    NotFoundError,
)
from chantier.llb.definition import LoadedVertex
from chantier.pb import ops_pb2 as pb
from chantier.progress import Silent, Step, Vertex
from chantier.solver.types import CacheMap
from chantier.spec import digest_of, dumps, new_id
from chantier.values import dataclass

from .http_fetch import SESSION_HOST, Fetch, WebFile, WebSource, keep, modified_of, result_of, shown
from .image import source_key
from .resolved import recall, remember
from .signature import verify_file
from .trust import web_of
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import Ref
    from chantier.solver.types import JobContext


@dataclass(frozen=True, slots=True)
class _NoJob:
    """What asks when there is no vertex: a question for metadata."""

    sessions: Sequence[Any]
    jobs: Sequence[Any] = ()


class HttpOp:
    """Implements `solver.types.Op`. Knows what it fetched for the key when it is run."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        self._worker = worker
        self._source = WebSource(vertex.op.source)
        self._found: WebFile | None = None
        self._lock = asyncio.Lock()

    @property
    def pin(self) -> str:
        """The digest of the file, once that is known."""
        return self._found.digest if self._found is not None else self._source.checksum

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        source = self._source
        checksum, modified = source.checksum, None
        if not checksum:
            found = await self._fetched(job)
            checksum, modified = found.digest, found.modified
        elif source.signature:  # checked by every build, whatever is cached of it
            await self._fetched(job)
        key: dict[str, Any] = {
            "Filename": source.file.name,
            "Perm": source.file.mode,
            "UID": source.file.uid,
            "GID": source.file.gid,
            "Checksum": checksum,
        }
        if modified is not None:
            key["LastModTime"] = formatdate(modified, usegmt=True)
        if source.auth_secret:
            key["AuthHeaderSecret"] = source.auth_secret
        if source.headers:
            key["Header"] = [{"Name": name, "Value": source.headers[name]} for name in sorted(source.headers)]
        detail = dumps(key)
        return CacheMap(digest=source_key(str(digest_of(detail))), detail=detail), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        """Raises IntegrityError if the content is not that of the checksum."""
        found = await self._fetched(job)
        want = self._source.checksum
        if want and found.digest != want:
            raise IntegrityError(f"digest mismatch for {self._source.url}: {found.digest} (expected: {want})")
        try:
            return [await self._get(found)]
        except NotFoundError:  # pruned since the key was made
            self._found = await self._fetch(job)
            return [await self._get(self._found)]

    async def _get(self, found: WebFile) -> Ref:
        return await self._worker.threaded(lambda _: self._worker.cache.get(found.ref), lambda ref: ref.release())

    async def _fetched(self, job: JobContext) -> WebFile:
        async with self._lock:
            if self._found is None:
                known: WebFile | None = recall(job, self._source.index)
                if known is None or self._source.checksum not in ("", known.digest):
                    known = await self._fetch(job)
                    remember(job, self._source.index, known)
                if self._source.signature:
                    await self._check_signature(known)
                self._found = known
            return self._found

    async def _check_signature(self, found: WebFile) -> None:
        """Raises IntegrityError if the file is not what its signer signed."""
        worker, source = self._worker, self._source
        async with AsyncExitStack() as stack:
            ref = await self._get(found)
            stack.push_async_callback(worker.threaded, lambda _: ref.release())
            mount = await worker.threaded(lambda cancelled: ref.mounted(cancelled=cancelled))
            root = await worker.threaded(lambda _: mount.__enter__())
            stack.push_async_callback(worker.threaded, lambda _: mount.__exit__(None, None, None))
            home = worker.tmp / f"signature-{new_id()[:12]}"
            await worker.threaded(lambda _: home.mkdir(mode=0o700))
            stack.push_async_callback(worker.threaded, lambda _: shutil.rmtree(home, ignore_errors=True))
            (name,) = await worker.threaded(lambda _: os.listdir(root))
            await verify_file(shown(source.url), root / name, source.signature, source.keys, home)

    async def _fetch(self, job: JobContext) -> WebFile:
        source = self._source
        if source.host == SESSION_HOST:
            return await self._from_session(job)
        headers = await source.request_headers(job)
        web = web_of(self._worker, job.sessions)
        return await self._worker.threaded(lambda cancelled: Fetch(self._worker, web, source, headers, job.step, cancelled).run())

    async def _from_session(self, job: JobContext) -> WebFile:
        """A stream that the client offers. It can be read once."""
        id = posixpath.basename(urlsplit(self._source.url).path)
        stream: AsyncIterator[bytes] | None = None
        for session in tuple(job.sessions):
            try:
                stream = await session.upload(id)
                break
            except NotFoundError:
                continue
        if stream is None:
            raise NotFoundError(f"failed to load {self._source.url}: no client offers it")
        store = result_of(self._worker, self._source, self._source.file.name or id, job.step)
        await self._worker.threaded(lambda _: store.open())
        try:
            async for chunk in stream:
                await self._worker.threaded(lambda _, data=chunk: store.write(data))  # type: ignore[misc]
            return await self._worker.threaded(lambda _: keep(store, self._source, etag="", modified=None))
        except BaseException:
            await self._worker.threaded(lambda _: store.abort())
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """`modified` is the time of Last-Modified in seconds since the epoch, `suffixed` the other digest that was asked for."""

    digest: str
    name: str
    modified: int | None
    suffixed: str = ""


async def fetched(
    source: pb.SourceOp,
    worker: Worker,
    sessions: Sequence[Any],
    *,
    job: Any,
    hold: Callable[[Ref], None],
    suffixed: tuple[str, bytes] | None = None,
) -> Fetched:
    """What is known of the file, which is fetched if it is not here yet.

    It is the file that the build `job` gets from now on: `hold` is given the result, to release at the end of the build.
    `suffixed` (algorithm, bytes) asks for a digest of the file with those bytes after it: what OpenPGP signatures are made of.
    """
    op = HttpOp(LoadedVertex(digest="", op=pb.Op(source=source), inputs=(), metadata=pb.OpMetadata(), original=""), worker)
    asking = _Asking(tuple(sessions), Step(Silent(), Vertex(digest="", name=source.identifier)), (job,))
    found = await op._fetched(asking)
    ref = await op._get(found)
    hold(ref)

    def look(cancelled: Callable[[], bool]) -> Fetched:
        with ref.mounted(cancelled=cancelled) as root:
            (name,) = os.listdir(root)
            other = ""
            if suffixed is not None:
                with open(root / name, "rb") as file:
                    hashed = hashlib.file_digest(file, suffixed[0])
                hashed.update(suffixed[1])
                other = f"{suffixed[0]}:{hashed.hexdigest()}"
        return Fetched(digest=found.digest, name=name, modified=found.modified, suffixed=other)

    return await worker.threaded(look)


@dataclass(slots=True)
class _Asking:
    """What asks for a file when there is no vertex."""

    sessions: Sequence[Any]
    step: Step
    jobs: Sequence[Any] = ()


async def last_modified(source: pb.SourceOp, worker: Worker, sessions: Sequence[Any]) -> int | None:
    """The time of Last-Modified in seconds since the epoch, if the server says one."""
    parsed = WebSource(source)
    if parsed.host == SESSION_HOST:
        return None
    headers = await parsed.request_headers(_NoJob(tuple(sessions)))

    web = web_of(worker, sessions)

    def head(cancelled: Callable[[], bool]) -> int | None:
        with web.open("HEAD", parsed.url, headers, cancelled=cancelled) as response:
            return modified_of(response.headers) if response.status < 400 else None

    return await worker.threaded(head)


__all__ = ["HttpOp", "last_modified"]
