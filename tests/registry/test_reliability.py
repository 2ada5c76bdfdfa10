# SPDX-License-Identifier: Apache-2.0
"""Many pulls and pushes at a high rate of faults: none is lost. A dead mirror costs its time limit once."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from chantier.config import parse
from chantier.errors import ConfigError, RegistryError
from chantier.registry import Login, MemoryWriter, Registries, Registry, RetryPolicy, explain
from chantier.spec import Descriptor, Reference, descriptor_from_json, digest_of
from chantier.testing.registry import FakeRegistry

QUICK = RetryPolicy(base_s=0.001, cap_s=0.004)
RATE = 0.2
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("status", {"status": 503}),
    ("status", {"status": 500}),
    ("status", {"status": 429, "headers": {"Retry-After": "0.001"}}),
    ("reset", {}),
    ("eof", {}),
    ("eof", {"method": "GET", "after": 300}),
    ("reset", {"method": "GET", "after": 100}),
    ("short", {"method": "GET"}),
    ("wrong", {"method": "GET"}),
    ("redirect", {"location": "/v2/busy", "status": 307}),
]


def unreliable(registry: FakeRegistry, kinds: list[tuple[str, dict[str, Any]]]) -> None:
    """Together they spoil `RATE` of all requests: each is looked at only where those before it let the request pass."""
    left = 1.0
    each = RATE / len(kinds)
    for kind, more in kinds:
        registry.fail(kind, times=-1, chance=each / left, **more)
        left -= each


def pull(registry: Registry, ref: Reference) -> bytes:
    found = registry.resolve(ref)
    data, _ = registry.manifest(ref, found.descriptor)
    document = json.loads(data)
    out = b""
    for raw in [document["config"], *document["layers"]]:
        writer = MemoryWriter()
        registry.fetch_blob(ref, descriptor_from_json(raw), writer)
        out = bytes(writer.data)
    return out


@pytest.mark.slow
def test_a_thousand_pulls_lose_none() -> None:
    layer = os.urandom(2000)
    with FakeRegistry(seed=6) as fake:
        fake.add_image("app", "1", [layer])
        ref = Reference.parse(f"{fake.authority}/app:1")
        registries = Registries(retry=QUICK)
        pull(registries.open(), ref)  # a host that never answered is given up sooner
        unreliable(fake, [k for k in KINDS if k[0] != "redirect"])
        before = len(fake.requests)
        with ThreadPoolExecutor(4) as pool:
            pulled = list(pool.map(lambda n: pull(registries.open(owner=str(n)), ref), range(1000)))
        registries.close()
        assert pulled == [layer] * 1000
        bad = sum(1 for r in fake.requests[before:] if r.status not in (200, 206))
        # Broken bodies have a good status: these are at least two thirds of the faults.
        assert bad / (len(fake.requests) - before) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("uploads", ["any", "chunks"])
def test_pushes_lose_none(uploads: str) -> None:
    with FakeRegistry(seed=7, uploads=uploads) as fake:
        registries = Registries(retry=QUICK)
        ref = Reference.parse(f"{fake.authority}/app:1")
        fake.add_image("app", "1", [b"x"])
        registries.open().resolve(ref)
        unreliable(fake, [("status", {"status": 500}), ("reset", {}), ("lost", {}), ("eof", {}), ("status", {"status": 502})])
        blobs = [os.urandom(3000) for _ in range(150)]

        def push(data: bytes) -> None:
            described = Descriptor(media_type="application/octet-stream", digest=digest_of(data), size=len(data))
            registry = registries.open()
            registry.push_blob(ref, described, lambda: BytesIO(data))
            manifest = json.dumps({"schemaVersion": 2, "config": {"digest": described.digest}, "layers": []}).encode()
            registry.push_manifest(Reference.parse(f"{fake.authority}/app:{described.digest.hex[:12]}"), manifest, "a/b+json")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(push, blobs))
        registries.close()
        assert len(fake.repository("app").tags) == 151


# Mirrors with their own logins behind a dead one.


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that neither takes nor refuses a connection: the queue of its listener is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"


LIMIT_S = 0.6


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Every connection that is begun: to where, and how long it may take (s)."""
    found: list[tuple[str, float]] = []
    connect = socket.socket.connect

    def noted(sock: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):
            found.append((f"{address[0]}:{address[1]}", sock.gettimeout() or 0.0))
        connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    return found


