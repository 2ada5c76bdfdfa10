# SPDX-License-Identifier: Apache-2.0
"""Pulling from registries that misbehave: who is asked, in which order, and what comes of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from chantier.errors import CancelledError_, IntegrityError, NotFoundError, RateLimitedError, RegistryError
from chantier.registry import Registry
from chantier.spec import Descriptor, Reference, digest_of
from chantier.testing.registry import FakeRegistry

Make = Callable[..., Registry]
LAYER = os.urandom(400_000)


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


def ref(registry: FakeRegistry, text: str = "app:1") -> Reference:
    return Reference.parse(f"{registry.authority}/{text}")


@pytest.fixture
def image(fake: FakeRegistry) -> Descriptor:
    fake.add_image("app", "1", [LAYER])
    return fake.add_blob("app", LAYER)


def fetched(registry: Registry, fake: FakeRegistry, layer: Descriptor) -> tuple[Any, Memory]:
    writer = Memory()
    how = registry.fetch_blob(ref(fake), layer, writer)
    assert bytes(writer.data) == LAYER
    return how, writer


@pytest.mark.parametrize("kind", ["reset", "eof"])
def test_broken_off_blob_goes_on(fake: FakeRegistry, client: Make, image: Descriptor, kind: str) -> None:
    fake.fail(kind, method="GET", path="/blobs/", after=100_000)
    how, writer = fetched(client(), fake, image)
    assert how.resumed == 1
    assert writer.restarts == 0
    ranges = [r.headers.get("range") for r in fake.seen("GET", "/blobs/")]
    assert ranges[0] is None
    assert ranges[1] is not None
    if kind == "eof":  # after a reset the kernel may drop what was on its way
        assert ranges == [None, "bytes=100000-"]


def test_server_without_ranges(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    fake.fail("eof", method="GET", path="/blobs/", after=100_000)
    fake.fail("ignore-range", method="GET", path="/blobs/")
    how, _ = fetched(client(), fake, image)
    assert how.received == len(LAYER) + 100_000


def test_no_progress_gives_up(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    fake.fail("eof", method="GET", path="/blobs/", after=0, times=-1)
    with pytest.raises(RegistryError) as caught:
        client().fetch_blob(ref(fake), image, Memory())
    assert caught.value.transient
    assert fake.count("GET", "/blobs/") == 3


def test_short_body_is_an_eof(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    fake.fail("short", method="GET", path="/blobs/")
    how, _ = fetched(client(), fake, image)
    assert how.resumed == 1


@pytest.mark.parametrize(("kind", "words"), [("wrong", "unexpected commit digest"), ("long", "longer than")])
def test_wrong_bytes_are_refused(fake: FakeRegistry, client: Make, image: Descriptor, kind: str, words: str) -> None:
    fake.fail(kind, method="GET", path="/blobs/", times=-1)
    writer = Memory()
    with pytest.raises(IntegrityError, match=words):
        client().fetch_blob(ref(fake), image, writer)
    assert writer.offset == 0
    assert fake.count("GET", "/blobs/") == 5  # they may have been spoilt on the way


def test_wrong_bytes_of_a_partial_file(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    writer = Memory()
    writer.write(b"not its beginning")
    client().fetch_blob(ref(fake), image, writer)
    assert bytes(writer.data) == LAYER
    assert [r.headers.get("range") for r in fake.seen("GET", "/blobs/")] == ["bytes=17-", None]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
def test_server_errors_are_tried_again(fake: FakeRegistry, client: Make, image: Descriptor, status: int) -> None:
    fake.fail("status", status=status, times=2)
    assert client().resolve(ref(fake)).descriptor.size > 0
    assert fake.count("HEAD") == 3


def test_server_errors_end_at_last(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    fake.fail("status", status=500, times=-1)
    with pytest.raises(RegistryError) as caught:
        client().resolve(ref(fake))
    url = f"{fake.url}/v2/app/manifests/1"
    assert caught.value.brief == f"unexpected status from HEAD request to {url}: 500 Internal Server Error"
    assert (caught.value.status, caught.value.transient, fake.count()) == (500, True, 4)


def test_rate_limit_is_waited_for(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    fake.fail("status", status=429, headers={"Retry-After": "0.3"})
    began = time.monotonic()
    client().resolve(ref(fake))
    assert time.monotonic() - began >= 0.3


def test_rate_limit_that_is_too_long(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}'
    fake.fail("status", status=429, headers={"Retry-After": "3600"}, body=body, times=-1)
    with pytest.raises(RateLimitedError) as caught:
        client().manifest(ref(fake), digest_of(b"x"))
    assert caught.value.retry_after_s == 3600
    assert caught.value.transient
    assert "429 Too Many Requests: toomanyrequests: You have reached your pull rate limit." in caught.value.brief
    assert "try again in 1h, at 2" in (caught.value.hint or "")
    assert caught.value.reset_at == pytest.approx(time.time() + 3600, abs=5)
    assert caught.value.exit_code == 75
    assert fake.count() == 1


def test_forbidden_head_asks_for_the_words(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    body = b'{"errors":[{"code":"DENIED","message":"not for you"}]}'
    fake.fail("status", status=403, body=body, times=-1)
    with pytest.raises(RegistryError, match="403 Forbidden: denied: not for you"):
        client().resolve(ref(fake))
    assert [r.method for r in fake.seen()] == ["HEAD", "GET"]


def test_head_without_digest_is_fetched(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    fake.fail("no-digest", method="HEAD", times=-1)
    resolved = client().resolve(ref(fake))
    assert resolved.data is not None
    assert digest_of(resolved.data) == resolved.descriptor.digest


def test_head_not_allowed(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    fake.fail("status", method="HEAD", status=405, times=-1)
    assert client().resolve(ref(fake)).data is not None


def test_manifest_is_checked_and_bounded(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    digest = fake.repository("app").tags["1"]
    fake.fail("wrong", method="GET", path="/manifests/", times=5)
    with pytest.raises(IntegrityError, match="has digest"):
        client().manifest(ref(fake), digest)
    assert fake.count("GET") == 5
    huge = fake.add_manifest("app", b" " * (5 << 20), tag="huge")
    with pytest.raises(RegistryError, match="exceeds the limit of 4393216"):
        client().resolve(ref(fake, "app:huge"))
    with pytest.raises(RegistryError, match="exceeds the limit"):
        client().manifest(ref(fake), huge.digest)


def test_schema_1_is_refused(fake: FakeRegistry, client: Make) -> None:
    fake.add_manifest("old", b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws", "1")
    with pytest.raises(IntegrityError, match="Docker schema 1"):
        client().resolve(ref(fake, "old:1"))


def test_nobody_listens(client: Make) -> None:
    with FakeRegistry() as gone:
        where = ref(gone)
    with pytest.raises(RegistryError) as caught:
        client().resolve(where)
    assert caught.value.brief.startswith(f'failed to do request: Head "http://{where.domain}/v2/app/manifests/1": dial tcp ')
    assert caught.value.brief.endswith("connect: connection refused")
    assert caught.value.hint == f"nothing listens at {where.domain}"


def test_no_such_name(client: Make) -> None:
    with pytest.raises(RegistryError, match=r"lookup nowhere\.invalid: "):
        client().resolve(Reference.parse("nowhere.invalid/app:1"))


def test_a_server_that_hangs(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    fake.fail("hang", seconds=600, times=-1)
    registry = client(f'[chantier.registry."{fake.authority}"]\nresponseTimeout = "50ms"\n')
    with pytest.raises(RegistryError, match="i/o timeout"):
        registry.resolve(ref(fake))


@pytest.mark.parametrize("where", ["answer", "body", "wait"])
def test_cancellation(fake: FakeRegistry, client: Make, image: Descriptor, where: str) -> None:
    if where == "answer":
        fake.fail("hang", path="/blobs/", seconds=600, times=-1)
    elif where == "body":
        fake.fail("slow", path="/blobs/", seconds=600, times=-1)
    else:
        fake.fail("status", path="/blobs/", status=503, headers={"Retry-After": "55"}, times=-1)
    stop = threading.Event()
    threading.Timer(0.15, stop.set).start()
    began = time.monotonic()
    with pytest.raises(CancelledError_):
        client().fetch_blob(ref(fake), image, Memory(), cancelled=stop.is_set)
    assert time.monotonic() - began < 50


def test_many_pulls_at_a_fault_rate(fake: FakeRegistry, client: Make) -> None:
    layers = [os.urandom(20_000) for _ in range(60)]
    described = [fake.add_blob("app", layer) for layer in layers]
    for kind, more in (("status", {"status": 503}), ("reset", {}), ("eof", {"after": 7000}), ("short", {})):
        fake.fail(kind, path="/blobs/", times=-1, chance=0.06, **more)
    registry = client()
    for layer, descriptor in zip(layers, described, strict=True):
        writer = Memory()
        registry.fetch_blob(ref(fake), descriptor, writer)
        assert bytes(writer.data) == layer


# Mirrors.


def mirrored(fake: FakeRegistry, *mirrors: str) -> str:
    return f'[registry."{fake.authority}"]\nmirrors = [{", ".join(f"{chr(34)}{m}{chr(34)}" for m in mirrors)}]\n'


def test_mirror_serves_with_prefix_and_namespace(fake: FakeRegistry, client: Make) -> None:
    with FakeRegistry() as mirror:
        mirror.add_image("proxy/app", "1", [LAYER])
        layer = mirror.add_blob("proxy/app", LAYER)
        registry = client(mirrored(fake, f"{mirror.authority}/proxy"))
        assert registry.resolve(ref(fake)).host == f"{mirror.authority}/proxy"
        how, _ = fetched(registry, fake, layer)
        assert how.host == f"{mirror.authority}/proxy"
        assert {r.query.get("ns") for r in mirror.seen()} == {fake.authority}
        assert mirror.seen()[0].path == "/v2/proxy/app/manifests/1"
        assert fake.count() == 0


@pytest.mark.parametrize("trouble", ["missing", "500", "403", "429", "reset", "dead", "wrong", "auth"])
def test_fall_through(fake: FakeRegistry, client: Make, image: Descriptor, trouble: str) -> None:
    with FakeRegistry(auth="token" if trouble == "auth" else "", public=False) as mirror:
        mirrored_config = mirrored(fake, mirror.authority)
        if trouble.isdecimal():
            mirror.fail("status", status=int(trouble), times=-1)
        elif trouble == "reset":
            mirror.fail("reset", times=-1)
        elif trouble == "wrong":
            mirror.repositories = fake.repositories
            mirror.fail("wrong", method="GET", times=-1)
        elif trouble == "dead":
            mirror.close()
        registry = client(mirrored_config)
        assert registry.resolve(ref(fake)).descriptor.digest == fake.repository("app").tags["1"]
        how, writer = fetched(registry, fake, image)
        assert how.host == fake.authority
        assert writer.restarts == (1 if trouble == "wrong" else 0)
        data, _ = registry.manifest(ref(fake), fake.repository("app").tags["1"])
        assert digest_of(data) == fake.repository("app").tags["1"]
        assert trouble == "dead" or mirror.count() >= 3


def test_a_mirror_is_not_blamed_for_what_was_there_before(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    """The origin cannot be reached: the mirror has to be asked again, from the start."""
    origin = fake.authority
    with FakeRegistry() as mirror:
        mirror.repositories = fake.repositories
        registry = client(mirrored(fake, mirror.authority))
        fake.close()
        writer = Memory()
        writer.write(b"not its beginning")
        registry.fetch_blob(Reference.parse(f"{origin}/app:1"), image, writer)
        assert bytes(writer.data) == LAYER
        assert [r.headers.get("range") for r in mirror.seen("GET", "/blobs/")] == ["bytes=17-", None]


def test_hosts_that_take_turns_do_not_go_on_for_ever(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    """One breaks off half-way and then has nothing, the other adds what is wrong: each time anew."""
    with FakeRegistry() as mirror:
        mirror.repositories = fake.repositories
        for _ in range(50):
            mirror.fail("eof", method="GET", path="/blobs/", after=100_000)
            mirror.fail("status", method="GET", path="/blobs/", status=404)
        fake.fail("wrong", method="GET", path="/blobs/", times=-1)
        with pytest.raises((IntegrityError, RegistryError, NotFoundError)):
            client(mirrored(fake, mirror.authority)).fetch_blob(ref(fake), image, Memory())
        assert mirror.count("GET", "/blobs/") < 20
        assert fake.count("GET", "/blobs/") < 20


def test_two_mirrors_in_order(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    with FakeRegistry() as first, FakeRegistry() as second:
        second.repositories = fake.repositories
        registry = client(mirrored(fake, first.authority, second.authority))
        assert registry.resolve(ref(fake)).host == second.authority
        assert [r.method for r in first.seen()] == ["HEAD"]
        assert fake.count() == 0


def test_blob_goes_on_at_another_host(fake: FakeRegistry, client: Make, image: Descriptor) -> None:
    """A mirror that stalls without a byte is left out for this blob."""
    with FakeRegistry() as mirror:
        mirror.repositories = fake.repositories
        mirror.fail("eof", method="GET", after=150_000)
        mirror.fail("eof", method="GET", after=0, times=-1)
        how, _ = fetched(client(mirrored(fake, mirror.authority)), fake, image)
        assert how.host == fake.authority
        assert [r.headers["range"] for r in fake.seen("GET")] == ["bytes=150000-"]


def test_which_error_is_told(fake: FakeRegistry, client: Make) -> None:
    """semantics.md 7.2: a mirror's 404 tells more than an origin that is not there; a 500 tells more than both."""
    with FakeRegistry() as mirror:
        origin = ref(fake)
        registry = client(mirrored(fake, mirror.authority))
        fake.close()
        with pytest.raises(NotFoundError) as caught:
            registry.resolve(origin)
        assert caught.value.brief == f"{origin}: not found"
        assert f"{origin.domain}: failed to do request" in (caught.value.detail or "")
        mirror.fail("status", status=500, times=-1)
        with pytest.raises(RegistryError, match="500 Internal Server Error"):
            registry.resolve(origin)


