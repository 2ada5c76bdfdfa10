# SPDX-License-Identifier: Apache-2.0
"""What a fake registry answers: the pages of the distribution spec, and a token server."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from chantier.spec import OCI_INDEX, OCI_MANIFEST, digest_of

from .registry_http import Answering
from .registry_values import Repository, Upload, single_scopes

_ROUTE = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>manifests|blobs/uploads|blobs|referrers|tags/list)(?:/(?P<rest>[^/]*))?/?\Z")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


class Handler(Answering):
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

    def _patch(self, name: str, key: str, upload: Upload) -> None:
        start = self.headers.get("content-range", "").partition("-")[0]
        data = self._body()
        if start and int(start) != len(upload.data):
            return self._error(416, "RANGE_INVALID", "out of order", self._standing(name, key, upload))
        upload.data += data
        return self._answer(202, b"", self._standing(name, key, upload))

    def _finish(self, name: str, key: str, upload: Upload) -> None:
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

    def _standing(self, name: str, key: str, upload: Upload) -> dict[str, str]:
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
        granted = scopes if user is not None else [s for s in single_scopes(scopes) if registry.public and s.endswith(":pull")]
        token = registry.grant(granted)
        answer = {"token": token, "expires_in": registry.token_lifetime_s}
        return self._answer(200, json.dumps(answer).encode(), content_type="application/json")


__all__ = ["Handler"]