def test_a_dead_first_mirror_costs_its_limit_once(black_hole: str, tmp_path: Path, dialled: list[tuple[str, float]]) -> None:
    with FakeRegistry(users={"one": "1"}) as one, FakeRegistry(users={"two": "2"}) as two, FakeRegistry() as origin:
        for fake in (one, two, origin):
            fake.add_image("app", "1", [b"layer one", b"layer two"])
        (tmp_path / "two").write_text("2\n")
        config = (
            f'[registry."{origin.authority}"]\nmirrors = ["{black_hole}", "{one.authority}", "{two.authority}"]\n'
            f'[chantier.registry."{black_hole}"]\nconnectTimeout = {LIMIT_S}\n'
            f'[chantier.registry."{one.authority}".credentials]\nusername = "one"\npasswordEnv = "MIRROR_ONE"\n'
            f'[chantier.registry."{two.authority}".credentials]\nusername = "two"\npasswordFile = "{tmp_path}/two"\n'
        )
        os.environ["MIRROR_ONE"] = "1"
        registries = Registries(parse(config), retry=QUICK)
        ref = Reference.parse(f"{origin.authority}/app:1")
        try:
            for _ in range(3):
                pull(registries.open(), ref)
            (limit,) = [limit for address, limit in dialled if address == black_hole]
            assert 0 < limit <= LIMIT_S
            assert (two.count(), origin.count()) == (0, 0)
            one.repositories.clear()
            pull(registries.open(), ref)
            assert origin.count() == 0
            sent = [{r.headers["authorization"] for r in fake.seen() if "authorization" in r.headers} for fake in (one, two)]
            assert [len(s) for s in sent] == [1, 1]
            assert not sent[0] & sent[1]
            said = explain(registries, ref)
            assert [h.decision for h in said.hosts] == ["skipped", "tried", "chosen", "not needed"]
            assert said.hosts[0].reason.startswith("circuit breaker open for ")
            assert "i/o timeout" in said.hosts[0].reason
            (state,) = [s for s in registries.status().hosts if s.authority == black_hole]
            assert state.name(time.time()) == "open"
        finally:
            del os.environ["MIRROR_ONE"]
            registries.close()


def test_many_builds_at_once_wait_for_a_dead_mirror_together(black_hole: str) -> None:
    limit_s = 1.5
    with FakeRegistry() as origin:
        origin.add_image("app", "1")
        config = (
            f'[registry."{origin.authority}"]\nmirrors = ["{black_hole}"]\n'
            f'[chantier.registry."{black_hole}"]\nconnectTimeout = {limit_s}\n'
            f'[chantier.registry."{origin.authority}"]\nmaxMetadata = 20\n'
        )
        registries = Registries(parse(config), retry=QUICK)
        ref = Reference.parse(f"{origin.authority}/app:1")
        began = time.monotonic()
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda n: pull(registries.open(owner=str(n)), ref), range(10)))
        assert time.monotonic() - began < limit_s * 10
        registries.close()


def test_all_addresses_of_a_host_share_one_limit(
    black_hole: str, monkeypatch: pytest.MonkeyPatch, dialled: list[tuple[str, float]]
) -> None:
    port = int(black_hole.rpartition(":")[2])
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: [entry] * 4)
    registries = Registries(
        parse(
            f'[registry."many.test:{port}"]\nhttp = true\n[chantier.registry."many.test:{port}"]\nconnectTimeout = {LIMIT_S}\n'
        ),
        retry=RetryPolicy(attempts=1),
    )
    with pytest.raises(RegistryError, match=f"dial tcp many.test:{port}: i/o timeout"):
        registries.open().resolve(Reference.parse(f"many.test:{port}/app:1"))
    limits = [limit for _address, limit in dialled]
    assert limits and sum(limits) <= LIMIT_S


