# SPDX-License-Identifier: Apache-2.0
"""Pushing to registries that are particular, or misbehave."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from chantier.errors import CancelledError_, IntegrityError, RegistryError, UnauthorizedError
from chantier.registry import Login, Registry
from chantier.spec import OCI_LAYER_TAR, OCI_MANIFEST, Descriptor, Reference, digest_of
from chantier.testing.registry import FakeRegistry

Make = Callable[..., Registry]
BLOB = os.urandom(900_000)
DESCRIPTOR = Descriptor(media_type=OCI_LAYER_TAR, digest=digest_of(BLOB), size=len(BLOB))


def ref(registry: FakeRegistry, text: str = "app:1") -> Reference:
    return Reference.parse(f"{registry.authority}/{text}")


def push(registry: Registry, fake: FakeRegistry) -> str:
    how = registry.push_blob(ref(fake), DESCRIPTOR, lambda: BytesIO(BLOB))
    assert fake.repository("app").blobs[DESCRIPTOR.digest] == BLOB
    return how


def methods(fake: FakeRegistry) -> list[str]:
    return [r.method for r in fake.seen()]


def test_one_put_from_a_file(fake: FakeRegistry, client: Make, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(BLOB)
    told: list[int] = []
    client().push_blob(ref(fake), DESCRIPTOR, (tmp_path / "blob").open("rb").__enter__, on_bytes=told.append)
    assert methods(fake) == ["HEAD", "POST", "PUT"]
    assert told == sorted(told)
    assert told[-1] == len(BLOB)
    put = fake.seen("PUT")[0]
    assert put.headers["content-length"] == str(len(BLOB))
    assert put.headers["content-type"] == "application/octet-stream"
    assert put.query == {"_state": "signed-secret", "digest": DESCRIPTOR.digest}


@pytest.mark.parametrize("kind", ["status", "reset", "eof"])
def test_an_upload_is_tried_again(fake: FakeRegistry, client: Make, kind: str) -> None:
    fake.fail(kind, method="PUT", status=503)
    assert push(client(), fake) == "pushed"
    assert fake.count("POST") == 2


def test_the_registry_may_have_it_after_all(fake: FakeRegistry, client: Make) -> None:
    """The answer to the PUT got lost; a HEAD shows that nothing need be sent again."""
    fake.fail("lost", method="PUT")
    assert push(client(), fake) == "pushed"
    assert fake.count("PUT") == 1


def test_tries_end(fake: FakeRegistry, client: Make) -> None:
    fake.fail("status", method="PUT", status=500, times=-1)
    with pytest.raises(RegistryError) as caught:
        client().push_blob(ref(fake), DESCRIPTOR, lambda: BytesIO(BLOB))
    assert caught.value.transient
    assert fake.count("PUT") == 10  # it answers else: a host that is well gets more tries than one that is down
    assert "_state=REDACTED" in caught.value.brief
    assert "signed-secret" not in str(caught.value)


def test_final_errors_are_not_tried_again(fake: FakeRegistry, client: Make) -> None:
    body = b'{"errors":[{"code":"DENIED","message":"quota exceeded"}]}'
    fake.fail("status", method="PUT", status=403, body=body, times=-1)
    with pytest.raises(RegistryError, match="403 Forbidden: denied: quota exceeded"):
        client().push_blob(ref(fake), DESCRIPTOR, lambda: BytesIO(BLOB))
    assert fake.count("PUT") == 1


def test_chunks_where_a_registry_insists(client: Make) -> None:
    with FakeRegistry(uploads="chunks") as fake:
        assert push(client(), fake) == "pushed"
        assert methods(fake) == ["HEAD", "POST", "PUT", "POST", "PATCH", "PUT"]
        assert fake.seen("PATCH")[0].headers["content-range"] == f"0-{len(BLOB) - 1}"


def test_chunks_below_a_bound_on_bodies(client: Make) -> None:
    big = os.urandom(5 << 20)
    descriptor = Descriptor(media_type=OCI_LAYER_TAR, digest=digest_of(big), size=len(big))
    with FakeRegistry(most_body=2 << 20) as fake:
        assert client().push_blob(ref(fake), descriptor, lambda: BytesIO(big)) == "pushed"
        assert fake.repository("app").blobs[descriptor.digest] == big
        assert all(int(r.headers["content-length"]) <= 2 << 20 for r in fake.seen("PATCH") if r.status == 202)


@pytest.mark.parametrize("kind", ["status", "eof", "reset"])
def test_chunks_go_on_from_where_the_registry_stands(client: Make, kind: str) -> None:
    with FakeRegistry(uploads="chunks") as fake:
        fake.fail(kind, method="PATCH", status=502)
        assert push(client(), fake) == "pushed"
        assert fake.count("GET", "/uploads/") == 1
        fake.heal()


def test_a_chunk_whose_answer_is_lost_is_not_sent_twice(client: Make) -> None:
    with FakeRegistry(uploads="chunks") as fake:
        fake.fail("lost", method="PATCH")
        assert push(client(), fake) == "pushed"
        assert fake.count("PATCH") == 1


def test_upload_on_another_host_gets_no_credentials(client: Make) -> None:
    with FakeRegistry() as elsewhere, FakeRegistry(users={"u": "p"}, upload_host=elsewhere) as fake:
        push(client(credentials=lambda host: Login(username="u", secret="p")), fake)
        assert elsewhere.count("PUT") == 1
        assert all("authorization" not in r.headers for r in elsewhere.seen())
        assert all("authorization" in r.headers for r in fake.seen("POST")[-1:])


def test_mirrors_are_never_pushed_to(fake: FakeRegistry, client: Make) -> None:
    with FakeRegistry() as mirror:
        push(client(f'[registry."{fake.authority}"]\nmirrors = ["{mirror.authority}"]\n'), fake)
        assert mirror.count() == 0


def test_mount_asks_for_the_nearest_repository(fake: FakeRegistry, client: Make) -> None:
    fake.add_blob("team/base", BLOB)
    how = client().push_blob(
        ref(fake, "team/app:1"), DESCRIPTOR, lambda: BytesIO(BLOB), mount_from=["other/x", "team/base", "team/app"]
    )
    assert how == "mounted"
    assert [r.query for r in fake.seen("POST")] == [{"mount": DESCRIPTOR.digest, "from": "team/base"}]


def test_a_forbidden_mount_is_an_upload(fake: FakeRegistry, client: Make) -> None:
    fake.fail("status", method="POST", status=403)
    how = client().push_blob(ref(fake), DESCRIPTOR, lambda: BytesIO(BLOB), mount_from=["team/base"])
    assert how == "pushed"
    assert [r.query for r in fake.seen("POST")] == [{"mount": DESCRIPTOR.digest, "from": "team/base"}, {}]


def test_manifest_that_is_there_is_not_sent(fake: FakeRegistry, client: Make) -> None:
    described = fake.add_image("app", "1")
    data, media_type = fake.repository("app").manifests[described.digest]
    client().push_manifest(ref(fake), data, media_type)
    assert methods(fake) == ["HEAD"]
    client().push_manifest(ref(fake, "app:2"), data, media_type)
    assert fake.repository("app").tags["2"] == described.digest


def test_manifest_tries(fake: FakeRegistry, client: Make) -> None:
    described = fake.add_image("app", "1")
    data, media_type = fake.repository("app").manifests[described.digest]
    fake.fail("status", method="PUT", status=500, times=2)
    client().push_manifest(ref(fake, "app:2"), data, media_type)
    assert fake.count("PUT") == 3
    with pytest.raises(IntegrityError, match="cannot push"):
        client().push_manifest(ref(fake, f"app@{digest_of(b'x')}"), data, OCI_MANIFEST)


def test_denied(client: Make) -> None:
    with FakeRegistry(users={"u": "p"}, auth="token") as fake, pytest.raises(UnauthorizedError) as caught:
        client().push_blob(ref(fake), DESCRIPTOR, lambda: BytesIO(BLOB))
    assert caught.value.brief.startswith("push access denied, repository does not exist or may require authorization: ")
    assert caught.value.hint == f"log in to {fake_name(caught.value)}"


def fake_name(err: RegistryError) -> str:
    return err.host or ""


def test_short_file_is_noticed(fake: FakeRegistry, client: Make) -> None:
    with pytest.raises(IntegrityError, match="ends 1 bytes too early"):
        client().push_blob(ref(fake), DESCRIPTOR, lambda: BytesIO(BLOB[:-1]))
    assert DESCRIPTOR.digest not in fake.repository("app").blobs


def test_cancelled_push(fake: FakeRegistry, client: Make) -> None:
    stop = threading.Event()
    fake.fail("hang", method="PUT", seconds=600)
    threading.Timer(0.15, stop.set).start()
    with pytest.raises(CancelledError_):
        client().push_blob(ref(fake), DESCRIPTOR, lambda: BytesIO(BLOB), cancelled=stop.is_set)


def test_token_that_expires_during_a_push(client: Make) -> None:
    with FakeRegistry(users={"u": "p"}, auth="token") as fake:
        registry = client(credentials=lambda host: Login(username="u", secret="p"))
        push(registry, fake)
        fake.expire_tokens()
        other = os.urandom(1000)
        descriptor = Descriptor(media_type=OCI_LAYER_TAR, digest=digest_of(other), size=1000)
        registry.push_blob(ref(fake), descriptor, lambda: BytesIO(other))
        assert fake.repository("app").blobs[descriptor.digest] == other


@pytest.mark.parametrize("times", [2, -1])
def test_a_blob_that_was_there_is_unknown_for_a_moment(fake: FakeRegistry, client: Make, times: int) -> None:
    """docker-registry 2 answers so while it links the blob for somebody else."""
    registry = client()
    push(registry, fake)
    body = b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}'
    fake.fail("status", method="PUT", path="/manifests/", status=400, body=body, times=times)
    manifest = b'{"schemaVersion":2,"layers":[]}'
    if times > 0:
        registry.push_manifest(ref(fake), manifest, OCI_MANIFEST)
        assert fake.repository("app").manifests[digest_of(manifest)]
    else:
        with pytest.raises(RegistryError, match=r"400 Bad Request.*blob unknown"):
            registry.push_manifest(ref(fake), manifest, OCI_MANIFEST)
    assert len([r for r in fake.seen("PUT") if "/manifests/" in r.path]) == (3 if times > 0 else 4)
