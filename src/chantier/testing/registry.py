# SPDX-License-Identifier: Apache-2.0
"""A registry in this process, that misbehaves when told to.

`FakeRegistry` speaks the distribution spec over HTTP/1.1 or HTTPS from threads of its own, keeps everything in memory,
asks for basic or bearer credentials, can send blobs from another host, and records every request. `fail` makes it misbehave
the next so many times that a request matches. The project's own tests run the same checks against it and
against a real registry.

    with FakeRegistry() as registry:
        registry.add_image("team/app", "1", layers=[b"..."])
        registry.fail("reset", path="/blobs/", after=1000)
        ...  # pull registry.authority + "/team/app:1"
        assert registry.count("GET", "/blobs/") == 3
"""

from __future__ import annotations

import base64
import json
import random
import re
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from chantier.spec import OCI_CONFIG, OCI_INDEX, OCI_LAYER_TAR, OCI_MANIFEST, Descriptor, digest_of

_ROUTE = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>manifests|blobs/uploads|blobs|referrers|tags/list)(?:/(?P<rest>[^/]*))?/?\Z")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")
_CHUNK = 64 << 10

KINDS = frozenset(
    ["status", "reset", "eof", "wrong", "short", "long", "hang", "slow", "lost", "redirect", "no-digest", "ignore-range"]
)


@dataclass(kw_only=True)
class Fault:
    """One way to misbehave. Matches a request by method and by a part of its path, `times` times (-1: always).

    status        answer `status` with `headers` and `body`
    reset, eof    break the connection: before an answer, or after `after` bytes of the body
    lost          do what was asked, then break the connection in place of an answer
    wrong         a body of the right length with a wrong byte
    short, long   a body that is too short or too long, and a Content-Length that agrees with it
    hang          no answer for `seconds`
    slow          `seconds` between pieces of the body
    redirect      307 to `location`
    no-digest     no Docker-Content-Digest
    ignore-range  200 and all of a blob, where a part was asked for
    """

    kind: str
    method: str = ""
    path: str = ""
    times: int = 1
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    after: int = -1
    seconds: float = 0.0
    location: str = ""
    chance: float = 1.0

    def matches(self, method: str, path: str) -> bool:
        return self.times != 0 and (not self.method or self.method == method) and self.path in path


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A request as it came, and the status it got (0: the connection was broken without one)."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    status: int


@dataclass
class Repository:
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)


@dataclass
class _Upload:
    name: str
    data: bytearray = field(default_factory=bytearray)


