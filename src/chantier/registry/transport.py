# SPDX-License-Identifier: Apache-2.0
"""One request over HTTP/1.1, on pooled connections, and a response whose body streams. No login, no retry, no redirect.

A thread that waits on a socket cannot look at `cancelled()`, so a watcher thread, alive only while there is something to
watch, looks for it and shuts the socket of a cancelled call.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from chantier.values import dataclass, field, replace

from .failures import TransportError, reason, transport_error
from .hosts import Peer
from .messages import Request
from .network import Network
from .retry import check
from .tls import context_for, signature
from .types import Cancelled, never

CHUNK = 256 << 10
_WATCH_S = 0.1
_HOLD_S = 0.2  # a piece of a slow body is not held back longer
_DEFAULT_READ_S = {"GET": 60.0, "HEAD": 30.0}
_WRITE_READ_S = 600.0  # a registry may assemble gigabytes before it answers a PUT
_KEEP_IDLE = 8  # connections per host
_KEEP_ALIVE = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
]


class Transport:
    """Connection pools by trust and proxy; thread-safe, shared by all builds."""

    def __init__(self, *, user_agent: str, environment: Mapping[str, str] | None = None) -> None:
        self.user_agent = user_agent
        self._network = Network(env=environment)  # for peers that have none
        self._mutex = threading.Lock()
        self._pools: dict[object, urllib3.PoolManager] = {}
        self._watch = _Watch()

    def send(self, request: Request, peer: Peer, *, cancelled: Cancelled = never) -> Response:
        """The response, its body unread. Raises TransportError, ConfigError for TLS files, CancelledError_."""
        check(cancelled)
        proxy = peer.proxy_for(request.url, self._network)
        pool = self._pool(peer, request.url, proxy)
        headers = {"user-agent": self.user_agent, **request.headers}
        if request.body is not None:
            headers["content-length"] = str(request.length)
        elif request.method in ("POST", "PUT", "PATCH"):
            headers["content-length"] = "0"
        read_s = peer.response_timeout_s or _DEFAULT_READ_S.get(request.method, _WRITE_READ_S)
        call = _Call(cancelled)
        body: BinaryIO | None = None
        with self._watch.over(call):
            try:
                body = request.body() if request.body is not None else None
                raw = pool.urlopen(
                    request.method,
                    request.url,
                    body=body,
                    headers=headers,
                    timeout=urllib3.Timeout(connect=peer.connect_timeout_s, read=read_s),
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    assert_same_host=False,
                )
            except (urllib3.exceptions.HTTPError, OSError) as err:
                check(cancelled)
                raise transport_error(err, request.method, request.url) from err
            finally:
                if body is not None:
                    body.close()
        return Response(raw, request, self._watch, cancelled, facts=_facts_of(call, proxy))

    def close(self) -> None:
        with self._mutex:
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.clear()

    def _pool(self, peer: Peer, url: str, proxy: str | None) -> urllib3.PoolManager:
        """The pool of this trust; a new one when a certificate file has changed since."""
        tls = url.startswith("https:")
        key = (_trust(peer) if tls else None, proxy)
        state = signature(peer) if tls else ()
        with self._mutex:
            pool = self._pools.get((key, state))
            if pool is None:
                for old in [k for k in self._pools if isinstance(k, tuple) and k[0] == key]:
                    del self._pools[old]
                pool = self._pools[key, state] = _make_pool(peer if tls else None, proxy)
            return pool


class Response:
    """An answer from a registry. Use as a context manager: what is not read is dropped."""

    def __init__(
        self,
        raw: urllib3.BaseHTTPResponse,
        request: Request,
        watch: _Watch,
        cancelled: Cancelled,
        *,
        facts: Facts | None = None,
    ) -> None:
        self.facts = facts or Facts()
        self._raw = raw
        self._request = request
        self._watch = watch
        self._cancelled = cancelled
        self._kept: bytes | None = None

    @property
    def status(self) -> int:
        return self._raw.status

    @property
    def headers(self) -> urllib3.HTTPHeaderDict:
        return self._raw.headers

    @property
    def url(self) -> str:
        return self._request.url

    @property
    def line(self) -> str:
        """`200 OK`."""
        return f"{self.status} {self._raw.reason}" if self._raw.reason else reason(self.status)

    def read(self, limit: int = 64 << 10) -> bytes:
        """Up to `limit` bytes of the body, remembered. A body that breaks off counts as far as it came."""
        if self._kept is None:
            kept = b""
            try:
                for chunk in self.chunks(min(limit, CHUNK)):
                    kept += chunk
                    if len(kept) >= limit:
                        break
            except TransportError:
                pass  # the words of an error; whoever needs the whole body checks its length or digest
            self._kept = kept[:limit]
            self.close()
        return self._kept

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """The body as it comes, in pieces of `size` where it comes fast. Raises CancelledError_, and TransportError where it
        breaks off: after the last byte that came has been given, so that a download can go on from there."""
        parts: list[bytes] = []
        held = 0
        since = time.monotonic()
        with self._watch.over(_Call(self._cancelled, self._raw)):
            while True:
                check(self._cancelled)
                try:
                    part = self._raw.read1(size - held)
                except (urllib3.exceptions.HTTPError, OSError) as err:
                    check(self._cancelled)
                    if held:
                        yield b"".join(parts)
                    raise transport_error(err, self._request.method, self._request.url) from err
                parts.append(part)
                held += len(part)
                if held and (not part or held >= size or time.monotonic() - since > _HOLD_S):
                    yield parts[0] if len(parts) == 1 else b"".join(parts)
                    parts, held, since = [], 0, time.monotonic()
                if not part:
                    check(self._cancelled)
                    self._raw.release_conn()
                    return

    def close(self) -> None:
        """A body that has ended leaves its connection to the pool; another one closes it."""
        if getattr(self._raw, "_connection", None) is not None and not self._drained():
            self._raw.close()
        self._raw.release_conn()

    def _drained(self) -> bool:
        """Small rests are read, so that the connection can serve again."""
        length = getattr(self._raw, "length_remaining", None)
        if length is None or length > 16 << 10:
            return False
        try:
            self._raw.read(length + 1)
        except (urllib3.exceptions.HTTPError, OSError):  # then it is of no more use
            return False
        return True

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Call:
    """A request under way that somebody may want to cancel."""

    def __init__(self, cancelled: Cancelled, raw: urllib3.BaseHTTPResponse | None = None) -> None:
        self.cancelled = cancelled
        self.connection: _Dialled | None = None
        self.raw = raw

    def abort(self) -> None:
        """Wake the thread that waits for this call."""
        try:
            if isinstance(self.raw, urllib3.HTTPResponse):
                self.raw.shutdown()
            elif self.connection is not None and self.connection.sock is not None:
                socket.socket.shutdown(self.connection.sock, socket.SHUT_RDWR)
        except (OSError, ValueError, RuntimeError):
            return  # it has ended meanwhile


def _facts_of(call: _Call, proxy: str | None) -> Facts:
    """Of the connection that was used. The time it took to make is told to the first request on it alone."""
    shown = "" if proxy is None else proxy.rpartition("@")[2].removeprefix("http://").removeprefix("https://")
    connection = call.connection
    if connection is None or connection.facts is None:
        return Facts(proxy=shown)
    facts = replace(connection.facts, proxy=shown)
    connection.facts = replace(connection.facts, connect_s=None, tls_s=None)
    return facts


class _Watch:
    """Looks at all calls under way, ten times a second, from one thread that ends when there are none."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._calls: set[_Call] = set()
        self._running = False

    def over(self, call: _Call) -> _Watched:
        return _Watched(self, call)

    def add(self, call: _Call) -> None:
        with self._mutex:
            self._calls.add(call)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="chantier-registry-watch", daemon=True).start()

    def remove(self, call: _Call) -> None:
        with self._mutex:
            self._calls.discard(call)

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(_WATCH_S)
            with self._mutex:
                calls = list(self._calls)
                idle = 0 if calls else idle + 1
                if idle > 20:
                    self._running = False
                    return
            for call in calls:
                if call.cancelled():
                    call.abort()