# A config that changes.


def test_reload_for_the_next_build(tmp_path: Path, certificates: Any) -> None:
    with FakeRegistry(tls=certificates.context(clients=False)) as mirror, FakeRegistry() as origin:
        for fake in (mirror, origin):
            fake.add_image("app", "1")
        ref = Reference.parse(f"{origin.authority}/app:1")
        registries = Registries(retry=QUICK)
        registries.begin("running")

        def served(owner: str) -> str:
            return registries.open(owner=owner).resolve(ref).host

        assert served("running") == origin.authority
        ca = tmp_path / "ca.pem"
        text = f'[registry."{origin.authority}"]\nmirrors = ["{mirror.authority}"]\n[registry."{mirror.authority}"]\nhttp = false\nca = ["{ca}"]\n'
        with pytest.raises(ConfigError, match=f"failed to read CA file {ca}: no such file"):
            registries.reload(parse(text))
        assert served("next") == origin.authority  # the old one, whole
        ca.write_bytes(Path(certificates.ca).read_bytes())
        registries.reload(parse(text + "[system]\nmaxRegistryConcurrency = 2\n"))
        assert served("running") == origin.authority
        assert served("next") == mirror.authority
        assert registries.limiter.traffic() == ()
        with registries.limiter.place(ref.domain):
            (traffic,) = registries.status().traffic
            assert (traffic.pulls, traffic.limits.blobs) == (1, 2)
        registries.end("running")
        assert served("running") == mirror.authority
        registries.close()


def test_who_served_what() -> None:
    with FakeRegistry() as mirror, FakeRegistry() as origin:
        for fake in (mirror, origin):
            fake.add_image("app", "1", [b"layer"])
        config = f'[registry."{origin.authority}"]\nmirrors = ["{mirror.authority}"]\n'
        registries = Registries(parse(config), retry=QUICK)
        registries.begin("one")
        pull(registries.open(owner="one"), Reference.parse(f"{origin.authority}/app:1"))
        pull(registries.open(owner="two"), Reference.parse(f"{origin.authority}/app:1"))
        served = registries.served("one")
        assert [(s.host, s.repository) for s in served] == [(mirror.authority, f"{origin.authority}/app")] * 3
        assert served[-1].size == 5
        assert served[-1].digest == digest_of(b"layer")
        assert registries.served("two") == ()
        registries.close()


# Limits by direction.


@pytest.mark.parametrize(
    ("keys", "pulls", "pushes"),
    [("", 4, 0), ("maxPulls = 2", 2, 4), ("maxPulls = 3\nmaxPushes = 1", 3, 1), ("maxConcurrency = 3\nmaxPulls = 2", 2, 1)],
)
def test_directions_have_their_own_numbers(keys: str, pulls: int, pushes: int) -> None:
    registries = Registries(parse(f'[chantier.registry."r.test"]\n{keys}\n'))
    gate = threading.Event()

    def hold(pushing: bool) -> Callable[[], None]:
        def run() -> None:
            with registries.limiter.place("r.test", pushing=pushing):
                gate.wait(60)

        return run

    threads = [threading.Thread(target=hold(False)) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: registries.limiter.status()["r.test"][0] == pulls)
    later = [threading.Thread(target=hold(True)) for _ in range(8)]
    for thread in later:
        thread.start()
    wait_until(lambda: sum(registries.limiter.status()["r.test"]) == 16)
    (traffic,) = registries.status().traffic
    assert (traffic.pulls, traffic.pushes) == (pulls, pushes)
    gate.set()
    for thread in [*threads, *later]:
        thread.join(60)
    registries.close()


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_login_is_no_part_of_a_representation() -> None:
    assert "secret" not in repr(Login(username="u", secret="secret"))
