# SPDX-License-Identifier: Apache-2.0
"""A request to a registry host, done fully: login, redirects, the fall back to plain HTTP, retries, the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urljoin, urlsplit

from chantier.errors import ChantierError, NotFoundError, RateLimitedError, RegistryError
from chantier.values import replace

from .auth import Authoriser, Conversation, denial
from .breaker import Breakers, passed_over
from .failures import TRANSIENT, Failures, TransportError, reason, retry_after, status_error
from .hosts import Host, Peer, split_port
from .messages import Request
from .retry import RetryPolicy, wait
from .trace import Trace, redact_url
from .transport import Response, Transport
from .types import Cancelled, never

_REDIRECTS = frozenset([301, 302, 303, 307, 308])
_MOST_REDIRECTS = 10


class PlainHosts:
    """Hosts found to speak plain HTTP where the config allows to fall back to it; remembered for the process."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._names: set[str] = set()

    def __contains__(self, authority: str) -> bool:
        with self._mutex:
            return authority in self._names

    def add(self, authority: str) -> None:
        with self._mutex:
            self._names.add(authority)


class Caller:
    """Does requests for one build."""

    def __init__(
        self,
        transport: Transport,
        authoriser: Authoriser,
        *,
        policy: RetryPolicy,
        plain: PlainHosts,
        breakers: Breakers,
        peer_for: Callable[[str], Peer | None],
        trace: Trace,
    ) -> None:
        self._transport = transport
        self._authoriser = authoriser
        self.policy = policy
        self._plain = plain
        self.breakers = breakers
        self._peer_for = peer_for
        self.trace = trace
        self.observer: Callable[[Request, Response, float], None] | None = None  # told of each exchange and its seconds

    def choose(self, hosts: Sequence[Host], failures: Failures) -> list[Host]:
        """Those to ask, in order: without the ones whose breaker is open, unless there are no others."""
        asked, passed = self.breakers.choose(hosts)
        for host, why in passed:
            self.trace.info("passing over host", {"host": host.authority, "reason": why})
            failures.add(host.name, passed_over(host.name, why, host.authority), -1)
        return asked

    def call(
        self,
        host: Host,
        request: Request,
        *,
        scopes: Iterable[str] = (),
        last: bool = True,
        redirects: bool = True,
        cancelled: Cancelled = never,
    ) -> Response:
        """The answer of `host`, whatever its status; on the last host to try, transient failures are tried again.

        Raises RegistryError (TransportError where there was no answer), CancelledError_.
        """
        scopes = tuple(scopes)
        return self._persist(
            host, request, lambda: self._once(host, request, scopes, redirects, cancelled), last=last, cancelled=cancelled
        )

    def elsewhere(self, host: Host, request: Request, *, last: bool = True, cancelled: Cancelled = never) -> Response:
        """A request to an address that `host` gave us on another server: no login goes there."""
        peer = self._peer_for(_origin(request.url)[1]) or host.peer.for_stranger()
        return self._persist(
            host, request, lambda: self.exchange(request, peer, cancelled=cancelled), last=last, cancelled=cancelled
        )

    def document(
        self,
        host: Host,
        request: Request,
        whole: Callable[[Response], bytes],
        *,
        scopes: Iterable[str] = (),
        last: bool = True,
        cancelled: Cancelled = never,
    ) -> tuple[Response, bytes]:
        """`call`, and the body of a 200; a body that breaks off is asked for again. Other answers come unread."""
        scopes = tuple(scopes)
        alive = self.breakers.alive(host.authority)
        attempt = 0
        while True:
            response = self.call(host, request, scopes=scopes, last=last, cancelled=cancelled)
            if response.status != 200:
                return response, b""
            try:
                return response, whole(response)
            except TransportError as err:
                attempt += 1
                self.breakers.failed(host, err)
                delay = self.policy.delay_s(attempt, alive=alive) if last and err.transient else None
                if delay is None:
                    raise
                self.trace.debug("transient transport error, retrying", {"attempt": attempt, "error": err.brief})
            wait(delay, cancelled)

    def delay_after(self, host: Host, err: ChantierError, attempt: int) -> float | None:
        """How long to wait after failure number `attempt` of something bigger than a request; None: give up."""
        if not err.transient:
            return None
        return self.policy.delay_s(attempt, getattr(err, "retry_after_s", None), alive=self.breakers.alive(host.authority))

    def _persist(
        self, host: Host, request: Request, send: Callable[[], Response], *, last: bool, cancelled: Cancelled
    ) -> Response:
        attempt = 0
        while True:
            attempt += 1
            try:
                response = send()
            except RegistryError as err:
                alive = self.breakers.alive(host.authority)
                self.breakers.failed(host, err)
                delay = self._delay_after(err, attempt, request, last=last, alive=alive)
                if delay is None:
                    raise
                self.trace.debug("transient transport error, retrying", {"attempt": attempt, "error": err.brief})
            else:
                if response.status not in TRANSIENT:
                    self.breakers.answered(host)
                    return response
                alive = self.breakers.alive(host.authority)
                self._note_status(host, response)
                delay = self.policy.delay_s(attempt, retry_after(response), alive=alive) if last else None
                if delay is None:
                    return response
                self.trace.debug(f"retrying after status: {response.line}", {"attempt": attempt, "host": host.authority})
                response.read()
                response.close()
            wait(delay, cancelled)

    def _note_status(self, host: Host, response: Response) -> None:
        brief = f"{reason(response.status)}"
        err = RegistryError(brief, host=host.authority, status=response.status)
        if response.status == 429:
            err = RateLimitedError(f"rate limited: {brief}", retry_after_s=retry_after(response), host=host.authority)
        self.breakers.failed(host, err)

    def _delay_after(self, err: RegistryError, attempt: int, request: Request, *, last: bool, alive: bool) -> float | None:
        """A server may close a kept connection just as we use it: such a request is sent again at once, on every host."""
        if not err.transient:
            return None
        kind = err.kind if isinstance(err, TransportError) else ""
        if attempt == 1 and kind in ("eof", "reset") and request.method in ("GET", "HEAD"):
            return 0.0
        if not last or (kind == "refused" and attempt > 1 and not alive):
            return None
        return self.policy.delay_s(attempt, getattr(err, "retry_after_s", None), alive=alive)

    def passed_over(self, host: Host, err: ChantierError, *, last: bool) -> None:
        """Log that a host did not serve, and whether another one follows."""
        message = "fetch failed" if last else "trying next host"
        status = 404 if isinstance(err, NotFoundError) else getattr(err, "status", None)
        if status:
            self.trace.info(f"{message} after status: {reason(status)}", {"host": host.authority})
        else:
            self.trace.info(message, {"error": err.brief, "host": host.authority})

    def refused(self, host: Host, request: Request, response: Response, *, action: str = "pull") -> RegistryError:
        """The error an answer is; its body is read for it."""
        with response:
            if response.status == 401:
                anonymous = self._authoriser.credentials(host.authority) is None
                return denial(response, host.authority, action=action, anonymous=anonymous)
            return status_error(request.method, response, host=host.authority)

    def _once(self, host: Host, request: Request, scopes: tuple[str, ...], redirects: bool, cancelled: Cancelled) -> Response:
        if host.may_fall_back and host.authority in self._plain:
            return self._follow(host, _over_http(request), scopes, redirects, cancelled)
        try:
            return self._follow(host, request, scopes, redirects, cancelled)
        except TransportError as err:
            if not host.may_fall_back or not _speaks_plain(err, host):
                raise
        self._plain.add(host.authority)
        return self._follow(host, _over_http(request), scopes, redirects, cancelled)

    def _follow(self, host: Host, request: Request, scopes: tuple[str, ...], redirects: bool, cancelled: Cancelled) -> Response:
        """Redirects are followed for reading. Another host gets its own login, if any, and none of ours."""
        home = _origin(request.url)
        for _ in range(_MOST_REDIRECTS):
            here = _origin(request.url)
            if here == home:
                name, peer, wanted = host.authority, host.peer, scopes
            else:
                name = here[1]
                peer, wanted = self._peer_for(name) or host.peer.for_stranger(), ()
            response = self._converse(self._authoriser.flow(request, name, wanted), here[1], peer, cancelled)
            target = response.headers.get("location")
            if not redirects or response.status not in _REDIRECTS or not target or request.method not in ("GET", "HEAD"):
                return response
            response.close()
            request = replace(request, url=urljoin(request.url, target))
            if urlsplit(request.url).scheme not in ("http", "https"):
                raise RegistryError(
                    f"{host.authority} redirects to {redact_url(request.url)}: not an http address", host=host.authority
                )
            if _origin(request.url) != here:
                request = request.with_headers(authorization=None, cookie=None)
        raise RegistryError(f"{host.authority} redirects more than {_MOST_REDIRECTS} times", host=host.authority)

    def _converse(self, flow: Conversation, home: str, peer: Peer, cancelled: Cancelled) -> Response:
        """Carry out what the login generator asks for."""
        try:
            request = next(flow)
            while True:
                authority = _origin(request.url)[1]
                to = peer if authority == home else self._peer_for(authority) or peer.for_stranger()
                response = self.exchange(request, to, cancelled=cancelled)
                try:
                    request = flow.send(response)
                except StopIteration as end:
                    if end.value is not response:
                        response.close()
                    assert isinstance(end.value, Response)
                    return end.value
                response.close()
        finally:
            flow.close()

    def exchange(self, request: Request, peer: Peer, *, cancelled: Cancelled = never) -> Response:
        """One request as it stands, logged."""
        authority = urlsplit(request.url).netloc
        headers = {"user-agent": self._transport.user_agent, **request.headers}
        self.trace.request(request.method, request.url, headers, authority)
        began = time.monotonic()
        response = self._transport.send(request, peer, cancelled=cancelled)
        if self.observer is not None:
            self.observer(request, response, time.monotonic() - began)
        self.trace.response(response.line, response.headers.items(), authority)
        if response.status == 401:
            self.trace.debug("Unauthorized", {"header": response.headers.get("www-authenticate", ""), "host": authority})
        return response


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _over_http(request: Request) -> Request:
    return replace(request, url="http" + request.url.removeprefix("https"))


def _speaks_plain(err: TransportError, host: Host) -> bool:
    """semantics.md 7.1: no TLS record, a handshake that times out, or nobody on 443 where no port was named."""
    if err.kind in ("tls-record", "eof"):
        return True
    if err.kind == "timeout":
        return True
    return err.kind == "refused" and split_port(host.authority)[1] is None
