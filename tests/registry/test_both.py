# SPDX-License-Identifier: Apache-2.0
"""What holds against FakeRegistry and a real docker-registry alike."""

from __future__ import annotations

import json
import os
import re
from io import BytesIO
from typing import Any

import pytest

from chantier.errors import NotFoundError, RegistryError, UnauthorizedError
from chantier.registry import Login
from chantier.spec import OCI_CONFIG, OCI_INDEX, OCI_LAYER_TAR, OCI_MANIFEST, Descriptor, digest_of


def describe(data: bytes, media_type: str = OCI_LAYER_TAR) -> Descriptor:
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def manifest_of(config: Descriptor, *layers: Descriptor, **more: Any) -> bytes:
    def plain(d: Descriptor) -> dict[str, Any]:
        return {"mediaType": d.media_type, "digest": d.digest, "size": d.size}

    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": plain(config), "layers": [plain(d) for d in layers]}
    return json.dumps(document | more).encode()


DENIED = r"(pull access denied, repository does not exist or may require authorization|failed to fetch anonymous token): "


class Memory:
    def __init__(self) -> None:
        self.data = bytearray()
        self.restarts = 0

    @property
    def offset(self) -> int:
        return len(self.data)

    def write(self, data: bytes) -> None:
        self.data += data

    def digest(self) -> Any:
        return digest_of(bytes(self.data))

    def restart(self) -> None:
        self.data.clear()
        self.restarts += 1


def push_image(registry: Any, ref: Any, layer: bytes) -> tuple[bytes, Descriptor]:
    config = json.dumps({"architecture": "amd64", "os": "linux", "salt": os.urandom(4).hex()}).encode()
    registry.push_blob(ref, describe(layer), lambda: BytesIO(layer))
    registry.push_blob(ref, describe(config, OCI_CONFIG), lambda: BytesIO(config))
    data = manifest_of(describe(config, OCI_CONFIG), describe(layer))
    assert registry.push_manifest(ref, data, OCI_MANIFEST) == digest_of(data)
    return data, describe(layer)


def test_push_then_pull(server: Any) -> None:
    registry = server.open()
    ref = server.ref("team/app:1")
    layer = os.urandom(700_000)
    data, descriptor = push_image(registry, ref, layer)
    resolved = registry.resolve(ref)
    assert resolved.descriptor.digest == digest_of(data)
    assert resolved.descriptor.size == len(data)
    assert resolved.descriptor.media_type == OCI_MANIFEST
    assert resolved.host == server.authority
    assert registry.resolve(server.ref(f"team/app@{digest_of(data)}")).descriptor == resolved.descriptor
    assert registry.manifest(ref, resolved.descriptor) == (data, OCI_MANIFEST)
    assert registry.manifest(ref, str(resolved.descriptor.digest)) == (data, OCI_MANIFEST)
    writer, told = Memory(), []
    fetched = registry.fetch_blob(ref, descriptor, writer, on_bytes=told.append)
    assert bytes(writer.data) == layer
    assert told[-1] == len(layer)
    assert told == sorted(told)
    assert (fetched.host, fetched.received, fetched.resumed) == (server.authority, len(layer), 0)


def test_resume_from_what_is_there(server: Any) -> None:
    registry = server.open()
    ref = server.ref("team/resume:1")
    layer = os.urandom(300_000)
    _, descriptor = push_image(registry, ref, layer)
    writer = Memory()
    writer.write(layer[:123_456])
    assert registry.fetch_blob(ref, descriptor, writer).received == len(layer) - 123_456
    assert bytes(writer.data) == layer
    complete = Memory()
    complete.write(layer)
    assert registry.fetch_blob(ref, descriptor, complete).received == 0


def test_exists_mount_and_push_again(server: Any) -> None:
    registry = server.open()
    source, target = server.ref("team/source:1"), server.ref("team/target:1")
    layer = os.urandom(1000)
    data, descriptor = push_image(registry, source, layer)
    assert registry.exists(source, descriptor)
    assert registry.exists(source, describe(data, OCI_MANIFEST))
    assert not registry.exists(target, descriptor)
    assert registry.push_blob(source, descriptor, lambda: BytesIO(layer)) == "exists"
    assert not registry.mount_blob(target, describe(b"nowhere"), ["team/source"])
    assert registry.mount_blob(target, descriptor, ["other/x", "team/source"])
    assert registry.exists(target, descriptor)
    third = server.ref("team/third:1")
    assert registry.push_blob(third, descriptor, lambda: BytesIO(layer), mount_from=["team/source"]) == "mounted"
    missing = os.urandom(1000)
    assert registry.push_blob(third, describe(missing), lambda: BytesIO(missing), mount_from=["team/source"]) == "pushed"


