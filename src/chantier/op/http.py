# SPDX-License-Identifier: Apache-2.0
"""Files from the web as sources (semantics.md 3.12): ADD of a URL, contexts that are URLs or standard input.

The key is what the file holds, so a file is fetched to know its key; with a checksum the checksum is the key and nothing is
asked. Files that came with an ETag are kept under their URL and asked for conditionally the next time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import posixpath
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from email.utils import formatdate, parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from chantier.errors import (
    CancelledError_,
    ChantierError,
    FetchError,
    IntegrityError,
    NotFoundError,
    UsageError,
)
from chantier.llb.definition import LoadedVertex
from chantier.pb import ops_pb2 as pb
from chantier.progress import Silent, Step, Vertex
from chantier.registry.failures import TRANSIENT, TransportError
from chantier.registry.retry import wait
from chantier.registry.web import failure
from chantier.snapshot import mounted
from chantier.solver.types import CacheMap
from chantier.spec import Digest, digest_of, dumps, new_id
from chantier.values import dataclass

from .image import source_key
from .one_file import FileAttrs, FileResult, is_name
from .resolved import recall, remember
from .signature import verify_file
from .trust import web_of
from .worker import Worker, secret_text

if TYPE_CHECKING:
    from chantier.cache import Ref
    from chantier.registry import Web
    from chantier.registry.transport import Response
    from chantier.solver.types import JobContext

SESSION_HOST = "buildkit-session"
_META = "http.source"
_CHUNK = 256 << 10
_HEADER_ATTRS = ("accept", "user-agent")
_USER_AGENT = "buildkit/v0.0-dev chantier/0.1"  # servers that let BuildKit in know it by this


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A fetched file: the record that holds it and what is known of it."""

    ref: str
    digest: str
    etag: str = ""
    modified: int | None = None


@dataclass(frozen=True, slots=True)
class _NoJob:
    """What asks when there is no vertex: a question for metadata."""

    sessions: Sequence[Any]
    jobs: Sequence[Any] = ()


class HttpOp:
    """Implements `solver.types.Op`. Knows what it fetched for the key when it is run."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        self._worker = worker
        self._source = _Source(vertex.op.source)
        self._found: _File | None = None
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

    async def _get(self, found: _File) -> Ref:
        return await self._worker.threaded(lambda _: self._worker.cache.get(found.ref), lambda ref: ref.release())

    async def _fetched(self, job: JobContext) -> _File:
        async with self._lock:
            if self._found is None:
                known: _File | None = recall(job, self._source.index)
                if known is None or self._source.checksum not in ("", known.digest):
                    known = await self._fetch(job)
                    remember(job, self._source.index, known)
                if self._source.signature:
                    await self._check_signature(known)
                self._found = known
            return self._found

    async def _check_signature(self, found: _File) -> None:
        """Raises IntegrityError if the file is not what its signer signed."""
        worker, source = self._worker, self._source
        async with AsyncExitStack() as stack:
            ref = await self._get(found)
            stack.push_async_callback(worker.threaded, lambda _: ref.release())
            mount = await worker.threaded(lambda cancelled: mounted(ref.mounts(cancelled=cancelled), readonly=True))
            root = await worker.threaded(lambda _: mount.__enter__())
            stack.push_async_callback(worker.threaded, lambda _: mount.__exit__(None, None, None))
            home = worker.tmp / f"signature-{new_id()}"
            await worker.threaded(lambda _: home.mkdir(mode=0o700))
            stack.push_async_callback(worker.threaded, lambda _: shutil.rmtree(home, ignore_errors=True))
            (name,) = await worker.threaded(lambda _: os.listdir(root))
            await verify_file(_shown(source.url), root / name, source.signature, source.keys, home)

    async def _fetch(self, job: JobContext) -> _File:
        source = self._source
        if source.host == SESSION_HOST:
            return await self._from_session(job)
        headers = await source.request_headers(job)
        web = web_of(self._worker, job.sessions)
        return await self._worker.threaded(
            lambda cancelled: _Fetch(self._worker, web, source, headers, job.step, cancelled).run()
        )

    async def _from_session(self, job: JobContext) -> _File:
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
        store = _store(self._worker, self._source, self._source.file.name or id, job.step)
        await self._worker.threaded(lambda _: store.open())
        try:
            async for chunk in stream:
                await self._worker.threaded(lambda _, data=chunk: store.write(data))  # type: ignore[misc]
            return await self._worker.threaded(lambda _: _kept(store, self._source, etag="", modified=None))
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
        with mounted(ref.mounts(cancelled=cancelled), readonly=True) as root:
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
    parsed = _Source(source)
    if parsed.host == SESSION_HOST:
        return None
    headers = await parsed.request_headers(_NoJob(tuple(sessions)))

    web = web_of(worker, sessions)

    def head(cancelled: Callable[[], bool]) -> int | None:
        with web.open("HEAD", parsed.url, headers, cancelled=cancelled) as response:
            return _modified(response.headers) if response.status < 400 else None

    return await worker.threaded(head)


class _Source:
    """The vertex's attributes, checked."""

    def __init__(self, source: pb.SourceOp) -> None:
        attrs = source.attrs
        self.url = source.identifier
        self.host = urlsplit(self.url).netloc.rpartition("@")[2]
        self.checksum = attrs.get("http.checksum", "")
        if self.checksum:
            Digest.parse(self.checksum)
        self.file = FileAttrs.of(attrs)
        self.auth_secret = attrs.get("http.authheadersecret", "")
        self.headers = {name: attrs[f"http.header.{name}"] for name in _HEADER_ATTRS if f"http.header.{name}" in attrs}
        self.signature = attrs.get("http.sig.signature", "")
        self.keys = attrs.get("http.sig.pubkey", "")
        if bool(self.signature) != bool(self.keys):
            raise UsageError(f"failed to load {_shown(self.url)}: a signature needs a public key, and a key a signature")

    @property
    def index(self) -> str:
        """Names all that a kept file must agree in. A digest of it, as a URL may hold secrets."""
        file = self.file
        made = [self.url, file.name, file.mode, file.uid, file.gid, sorted(self.headers.items()), self.auth_secret]
        return "http:" + hashlib.sha256(dumps(made)).hexdigest()

    async def request_headers(self, job: Any) -> dict[str, str]:
        headers = {"user-agent": _USER_AGENT, **self.headers}
        authorization = await self._authorization(job)
        if authorization:
            headers["authorization"] = authorization
        return headers

    async def _authorization(self, job: Any) -> str:
        if self.auth_secret:
            value = await secret_text(job, self.auth_secret)
            if value is None:
                raise NotFoundError(f"failed to retrieve HTTP auth secret {self.auth_secret}: not found")
            return value
        # BuildKit's names have no port; with one they mean a single server.
        for host in dict.fromkeys((self.host, urlsplit(self.url).hostname or "")):
            header = await secret_text(job, f"HTTP_AUTH_HEADER_{host}")
            if header is not None:
                return header
            token = await secret_text(job, f"HTTP_AUTH_TOKEN_{host}")
            if token is not None:
                return f"Bearer {token}"
        return ""


