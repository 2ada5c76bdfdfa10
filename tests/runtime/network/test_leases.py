# SPDX-License-Identifier: Apache-2.0
"""What a killed engine held is given back: namespaces, pairs, addresses; and only that."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chantier.config import OciConfig
from chantier.runtime import recover_networks
from chantier.runtime.network.cni import Cni, load
from chantier.runtime.network.leases import Leases

from ..conftest import eventually
from .conftest import PLUGINS, Net, ip, links, seen_by

pytestmark = [pytest.mark.root, pytest.mark.cni]

# Holds `count` networks, by a configuration that is given as JSON, until it is told to end.
_HOLDER = """
import asyncio, json, sys
from contextlib import AsyncExitStack
from pathlib import Path
from chantier.config import OciConfig
from chantier.runtime import open_networks

async def main(config, state, count):
    networks = open_networks(OciConfig(**json.loads(config)), Path(state))
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(networks.acquire("")) for _ in range(int(count))]
        print(json.dumps(held), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await networks.close()

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def holder(config: OciConfig, state: Path, count: int) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    names = ("network_mode", "bridge_name", "bridge_subnet", "cni_config_path", "cni_binary_path", "cni_pool_size")
    text = json.dumps({name: getattr(config, name) for name in names})
    argv = [sys.executable, "-c", textwrap.dedent(_HOLDER), text, str(state), str(count)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@pytest.mark.parametrize("mode", ["bridge", "cni"])
def test_what_a_killed_engine_held(mode: str, net: Net) -> None:
    config = net.bridge() if mode == "bridge" else net.cni()
    with holder(config, net.state, 2) as (dead, first), holder(config, net.state, 1) as (_alive, second):
        assert len(net.ports()) == 3 and set(net.mounts()) == {*first, *second}
        assert len(net.leased()) == (3 if mode == "cni" else 0)
        assert recover_networks(net.state) == []  # both live
        assert len(net.ports()) == 3
        dead.send_signal(signal.SIGKILL)
        dead.wait(60)
        assert len(net.ports()) == 3  # nobody has cleaned up yet
        assert recover_networks(net.state) == [Path(first[0]).parent.name]
        assert net.mounts() == second and len(net.ports()) == 1
        assert len(net.leased()) == (1 if mode == "cni" else 0)
    assert net.mounts() == [] and net.ports() == [] and net.leased() == []
    assert not [entry for entry in net.state.iterdir() if entry.is_dir()]
    if mode == "bridge":
        assert net.name not in links()


def test_a_pair_goes_even_if_its_namespace_stays(net: Net) -> None:
    """Another mount namespace (a container that started meanwhile) may keep a copy of the mount."""
    with holder(net.bridge(), net.state, 1) as (dead, _held):
        other = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
        )
        assert other.stdout is not None and other.stdout.readline()
        try:
            dead.kill()
            dead.wait(60)
            (port,) = net.ports()
            recover_networks(net.state)
            assert net.ports() == [] and port not in links()
        finally:
            other.kill()
            other.wait()
            other.stdout.close()


def test_an_address_that_is_anothers_by_now(net: Net) -> None:
    """Notes of a dead engine whose pair is gone name a link that another engine has made since."""
    with holder(net.bridge(), net.state, 1) as (dead, _held):
        dead.kill()
        dead.wait(60)
        (port,) = net.ports()
        subprocess.run(["ip", "link", "del", port], check=True)
        subprocess.run(["ip", "link", "add", port, "type", "veth", "peer", "name", f"{net.name}p"], check=True)
        recover_networks(net.state)
        assert port in links() and net.mounts() == []
        subprocess.run(["ip", "link", "del", port], check=True)


def test_a_state_directory_that_outlived_its_mounts(net: Net, witness: Callable[..., tuple[Path, Path]]) -> None:
    """A builder's container that was started again: no namespace, but addresses that are still taken."""
    directory, seen = witness()
    # Without ipMasq, whose rules the bridge plugin cannot find without the namespace; a new container has no old rules.
    config = net.cni([{**net.plugins()[1], "ipMasq": False}, {"type": "witness"}], dirs=f"{PLUGINS}:{directory}")
    with holder(config, net.state, 1) as (dead, held):
        dead.kill()
        dead.wait(60)
        subprocess.run(["umount", held[0]], check=True)
        assert eventually(lambda: net.ports() == [])
        assert net.leased() == [f"{net.prefix}.2"]
        recover_networks(net.state)
    assert net.leased() == []
    assert seen_by(seen)[-1]["env"]["CNI_NETNS"] == ""


# Takes something, slowly, and gives it back.
_SLOW = """#!/bin/sh
case $CNI_COMMAND in
  ADD) touch {place}/begun; sleep 1; touch {place}/taken;;
  DEL) rm -f {place}/taken;;
esac
echo '{{"cniVersion": "1.0.0"}}'
"""

_ADDER = """
import sys
from pathlib import Path
from chantier.runtime.network.cni import Cni, load
from chantier.runtime.network.leases import Leases

config, plugins, state = sys.argv[1:]
Cni(load(config), [plugins]).attach(Leases(Path(state)).new(), "")
"""


def test_a_plugin_that_outlives_its_engine_takes_nothing(net: Net, tmp_path: Path) -> None:
    (tmp_path / "slow").write_text(_SLOW.format(place=tmp_path))
    (tmp_path / "slow").chmod(0o755)
    config = net.cni([{"type": "slow"}], dirs=str(tmp_path)).cni_config_path
    with subprocess.Popen([sys.executable, "-c", _ADDER, str(config), str(tmp_path), str(net.state)]) as dead:
        assert eventually((tmp_path / "begun").exists)
        dead.kill()
    assert len(recover_networks(net.state)) == 1
    assert not eventually((tmp_path / "taken").exists, 1.5)
    assert net.mounts() == []


def test_what_cannot_be_undone_is_tried_again(
    net: Net, witness: Callable[..., tuple[Path, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    directory, _seen = witness()
    cni = Cni(load(net.cni([net.plugins()[1], {"type": "witness"}]).cni_config_path), [PLUGINS, str(directory)])
    leases = Leases(net.state)
    lease = leases.new()
    cni.attach(lease, "")
    os.rename(directory / "witness", directory / "away")
    with caplog.at_level(logging.WARNING):
        leases.drop(lease)
    assert 'cni plugin "witness" not found' in caplog.text and "tried again at the next start" in caplog.text
    assert net.leased() == []  # the others were asked all the same
    assert net.mounts() == [] and lease.note.exists()
    leases.close()
    recover_networks(net.state)
    assert lease.note.exists()
    os.rename(directory / "away", directory / "witness")
    recover_networks(net.state)
    assert not lease.path.parent.exists()


def test_it_is_given_up_at_last(net: Net, witness: Callable[..., tuple[Path, Path]], caplog: pytest.LogCaptureFixture) -> None:
    directory, _seen = witness()
    cni = Cni(load(net.cni([{"type": "witness"}], dirs=str(directory)).cni_config_path), [str(directory)])
    leases = Leases(net.state)
    lease = leases.new()
    cni.attach(lease, "")
    (directory / "witness").unlink()
    leases.drop(lease)
    leases.close()
    for _ in range(4):
        assert lease.note.exists()
        recover_networks(net.state)
    assert not lease.path.parent.exists()
    assert "given up: its address may stay taken" in caplog.text


def test_a_note_that_was_cut_off(net: Net) -> None:
    """By a machine that lost power: there is no namespace either."""
    owner = net.state / "dead"
    owner.mkdir(parents=True)
    (owner / "lock").touch()
    (owner / "abc.json").write_text('{"kind": "bri')
    (owner / "abc.new").write_text("{")
    recover_networks(net.state)
    assert not owner.exists()


def test_the_bridge_counts_no_interfaces_it_did_not_see(net: Net) -> None:
    with holder(net.bridge(), net.state, 3):
        ports = net.ports()
        assert len(ports) == len(set(ports)) == 3
        assert {link["ifalias"].split()[0] for link in ip("link", "show", "master", net.name)} == {"chantier"}