class FakeRegistry:
    """Serves between `__enter__` and `__exit__` (or `start` and `close`), on a port of 127.0.0.1.

    `tls` is a server's context (`verify_mode = CERT_REQUIRED` makes it ask for client certificates). `users` are names and
    passwords; `auth` says how they are asked for: `basic`, `token` (a token server at `/token` here, or at `realm`), or not.
    Anonymous users get tokens for pulling if `public`. `uploads` is `any`, or `chunks` to refuse whole blobs; `most_body`
    bounds a request's body as a proxy does. `cdn` sends blobs from there. `delay_s` slows blob bodies. `seed` makes faults
    that have a `chance` come in the same order each time.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        users: Mapping[str, str] | None = None,
        auth: str = "",
        realm: str = "",
        public: bool = True,
        token_get: bool = True,
        token_lifetime_s: float = 300.0,
        uploads: str = "any",
        most_body: int = 0,
        least_chunk: int = 0,
        cdn: FakeRegistry | None = None,
        upload_host: FakeRegistry | None = None,
        delay_s: float = 0.0,
        name: str = "127.0.0.1",
        seed: int | None = None,
    ) -> None:
        self.tls = tls
        self.users = dict(users or {})
        self.auth = auth or ("basic" if users else "")
        self.realm = realm
        self.public = public
        self.token_get = token_get
        self.token_lifetime_s = token_lifetime_s
        self.uploads = uploads
        self.most_body = most_body
        self.least_chunk = least_chunk
        self.cdn = cdn
        self.upload_host = upload_host
        self.delay_s = delay_s
        self.name = name
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Recorded] = []
        self.tokens: dict[str, tuple[set[str], float]] = {}
        self.refresh_tokens: dict[str, str] = {}  # identity token: user
        self.connections = 0
        self.under_way = self.peak = self.blobs_under_way = self.peak_blobs = self.peak_metadata = 0
        self._random = random.Random(seed)
        self._faults: list[Fault] = []
        self._uploads: dict[str, _Upload] = {}
        self._mutex = threading.RLock()
        self._server: _Server | None = None

    # Life.

    def __enter__(self) -> FakeRegistry:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> FakeRegistry:
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fake-registry", daemon=True).start()
        return self

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    @property
    def authority(self) -> str:
        """`127.0.0.1:PORT`."""
        if self._server is None:
            raise RuntimeError("the registry is not running")
        return f"{self.name}:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"

    # What it holds.

    def repository(self, name: str) -> Repository:
        with self._mutex:
            return self.repositories.setdefault(name, Repository())

    def add_blob(self, name: str, data: bytes, media_type: str = OCI_LAYER_TAR) -> Descriptor:
        digest = digest_of(data)
        self.repository(name).blobs[digest] = data
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def add_manifest(self, name: str, data: bytes, media_type: str = OCI_MANIFEST, tag: str = "") -> Descriptor:
        digest = digest_of(data)
        repository = self.repository(name)
        repository.manifests[digest] = (data, media_type)
        if tag:
            repository.tags[tag] = digest
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def add_image(
        self, name: str, tag: str, layers: Iterable[bytes] = (b"layer",), config: Mapping[str, Any] | None = None
    ) -> Descriptor:
        """An image of these layers (tar bytes, or what a test likes); returns the manifest's descriptor."""
        held = [self.add_blob(name, layer) for layer in layers]
        document = {"architecture": "amd64", "os": "linux", **(config or {})}
        document.setdefault("rootfs", {"type": "layers", "diff_ids": [d.digest for d in held]})
        described = self.add_blob(name, json.dumps(document).encode(), OCI_CONFIG)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _plain(described),
            "layers": [_plain(d) for d in held],
        }
        return self.add_manifest(name, json.dumps(manifest).encode(), OCI_MANIFEST, tag)

    # What it is asked for, and how it misbehaves.

    def fail(self, kind: str, **details: Any) -> Fault:
        """Misbehave: see `Fault`. Faults are looked at in the order they were made."""
        if kind not in KINDS:
            raise ValueError(f"no such fault: {kind}; there are {', '.join(sorted(KINDS))}")
        fault = Fault(kind=kind, **details)
        with self._mutex:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        with self._mutex:
            self._faults.clear()

    def seen(self, method: str = "", path: str = "") -> list[Recorded]:
        """Requests so far, of a method and with a part of the path."""
        with self._mutex:
            return [r for r in self.requests if (not method or r.method == method) and path in r.path]

    def count(self, method: str = "", path: str = "") -> int:
        return len(self.seen(method, path))

    def expire_tokens(self) -> None:
        with self._mutex:
            self.tokens.clear()

    # For the handler.

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self._mutex:
            for fault in self._faults:
                if fault.matches(method, path) and (fault.chance >= 1 or self._random.random() < fault.chance):
                    fault.times -= 1 if fault.times > 0 else 0
                    return fault
            return None

    def record(self, recorded: Recorded) -> None:
        with self._mutex:
            self.requests.append(recorded)

    def entered(self, *, blob: bool) -> None:
        with self._mutex:
            self.under_way += 1
            self.blobs_under_way += blob
            self.peak = max(self.peak, self.under_way)
            self.peak_blobs = max(self.peak_blobs, self.blobs_under_way)
            self.peak_metadata = max(self.peak_metadata, self.under_way - self.blobs_under_way)

    def left(self, *, blob: bool) -> None:
        with self._mutex:
            self.under_way -= 1
            self.blobs_under_way -= blob

    def new_upload(self, name: str) -> str:
        with self._mutex:
            key = secrets.token_hex(8)
            self._uploads[key] = _Upload(name)
            return key

    def upload(self, key: str) -> _Upload | None:
        with self._mutex:
            return self._uploads.get(key)

    def end_upload(self, key: str) -> None:
        with self._mutex:
            self._uploads.pop(key, None)

    def grant(self, scopes: Iterable[str]) -> str:
        token = "token-" + secrets.token_hex(12)
        with self._mutex:
            self.tokens[token] = (set(_single_scopes(scopes)), time.monotonic() + self.token_lifetime_s)
        return token

    def allows(self, token: str, scope: str) -> bool:
        with self._mutex:
            scopes, until = self.tokens.get(token, (set(), 0.0))
        return time.monotonic() < until and scope in scopes


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, registry: FakeRegistry) -> None:
        self.registry = registry
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

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
            _Handler(wrapped, client_address, self)
        except (OSError, ValueError):
            return  # the client went away or does not speak TLS
        finally:
            self._open.discard(wrapped)
            wrapped.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        return None

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            try:
                connection.close()
            except OSError:  # closed by its own thread meanwhile
                continue


