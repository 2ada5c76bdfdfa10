# SPDX-License-Identifier: Apache-2.0
"""A request to a registry host, done fully: login, redirects, the fall back to plain HTTP, retries, the log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from urllib.parse import urljoin, urlsplit

from chantier.errors import ChantierError, NotFoundError, RegistryError

from .auth import Authoriser, Conversation, denial
from .failures import TRANSIENT, TransportError, reason, retry_after, status_error
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
        peer_for: Callable[[str], Peer | None],
        trace: Trace,
    ) -> None:
        self._transport = transport
        self._authoriser = authoriser
        self.policy = policy
        self._plain = plain
        self._peer_for = peer_for
        self.trace = trace

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
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._once(host, request, scopes, redirects, cancelled)
            except RegistryError as err:
                delay = self._delay_after(err, attempt, request, last=last)
                if delay is None:
                    raise
                self.trace.debug("transient transport error, retrying", {"attempt": attempt, "error": err.brief})
            else:
                if response.status not in TRANSIENT or not last:
                    return response
                delay = self.policy.delay_s(attempt, retry_after(response))
                if delay is None:
                    return response
                self.trace.debug(f"retrying after status: {response.line}", {"attempt": attempt, "host": host.authority})
                response.read()
                response.close()
            wait(delay, cancelled)

    def _delay_after(self, err: RegistryError, attempt: int, request: Request, *, last: bool) -> float | None:
        """A server may close a kept connection just as we use it: such a request is sent again at once, on every host."""
        if not err.transient:
            return None
        kind = err.kind if isinstance(err, TransportError) else ""
        if attempt == 1 and kind in ("eof", "reset") and request.method in ("GET", "HEAD"):
            return 0.0
        if not last or (kind == "refused" and attempt > 1):
            return None
        return self.policy.delay_s(attempt, getattr(err, "retry_after_s", None))

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
        response = self._transport.send(request, peer, cancelled=cancelled)
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
