# SPDX-License-Identifier: Apache-2.0
"""An API server that knows Deployments, StatefulSets, ConfigMaps and pods, and can exec: what a kubernetes builder needs.

    with FakeCluster(exec=lambda pod, argv: ["sh", "-c", …]) as cluster:
        cluster.kubeconfig(path)            # a file for clients; `kubectl --kubeconfig` works too
        cluster.objects("deployments")      # what was created, as plain values
        cluster.kill("pod-name")            # its exec streams end

Controllers are instant: a workload has its pods, running and ready, once it is created. Everything is in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

Exec = Callable[[str, Sequence[str]], Sequence[str]]
_KINDS = {
    "pods": ("v1", "Pod"),
    "configmaps": ("v1", "ConfigMap"),
    "namespaces": ("v1", "Namespace"),
    "deployments": ("apps/v1", "Deployment"),
    "statefulsets": ("apps/v1", "StatefulSet"),
}
_PATH = re.compile(
    r"/(?:api/v1|apis/apps/v1)/namespaces/(?P<ns>[^/]+)/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?\Z"
)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class FakeCluster:
    """Use it as a context manager. `exec` turns a command of a pod into one of this machine."""

    def __init__(self, exec: Exec = lambda _pod, argv: argv, *, ready: bool = True) -> None:
        """`ready` False: pods never become ready."""
        self._exec = exec
        self.ready = ready
        self.requests: list[tuple[str, str]] = []  # method and path of each request
        self._objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._running: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._mutex = threading.RLock()
        self._version = 0
        cluster = self

        class Handler(_Handler):
            owner = cluster

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        for pod in list(self._running):
            self._end(pod)
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path: Path, *, namespace: str = "default") -> Path:
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "fake",
                    "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                    "users": [{"name": "fake", "user": {}}],
                    "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": namespace}}],
                }
            )
        )
        return path

    def objects(self, kind: str) -> list[dict[str, Any]]:
        with self._mutex:
            return [o for (k, _, _), o in sorted(self._objects.items()) if k == kind]

    def kill(self, pod: str) -> None:
        """The pod dies: what was exec'd in it ends, and it is listed no more."""
        with self._mutex:
            for key in [k for k in self._objects if k[0] == "pods" and k[2] == pod]:
                del self._objects[key]
        self._end(pod)

    def busy(self, pod: str) -> bool:
        """Whether something that was exec'd in the pod still runs."""
        with self._mutex:
            return any(process.poll() is None for process in self._running.get(pod, []))

    # -- what a handler calls

    def list(self, kind: str, namespace: str, selector: str) -> dict[str, Any]:
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        version, name = _KINDS[kind]
        with self._mutex:
            items = [
                o
                for (k, ns, _), o in sorted(self._objects.items())
                if k == kind and ns == namespace and wanted.items() <= (o["metadata"].get("labels") or {}).items()
            ]
        return {"apiVersion": version, "kind": f"{name}List", "metadata": {"resourceVersion": str(self._version)}, "items": items}

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        with self._mutex:
            return self._objects.get((kind, namespace, name))

    def put(self, kind: str, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        version, word = _KINDS[kind]
        with self._mutex:
            self._version += 1
            meta = {
                **body.get("metadata", {}),
                "namespace": namespace,
                "name": name,
                "uid": hashlib.md5(f"{kind}/{name}".encode(), usedforsecurity=False).hexdigest(),
                "resourceVersion": str(self._version),
                "creationTimestamp": "2026-01-01T00:00:00Z",
            }
            made = {"apiVersion": version, "kind": word, **body, "metadata": meta}
            self._objects[kind, namespace, name] = made
            if kind in ("deployments", "statefulsets"):
                self._control(namespace, name, made)
        return made

    def delete(self, kind: str, namespace: str, name: str) -> None:
        with self._mutex:
            self._objects.pop((kind, namespace, name), None)
            gone = [k for k, o in self._objects.items() if k[0] == "pods" and o["metadata"].get("owner") == f"{kind}/{name}"]
        for _, _, pod in gone if kind != "pods" else [(kind, namespace, name)]:
            self.kill(pod)

    def _control(self, namespace: str, name: str, workload: dict[str, Any]) -> None:
        spec = workload["spec"]
        count = int(spec.get("replicas", 1))
        template = spec["template"]
        for number in range(count):
            suffix = (
                str(number)
                if workload["kind"] == "StatefulSet"
                else hashlib.md5(f"{name}{number}".encode(), usedforsecurity=False).hexdigest()[:5]
            )
            self.put(
                "pods",
                namespace,
                f"{name}-{suffix}",
                {
                    "metadata": {**template["metadata"], "owner": f"{workload['kind'].lower()}s/{name}"},
                    "spec": template["spec"],
                    "status": {"phase": "Running" if self.ready else "Pending", "conditions": []},
                },
            )
        workload["status"] = {"replicas": count, "readyReplicas": count if self.ready else 0}

    def start(self, pod: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(list(self._exec(pod, argv)), stdin=pipe, stdout=pipe, stderr=pipe)
        with self._mutex:
            self._running.setdefault(pod, []).append(process)
        return process

    def _end(self, pod: str) -> None:
        with self._mutex:
            processes = self._running.pop(pod, [])
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FakeCluster

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        url = urlsplit(self.path)
        self.owner.requests.append((method, url.path))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        discovered = _discovery(url.path)
        if discovered is not None:
            self._json(200, discovered)
            return
        found = _PATH.match(url.path)
        if found is None or found["kind"] not in _KINDS:
            self._error(404, "NotFound", f"no such path: {url.path}")
            return
        query = parse_qs(url.query)
        if found["sub"] == "exec":
            self._exec(found["name"], query)
            return
        self._object(method, found["kind"], found["ns"], found["name"], query, body)

    def _object(
        self, method: str, kind: str, namespace: str, name: str | None, query: dict[str, list[str]], body: dict[str, Any]
    ) -> None:
        owner = self.owner
        if name is None and method == "GET":
            self._json(200, owner.list(kind, namespace, query.get("labelSelector", [""])[0]))
            return
        if name is None:
            name = str(body["metadata"]["name"])
            if owner.get(kind, namespace, name) is not None:
                self._error(409, "AlreadyExists", f'{kind} "{name}" already exists')
                return
            self._json(201, owner.put(kind, namespace, name, body))
            return
        known = owner.get(kind, namespace, name)
        if known is None:
            self._error(404, "NotFound", f'{kind} "{name}" not found')
        elif method == "PUT":
            self._json(200, owner.put(kind, namespace, name, body))
        elif method == "DELETE":
            owner.delete(kind, namespace, name)
            self._json(200, {"apiVersion": "v1", "kind": "Status", "status": "Success"})
        else:
            self._json(200, known)

    def _json(self, code: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, code: int, reason: str, message: str) -> None:
        status = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}
        self._json(code, status)

    # -- exec over a WebSocket (RFC 6455)

    def _exec(self, pod: str, query: dict[str, list[str]]) -> None:
        key = self.headers.get("Sec-WebSocket-Key")
        offered = [p.strip() for p in (self.headers.get("Sec-WebSocket-Protocol") or "").split(",")]
        protocol = next((p for p in ("v5.channel.k8s.io", "v4.channel.k8s.io") if p in offered), None)
        if key is None or protocol is None:
            self._error(400, "BadRequest", "exec speaks WebSocket, with the channels of v4 or v5")
            return
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept)
        self.send_header("Sec-WebSocket-Protocol", protocol)
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        _Exec(self.connection, self.rfile, self.owner.start(pod, query.get("command", []))).run()


