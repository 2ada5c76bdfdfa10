# SPDX-License-Identifier: Apache-2.0
"""Proxies, what goes around them, and bundles of authorities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chantier.config import NetworkConfig, parse
from chantier.errors import ConfigError
from chantier.registry import Network, Registries
from chantier.registry.network import goes_direct


@pytest.mark.parametrize(
    ("authority", "rules", "direct"),
    [
        ("reg.test", "", False),
        ("reg.test", "*", True),
        ("reg.test", "reg.test", True),
        ("a.reg.test", "reg.test", True),
        ("areg.test", "reg.test", False),
        ("reg.test", ".reg.test", False),
        ("a.reg.test", ".reg.test", True),
        ("a.reg.test", "*.reg.test", True),
        ("reg.test:5000", "reg.test:5000", True),
        ("reg.test:5001", "reg.test:5000", False),
        ("reg.test", "reg.test:443", True),
        ("REG.test", "reg.TEST", True),
        ("10.1.2.3:5000", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "2.3", False),
        ("[fd00::1]:5000", "fd00::/8", True),
        ("reg.test", "10.0.0.0/8", False),
        ("localhost:5000", "", True),
        ("127.0.0.5", "", True),
        ("[::1]:80", "", True),
        ("reg.test", "other.test reg.test", True),
        ("reg.test", "nonsense/99", False),
    ],
)
def test_what_goes_around_a_proxy(authority: str, rules: str, direct: bool) -> None:
    assert goes_direct(authority, rules.split()) is direct


def test_the_environment_counts_where_the_config_is_silent() -> None:
    env = {"https_proxy": "http://env:1", "HTTP_PROXY": "env:2", "NO_PROXY": "a.test, b.test"}
    network = Network(env=env)
    assert network.proxy_for("https://reg.test/v2/") == "http://env:1"
    assert network.proxy_for("http://reg.test/v2/") == "http://env:2"
    assert network.proxy_for("https://x.b.test/") is None
    assert Network(env={**env, "REQUEST_METHOD": "GET"}).proxy_for("http://reg.test/") is None  # httpoxy
    assert Network(env={"ALL_PROXY": "http://all:3"}).proxy_for("https://reg.test/") == "http://all:3"


def test_the_config_is_the_one_setting() -> None:
    config = parse('[chantier.network]\nproxy = "http://p:1"\nhttpProxy = "none"\nnoProxy = ["in.test"]\n')
    network = Network.of(config.chantier.network)
    assert network.proxy_for("https://reg.test/") == "http://p:1"
    assert network.proxy_for("http://reg.test/") is None
    assert network.proxy_for("https://in.test/") is None
    assert network.child_environment() == {
        "https_proxy": "http://p:1",
        "HTTPS_PROXY": "http://p:1",
        "no_proxy": "in.test",
        "NO_PROXY": "in.test",
    }


def test_a_host_may_have_its_own_proxy() -> None:
    text = (
        '[chantier.network]\nproxy = "http://p:1"\n'
        '[chantier.registry."a.test"]\nproxy = "none"\n[chantier.registry."b.test"]\nproxy = "http://b:2"\n'
    )
    settings = Registries(parse(text)).settings()
    nothing = Network(env={})
    for host, proxy in (("a.test", None), ("b.test", "http://b:2"), ("c.test", "http://p:1")):
        (found,) = settings.hosts(host)
        assert found.peer.proxy_for(f"https://{host}/", nothing) == proxy
    assert settings.hosts("b.test")[0].peer.for_stranger().proxy_for("https://cdn.test/", nothing) == "http://p:1"


def test_bundles(tmp_path: Path, certificates: Any) -> None:
    network = Network.of(NetworkConfig(ca=(certificates.ca,)))
    own = Path(certificates.ca).read_bytes()
    assert network.bundle(b"") == own
    assert network.bundle(b"-----BEGIN CERTIFICATE-----\nx") == b"-----BEGIN CERTIFICATE-----\nx\n" + own
    assert network.bundle().endswith(own)
    (tmp_path / "no.pem").write_text("nothing")
    for path, why in ((tmp_path / "no.pem", "not a PEM file"), (tmp_path / "none", "no such file")):
        with pytest.raises(ConfigError, match=f"failed to read CA file {path}: {why}"):
            Network(ca=(str(path),)).bundle(b"")


# Who is shown what.

TEXT = (
    '[registry."*"]\nca = ["/all.pem"]\n[[registry."*".keypair]]\ncert = "/c"\nkey = "/k"\n'
    '[registry."*.corp.test"]\nca = ["/corp.pem"]\n'
    '[registry."r.corp.test"]\nhttp = false\n'
    '[chantier.network]\nca = ["/net.pem"]\n'
)


def test_tables_with_a_star_are_under_a_hosts_own() -> None:
    settings = Registries(parse(TEXT)).settings()
    (host,) = settings.hosts("r.corp.test")
    assert host.peer.ca == ("/corp.pem", "/net.pem")
    assert host.peer.keypairs == (("/c", "/k"),)
    assert host.tables == ("r.corp.test", "*.corp.test", "*")
    assert settings.hosts("x.test")[0].peer.ca == ("/all.pem", "/net.pem")


def test_strangers_see_no_certificate_that_is_for_all() -> None:
    settings = Registries(parse(TEXT)).settings()
    assert settings.peer_for("cdn.test") is None
    assert settings.hosts("x.test")[0].peer.for_stranger().keypairs == ()
    assert settings.web_peer("site.test").keypairs == ()
    assert settings.web_peer("site.test").ca == ("/all.pem", "/net.pem")
    assert settings.web_peer("git.corp.test").ca == ("/corp.pem", "/net.pem")


def test_a_mirror_for_all_has_none_itself() -> None:
    settings = Registries(
        parse('[registry."*"]\nmirrors = ["m.test/p"]\n[registry."own.test"]\nmirrors = ["n.test"]\n')
    ).settings()
    assert [h.name for h in settings.hosts("docker.io")] == ["m.test/p", "registry-1.docker.io"]
    assert [h.name for h in settings.hosts("own.test")] == ["n.test", "own.test"]
    assert [h.name for h in settings.hosts("m.test")] == ["m.test"]
    text = '[registry."*"]\nmirrors = ["m.test"]\n[chantier.registry."alone.test"]\ninherit = false\n'
    assert [h.name for h in Registries(parse(text)).settings().hosts("alone.test")] == ["alone.test"]
