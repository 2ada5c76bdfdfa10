# SPDX-License-Identifier: Apache-2.0
"""Blobs and manifests to the registry itself, never to a mirror (semantics.md 6.10; distribution-spec, "Push")."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from os import SEEK_SET
from typing import BinaryIO, cast
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from chantier.errors import IntegrityError, RegistryError
from chantier.spec import Descriptor, Digest, Reference, is_index, is_manifest
from chantier.values import replace

from .caller import Caller
from .failures import TransportError
from .hosts import Host, split_port
from .messages import Body, Request, bytes_body
from .retry import check, wait
from .transport import Response
from .types import Cancelled

_OCTETS = "application/octet-stream"
_WANTS_CHUNKS = frozenset([404, 405, 411, 413, 415, 416, 501])
"""Answers to one PUT of the whole blob after which the same blob is tried in chunks: registries that know no monolithic
upload, and proxies that bound the size of a body."""
_MANIFEST_TRIES = 4
_CHUNK_BYTES = 16 << 20
_LEAST_CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"(?:bytes=)?(\d+)-(\d+)\Z")

OnBytes = Callable[[int], None] | None


class Pusher:
    """Pushes to one repository."""

    def __init__(self, caller: Caller, host: Host, ref: Reference, cancelled: Cancelled) -> None:
        self._caller = caller
        self._host = host
        self._ref = ref
        self._cancelled = cancelled
        self._scope = f"repository:{ref.path}:pull,push"

    def exists(self, descriptor: Descriptor) -> bool:
        kind = "manifests" if is_manifest(descriptor.media_type) or is_index(descriptor.media_type) else "blobs"
        request = self._request("HEAD", f"{kind}/{descriptor.digest}", accept=f"{descriptor.media_type}, */*")
        self._caller.trace.debug("checking and pushing to", {"url": request.url, "host": self._host.authority})
        with self._call(request) as response:
            if response.status == 200:
                return True
            if response.status == 404:
                return False
            raise self._refused(request, response)

    def mount(self, descriptor: Descriptor, mount_from: Sequence[str]) -> bool:
        """True if the registry took the blob over; an upload it opened instead is left to expire."""
        return any(self._post(descriptor, source) is None for source in self._nearest(mount_from))

    def push(self, descriptor: Descriptor, open: Body, mount_from: Sequence[str], on_bytes: OnBytes) -> str:
        if self.exists(descriptor):
            return "exists"
        attempt = 0
        chunks = False
        while True:
            attempt += 1
            try:
                return self._upload(descriptor, open, mount_from, on_bytes, chunks=chunks)
            except RegistryError as err:
                delay = self._caller.delay_after(self._host, err, attempt)
                if delay is None:
                    raise
                # A proxy that bounds bodies may cut the connection in place of an answer; and chunks can go on where they
                # broke off, which is worth their round trips for a blob of several.
                broke = isinstance(err, TransportError) and err.kind in ("reset", "eof", "timeout")
                chunks = chunks or (broke and (attempt >= 2 or descriptor.size > _CHUNK_BYTES))
                self._caller.trace.debug("transient transport error, retrying", {"attempt": attempt, "error": err.brief})
                wait(delay, self._cancelled)
                if self.exists(descriptor):
                    return "pushed"

    def put_manifest(self, name: str, data: bytes, media_type: str, digest: Digest) -> Digest:
        path = f"manifests/{name}"
        head = self._request("HEAD", path, accept=f"{media_type}, */*")
        self._caller.trace.debug("checking and pushing to", {"url": head.url, "host": self._host.authority})
        with self._call(head) as response:
            if response.status == 200 and response.headers.get("docker-content-digest") == digest:
                return digest
        request = replace(self._request("PUT", path, content_type=media_type), body=bytes_body(data), length=len(data))
        for attempt in range(1, _MANIFEST_TRIES + 1):
            with self._call(request) as response:
                if response.status in (200, 201, 202):
                    if (got := response.headers.get("docker-content-digest")) and got != digest:
                        raise IntegrityError(f"{self._host.name} stored manifest {digest} of {self._ref.name} as {got}")
                    return digest
                refused = self._refused(request, response)
            # What the manifest names was seen there a moment ago. A registry may miss it while it takes the same blob from
            # somebody else (docker-registry 2 writes links in place), or where its parts hear of it one after another.
            if attempt == _MANIFEST_TRIES or "blob_unknown" not in refused.brief.lower():
                raise refused
            self._caller.trace.debug("transient registry error, retrying", {"attempt": attempt, "error": refused.brief})
            wait(self._caller.policy.delay_s(attempt, None, alive=True) or 0, self._cancelled)
        raise AssertionError("unreachable")

    def _upload(self, descriptor: Descriptor, open: Body, mount_from: Sequence[str], on_bytes: OnBytes, *, chunks: bool) -> str:
        post: _Upload | None = None
        for source in self._nearest(mount_from):
            post = self._post(descriptor, source)
            if post is None:
                return "mounted"
            break  # one try: the answer is an upload to go on with
        post = post or self._begin(descriptor)
        if not chunks:
            refused = self._put_whole(descriptor, open, post, on_bytes)
            if refused is None:
                return "pushed"
            self._caller.trace.debug("registry refuses a monolithic upload, sending chunks", {"error": refused.brief})
            post = self._begin(descriptor)
        self._put_chunks(descriptor, open, post, on_bytes)
        return "pushed"

    def _begin(self, descriptor: Descriptor) -> _Upload:
        upload = self._post(descriptor, "")
        if upload is None:
            raise RegistryError(f"{self._host.name} opened no upload for {descriptor.digest}", host=self._host.authority)
        return upload

    def _post(self, descriptor: Descriptor, source: str) -> _Upload | None:
        """Open an upload, or None: mounted from `source`. A mount that is not allowed opens a plain upload."""
        query = {"mount": str(descriptor.digest), "from": source} if source else {}
        request = Request(method="POST", url=self._host.url(self._ref.path, "blobs/uploads/", query))
        scopes = [self._scope] + ([f"repository:{source}:pull"] if source else [])
        with self._call(request, scopes) as response:
            if response.status == 201 and source:
                return None
            if response.status in (200, 202):
                return self._upload_at(request.url, response)
            if source and response.status in (400, 401, 403, 404, 405):
                response.read()
                return self._post(descriptor, "")
            raise self._refused(request, response)

    def _upload_at(self, url: str, response: Response) -> _Upload:
        location = response.headers.get("location")
        if not location:
            raise RegistryError(f"{self._host.name} opened an upload without saying where", host=self._host.authority)
        target = self._at_home(urljoin(response.url or url, location))
        least = response.headers.get("oci-chunk-min-length", "")
        return _Upload(target, int(least) if least.isdecimal() else 0)

    def _put_whole(self, descriptor: Descriptor, open: Body, upload: _Upload, on_bytes: OnBytes) -> RegistryError | None:
        """None if it is there; the refusal, if the registry wants chunks instead."""
        body = self._body(open, 0, descriptor.size, on_bytes)
        request = Request(
            method="PUT",
            url=_with_digest(upload.url, descriptor.digest),
            headers={"content-type": _OCTETS},
            body=body,
            length=descriptor.size,
        )
        with self._send(request) as response:
            if response.status in (200, 201, 202, 204):
                self._check_stored(response, descriptor)
                return None
            err = self._refused(request, response)
            if response.status in _WANTS_CHUNKS:
                return err
            raise self._gone(err)

    def _put_chunks(self, descriptor: Descriptor, open: Body, upload: _Upload, on_bytes: OnBytes) -> None:
        """PATCH by PATCH, then an empty PUT; each chunk is tried again from where the registry says it stands."""
        size, offset = descriptor.size, 0
        step = max(_CHUNK_BYTES, upload.least)
        attempt = 0
        while offset < size:
            length = min(step, size - offset)
            try:
                refused, upload, reached = self._patch(open, upload, offset, length, size, on_bytes)
            except RegistryError as err:
                attempt += 1
                delay = self._caller.delay_after(self._host, err, attempt)
                if delay is None:
                    raise
                self._caller.trace.debug("chunk broke off, asking where it stands", {"offset": offset, "error": err.brief})
                wait(delay, self._cancelled)
                offset, upload = self._standing(upload)
                continue
            if refused is None:
                offset, attempt = reached, 0
            elif refused.status == 413 and step // 2 >= max(_LEAST_CHUNK_BYTES, upload.least):
                step //= 2
            elif refused.status == 416 and attempt < self._caller.policy.attempts:
                attempt += 1
                offset, upload = self._standing(upload)
            else:
                raise refused
        self._finish(descriptor, upload)

    def _finish(self, descriptor: Descriptor, upload: _Upload) -> None:
        """The empty PUT that ends an upload. Its answer may get lost: then the blob is there."""
        request = Request(method="PUT", url=_with_digest(upload.url, descriptor.digest), headers={"content-type": _OCTETS})
        try:
            with self._send(request, last=True) as response:
                if response.status not in (200, 201, 202, 204):
                    raise self._gone(self._refused(request, response))
                self._check_stored(response, descriptor)
        except RegistryError:
            if not self.exists(descriptor):
                raise

    def _patch(
        self, open: Body, upload: _Upload, offset: int, length: int, size: int, on_bytes: OnBytes
    ) -> tuple[RegistryError | None, _Upload, int]:
        request = Request(
            method="PATCH",
            url=upload.url,
            headers={"content-type": _OCTETS, "content-range": f"{offset}-{offset + length - 1}"},
            body=self._body(open, offset, length, on_bytes),
            length=length,
        )
        with self._send(request) as response:
            if response.status not in (200, 201, 202, 204):
                err = self._gone(self._refused(request, response))
                if err.transient:
                    raise err
                return err, upload, offset
            moved = response.headers.get("location")
            url = self._at_home(urljoin(upload.url, moved)) if moved else upload.url
            reached = _end_of(response)
            return None, upload.moved(url), min(reached, size) if reached is not None else offset + length

    def _standing(self, upload: _Upload) -> tuple[int, _Upload]:
        """How many bytes of an upload the registry has."""
        request = Request(method="GET", url=upload.url)
        with self._send(request, last=True) as response:
            if response.status not in (200, 202, 204):
                raise self._gone(self._refused(request, response))
            moved = response.headers.get("location")
            url = self._at_home(urljoin(upload.url, moved)) if moved else upload.url
            return _end_of(response) or 0, upload.moved(url)

    def _body(self, open: Body, offset: int, length: int, on_bytes: OnBytes) -> Body:
        return lambda: cast("BinaryIO", _Part(open(), offset, length, on_bytes, self._cancelled))

    def _at_home(self, url: str) -> str:
        """An address on the registry itself, in its own scheme: one behind a proxy may not know that it is on HTTPS."""
        parts = urlsplit(url)
        if not self._is_ours(url):
            return url
        return urlunsplit(parts._replace(scheme=self._host.scheme, netloc=self._host.authority))

    def _is_ours(self, url: str) -> bool:
        parts = urlsplit(url)
        name, port = split_port(self._host.authority.lower())
        default = {"https": 443, "http": 80}.get(parts.scheme)
        return parts.hostname == name and (parts.port or default) == (port or default)

    def _send(self, request: Request, *, last: bool = False) -> Response:
        """To an upload's address: with our login if that is on the registry, with none if it is elsewhere.

        `last`: may be sent again as it stands.
        """
        if self._is_ours(request.url):
            return self._caller.call(
                self._host, request, scopes=(self._scope,), last=last, redirects=False, cancelled=self._cancelled
            )
        return self._caller.elsewhere(self._host, request, last=last, cancelled=self._cancelled)

    @staticmethod
    def _gone(err: RegistryError) -> RegistryError:
        """An upload that the registry does not know any more (it was restarted, or behind a balancer): begin another one."""
        if err.status == 404:
            err.transient = True
        return err

    def _call(self, request: Request, scopes: Sequence[str] = ()) -> Response:
        return self._caller.call(self._host, request, scopes=scopes or (self._scope,), cancelled=self._cancelled)

    def _request(self, method: str, path: str, *, accept: str = "", content_type: str = "") -> Request:
        headers = {k: v for k, v in (("accept", accept), ("content-type", content_type)) if v}
        return Request(method=method, url=self._host.url(self._ref.path, path), headers=headers)

    def _refused(self, request: Request, response: Response) -> RegistryError:
        return self._caller.refused(self._host, request, response, action="push")

    def _check_stored(self, response: Response, descriptor: Descriptor) -> None:
        got = response.headers.get("docker-content-digest")
        if got and got != descriptor.digest:
            raise IntegrityError(f"{self._host.name} stored blob {descriptor.digest} as {got}")

    def _nearest(self, mount_from: Sequence[str]) -> list[str]:
        """The repository with most of our path first; itself is none."""
        ours = self._ref.path.split("/")
        others = [name for name in dict.fromkeys(mount_from) if name and name != self._ref.path]
        return sorted(others, key=lambda name: -_common(ours, name.split("/")))[:1]


class _Upload:
    """Where an upload goes on, and how long a chunk must be at least."""

    __slots__ = ("least", "url")

    def __init__(self, url: str, least: int = 0) -> None:
        self.url = url
        self.least = least

    def moved(self, url: str) -> _Upload:
        return _Upload(url, self.least)


class _Part:
    """`length` bytes of a file from `offset`, as a body: counts, and looks for a cancellation, at each read."""

    def __init__(self, file: BinaryIO, offset: int, length: int, on_bytes: OnBytes, cancelled: Cancelled) -> None:
        self._file = file
        self._left = length
        self._at = offset
        self._on_bytes = on_bytes
        self._cancelled = cancelled
        if offset:
            file.seek(offset, SEEK_SET)

    def read(self, size: int = -1) -> bytes:
        check(self._cancelled)
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        if not data and self._left:
            raise IntegrityError(f"blob ends {self._left} bytes too early")
        self._left -= len(data)
        self._at += len(data)
        if self._on_bytes is not None and data:
            self._on_bytes(self._at)
        return data

    def close(self) -> None:
        self._file.close()


def _with_digest(url: str, digest: str) -> str:
    """The upload's own query must stay as it is: some registries sign it."""
    joint = "&" if urlsplit(url).query else "?"
    return f"{url}{joint}digest={quote(digest, safe=':')}"


def _end_of(response: Response) -> int | None:
    """Bytes received, from a Range header; `0-0` is ambiguous and means none where nothing was sent."""
    match = _RANGE.match(response.headers.get("range", ""))
    if match is None:
        return None
    end = int(match[2])
    return end + 1 if end else 0


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    count = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        count += 1
    return count
