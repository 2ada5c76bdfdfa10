# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from chantier.config import parse
from chantier.registry import Capability, Host, hosts_for
from chantier.registry.hosts import is_local, split_port


def hosts(text: str, domain: str, *, insecure: bool = False) -> tuple[Host, ...]:
    config = parse(text)
    return hosts_for(domain, config.registries, config.chantier.registries, insecure=insecure)


def test_a_registry_without_config() -> None:
    (host,) = hosts("", "reg.test")
    assert (host.scheme, host.authority, host.namespace, host.prefix) == ("https", "reg.test", "", "")
    assert Capability.REFERRERS | Capability.PUSH in host.capabilities
    assert host.url("a/b", "manifests/1") == "https://reg.test/v2/a/b/manifests/1"


def test_docker_hub() -> None:
    (host,) = hosts("", "docker.io")
    assert (host.authority, host.name, host.namespace) == ("registry-1.docker.io", "registry-1.docker.io", "")


def test_mirrors_come_first() -> None:
    text = (
        '[registry."docker.io"]\nmirrors = ["m.test:5000/proxy/", "n.test"]\nca = ["/hub.pem"]\n'
        '[registry."m.test:5000"]\nhttp = true\n[registry."n.test"]\nca = ["/n.pem"]\n'
        '[[registry."n.test".keypair]]\nkey = "/k"\ncert = "/c"\n[chantier.registry."n.test"]\nconnectTimeout = "2s"\n'
    )
    first, second, own = hosts(text, "docker.io")
    assert first.url("library/alpine", "manifests/1") == "http://m.test:5000/v2/proxy/library/alpine/manifests/1?ns=docker.io"
    assert first.name == "m.test:5000/proxy"
    assert Capability.PUSH not in first.capabilities
    assert (second.scheme, second.peer.ca, second.peer.keypairs) == ("https", ("/n.pem",), (("/c", "/k"),))
    assert second.peer.connect_timeout_s == 2
    assert own.authority == "registry-1.docker.io"
    assert own.peer.ca == ("/hub.pem",)
    assert Capability.PUSH in own.capabilities
    assert Capability.REFERRERS not in own.capabilities
    assert own.url("library/alpine", "manifests/1") == "https://registry-1.docker.io/v2/library/alpine/manifests/1"


@pytest.mark.parametrize(
    ("name", "keys", "scheme", "falls_back", "insecure"),
    [
        ("localhost:5000", "", "http", False, False),
        ("127.0.0.2", "", "http", False, False),
        ("[::1]:5000", "", "http", False, False),
        ("localhost", "http = false", "https", False, False),
        ("r.test", "http = true", "http", False, False),
        ("r.test", "insecure = true", "https", False, True),
        ("r.test", "http = true\ninsecure = true", "https", True, True),
        ("localhost", "insecure = true", "https", True, True),
    ],
)
def test_schemes(name: str, keys: str, scheme: str, falls_back: bool, insecure: bool) -> None:
    (host,) = hosts(f'[registry."{name}"]\n{keys}\n', name)
    assert (host.scheme, host.may_fall_back, host.peer.insecure) == (scheme, falls_back, insecure)


def test_insecure_push_option() -> None:
    (host,) = hosts("", "r.test", insecure=True)
    assert (host.scheme, host.may_fall_back, host.peer.insecure) == ("https", True, True)


def test_a_stranger_gets_no_certificate() -> None:
    (host,) = hosts('[registry."r.test"]\nca = ["/ca"]\n[[registry."r.test".keypair]]\nkey = "/k"\ncert = "/c"\n', "r.test")
    assert (host.peer.for_stranger().ca, host.peer.for_stranger().keypairs) == (("/ca",), ())


def test_addresses() -> None:
    assert split_port("[::1]:5000") == ("::1", 5000)
    assert split_port("r.test") == ("r.test", None)
    assert split_port("r.test:80") == ("r.test", 80)
    assert is_local("127.255.0.1:1")
    assert not is_local("128.0.0.1")
    assert not is_local("localhost.test")
