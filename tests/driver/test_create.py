# SPDX-License-Identifier: Apache-2.0
"""What `create` decides, with docker buildx's texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from chantier.driver.create import Wish, buildkitd_flags, parse_opts, plan_create, plan_leave
from chantier.driver.store import Store
from chantier.errors import ChantierError, ConfigError, NotFoundError
from chantier.spec import Platform


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "buildx", env={})


def env(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def test_an_address_is_a_remote_builder(store: Store, tmp_path: Path) -> None:
    made = plan_create(Wish(name="r", endpoint="unix:///x.sock"), store, env(tmp_path))
    assert made.group.driver == "remote"
    assert made.group.nodes[0].name == "r0" and made.group.nodes[0].endpoint == "unix:///x.sock"
    assert made.group.nodes[0].flags is None


def test_nothing_is_a_container_on_the_current_engine(store: Store, tmp_path: Path) -> None:
    made = plan_create(Wish(), store, env(tmp_path))
    assert made.group.driver == "docker-container"
    assert made.group.nodes[0].endpoint == "unix:///var/run/docker.sock"
    assert made.group.nodes[0].flags == ("--allow-insecure-entitlement=network.host",)
    assert "_" in made.group.name


def test_buildkit_host_is_the_endpoint(store: Store, tmp_path: Path) -> None:
    made = plan_create(Wish(name="r"), store, env(tmp_path) | {"BUILDKIT_HOST": "tcp://h:1"})
    assert (made.group.driver, made.group.nodes[0].endpoint) == ("remote", "tcp://h:1")


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (Wish(name="0a", endpoint="unix:///x"), "name needs to start with a letter"),
        (Wish(name="default"), "default is a reserved name"),
        (Wish(name="x", driver="bogus"), 'failed to find driver "bogus"'),
        (Wish(name="x", driver="docker"), 'additional instances of driver "docker" cannot be created'),
        (Wish(name="x", driver="remote"), "no remote endpoint provided"),
        (Wish(name="x", driver="remote", endpoint="http://h"), "unrecognized url scheme http"),
        (Wish(name="x", driver="kubernetes", endpoint="y"), 'does not support endpoint args "y"'),
        (Wish(name="x", append=True), 'failed to find instance "x" for append'),
        (Wish(append=True), "append requires a builder name"),
        (Wish(name="x", endpoint="tcp://h:1", driver_opts=("foo=1",)), "invalid driver option foo for remote driver"),
        (Wish(name="x", endpoint="tcp://h:1", driver_opts=("foo",)), 'invalid value "foo", expecting k=v'),
        (
            Wish(name="x", endpoint="tcp://h:1", driver_opts=("cacert=rel.pem",)),
            "non-absolute path 'rel.pem' provided for cacert",
        ),
        (Wish(name="x", endpoint="tcp://h:1", driver_opts=("key=/k,cacert=/c",)), "tls enabled, but missing keys cert"),
        (Wish(name="x", endpoint="tcp://h:1", flags="--debug"), "setting buildkit flags is not supported for remote driver"),
        (Wish(name="x", flags="'a"), "failed to parse buildkit flags: EOF found when expecting closing quote"),
        (Wish(name="x", config="/nope.toml"), "buildkit configuration file not found: /nope.toml: stat /nope.toml"),
        (Wish(name="x", driver_opts=("env.=1",)), "expecting env.FOO=bar"),
        (Wish(name="x", driver_opts=("memory=lots",)), "invalid size: 'lots'"),
        (Wish(name="x", endpoint="ssh://u:p@h"), "must not have a password"),
        (Wish(name="x", endpoint="kube-pod://A_B"), "unsupported pod name"),
    ],
)
def test_errors(store: Store, tmp_path: Path, wish: Wish, text: str) -> None:
    with pytest.raises(ChantierError, match=None) as found:
        plan_create(wish, store, env(tmp_path))
    assert text in str(found.value)
    assert store.groups() == []


def test_append_change_and_leave(store: Store, tmp_path: Path) -> None:
    where = env(tmp_path)
    store.save(plan_create(Wish(name="r", endpoint="tcp://a:1", platforms=("linux/amd64,linux/arm64",)), store, where).group)
    with pytest.raises(ChantierError, match="but no append mode"):
        plan_create(Wish(name="r", endpoint="tcp://b:1"), store, where)
    with pytest.raises(ChantierError, match="invalid duplicate endpoint"):
        plan_create(Wish(name="r", append=True, endpoint="tcp://a:1"), store, where)
    with pytest.raises(NotFoundError, match="node zz not found, did you mean to append"):
        plan_create(Wish(name="r", node="zz", endpoint="tcp://c:1"), store, where)
    with pytest.raises(ChantierError, match='mismatched driver "remote"'):
        plan_create(Wish(name="r", node="r0", driver="kubernetes"), store, where)
    two = plan_create(Wish(name="R", append=True, endpoint="tcp://b:1", platforms=("linux/arm64",)), store, where)
    store.save(two.group)
    assert [n.name for n in two.group.nodes] == ["r0", "r1"]
    assert two.group.nodes[0].platforms == (Platform("linux", "amd64"),)  # the other node's now
    changed = plan_create(Wish(name="r", node="r1", endpoint="tcp://c:1"), store, where)
    assert changed.warnings == ("new settings may not be used until builder is restarted",)
    assert changed.group.nodes[1].platforms == (Platform("linux", "arm64"),)
    store.save(plan_leave("r", "r1", store))
    with pytest.raises(ChantierError, match="can not leave last node, do you want to rm instance instead"):
        plan_leave("r", "r0", store)
    with pytest.raises(NotFoundError, match='node "r9" not found for r'):
        plan_leave("r", "r9", store)


def test_config_travels_with_its_certificates(store: Store, tmp_path: Path) -> None:
    import trustme

    authority = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    pair = authority.issue_cert("me@x.test")
    (tmp_path / "cert.pem").write_bytes(pair.cert_chain_pems[0].bytes())
    (tmp_path / "key.pem").write_bytes(pair.private_key_pem.bytes())
    config = tmp_path / "b.toml"
    config.write_text(
        f'insecure-entitlements = ["security.insecure"]\n# a comment\n[registry."my.reg:5000"]\nca = ["{tmp_path}/ca.pem"]\n'
        f'[[registry."my.reg:5000".keypair]]\nkey = "{tmp_path}/key.pem"\ncert = "{tmp_path}/cert.pem"\n'
        '[registry."docker.io"]\nmirrors = ["127.0.0.1:5000"]\n[worker.oci]\nmax-parallelism = 4\n'
    )
    node = plan_create(Wish(name="c", config=str(config)), store, env(tmp_path)).group.nodes[0]
    assert node.files is not None
    assert node.files["buildkitd.toml"].decode() == (
        "insecure-entitlements = ['security.insecure']\n\n[registry]\n[registry.'docker.io']\nmirrors = ['127.0.0.1:5000']\n\n"
        "[registry.'my.reg:5000']\nca = ['/etc/buildkit/certs/my.reg_5000/ca.pem']\n\n"
        "[[registry.'my.reg:5000'.keypair]]\ncert = '/etc/buildkit/certs/my.reg_5000/cert.pem'\n"
        "key = '/etc/buildkit/certs/my.reg_5000/key.pem'\n\n[worker]\n[worker.oci]\nmax-parallelism = 4\n"
    )
    assert node.files["certs/my.reg_5000/key.pem"] == pair.private_key_pem.bytes()
    assert sorted(node.files) == ["buildkitd.toml", *(f"certs/my.reg_5000/{n}.pem" for n in ("ca", "cert", "key"))]


def test_a_config_with_a_mistake_names_line_and_hint(store: Store, tmp_path: Path) -> None:
    config = tmp_path / "b.toml"
    config.write_text("[worker.oci]\nmax-paralelism = 4\n")
    with pytest.raises(ConfigError, match=r"b\.toml:2") as found:
        plan_create(Wish(name="c", config=str(config)), store, env(tmp_path))
    assert "max-parallelism" in str(found.value.hint or "") + str(found.value)


def test_the_default_config_is_for_every_builder(store: Store, tmp_path: Path) -> None:
    store.directory.mkdir()
    (store.directory / "buildkitd.default.toml").write_text("debug = true\n")
    with pytest.raises(ChantierError, match="setting config file is not supported for remote driver"):
        plan_create(Wish(name="r", endpoint="tcp://h:1"), store, env(tmp_path))
    assert plan_create(Wish(name="c"), store, env(tmp_path)).group.nodes[0].files == {"buildkitd.toml": b"debug = true\n"}


def test_flags() -> None:
    host = "--allow-insecure-entitlement=network.host"
    assert buildkitd_flags(None, "docker-container", {}, "") == (host,)
    assert buildkitd_flags(None, "remote", {}, "") is None
    assert buildkitd_flags("--debug 'a b' # x", "kubernetes", {}, "") == ("--debug", "a b", host)
    granted = "--allow-insecure-entitlement security.insecure"
    assert buildkitd_flags(granted, "docker-container", {}, "") == tuple(granted.split())
    assert buildkitd_flags(granted, "docker-container", {"network": "host"}, "") == (*granted.split(), host)
    assert buildkitd_flags(None, "docker-container", {}, 'insecure-entitlements = ["network.host"]') is None


def test_opts() -> None:
    assert parse_opts(["a=1,b=x=y", '"c=1,2",a=3']) == {"a": "3", "b": "x=y", "c": "1,2"}