def test_docker_hub_is_one_host(client: Make) -> None:
    with FakeRegistry() as mirror:
        mirror.add_image("library/alpine", "3", [LAYER])
        registry = client(f'[registry."docker.io"]\nmirrors = ["{mirror.authority}"]\n')
        assert registry.resolve(Reference.parse("alpine:3")).host == mirror.authority
        assert mirror.seen()[0].query == {"ns": "docker.io"}
        assert [h.authority for h in registry.hosts(Reference.parse("alpine"))] == [mirror.authority, "registry-1.docker.io"]


# Places.


def test_four_blobs_at_a_time_and_one_for_metadata(fake: FakeRegistry, client: Make) -> None:
    layers = [os.urandom(1000) for _ in range(12)]
    described = [fake.add_blob("app", layer) for layer in layers]
    fake.add_image("app", "1", [b"x"])
    fake.delay_s = 3
    registry = client()
    threads = [threading.Thread(target=registry.fetch_blob, args=(ref(fake), d, Memory())) for d in described]
    for thread in threads:
        thread.start()
    while fake.count("GET", "/blobs/") < 4:
        time.sleep(0.01)
    registry.manifest(ref(fake), fake.repository("app").tags["1"])
    assert fake.count("GET", "/blobs/") == 4  # did not wait for a blob's place
    fake.delay_s = 0.1
    for thread in threads:
        thread.join()
    assert fake.peak_blobs == 4
    assert fake.connections <= 6


def test_other_concurrency(fake: FakeRegistry, client: Make) -> None:
    described = [fake.add_blob("app", os.urandom(1000)) for _ in range(6)]
    fake.delay_s = 0.3
    registry = client("[system]\nmaxRegistryConcurrency = 2\n")
    threads = [threading.Thread(target=registry.fetch_blob, args=(ref(fake), d, Memory())) for d in described]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.peak_blobs == 2
