# SPDX-License-Identifier: Apache-2.0
"""Networks by CNI: Debian's plugins, and what the specification says of how plugins are called."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chantier.config import OciConfig
from chantier.errors import ChantierError, ConfigError, NotFoundError, UnsupportedError
from chantier.runtime import open_networks
from chantier.runtime.network.cni import Cni, load
from chantier.runtime.network.leases import Lease, Leases

from .conftest import PLUGINS, Net, seen_by

pytestmark = [pytest.mark.root, pytest.mark.cni]

Witness = Callable[..., tuple[Path, Path]]


@pytest.fixture
def leases(net: Net) -> Iterator[Leases]:
    found = Leases(net.state)
    yield found
    found.close()


def provider(config: OciConfig) -> Cni:
    return Cni(load(config.cni_config_path), config.cni_binary_path.split(":"))


def inside(lease: Lease, *command: str) -> Any:
    done = subprocess.run(["nsenter", f"--net={lease.path}", "ip", "-j", *command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_debians_plugins(net: Net, leases: Leases) -> None:
    """loopback, bridge with host-local, portmap, firewall: an address, a route, rules; CHECK sees what is missing; DEL all back."""
    cni = provider(net.cni())
    one, two = leases.new(), leases.new()
    try:
        cni.attach(one, "")
        cni.attach(two, "")
        assert net.leased() == [f"{net.prefix}.2", f"{net.prefix}.3"]
        found = {link["ifname"]: link for link in inside(one, "addr")}
        assert [a["local"] for a in found["eth0"]["addr_info"] if a["family"] == "inet"] == [f"{net.prefix}.2"]
        assert "UP" in found["lo"]["flags"] and "UP" in found["eth0"]["flags"]
        assert [r["gateway"] for r in inside(one, "route") if r["dst"] == "default"] == [net.gateway]
        assert len(net.ports()) == 2
        assert f"{net.prefix}.2/32" in rules()
        cni.check(one)
        (net.data / net.name / f"{net.prefix}.2").unlink()
        with pytest.raises(UnsupportedError, match=f'cni plugin "bridge" of network "{net.name}" failed to CHECK: host-local:'):
            cni.check(one)
    finally:
        leases.drop(one)
        leases.drop(two)
    assert net.leased() == []
    assert net.ports() == []
    assert f"{net.prefix}." not in rules()


def rules() -> str:
    return subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout


def test_each_plugin_is_called_as_the_specification_says(net: Net, leases: Leases, witness: Witness) -> None:
    directory, seen = witness()
    ours = {"type": "witness", "colour": "red", "capabilities": {"portMappings": True}}
    cni = provider(net.cni([net.plugins()[1], ours], dirs=f"{PLUGINS}:{directory}"))
    lease = leases.new()
    cni.attach(lease, "web-1")
    cni.check(lease)
    leases.drop(lease)
    calls = seen_by(seen)
    assert [call["env"]["CNI_COMMAND"] for call in calls] == ["ADD", "CHECK", "DEL"]
    for call in calls:
        env = call["env"]
        assert env["CNI_CONTAINERID"] == lease.id and env["CNI_IFNAME"] == "eth0"
        assert env["CNI_NETNS"] == str(lease.path) and env["CNI_PATH"] == f"{PLUGINS}:{directory}"
        assert env["CNI_ARGS"] == "K8S_POD_NAME=web-1;IgnoreUnknown=1"
        assert "/usr/sbin" in env["PATH"].split(":")
        given = call["given"]
        assert (given["name"], given["cniVersion"], given["type"], given["colour"]) == (net.name, "1.0.0", "witness", "red")
        assert "capabilities" not in given
        assert given["prevResult"]["ips"][0]["address"] == f"{net.prefix}.2/24"


RACY = """#!/bin/sh
if [ "$CNI_COMMAND" = ADD ] && [ ! -e {made} ]; then
  sleep 0.3
  mkdir {made} || exit 4
