# SPDX-License-Identifier: Apache-2.0
"""What builds share, and what a new config changes for whom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chantier.config import parse
from chantier.registry import Login, Registries
from chantier.spec import Reference
from chantier.testing.registry import FakeRegistry


@pytest.fixture
def shared() -> Iterator[Registries]:
    registries = Registries()
    yield registries
    registries.close()


def test_reload_is_for_the_next_build(shared: Registries, fake: FakeRegistry) -> None:
    with FakeRegistry() as mirror:
        for registry in (fake, mirror):
            registry.add_image("app", "1")
        ref = Reference.parse(f"{fake.authority}/app:1")
        running = shared.open()
        shared.reload(parse(f'[registry."{fake.authority}"]\nmirrors = ["{mirror.authority}"]\n'))
        assert running.resolve(ref).host == fake.authority
        assert shared.open().resolve(ref).host == mirror.authority


def test_connections_and_tokens_are_shared(shared: Registries) -> None:
    with FakeRegistry(auth="token") as fake:
        fake.add_image("app", "1")
        ref = Reference.parse(f"{fake.authority}/app:1")
        shared.open().resolve(ref)
        assert [r.path for r in fake.seen()] == ["/v2/app/manifests/1", "/token", "/v2/app/manifests/1"]
        shared.open().resolve(ref)
        assert fake.count() == 4  # neither a challenge nor a token request
        assert fake.connections == 1


def test_clients_tokens_serve_their_own_build(shared: Registries) -> None:
    with FakeRegistry(auth="token", public=False) as fake:
        fake.add_image("app", "1")
        ref = Reference.parse(f"{fake.authority}/app:1")
        asked: list[str] = []

        def token(host: str, realm: str, service: str, scopes: object) -> str:
            asked.append(host)
            return fake.grant(["repository:app:pull"])

        for owner in ("build-1", "build-1", "build-2"):
            shared.open(token=token, owner=owner).resolve(ref)
        assert asked == [fake.authority] * 2
        assert fake.count("GET", "/token") == 0


def test_credentials_are_asked_once_a_build(shared: Registries) -> None:
    with FakeRegistry(users={"u": "p"}) as fake:
        fake.add_image("app", "1")
        asked: list[str] = []

        def credentials(host: str) -> Login:
            asked.append(host)
            return Login(username="u", secret="p")

        registry = shared.open(credentials=credentials)
        for _ in range(3):
            registry.resolve(Reference.parse(f"{fake.authority}/app:1"))
        assert asked == [fake.authority]