def test_push_by_digest_and_index(server: Any) -> None:
    registry = server.open()
    ref = server.ref("team/index")
    data, _ = push_image(registry, ref, b"layer")
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [{"mediaType": OCI_MANIFEST, "digest": digest_of(data), "size": len(data)}],
        }
    ).encode()
    registry.push_manifest(server.ref("team/index:all"), index, OCI_INDEX)
    assert registry.resolve(server.ref("team/index:all")).descriptor.media_type == OCI_INDEX
    assert registry.resolve(server.ref(f"team/index@{digest_of(data)}")).descriptor.media_type == OCI_MANIFEST
    with pytest.raises(NotFoundError):
        registry.resolve(server.ref("team/index:latest"))


def test_resolve_of_a_blob(server: Any) -> None:
    registry = server.open()
    push_image(registry, server.ref("team/blobs:1"), b"only a blob")
    found = registry.resolve(server.ref(f"team/blobs@{digest_of(b'only a blob')}"))
    assert found.descriptor.size == len(b"only a blob")


def test_not_found(server: Any) -> None:
    registry = server.open()
    ref = server.ref("team/never:1")
    with pytest.raises(NotFoundError) as caught:
        registry.resolve(ref)
    assert caught.value.brief == f"{ref}: not found"
    push_image(registry, server.ref("team/some:1"), b"x")
    with pytest.raises(NotFoundError, match=r": not found\Z"):
        registry.fetch_blob(server.ref("team/some:1"), describe(b"absent"), Memory())
    with pytest.raises(NotFoundError, match=r": not found\Z"):
        registry.manifest(server.ref("team/some:1"), digest_of(b"absent"))


def test_empty_and_large_blobs(server: Any) -> None:
    registry = server.open()
    ref = server.ref("team/sizes:1")
    for data in (b"", os.urandom(3 << 20)):
        assert registry.push_blob(ref, describe(data), lambda data=data: BytesIO(data)) == "pushed"
        writer = Memory()
        registry.fetch_blob(ref, describe(data), writer)
        assert bytes(writer.data) == data


def test_wrong_login(server: Any) -> None:
    ref = server.ref("team/nothing-here:1")
    if server.login is None:  # whoever does not ask is not told
        with pytest.raises(NotFoundError):
            server.open(Login(username="user", secret="wrong")).resolve(ref)
        return
    with pytest.raises(UnauthorizedError) as caught:
        server.open(None).resolve(ref)
    assert re.match(DENIED, caught.value.brief)
    assert caught.value.hint == f"log in to {server.authority}"
    with pytest.raises(UnauthorizedError) as caught:
        server.open(Login(username="user", secret="wrong")).resolve(ref)
    assert "wrong" not in str(caught.value)
    assert caught.value.hint == f"the credentials for {server.authority} were refused"
    with pytest.raises(UnauthorizedError):
        server.open(None).push_blob(ref, describe(b"x"), lambda: BytesIO(b"x"))


def test_manifest_that_names_a_missing_blob(server: Any) -> None:
    data = manifest_of(describe(b"no config", OCI_CONFIG), describe(b"no layer"))
    with pytest.raises(RegistryError) as caught:
        server.open().push_manifest(server.ref("team/broken:1"), data, OCI_MANIFEST)
    assert caught.value.status in (400, 404)
    assert not caught.value.transient
    assert "unknown to registry" in caught.value.brief


def test_referrers(server: Any) -> None:
    registry = server.open()
    ref = server.ref("team/subject:1")
    data, layer = push_image(registry, ref, b"layer")
    assert registry.referrers(ref, str(digest_of(data))) == ()
    subject = {"mediaType": OCI_MANIFEST, "digest": digest_of(data), "size": len(data)}
    about = manifest_of(layer, layer, subject=subject, artifactType="application/x.sbom")
    found = registry.push_manifest(server.ref("team/subject"), about, OCI_MANIFEST)
    listed = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [{"mediaType": OCI_MANIFEST, "digest": found, "size": len(about), "artifactType": "application/x.sbom"}],
        }
    ).encode()
    registry.push_manifest(server.ref(f"team/subject:{digest_of(data).replace(':', '-')}"), listed, OCI_INDEX)
    assert [d.digest for d in registry.referrers(ref, str(digest_of(data)), artifact_type="application/x.sbom")] == [found]
    assert registry.referrers(ref, str(digest_of(data)), artifact_type="other") == ()