class _Fetch:
    """One fetch in a thread: kept files first, conditionally, then the whole."""

    def __init__(
        self,
        worker: Worker,
        web: Web,
        source: _Source,
        headers: Mapping[str, str],
        step: Step,
        cancelled: Callable[[], bool],
    ) -> None:
        self._worker = worker
        self._web = web
        self._source = source
        self._headers = dict(headers)
        self._step = step
        self._cancelled = cancelled

    def run(self) -> _File:
        kept = self._kept()
        try:
            found = self._head(kept) if kept else None
            if found is None:
                found = self._get(kept)
            return found
        finally:
            for _, ref in kept.values():
                ref.release()

    def _kept(self) -> dict[str, tuple[_File, Ref]]:
        """Files of this URL by ETag, held."""
        cache = self._worker.cache
        found: dict[str, tuple[_File, Ref]] = {}
        for id in cache.find(self._source.index):
            try:
                ref = cache.get(id)
            except NotFoundError:
                continue
            file = _load(ref)
            wanted = self._source.checksum
            if file is None or not file.etag or file.etag in found or (wanted and file.digest != wanted):
                ref.release()
            else:
                found[file.etag] = (file, ref)
        return found

    def _conditional(self, kept: Mapping[str, Any]) -> dict[str, str]:
        return {**self._headers, "if-none-match": ", ".join(kept)} if kept else self._headers

    def _head(self, kept: Mapping[str, tuple[_File, Ref]]) -> _File | None:
        # Some servers give another ETag for what they would compress; HEAD costs nothing, so ask for that one too.
        headers = {**self._conditional(kept), "accept-encoding": "gzip"}
        try:
            with self._web.open("HEAD", self._source.url, headers, cancelled=self._cancelled) as response:
                return self._match(response, kept)
        except CancelledError_:
            raise
        except ChantierError:  # servers that know no HEAD: GET decides
            return None

    def _match(self, response: Response, kept: Mapping[str, tuple[_File, Ref]]) -> _File | None:
        if response.status not in (200, 304):
            return None
        found = kept.get(_etag(response.headers))
        if found is None and response.status == 304 and len(kept) == 1:  # RFC 9110 wants the ETag; not all send it
            found = next(iter(kept.values()))
        return found[0] if found is not None else None

    def _get(self, kept: Mapping[str, tuple[_File, Ref]]) -> _File:
        source = self._source
        # What comes compressed is unpacked on the way: a file is what its address names, however it travels.
        headers = {**self._conditional(kept), "accept-encoding": "gzip"}
        with self._web.open("GET", source.url, headers, cancelled=self._cancelled) as response:
            if response.status == 304:
                found = self._match(response, kept)
                if found is not None:
                    return found
            self._check(response)
            name = source.file.name or _filename(response, source.url)
            store = _store(self._worker, source, name, self._step)
            if not response.headers.get("content-encoding"):
                store.total = int(response.headers.get("content-length") or 0)
            store.open()
            try:
                self._copy(response, store)
                return _kept(store, source, etag=_etag(response.headers), modified=_modified(response.headers))
            except BaseException:
                store.abort()
                raise

    def _check(self, response: Response) -> None:
        if response.status < 200 or response.status >= 400:
            raise FetchError(
                f"invalid response status {response.status}",
                host=self._source.host,
                status=response.status,
                transient=response.status in TRANSIENT,
                hint=f"from {_shown(self._source.url)}",
            )

    def _copy(self, response: Response, store: FileResult) -> None:
        """The body; one that breaks off goes on where it ended if the server can, else it is asked for again."""
        etag, packed = response.headers.get("etag", ""), bool(response.headers.get("content-encoding"))
        stalls = reached = 0
        while True:
            try:
                with response:
                    for chunk in response.chunks(_CHUNK):
                        store.write(chunk)
                return
            except TransportError as err:
                stalls = 0 if store.size > reached else stalls + 1
                reached = max(reached, store.size)
                delay = self._web.delay_s(stalls + 1)
                if not err.transient or delay is None:
                    raise failure(self._source.url, err) from err
            wait(delay if stalls else 0.0, self._cancelled)
            headers = dict(self._headers)
            if store.size and not packed:
                headers["range"] = f"bytes={store.size}-"
                if etag and not etag.startswith("W/"):  # a weak one says nothing of bytes (RFC 9110, 13.1.5)
                    headers["if-range"] = etag
            response = self._web.open("GET", self._source.url, headers, cancelled=self._cancelled)
            if response.status != 206 or not response.headers.get("content-range", "").startswith(f"bytes {store.size}-"):
                if response.status == 416:  # it has become shorter
                    response.close()
                    response = self._web.open("GET", self._source.url, self._headers, cancelled=self._cancelled)
                if response.status >= 300:
                    response.close()
                    self._check(response)
                store.restart()


