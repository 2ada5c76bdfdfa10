# SPDX-License-Identifier: Apache-2.0
"""Files of the web (ADD, contexts that are URLs): GET and HEAD with the trust, proxies and retries of registries."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from chantier.errors import FetchError
from chantier.values import replace

from .failures import TRANSIENT, TransportError, retry_after
from .hosts import Peer
from .messages import Request
from .retry import RetryPolicy, wait
from .trace import redact_url
from .transport import Response, Transport
from .types import Cancelled, never

_REDIRECTS = frozenset([301, 302, 303, 307, 308])
_MOST_REDIRECTS = 10
_OURS = ("authorization", "cookie")


class Web:
    """Made by `Registries.web`. Thread-safe."""

    def __init__(self, transport: Transport, policy: RetryPolicy, peer_of: Callable[[str], Peer]) -> None:
        self._transport = transport
        self._policy = policy
        self._peer_of = peer_of

    def open(self, method: str, url: str, headers: Mapping[str, str], *, cancelled: Cancelled = never) -> Response:
        """The answer, whatever its status, its body unread; transient failures are tried again, redirects followed.

        Raises FetchError where there is no answer, CancelledError_.
        """
        attempt = 0
        request = _with_login(Request(method=method, url=url, headers={k.lower(): v for k, v in headers.items()}))
        while True:
            attempt += 1
            try:
                response = self._follow(request, cancelled)
            except TransportError as err:
                delay = self._policy.delay_s(attempt) if err.transient else None
                if delay is None:
                    raise failure(url, err) from err
            else:
                if response.status not in TRANSIENT:
                    return response
                delay = self._policy.delay_s(attempt, retry_after(response))
                if delay is None:
                    return response
                response.close()
            wait(delay, cancelled)

    def delay_s(self, attempt: int) -> float | None:
        """How long to wait after failure number `attempt` of a body; None: give up."""
        return self._policy.delay_s(attempt)

    def _follow(self, request: Request, cancelled: Cancelled) -> Response:
        for _ in range(_MOST_REDIRECTS + 1):
            here = _origin(request.url)
            response = self._transport.send(request, self._peer_of(here[1]), cancelled=cancelled)
            target = response.headers.get("location")
            if response.status not in _REDIRECTS or not target:
                return response
            response.close()
            request = replace(request, url=urljoin(request.url, target))
            if urlsplit(request.url).scheme not in ("http", "https"):
                raise FetchError(f"{here[1]} redirects to {redact_url(request.url)}: not an http address", host=here[1])
            if _origin(request.url) != here:
                # Credentials of one host go to no other.
                request = request.with_headers(**dict.fromkeys(_OURS))
        raise FetchError(f"failed to load {redact_url(request.url)}: more than {_MOST_REDIRECTS} redirects")


def failure(url: str, err: TransportError) -> FetchError:
    """A failure of the transport, as what it means for a file."""
    return FetchError(f"failed to load {_shown(url)}: {err.brief}", host=err.host, transient=err.transient, hint=err.hint)


def _with_login(request: Request) -> Request:
    """A name and password in the address are a login, unless the caller has another (RFC 3986, 3.2.1)."""
    parts = urlsplit(request.url)
    if parts.username is None:
        return request
    plain = replace(request, url=urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
    if "authorization" in request.headers:
        return plain
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return plain.with_headers(authorization="Basic " + base64.b64encode(pair.encode()).decode())


def _shown(url: str) -> str:
    """Without a password."""
    parts = urlsplit(url)
    return url if parts.password is None else url.replace(f":{parts.password}@", ":xxxxx@", 1)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()
