# SPDX-License-Identifier: Apache-2.0
"""What went wrong with a request, in BuildKit's words, and whether trying again may help."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from http import HTTPStatus

import urllib3
from urllib3 import exceptions as u

from chantier.errors import ChantierError, RateLimitedError, RegistryError, UnauthorizedError

from .messages import Answer
from .ratelimit import clock, rate_limit, span
from .trace import redact_url

TRANSIENT = frozenset([408, 425, 429, 500, 502, 503, 504])
_SAID_LIMIT = 64 << 10
_PASSING = frozenset(["refused", "timeout", "connect-timeout", "unreachable", "eof", "reset", "again"])


class TransportError(RegistryError):
    """No answer, or one that broke off. `kind` is one of the values of `_kind_of`."""

    def __init__(self, brief: str, *, kind: str, host: str, hint: str | None = None) -> None:
        super().__init__(brief, host=host, transient=kind in _PASSING, hint=hint)
        self.kind = kind


def reason(status: int) -> str:
    """`404 Not Found`."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def said_by_server(answer: Answer) -> str:
    """The registry's own words, `CODE: message` (distribution-spec, "Error Codes"), or nothing."""
    data = answer.read(_SAID_LIMIT)
    try:
        errors = json.loads(data)["errors"]
        words = [_one(e) for e in errors if isinstance(e, dict)]
    except (ValueError, KeyError, TypeError):  # an HTML page, a proxy's text, or nothing
        text = data.decode("utf-8", "replace").strip()
        return text if text and len(text) <= 200 and "<" not in text and "\n" not in text else ""
    return ", ".join(w for w in words if w)


def _one(error: dict[str, object]) -> str:
    code, message = str(error.get("code") or "").lower(), str(error.get("message") or "")
    return f"{code}: {message}" if code and message else code or message


def status_error(method: str, answer: Answer, *, host: str) -> RegistryError:
    """An answer that is an error."""
    said = said_by_server(answer)
    brief = f"unexpected status from {method} request to {redact_url(answer.url)}: {reason(answer.status)}"
    if said:
        brief += f": {said}"
    if answer.status == 429:
        return _limited(brief, answer, host)
    if answer.status in (401, 403):
        return UnauthorizedError(brief, host=host, status=answer.status, hint=f"check that your login for {host} may do this")
    return RegistryError(brief, host=host, status=answer.status, transient=answer.status in TRANSIENT)


def _limited(brief: str, answer: Answer, host: str) -> RateLimitedError:
    """With the words for a person: how much, how long, what to do."""
    now = time.time()
    said = rate_limit(answer.headers, now)
    wait_s = said.wait_s(now)
    reset_at = None if wait_s is None else now + wait_s
    hint = f"{host} limits how much may be pulled" + (f" ({said})" if str(said) else "")
    hint += "; log in to it, use a mirror, or try again "
    hint += f"in {span(wait_s)}, at {clock(reset_at)}" if wait_s is not None and reset_at is not None else "later"
    return RateLimitedError(brief, retry_after_s=wait_s, reset_at=reset_at, limit=str(said), host=host, hint=hint)


def retry_after(answer: Answer, now: float | None = None) -> float | None:
    """Seconds the server asks to wait, or until its limit is reset."""
    now = time.time() if now is None else now
    said = rate_limit(answer.headers, now)
    return said.wait_s(now) if answer.status == 429 else said.retry_after_s


def transport_error(err: BaseException, method: str, url: str) -> TransportError:
    host = urllib3.util.parse_url(url).netloc or url
    cause = _root(err)
    kind, words = _kind_of(err, cause, host)
    return TransportError(
        f'failed to do request: {method.capitalize()} "{redact_url(url)}": {words}', kind=kind, host=host, hint=_hint(kind, host)
    )


def _root(err: BaseException) -> BaseException:
    """The error below urllib3's wrapping."""
    seen = 0
    while seen < 8:
        seen += 1
        inner = err.__cause__ or next((a for a in err.args if isinstance(a, BaseException)), None)
        if inner is None and isinstance(err.__context__, OSError) and isinstance(err, u.HTTPError):
            inner = err.__context__
        if inner is None:
            break
        err = inner
    return err


