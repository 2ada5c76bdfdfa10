# SPDX-License-Identifier: Apache-2.0
"""Fetching one file from the web: what is asked of the server, what of earlier fetches may stand, and the file as a result."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from chantier.errors import (
    CancelledError_,
    ChantierError,
    FetchError,
    NotFoundError,
    UsageError,
)
from chantier.pb import ops_pb2 as pb
from chantier.progress import Step
from chantier.registry.failures import TRANSIENT, TransportError
from chantier.registry.retry import wait
from chantier.registry.web import failure
from chantier.spec import Digest, dumps
from chantier.values import dataclass

from .one_file import FileAttrs, FileResult, is_name
from .worker import Worker, secret_text

if TYPE_CHECKING:
    from chantier.cache import Ref
    from chantier.registry import Web
    from chantier.registry.transport import Response

SESSION_HOST = "buildkit-session"
_META = "http.source"
_CHUNK = 256 << 10
_HEADER_ATTRS = ("accept", "user-agent")
_USER_AGENT = "buildkit/v0.0-dev chantier/0.1"  # servers that let BuildKit in know it by this


@dataclass(frozen=True, slots=True, kw_only=True)
class WebFile:
    """A fetched file: the record that holds it and what is known of it."""

    ref: str
    digest: str
    etag: str = ""
    modified: int | None = None


class WebSource:
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
            raise UsageError(f"failed to load {shown(self.url)}: a signature needs a public key, and a key a signature")

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


class Fetch:
    """One fetch in a thread: kept files first, conditionally, then the whole."""

    def __init__(
        self,
        worker: Worker,
        web: Web,
        source: WebSource,
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

    def run(self) -> WebFile:
        kept = self._kept()
        try:
            found = self._head(kept) if kept else None
            if found is None:
                found = self._get(kept)
            return found
        finally:
            for _, ref in kept.values():
                ref.release()

    def _kept(self) -> dict[str, tuple[WebFile, Ref]]:
        """Files of this URL by ETag, held."""
        cache = self._worker.cache
        found: dict[str, tuple[WebFile, Ref]] = {}
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

    def _head(self, kept: Mapping[str, tuple[WebFile, Ref]]) -> WebFile | None:
        # Some servers give another ETag for what they would compress; HEAD costs nothing, so ask for that one too.
        headers = {**self._conditional(kept), "accept-encoding": "gzip"}
        try:
            with self._web.open("HEAD", self._source.url, headers, cancelled=self._cancelled) as response:
                return self._match(response, kept)
        except CancelledError_:
            raise
        except ChantierError:  # servers that know no HEAD: GET decides
            return None

    def _match(self, response: Response, kept: Mapping[str, tuple[WebFile, Ref]]) -> WebFile | None:
        if response.status not in (200, 304):
            return None
        found = kept.get(_etag(response.headers))
        if found is None and response.status == 304 and len(kept) == 1:  # RFC 9110 wants the ETag; not all send it
            found = next(iter(kept.values()))
        return found[0] if found is not None else None

    def _get(self, kept: Mapping[str, tuple[WebFile, Ref]]) -> WebFile:
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
            store = result_of(self._worker, source, name, self._step)
            if not response.headers.get("content-encoding"):
                store.total = int(response.headers.get("content-length") or 0)
            store.open()
            try:
                self._copy(response, store)
                return keep(store, source, etag=_etag(response.headers), modified=modified_of(response.headers))
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
                hint=f"from {shown(self._source.url)}",
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


def result_of(worker: Worker, source: WebSource, name: str, step: Step) -> FileResult:
    description = f"http url {shown(source.url)}"
    return FileResult(worker.cache, source.file, name, step, description=description, record_type="source.http")


def keep(store: FileResult, source: WebSource, *, etag: str, modified: int | None) -> WebFile:
    """The whole file, kept under its URL if it can be asked for again conditionally."""
    ref = store.commit(modified)
    file = WebFile(ref=ref.id, digest=store.digest(), etag=etag, modified=modified)
    ref.set_meta(_META, json.dumps([file.digest, file.etag, file.modified]).encode())
    if etag:
        ref.set_index(source.index)
    ref.release()
    return file


def _load(ref: Ref) -> WebFile | None:
    data = ref.get_meta(_META)
    if data is None:
        return None
    try:
        digest, etag, modified = json.loads(data)
    except ValueError:
        return None
    return WebFile(ref=ref.id, digest=digest, etag=etag, modified=modified)


def _etag(headers: Mapping[str, str]) -> str:
    """As the server writes it, quoted or (against RFC 9110) not: it may know it again only so. Weak ones are as good here."""
    return (headers.get("etag") or "").strip().removeprefix("W/")


def modified_of(headers: Mapping[str, str]) -> int | None:
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


def shown(url: str) -> str:
    """A URL without the user's password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":xxxxx@", 1)


__all__ = ["SESSION_HOST", "Fetch", "WebFile", "WebSource", "keep", "modified_of", "result_of", "shown"]
