# SPDX-License-Identifier: Apache-2.0
"""A blob, streamed into a writer: through the hosts, on from where it broke off, digest and size proven (semantics.md 7.3)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from chantier.errors import ChantierError, IntegrityError, NotFoundError, RegistryError, UnsupportedError
from chantier.spec import Descriptor, Reference, is_index, is_manifest

from .caller import Caller
from .failures import Failures, TransportError
from .hosts import Capability, Host
from .manifests import MOST_WRONG, pull_scope
from .messages import Request
from .retry import wait
from .transport import Response
from .types import BlobWriter, Cancelled, Fetched

_LARGE = 64 << 20
_MOST_WRONG_LARGE = 2  # to fetch gigabytes again and again is no help
_CONTENT_RANGE = re.compile(r"bytes (\d+)-")


def fetch(
    caller: Caller,
    hosts: Sequence[Host],
    ref: Reference,
    descriptor: Descriptor,
    writer: BlobWriter,
    on_bytes: Callable[[int], None] | None,
    cancelled: Cancelled,
) -> Fetched:
    if descriptor.digest.algorithm != "sha256":
        raise UnsupportedError(f"blob {descriptor.digest}: only sha256 digests can be stored")
    return _Fetch(caller, hosts, ref, descriptor, writer, on_bytes, cancelled).run()


class _Fetch:
    def __init__(
        self,
        caller: Caller,
        hosts: Sequence[Host],
        ref: Reference,
        descriptor: Descriptor,
        writer: BlobWriter,
        on_bytes: Callable[[int], None] | None,
        cancelled: Cancelled,
    ) -> None:
        self.caller = caller
        self.ref = ref
        self.descriptor = descriptor
        self.writer = writer
        self.on_bytes = on_bytes
        self.cancelled = cancelled
        self.skipped = Failures()
        asked = caller.choose(hosts, self.skipped)
        self.hosts = [*(_foreign(url) for url in descriptor.urls), *((host, "") for host in asked)]
        self.received = 0

    def run(self) -> Fetched:
        """Go on until the digest is right. A host that breaks off without a byte, or whose bytes are wrong, is left out
        while others remain; the last one gets some more tries."""
        began = time.monotonic()
        if self.writer.offset > self.descriptor.size:
            self.writer.restart()
        stalls = resumed = wrong = 0
        well = {h.authority for h, _ in self.hosts if self.caller.breakers.alive(h.authority)}
        host: Host | None = None
        sole: Host | None = None  # whose all bytes are; None: what an earlier fetch left is among them, or another host's
        excused = False  # once only: hosts that take turns at breaking off could go on for ever
        while True:
            before = self.writer.offset
            try:
                if before < self.descriptor.size or before == 0:
                    host, response = self._open()
                    sole = host if not self.writer.offset or host is sole else None
                    self._copy(response, host)
                self._verify(host)
                return Fetched(
                    host=host.name if host else "", received=self.received, seconds=time.monotonic() - began, resumed=resumed
                )
            except _BrokeOff as broke:
                resumed += 1
                stalls = 0 if self.writer.offset > before else stalls + 1
                delay: float | None = 0.0
                if host is not None:
                    alive = host.authority in well
                    self.caller.breakers.failed(host, broke.error)
                    if stalls:
                        delay = self.caller.policy.delay_s(stalls if alive else stalls + 1, alive=alive)
                        if self._leave_out(host):
                            stalls, delay = 0, 0.0
                if delay is None:
                    raise broke.error
                self.caller.trace.debug("blob broke off, going on", {"offset": self.writer.offset, "error": broke.error.brief})
                wait(delay, self.cancelled)
            except IntegrityError as err:
                self.writer.restart()
                if host is not None and sole is not host and not excused:  # it may be the others' that are wrong
                    excused = True
                    self.caller.trace.info("trying again from the start", {"error": err.brief, "host": host.authority})
                elif host is not None and not self._leave_out(host):
                    wrong += 1
                    if wrong == (MOST_WRONG if self.descriptor.size <= _LARGE else _MOST_WRONG_LARGE):
                        raise
                    self.caller.trace.info("trying again", {"error": err.brief, "host": host.authority})
                elif host is None:
                    raise
                else:
                    self.caller.trace.info("trying next host", {"error": err.brief})

    def _leave_out(self, host: Host | None) -> bool:
        if host is None or len(self.hosts) < 2:
            return False
        self.hosts = [h for h in self.hosts if h[0] is not host]
        return bool(self.hosts)

    def _open(self) -> tuple[Host, Response]:
        """An answer whose body stands at the writer's offset. Raises the first error if no host has one."""
        failures = self.skipped.copy()
        for number, (host, url) in enumerate(list(self.hosts)):
            last = number == len(self.hosts) - 1
            try:
                return host, self._ask(host, url, last=last)
            except (RegistryError, NotFoundError) as err:
                failures.add(host.name, err)
                self.caller.passed_over(host, err, last=last)
        raise failures.error()

    def _ask(self, host: Host, url: str, *, last: bool) -> Response:
        offset = self.writer.offset
        kind = "manifests" if is_manifest(self.descriptor.media_type) or is_index(self.descriptor.media_type) else "blobs"
        headers = {"accept": f"{self.descriptor.media_type}, */*", "accept-encoding": "identity"}
        if offset:
            headers["range"] = f"bytes={offset}-"
        request = Request(method="GET", url=url or host.url(self.ref.path, f"{kind}/{self.descriptor.digest}"), headers=headers)
        self.caller.trace.debug(
            "fetching layer", {"digest": str(self.descriptor.digest), "offset": offset, "host": host.authority}
        )
        scopes = () if url else pull_scope(host, self.ref)
        response = self.caller.call(host, request, scopes=scopes, last=last, cancelled=self.cancelled)
        if response.status in (200, 206):
            return response
        if response.status == 416:  # what we hold is not the beginning of what it has
            response.close()
            self.writer.restart()
            return self._ask(host, url, last=last)
        if response.status == 404:
            response.close()
            raise NotFoundError(f"{self.ref.name}@{self.descriptor.digest}: not found")
        raise self.caller.refused(host, request, response)

    def _copy(self, response: Response, host: Host) -> None:
        """Raises _BrokeOff where the body ends early, IntegrityError where it is too long."""
        size = self.descriptor.size
        with response:
            skip = self._skip(response, host)
            try:
                for chunk in response.chunks():
                    self.received += len(chunk)
                    if skip:
                        dropped = min(skip, len(chunk))
                        skip -= dropped
                        chunk = chunk[dropped:]
                    if self.writer.offset + len(chunk) > size:
                        raise IntegrityError(f"blob {self.descriptor.digest} from {host.name} is longer than {size} bytes")
                    if chunk:
                        self.writer.write(chunk)
                    if self.on_bytes is not None:
                        self.on_bytes(self.writer.offset)
            except TransportError as err:
                raise _BrokeOff(err) from err
        if self.writer.offset < size:
            raise _BrokeOff(_short(self.descriptor, self.writer.offset, host))

    def _skip(self, response: Response, host: Host) -> int:
        """Bytes of the body that we have already: a server may ignore Range (RFC 9110, 14.2)."""
        if response.status == 200:
            return self.writer.offset
        match = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
        start = int(match[1]) if match else self.writer.offset
        if start > self.writer.offset:
            raise RegistryError(
                f"{host.name} answered a range from {self.writer.offset} with one from {start}", host=host.authority
            )
        return self.writer.offset - start

    def _verify(self, host: Host | None) -> None:
        got = self.writer.digest()
        if got != self.descriptor.digest:
            where = f" from {host.name}" if host else ""
            raise IntegrityError(f"unexpected commit digest {got}, expected {self.descriptor.digest}{where}")


class _BrokeOff(Exception):
    def __init__(self, error: ChantierError) -> None:
        super().__init__(error.brief)
        self.error = error


def _short(descriptor: Descriptor, got: int, host: Host) -> TransportError:
    return TransportError(
        f"blob {descriptor.digest} from {host.name}: unexpected EOF after {got} of {descriptor.size} bytes",
        kind="eof",
        host=host.authority,
    )


def _foreign(url: str) -> tuple[Host, str]:
    """A layer's own address (descriptor `urls`)."""
    parts = urlsplit(url)
    return Host(authority=parts.netloc, scheme=parts.scheme or "https", capabilities=Capability.PULL), url
