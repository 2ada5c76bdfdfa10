# SPDX-License-Identifier: Apache-2.0
"""Networks of steps through the daemon's flags, the way a user meets them: CNI plugins and the built-in bridge."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ..conftest import Command
from ..daemon.conftest import Chantierd, Start, start_daemon
from ..runtime.conftest import eventually
from ..runtime.network.conftest import Net, links, net
from ..runtime.network.test_bridge import _get
from .test_build import _running, _stages

__all__ = ["net", "start_daemon"]  # fixtures of neighbours
pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.cni, pytest.mark.slow]

MODES = ["cni", "bridge"]
DNS = '[dns]\nnameservers = ["192.0.2.53"]\noptions = ["edns0"]\nsearchDomains = ["lab.test"]\n'


def start(start_daemon: Start, net: Net, mode: str, extra: str = "", *flags: str, name: str = "d") -> Chantierd:
    if mode == "bridge":
        extra += f'[worker.oci]\nbridgeName = "{net.name}"\nbridgeSubnet = "{net.subnet}"\n'
    else:
        config = net.cni()
        flags = (*flags, f"--oci-cni-config-path={config.cni_config_path}", f"--oci-cni-binary-dir={config.cni_binary_path}")
    return start_daemon(extra, f"--oci-worker-net={mode}", *flags, name=name)


@pytest.fixture
def on(chantier: Command) -> Callable[[Chantierd], Command]:
    """The command with a daemon as its builder."""

    def make(daemon: Chantierd) -> Command:
        return Command(root=chantier.root, config=chantier.config, env={"BUILDX_BUILDER": daemon.address})

    return make


@pytest.mark.parametrize("mode", MODES)
def test_a_step_has_its_own_address(mode: str, net: Net, start_daemon: Start, on: Callable[[Chantierd], Command]) -> None:
    daemon = start(start_daemon, net, mode, DNS, "--allow-insecure-entitlement=network.host", "--oci-cni-pool-size=1")
    command = on(daemon)
    text = "FROM alpine\nRUN ip -4 addr && ip route && cat /etc/resolv.conf /etc/hosts\nRUN --network=none ip -4 addr # none\n"
    done = command.build(text).ok()
    said = done.step("RUN ip -4 addr")
    assert len(set(re.findall(rf"inet ({re.escape(net.prefix)}\.\d+)/24", said))) == 1, done.err
    assert f"default via {net.gateway} dev eth0" in said
    for line in ("nameserver 192.0.2.53", "options edns0", "search lab.test", "127.0.0.1\tlocalhost buildkitsandbox"):
        assert line in said
    none = done.step("# none")
    assert "127.0.0.1/8" in none and "eth0" not in none
    # The machine's own network is for those who were allowed it.
    host = "FROM alpine\nRUN --network=host ip -4 addr; hostname\n"
    refused = command.build(host)
    assert refused.code != 0 and "network.host is not allowed" in refused.err
    assert net.name in command.build(host, "--allow", "network.host").ok().step("RUN --network=host")
    assert f"'org.mobyproject.buildkit.worker.network': '{mode}'" in daemon.log
    assert daemon.stop() == 0
    assert net.ports() == [] and net.leased() == [] and net.mounts() == []
    assert not [entry for entry in (daemon.root / "net").iterdir() if entry.is_dir()]
    if mode == "bridge":
        assert net.name not in links()


@pytest.mark.parametrize("mode", MODES)
def test_two_builds_listen_on_one_port(
    mode: str, net: Net, start_daemon: Start, on: Callable[[Chantierd], Command], tmp_path: Path
) -> None:
    command = on(start(start_daemon, net, mode))
    builds = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        serve = f"printf 'HTTP/1.0 200 OK\\r\\n\\r\\n{name}' | nc -l -p 8080"
        (tmp_path / name / "Dockerfile").write_text(f"FROM alpine\nRUN ip -4 addr && {serve}\n")
        argv = command.argv("build", "--progress=plain", str(tmp_path / name))
        builds[name] = subprocess.Popen(argv, env=command.environment(), stderr=subprocess.PIPE, text=True)
    addresses = {name: _address_said(build, net) for name, build in builds.items()}
    assert len(set(addresses.values())) == 2
    for name, address in addresses.items():  # both are at it now
        assert _until_answered(address) == name
    for build in builds.values():
        assert build.communicate(timeout=240) and build.returncode == 0


def _address_said(build: subprocess.Popen[str], net: Net) -> str:
    assert build.stderr is not None
    for line in build.stderr:
        if found := re.search(rf"inet ({re.escape(net.prefix)}\.\d+)/24", line):
            return found[1]
    raise AssertionError("the step said no address")


def _until_answered(address: str) -> str:
    answers: list[str] = []

    def answered() -> bool:
        try:
            answers.append(_get(address, 8080))
        except OSError:  # it does not listen yet
            return False
        return True

    assert eventually(answered)
    return answers[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_daemons_networks_are_given_back(
    mode: str, net: Net, start_daemon: Start, on: Callable[[Chantierd], Command], tmp_path: Path
) -> None:
    daemon = start(start_daemon, net, mode)
    command = on(daemon)
    (tmp_path / "Dockerfile").write_text("FROM alpine\nRUN ip -4 addr && sleep 300\n")
    argv = command.argv("build", "--progress=plain", "-f", str(tmp_path / "Dockerfile"), str(tmp_path))
    build = subprocess.Popen(argv, env=command.environment(), stderr=subprocess.PIPE, text=True)
    address = _address_said(build, net)
    assert len(net.ports()) == 1 and net.leased() == ([address] if mode == "cni" else [])
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(60)
    build.communicate(timeout=240)
    assert len(net.ports()) == 1
    again = start(start_daemon, net, mode)
    assert eventually(lambda: net.ports() == [] and net.leased() == [])
    assert on(again).build("FROM alpine\nRUN ip -4 addr\n").ok()


def test_a_configuration_that_cannot_work_is_said_at_the_start(tmp_path: Path, start_daemon: Start) -> None:
    def refused(name: str, extra: str, *flags: str) -> str:
        with suppress(AssertionError):  # it may end before it listens, or after
            start_daemon(extra, *flags, name=name).process.wait(60)
        return (tmp_path / f"{name}.log").read_text()

    said = refused("d", "", "--oci-worker-net=cni", "--oci-cni-config-path=/no/such.conflist")
    assert 'failed to read cni config "/no/such.conflist": no such file or directory' in said.replace('\\"', '"')
    assert "invalid bridge subnet 'ten'" in refused("e", '[worker.oci]\nbridgeSubnet = "ten"', "--oci-worker-net=bridge")


def test_the_embedded_engine_too(net: Net, make_command: Callable[..., Command]) -> None:
    table = f'[worker.oci]\nnetworkMode = "bridge"\nbridgeName = "{net.name}"\nbridgeSubnet = "{net.subnet}"\n'
    said = make_command(table).build("FROM alpine\nRUN ip -4 addr\n").ok().step("RUN ip -4 addr")
    assert f"inet {net.prefix}." in said
    assert net.name not in links()


def test_four_of_twelve_at_once(net: Net, start_daemon: Start, on: Callable[[Chantierd], Command]) -> None:
    """max-parallelism holds for a daemon's steps, each of which has its network meanwhile."""
    daemon = start(start_daemon, net, "cni", "", "--oci-max-parallelism=4", "--oci-cni-pool-size=2")
    done = on(daemon).build(_stages(12), "--progress=rawjson").ok()
    assert _running(done.err) == 4
