# SPDX-License-Identifier: Apache-2.0
"""The connections of a fake registry, its answers, and what goes wrong with them."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from .registry_values import Fault, Recorded

if TYPE_CHECKING:
    from .registry import FakeRegistry

_CHUNK = 64 << 10


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, registry: FakeRegistry, handler: type[Answering]) -> None:
        self.registry = registry
        self._handler = handler
        self._open: set[socket.socket] = set()
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's thread: the handshake must not hold up other connections."""
        self.registry.connections += 1
        wrapped = request
        try:
            if self.registry.tls is not None:
                request.settimeout(10)
                wrapped = self.registry.tls.wrap_socket(request, server_side=True)
                wrapped.settimeout(None)
            self._open.add(wrapped)
            self._handler(wrapped, client_address, self)
        except (OSError, ValueError):
            return  # the client went away or does not speak TLS
        finally:
            self._open.discard(wrapped)
            wrapped.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        return None

    def stop(self) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            try:
                connection.close()
            except OSError:  # closed by its own thread meanwhile
                continue


class _Broken(Exception):
    """The connection has been broken on purpose."""


class Answering(BaseHTTPRequestHandler):
    """Takes requests, misbehaves as it was told, and answers; `_route` says what."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        return None

    def do_ANY(self) -> None:
        registry = self.server.registry
        parts = urlsplit(self.path)
        self.plain_path = unquote(parts.path)
        self.query = {k: v[-1] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        self.status = 0
        self.read_body = self.recorded = False
        self.fault = registry.fault_for(self.command, self.plain_path)
        self.blob = self.command == "GET" and "/blobs/" in self.plain_path
        self.inside = True
        registry.entered(blob=self.blob)
        try:
            if self.fault is None or not self._before(self.fault):
                self._route()
            if not self.read_body and int(self.headers.get("content-length") or 0):
                self.close_connection = True  # its body was never read
        except _Broken:
            self.close_connection = True
        finally:
            self._leave()
            self._record()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_ANY

    def _leave(self) -> None:
        """Before the last of the answer: whoever has all of it may send the next request."""
        if self.inside:
            self.inside = False
            self.server.registry.left(blob=self.blob)

    def _record(self) -> None:
        """Once a request, before its answer: whoever has the answer finds the request in the list."""
        if self.recorded:
            return
        self.recorded = True
        self.server.registry.record(
            Recorded(
                method=self.command,
                path=self.plain_path,
                query=self.query,
                headers={k.lower(): v for k, v in self.headers.items()},
                status=self.status,
            )
        )

    # Faults.

    def _before(self, fault: Fault) -> bool:
        """Misbehave in place of an answer. False: the fault shows only in the body."""
        if fault.kind == "status":
            self._body()
            self._answer(fault.status, fault.body, fault.headers)
        elif fault.kind == "redirect":
            self._answer(307, b"", {"Location": fault.location})
        elif fault.kind == "hang":
            self.server.ended.wait(fault.seconds)
            return False
        elif fault.kind in ("reset", "eof") and fault.after < 0:
            self._break(hard=fault.kind == "reset")
        else:
            return False
        return True

    def _break(self, *, hard: bool) -> None:
        self._record()
        self.wfile.flush()
        if hard:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)
        self.connection.close()
        raise _Broken

    # Answers.

    def _answer(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, *, content_type: str = ""
    ) -> None:
        fault, kind = self.fault, self.fault.kind if self.fault else ""
        if kind == "lost":
            self._break(hard=False)
        headers = {k: v for k, v in (headers or {}).items() if kind != "no-digest" or k.lower() != "docker-content-digest"}
        if status in (200, 206) and self.command == "GET" and body:
            body = _spoilt(body, kind)
        self.status = status
        self._record()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if content_type:
            self.send_header("Content-Type", content_type)
        if status != 204 and "content-length" not in {k.lower() for k in headers}:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        if self.command == "HEAD" or not body:
            self._leave()
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.after >= 0 and kind in ("reset", "eof"):
            self._pieces(body[: fault.after])
            self._break(hard=kind == "reset")
        self._pieces(body)

    def _pieces(self, body: bytes) -> None:
        slow = self.fault.seconds if self.fault and self.fault.kind == "slow" else 0.0
        if "/blobs/" in self.plain_path and self.server.registry.delay_s:
            time.sleep(self.server.registry.delay_s)
        step = 1024 if slow else _CHUNK
        for at in range(0, len(body), step):
            if at + step >= len(body):
                self._leave()
            self.wfile.write(body[at : at + step])
            if slow:
                self.server.ended.wait(slow)

    def _error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self._body()
        data = json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode()
        self._answer(status, data, headers, content_type="application/json")

    def _body(self) -> bytes:
        if self.read_body:
            return b""
        self.read_body = True
        if "chunked" in self.headers.get("transfer-encoding", ""):
            return self._chunked()
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _chunked(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _route(self) -> None:
        raise NotImplementedError


def _spoilt(body: bytes, kind: str) -> bytes:
    if kind == "wrong":
        return bytes([body[0] ^ 0xFF]) + body[1:]
    if kind == "short":
        return body[: len(body) // 2]
    return body + b"more" if kind == "long" else body


__all__ = ["Answering", "Server"]