def _kind_of(err: BaseException, cause: BaseException, host: str) -> tuple[str, str]:
    """(kind, words)."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "tls-verify", f"tls: failed to verify certificate: {cause.verify_message or 'unknown reason'}"
    if isinstance(cause, ssl.SSLError):
        return _tls(cause)
    if isinstance(err, u.NameResolutionError) or isinstance(cause, socket.gaierror):
        again = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
        return (
            ("again", f"lookup {host}: temporary failure in name resolution")
            if again
            else ("dns", f"lookup {host}: no such host")
        )
    if isinstance(err, u.ConnectTimeoutError) and not isinstance(err, u.NewConnectionError):
        return "connect-timeout", f"dial tcp {host}: i/o timeout"
    if isinstance(err, u.ReadTimeoutError) or isinstance(cause, TimeoutError):
        return "timeout", "i/o timeout: no answer in time"
    if isinstance(cause, ConnectionRefusedError):
        return "refused", f"dial tcp {host}: connect: connection refused"
    if isinstance(cause, ConnectionResetError | BrokenPipeError | ConnectionAbortedError) and not isinstance(
        cause, http.client.RemoteDisconnected
    ):
        return "reset", "connection reset by peer"
    if isinstance(cause, http.client.RemoteDisconnected):
        return "eof", "EOF"
    if isinstance(cause, http.client.IncompleteRead | u.IncompleteRead) or isinstance(err, u.ProtocolError):
        return "eof", "unexpected EOF"
    if isinstance(cause, OSError) and cause.errno:
        return "unreachable", f"dial tcp {host}: {(cause.strerror or str(cause)).lower()}"
    return "other", str(cause) or type(cause).__name__


def _tls(cause: ssl.SSLError) -> tuple[str, str]:
    name = cause.reason or ""
    if name in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return "tls-record", "tls: first record does not look like a TLS handshake: server gave HTTP response to HTTPS client"
    if "CERTIFICATE_REQUIRED" in name or "HANDSHAKE_FAILURE" in name or "BAD_CERTIFICATE" in name or "UNKNOWN_CA" in name:
        return (
            "tls-client",
            f"remote error: tls: {name.lower().replace('_', ' ').replace('tlsv13 alert ', '').replace('sslv3 alert ', '').replace('tlsv1 alert ', '')}",
        )
    if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "eof", "EOF"
    return "tls", f"tls: {name.lower().replace('_', ' ') or cause}"


def _hint(kind: str, host: str) -> str | None:
    section = f'[registry."{host}"]'
    return {
        "tls-verify": f"name the certificate authority of {host} as ca in {section} of the config",
        "tls-client": f"{host} wants a client certificate: name one as keypair in {section} of the config",
        "tls-record": f"if {host} speaks plain HTTP, set http = true in {section} of the config",
        "dns": f"check the name {host}",
        "refused": f"nothing listens at {host}",
        "connect-timeout": f"{host} cannot be reached: check the address, a firewall, or the proxy",
    }.get(kind)


class Failures:
    """What became of each host that was tried, and which error to report."""

    def __init__(self) -> None:
        self.tried: list[tuple[str, ChantierError]] = []
        self._best: tuple[int, ChantierError] | None = None

    def add(self, host: str, err: ChantierError, priority: int = 0) -> None:
        """The first error of the highest priority is the one to report; a negative one never is, where there is another."""
        self.tried.append((host, err))
        if self._best is None or priority > self._best[0]:
            self._best = (priority, err)

    def copy(self) -> Failures:
        made = Failures()
        made.tried, made._best = list(self.tried), self._best
        return made

    def error(self) -> ChantierError:
        """With all hosts in its detail, where there were several."""
        assert self._best is not None
        err = self._best[1]
        if len(self.tried) > 1:
            err.detail = "\n".join(f"{host}: {e.brief}" for host, e in self.tried)
        return err