class _Watched:
    """Context manager: the call is watched, and knows the connection this thread uses for it."""

    def __init__(self, watch: _Watch, call: _Call) -> None:
        self._watch = watch
        self._call = call

    def __enter__(self) -> None:
        _current.call = self._call
        if self._call.cancelled is not never:
            self._watch.add(self._call)

    def __exit__(self, *exc: object) -> None:
        _current.call = None
        if self._call.cancelled is not never:
            self._watch.remove(self._call)


_current = threading.local()


@dataclass(kw_only=True, eq=False)
class Facts:
    """What is known of the connection a response came over."""

    address: str = ""
    connect_s: float | None = None  # None: it was kept from an earlier request
    tls_s: float | None = None
    tls: str = ""
    cipher: str = ""
    certificate: Mapping[str, Any] = field(default_factory=dict)  # as ssl gives it; empty where it was not verified
    proxy: str = ""


class _Dialled(HTTPConnection):
    """A connection whose whole time to connect is bounded, however many addresses the host has."""

    facts: Facts | None = None

    def _new_conn(self) -> socket.socket:
        began = time.monotonic()
        limit = self.timeout if isinstance(self.timeout, int | float) else None
        try:
            found = _dial(self._dns_host, self.port or self.default_port, limit, self.socket_options or ())
        except socket.gaierror as err:
            raise NameResolutionError(self.host, self, err) from err
        except TimeoutError as err:
            raise ConnectTimeoutError(self, f"connection to {self.host} timed out") from err
        except OSError as err:
            raise NewConnectionError(self, f"failed to establish a new connection: {err}") from err
        address = found.getpeername()
        shown = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        self.facts = Facts(address=shown, connect_s=time.monotonic() - began)
        return found