fi
echo '{{"cniVersion": "1.0.0"}}'
"""


def test_what_plugins_make_once_is_made_by_one(net: Net, leases: Leases, tmp_path: Path) -> None:
    """Plugins look and then make, as `firewall` does its chains: the first ADD of each engine of a namespace is alone."""
    program = tmp_path / "racy"
    program.write_text(RACY.format(made=tmp_path / "made"))
    program.chmod(0o755)
    file = net.state / "racy.conf"
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": "racy", "type": "racy"}))
    engines = [Cni(load(str(file)), [str(tmp_path)]) for _ in range(2)]
    given = [leases.new() for _ in range(6)]
    try:
        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(engines[index % 2].attach, lease, "") for index, lease in enumerate(given)]:
                done.result(30)
    finally:
        for lease in given:
            leases.drop(lease)


@pytest.mark.parametrize(("version", "told"), [("0.3.1", False), ("0.4.0", True), ("1.0.0", True)])
def test_what_older_versions_are_not_told(version: str, told: bool, net: Net, leases: Leases, witness: Witness) -> None:
    """CHECK and prevResult at DEL came with 0.4.0."""
    directory, seen = witness()
    file = net.state / "one.conf"  # a plugin alone
    file.write_text(json.dumps({"cniVersion": version, "name": "alone", "type": "witness"}))
    cni = Cni(load(str(file)), [str(directory)])
    lease = leases.new()
    cni.attach(lease, "")
    cni.check(lease)
    leases.drop(lease)
    calls = {call["env"]["CNI_COMMAND"]: call for call in seen_by(seen)}
    assert set(calls) == ({"ADD", "CHECK", "DEL"} if told else {"ADD", "DEL"})
    assert ("prevResult" in calls["DEL"]["given"]) == told
    assert "prevResult" not in calls["ADD"]["given"] and "CNI_ARGS" not in calls["ADD"]["env"]


def test_disable_check(net: Net, leases: Leases, witness: Witness) -> None:
    directory, seen = witness()
    file = net.state / "one.conflist"
    text = {"cniVersion": "1.0.0", "name": "n", "disableCheck": True, "plugins": [{"type": "witness"}]}
    file.write_text(json.dumps(text))
    cni = Cni(load(str(file)), [str(directory)])
    lease = leases.new()
    cni.attach(lease, "")
    cni.check(lease)
    leases.drop(lease)
    assert [call["env"]["CNI_COMMAND"] for call in seen_by(seen)] == ["ADD", "DEL"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            'print(json.dumps({"cniVersion": "1.0.0", "code": 7, "msg": "no such colour", "details": "red"})); sys.exit(1)',
            "failed to ADD: no such colour: red (code 7)",
        ),
        ('sys.stderr.write("it is broken\\n"); sys.exit(3)', "failed to ADD: it is broken"),
        ("sys.exit(4)", "failed to ADD: exit code 4"),
        ('print("hello"); sys.exit(0)', "failed to ADD: its answer is not JSON: 'hello'"),
        ("sys.exit(0)", "failed to ADD: it gave no result"),
    ],
)
def test_a_plugin_that_fails_is_heard(script: str, says: str, net: Net, leases: Leases, witness: Witness) -> None:
    """And what plugins before it did is undone."""
    directory, _seen = witness(script=script)
    config = net.cni([*net.plugins()[:2], {"type": "witness"}], dirs=f"{PLUGINS}:{directory}")
    lease = leases.new()
    with pytest.raises(UnsupportedError) as found:
        provider(config).attach(lease, "")
    assert f'cni plugin "witness" of network "{net.name}" {says}' in str(found.value)
    assert config.cni_config_path in str(found.value.hint)
    leases.drop(lease)
    assert net.leased() == [] and net.ports() == []


def test_no_address_is_left(net: Net, leases: Leases) -> None:
    """host-local's own words."""
    plugins = net.plugins()[:2]
    plugins[1]["ipam"]["ranges"] = [[{"subnet": net.subnet, "rangeStart": f"{net.prefix}.9", "rangeEnd": f"{net.prefix}.9"}]]
    cni = provider(net.cni(plugins))
    one, two = leases.new(), leases.new()
    try:
        cni.attach(one, "")
        with pytest.raises(UnsupportedError, match=r'"bridge".*no IP addresses available in range set'):
            cni.attach(two, "")
    finally:
        leases.drop(one)
        leases.drop(two)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file or directory"),
        ("{", "it is not JSON"),
        ("[]", "want an object"),
        (b"\xff", "it is not UTF-8"),
        ('{"name": "n", "plugins": []}', "plugins: want a list of objects that is not empty"),
        ('{"name": "n", "plugins": ["bridge"]}', "plugins: want a list of objects"),
        ('{"name": "n", "plugins": [{"type": "bridge"}, {}]}', "plugins[1].type: want the name of a program"),
        ('{"name": "n", "type": "../bridge"}', "type: want the name of a program"),
        ('{"type": "bridge"}', "name: want a text"),
        ('{"name": "n", "type": "bridge", "cniVersion": "new"}', "cniVersion: want a version, as 1.0.0, got 'new'"),
    ],
)
def test_a_configuration_that_is_wrong(text: str | bytes | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "cni.json"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = OciConfig(network_mode="cni", cni_config_path=str(file), cni_binary_path=PLUGINS)
    with pytest.raises(ConfigError) as found:
        open_networks(config, tmp_path / "net")
    assert f'failed to read cni config "{file}": {says}' in str(found.value)
    assert found.value.hint
    assert not (tmp_path / "net").exists()


def test_missing_programs_are_said_at_once(net: Net, tmp_path: Path) -> None:
    config = net.cni([{"type": "bridge"}, {"type": "no-such-plugin"}])
    with pytest.raises(NotFoundError, match=f'cni plugin "no-such-plugin" not found in {PLUGINS}') as missing:
        open_networks(config, tmp_path / "net")
    assert "cniBinaryPath" in str(missing.value.hint)
    with pytest.raises(ConfigError, match='failed to read cni binary dir "/no/such/dir"'):
        open_networks(net.cni(dirs="/no/such/dir"), tmp_path / "net")


def test_a_hostname_that_would_be_more_than_one_argument(net: Net, leases: Leases) -> None:
    lease = leases.new()
    with pytest.raises(ChantierError, match="cannot be told to CNI plugins"):
        provider(net.cni()).attach(lease, "a;K8S_POD_NAMESPACE=b")
    leases.drop(lease)