class _Broken(Exception):
    """The connection has been broken on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

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
            time.sleep(fault.seconds)
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
                time.sleep(slow)

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

    # Routes.

    def _route(self) -> None:
        registry = self.server.registry
        if self.plain_path == "/token":
            return self._token()
        if self.plain_path in ("/v2/", "/v2"):
            return None if self._unwelcome("", "") else self._answer(200, b"{}", content_type="application/json")
        match = _ROUTE.match(self.plain_path)
        if match is None:
            return self._error(404, "NOT_FOUND", "no such page")
        name, kind, rest = match["name"], match["kind"], match["rest"] or ""
        action = "pull" if self.command in ("GET", "HEAD") and kind != "blobs/uploads" else "push"
        if self._unwelcome(name, action):
            return None
        if registry.most_body and int(self.headers.get("content-length") or 0) > registry.most_body:
            self.close_connection = True
            return self._error(413, "SIZE_INVALID", "request entity too large")
        route: dict[str, Callable[[str, str], None]] = {
            "manifests": self._manifest,
            "blobs": self._blob,
            "blobs/uploads": self._uploading,
            "referrers": self._referrers,
            "tags/list": self._tags,
        }
        return route[kind](name, rest)

    def _manifest(self, name: str, reference: str) -> None:
        repository = self.server.registry.repositories.get(name, Repository())
        if self.command == "PUT":
            return self._put_manifest(name, reference)
        digest = repository.tags.get(reference, reference)
        found = repository.manifests.get(digest)
        if found is None:
            return self._error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        data, media_type = found
        headers = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        if self.command == "HEAD":
            headers["Content-Length"] = str(len(data))
        return self._answer(200, data if self.command == "GET" else b"", headers, content_type=media_type)

    def _put_manifest(self, name: str, reference: str) -> None:
        data = self._body()
        registry = self.server.registry
        repository = registry.repository(name)
        media_type = self.headers.get("content-type") or OCI_MANIFEST
        raw = json.loads(data)
        wanted = [d["digest"] for d in [*raw.get("layers", []), *([raw["config"]] if "config" in raw else [])]]
        missing = [d for d in wanted if d not in repository.blobs]
        missing += [m["digest"] for m in raw.get("manifests", []) if m["digest"] not in repository.manifests]
        if missing:
            return self._error(400, "MANIFEST_BLOB_UNKNOWN", f"blob unknown to registry: {missing[0]}")
        digest = digest_of(data)
        if ":" in reference and reference != digest:
            return self._error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        registry.add_manifest(name, data, media_type, "" if ":" in reference else reference)
        headers = {"Docker-Content-Digest": str(digest), "Location": f"/v2/{name}/manifests/{digest}"}
        if subject := (raw.get("subject") or {}).get("digest"):
            headers["OCI-Subject"] = subject
        return self._answer(201, b"", headers)

    def _blob(self, name: str, digest: str) -> None:
        registry = self.server.registry
        data = registry.repositories.get(name, Repository()).blobs.get(digest)
        if data is None:
            return self._error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        headers = {"Docker-Content-Digest": digest, "Accept-Ranges": "bytes"}
        if registry.cdn is not None and self.command == "GET":
            registry.cdn.repository("cdn").blobs[digest] = data
            location = f"{registry.cdn.url}/v2/cdn/blobs/{digest}?X-Signature=signed-secret"
            return self._answer(307, b"", {"Location": location})
        if self.command == "HEAD":
            return self._answer(200, b"", headers | {"Content-Length": str(len(data))}, content_type="application/octet-stream")
        wanted = _RANGE.match(self.headers.get("range", ""))
        if wanted and (self.fault is None or self.fault.kind != "ignore-range"):
            return self._part(data, wanted, headers)
        return self._answer(200, data, headers, content_type="application/octet-stream")

    def _part(self, data: bytes, wanted: re.Match[str], headers: dict[str, str]) -> None:
        start = int(wanted[1])
        if start >= len(data):
            return self._error(416, "RANGE_INVALID", "range not satisfiable", {"Content-Range": f"bytes */{len(data)}"})
        end = min(int(wanted[2]) + 1 if wanted[2] else len(data), len(data))
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return self._answer(206, data[start:end], headers, content_type="application/octet-stream")

    def _uploading(self, name: str, key: str) -> None:
        if self.command == "POST":
            return self._begin_upload(name)
        upload = self.server.registry.upload(key)
        if upload is None:
            return self._error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        if self.command == "GET":
            return self._answer(204, b"", self._standing(name, key, upload))
        return self._patch(name, key, upload) if self.command == "PATCH" else self._finish(name, key, upload)

    def _begin_upload(self, name: str) -> None:
        registry = self.server.registry
        self._body()
        digest, source = self.query.get("mount", ""), self.query.get("from", "")
        if digest and digest in registry.repositories.get(source, Repository()).blobs and self._may_pull(source):
            registry.repository(name).blobs[digest] = registry.repositories[source].blobs[digest]
            return self._answer(201, b"", {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})
        host = registry.upload_host or registry
        key = host.new_upload(name)
        if host is not registry:
            host.repositories = registry.repositories
        base = host.url if host is not registry else ""
        headers = {"Location": f"{base}/v2/{name}/blobs/uploads/{key}?_state=signed-secret", "Range": "0-0"}
        if registry.least_chunk:
            headers["OCI-Chunk-Min-Length"] = str(registry.least_chunk)
        return self._answer(202, b"", headers)

    def _patch(self, name: str, key: str, upload: _Upload) -> None:
        start = self.headers.get("content-range", "").partition("-")[0]
        data = self._body()
        if start and int(start) != len(upload.data):
            return self._error(416, "RANGE_INVALID", "out of order", self._standing(name, key, upload))
        upload.data += data
        return self._answer(202, b"", self._standing(name, key, upload))

    def _finish(self, name: str, key: str, upload: _Upload) -> None:
        data = self._body()
        registry = self.server.registry
        if data and registry.uploads == "chunks":
            return self._error(405, "UNSUPPORTED", "monolithic upload is not supported")
        upload.data += data
        whole = bytes(upload.data)
        digest = self.query.get("digest", "")
        if digest != digest_of(whole):
            return self._error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        registry.repository(upload.name).blobs[digest] = whole
        registry.end_upload(key)
        return self._answer(201, b"", {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})

    def _standing(self, name: str, key: str, upload: _Upload) -> dict[str, str]:
        location = f"/v2/{name}/blobs/uploads/{key}?_state=signed-secret"
        return {"Location": location, "Range": f"0-{max(0, len(upload.data) - 1)}"}

    def _referrers(self, name: str, digest: str) -> None:
        found = []
        for data, media_type in self.server.registry.repositories.get(name, Repository()).manifests.values():
            raw = json.loads(data)
            if (raw.get("subject") or {}).get("digest") == digest:
                kind = raw.get("artifactType") or raw.get("config", {}).get("mediaType", "")
                found.append({"mediaType": media_type, "digest": digest_of(data), "size": len(data), "artifactType": kind})
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
        return self._answer(200, json.dumps(index).encode(), content_type=OCI_INDEX)

    def _tags(self, name: str, rest: str) -> None:
        repository = self.server.registry.repositories.get(name)
        if repository is None:
            return self._error(404, "NAME_UNKNOWN", "repository name not known to registry")
        data = json.dumps({"name": name, "tags": sorted(repository.tags)}).encode()
        return self._answer(200, data, content_type="application/json")

    # Login.

    def _unwelcome(self, name: str, action: str) -> bool:
        """True if a challenge was sent."""
        registry = self.server.registry
        given = self.headers.get("authorization", "")
        if not registry.auth:
            return False
        if registry.auth == "basic":
            if self._user(given) is not None:
                return False
            challenge = 'Basic realm="fake"'
        else:
            scope = f"repository:{name}:{action}" if name else ""
            token = given.removeprefix("Bearer ")
            if registry.allows(token, scope) or (not scope and token in registry.tokens):
                return False
            realm = registry.realm or f"{registry.url}/token"
            challenge = f'Bearer realm="{realm}",service="fake"' + (f',scope="{scope}"' if scope else "")
            if token in registry.tokens:
                challenge += ',error="insufficient_scope"'
        self._error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        return True

    def _may_pull(self, name: str) -> bool:
        registry = self.server.registry
        if registry.auth != "token":
            return True
        return registry.allows(self.headers.get("authorization", "").removeprefix("Bearer "), f"repository:{name}:pull")

    def _user(self, given: str) -> str | None:
        try:
            name, _, password = base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")
        except ValueError:
            return None
        known = self.server.registry.users.get(name)
        return name if known is not None and secrets.compare_digest(known, password) and given.startswith("Basic ") else None

    def _token(self) -> None:
        registry = self.server.registry
        user: str | None = None
        if self.command == "POST":
            form = {k: v[-1] for k, v in parse_qs(self._body().decode()).items()}
            scopes = form.get("scope", "").split()
            if form.get("grant_type") == "refresh_token":
                user = registry.refresh_tokens.get(form.get("refresh_token", ""))
            elif registry.users.get(form.get("username", "")) == form.get("password"):
                user = form.get("username")
            denied = user is None
        else:
            if not registry.token_get:
                return self._error(405, "UNSUPPORTED", "use POST")
            scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
            given = self.headers.get("authorization", "")
            user = self._user(given)
            denied = user is None and bool(given)
        if denied:
            return self._error(401, "UNAUTHORIZED", "incorrect username or password")
        granted = scopes if user is not None else [s for s in _single_scopes(scopes) if registry.public and s.endswith(":pull")]
        token = registry.grant(granted)
        answer = {"token": token, "expires_in": registry.token_lifetime_s}
        return self._answer(200, json.dumps(answer).encode(), content_type="application/json")


def _single_scopes(scopes: Iterable[str]) -> list[str]:
    """`repository:a:pull,push` as one scope an action."""
    single = []
    for scope in scopes:
        resource, _, actions = scope.rpartition(":")
        single += [f"{resource}:{action}" for action in actions.split(",")]
    return single


def _spoilt(body: bytes, kind: str) -> bytes:
    if kind == "wrong":
        return bytes([body[0] ^ 0xFF]) + body[1:]
    if kind == "short":
        return body[: len(body) // 2]
    return body + b"more" if kind == "long" else body


def _plain(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


__all__ = ["KINDS", "FakeRegistry", "Fault", "Recorded", "Repository"]