def _dial(host: str, port: int, limit_s: float | None, options: Any) -> socket.socket:
    """The addresses in turn, each with its share of the time that is left. Raises the error of the last one."""
    end = None if limit_s is None else time.monotonic() + limit_s
    addresses = socket.getaddrinfo(host.strip("[]"), port, 0, socket.SOCK_STREAM)
    failed: OSError = OSError(f"{host} has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            for option in options:
                sock.setsockopt(*option)
            if end is not None:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError("timed out")
                sock.settimeout(left / (len(addresses) - number))
            sock.connect(address)
            sock.settimeout(limit_s)
            return sock
        except OSError as err:
            sock.close()
            failed = err
    raise failed


class _Http(_Dialled):
    def request(self, *args: Any, **kwargs: Any) -> None:
        _noted(self)
        super().request(*args, **kwargs)


class _Https(_Dialled, HTTPSConnection):
    def connect(self) -> None:
        began = time.monotonic()
        super().connect()
        if self.facts is not None and isinstance(self.sock, ssl.SSLSocket):
            cipher = self.sock.cipher()
            self.facts.tls_s = time.monotonic() - began - (self.facts.connect_s or 0.0)
            self.facts.tls = self.sock.version() or ""
            self.facts.cipher = cipher[0] if cipher else ""
            self.facts.certificate = self.sock.getpeercert() or {}

    def request(self, *args: Any, **kwargs: Any) -> None:
        _noted(self)
        super().request(*args, **kwargs)


def _noted(connection: _Dialled) -> None:
    call: _Call | None = getattr(_current, "call", None)
    if call is not None:
        call.connection = connection


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Https


def _make_pool(peer: Peer | None, proxy: str | None) -> urllib3.PoolManager:
    common: dict[str, Any] = {
        "num_pools": 64,
        "maxsize": _KEEP_IDLE,
        "block": False,
        "blocksize": CHUNK,
        "socket_options": _KEEP_ALIVE,
        "retries": False,
    }
    if peer is not None:
        common["ssl_context"] = context_for(peer)
        if peer.insecure:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the config asked for it
            common |= {"cert_reqs": "CERT_NONE", "assert_hostname": False}
    if proxy is None:
        manager = urllib3.PoolManager(**common)
    else:
        manager = urllib3.ProxyManager(proxy, proxy_headers=_proxy_headers(proxy), **common)
    manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return manager


def _proxy_headers(proxy: str) -> urllib3.HTTPHeaderDict | dict[str, str]:
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    return urllib3.make_headers(proxy_basic_auth=f"{unquote(parts.username)}:{unquote(parts.password or '')}")


def _trust(peer: Peer) -> tuple[object, ...]:
    return (peer.insecure, peer.ca, peer.keypairs, peer.directories, peer.nameless)