def _store(worker: Worker, source: _Source, name: str, step: Step) -> FileResult:
    description = f"http url {_shown(source.url)}"
    return FileResult(worker.cache, source.file, name, step, description=description, record_type="source.http")


def _kept(store: FileResult, source: _Source, *, etag: str, modified: int | None) -> _File:
    """The whole file, kept under its URL if it can be asked for again conditionally."""
    ref = store.commit(modified)
    file = _File(ref=ref.id, digest=store.digest(), etag=etag, modified=modified)
    ref.set_meta(_META, json.dumps([file.digest, file.etag, file.modified]).encode())
    if etag:
        ref.set_index(source.index)
    ref.release()
    return file


def _load(ref: Ref) -> _File | None:
    data = ref.get_meta(_META)
    if data is None:
        return None
    try:
        digest, etag, modified = json.loads(data)
    except ValueError:
        return None
    return _File(ref=ref.id, digest=digest, etag=etag, modified=modified)


def _etag(headers: Mapping[str, str]) -> str:
    """As the server writes it, quoted or (against RFC 9110) not: it may know it again only so. Weak ones are as good here."""
    return (headers.get("etag") or "").strip().removeprefix("W/")


def _modified(headers: Mapping[str, str]) -> int | None:
    text = headers.get("last-modified")
    if not text:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


_DISPOSITION = re.compile(r';\s*filename\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))', re.IGNORECASE)


def _filename(response: Response, url: str) -> str:
    found = _DISPOSITION.search(response.headers.get("content-disposition") or "")
    if found:
        name = posixpath.basename((found[1] or found[2] or "").replace("\\", ""))
        if is_name(name):
            return name
    final = response.url or url
    for where in (url, final):
        name = posixpath.basename(unquote(urlsplit(where).path))
        if is_name(name):
            return name
    return "download"


def _shown(url: str) -> str:
    """A URL without the user's password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":xxxxx@", 1)


__all__ = ["HttpOp", "last_modified"]
