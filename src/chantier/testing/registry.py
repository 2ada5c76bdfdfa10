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

import json
import random
import secrets
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from chantier.spec import OCI_CONFIG, OCI_LAYER_TAR, OCI_MANIFEST, Descriptor, digest_of

from .registry_http import Server
from .registry_routes import Handler
from .registry_values import KINDS, Fault, Recorded, Repository, Upload, single_scopes


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
        self._uploads: dict[str, Upload] = {}
        self._mutex = threading.RLock()
        self._server: Server | None = None

    # Life.

    def __enter__(self) -> FakeRegistry:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> FakeRegistry:
        self._server = Server(self, Handler)
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
            self._uploads[key] = Upload(name)
            return key

    def upload(self, key: str) -> Upload | None:
        with self._mutex:
            return self._uploads.get(key)

    def end_upload(self, key: str) -> None:
        with self._mutex:
            self._uploads.pop(key, None)

    def grant(self, scopes: Iterable[str]) -> str:
        token = "token-" + secrets.token_hex(12)
        with self._mutex:
            self.tokens[token] = (set(single_scopes(scopes)), time.monotonic() + self.token_lifetime_s)
        return token

    def allows(self, token: str, scope: str) -> bool:
        with self._mutex:
            scopes, until = self.tokens.get(token, (set(), 0.0))
        return time.monotonic() < until and scope in scopes


def _plain(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


__all__ = ["KINDS", "FakeRegistry", "Fault", "Recorded", "Repository"]