class _Exec:
    """One command: channel 0 goes in, 1 and 2 come out, 3 says how it ended."""

    def __init__(self, sock: socket.socket, source: Any, process: subprocess.Popen[bytes]) -> None:
        self._sock = sock
        self._source = source
        self._process = process
        self._mutex = threading.Lock()

    def run(self) -> None:
        process = self._process
        threads = [
            threading.Thread(target=self._out, args=(1, process.stdout), daemon=True),
            threading.Thread(target=self._out, args=(2, process.stderr), daemon=True),
        ]
        for thread in threads:
            thread.start()
        threading.Thread(target=self._in, daemon=True).start()
        for thread in threads:
            thread.join()
        code = process.wait()
        status: dict[str, Any] = {"metadata": {}, "status": "Success"}
        if code:
            status = {
                "metadata": {},
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": f"command terminated with non-zero exit code: {code}",
                "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
            }
        with suppress(OSError):
            self._send(2, b"\x03" + json.dumps(status).encode())
            self._send(8, struct.pack(">H", 1000))

    def _out(self, channel: int, stream: Any) -> None:
        with suppress(OSError, ValueError):
            while data := stream.read1(65536):
                self._send(2, bytes((channel,)) + data)

    def _in(self) -> None:
        process = self._process
        assert process.stdin is not None
        with suppress(OSError, ValueError, struct.error):
            while True:
                opcode, data = self._receive()
                if opcode == 8:
                    break
                if opcode == 9:
                    self._send(10, data)
                elif data[:1] == b"\0":
                    process.stdin.write(data[1:])
                    process.stdin.flush()
                elif data[:2] == b"\xff\0":  # v5: that channel is closed
                    process.stdin.close()
        with suppress(OSError):
            process.stdin.close()
        with suppress(OSError):
            process.terminate()

    def _receive(self) -> tuple[int, bytes]:
        first, second = self._exactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self._exactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._exactly(8))
        mask = self._exactly(4) if second & 0x80 else b"\0\0\0\0"
        data = self._exactly(length)
        wide = (mask * (length // 4 + 1))[:length]
        clear = (int.from_bytes(data, "big") ^ int.from_bytes(wide, "big")).to_bytes(length, "big") if length else b""
        return first & 0x0F, clear

    def _exactly(self, size: int) -> bytes:
        data: bytes = self._source.read(size)
        if len(data) < size:
            raise OSError("the connection ended")
        return data

    def _send(self, opcode: int, data: bytes) -> None:
        head = bytes((0x80 | opcode,))
        if len(data) < 126:
            head += bytes((len(data),))
        elif len(data) < 1 << 16:
            head += b"\x7e" + struct.pack(">H", len(data))
        else:
            head += b"\x7f" + struct.pack(">Q", len(data))
        with self._mutex:
            self._sock.sendall(head + data)


def _discovery(path: str) -> dict[str, Any] | None:
    """What clients ask before anything else: versions, groups and their resources."""
    if path == "/version":
        return {"major": "1", "minor": "31", "gitVersion": "v1.31.0", "platform": "linux/amd64"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        version = {"groupVersion": "apps/v1", "version": "v1"}
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [{"name": "apps", "versions": [version], "preferredVersion": version}],
        }
    group = {"/api/v1": "v1", "/apis/apps/v1": "apps/v1"}.get(path)
    if group is None:
        return None
    verbs = ["create", "delete", "get", "list", "update"]
    resources = [
        {"name": name, "singularName": kind.lower(), "namespaced": name != "namespaces", "kind": kind, "verbs": verbs}
        for name, (version, kind) in _KINDS.items()
        if version == group
    ]
    if group == "v1":
        resources.append(
            {"name": "pods/exec", "singularName": "", "namespaced": True, "kind": "PodExecOptions", "verbs": ["create", "get"]}
        )
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}


__all__ = ["FakeCluster"]
