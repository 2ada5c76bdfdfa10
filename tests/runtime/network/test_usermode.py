# SPDX-License-Identifier: Apache-2.0
"""pasta and slirp4netns: the way out without privilege, from within containers; and what becomes of their processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from chantier.config import OciConfig
from chantier.errors import NotFoundError, UnsupportedError
from chantier.runtime import open_networks, recover_networks
from chantier.runtime.network import usermode
from chantier.runtime.network.leases import Leases

from ..conftest import eventually, make_rootfs, open_runtime
from .conftest import Net
from .test_bridge import outside, run_in, serving
from .test_leases import holder

__all__ = ["outside"]  # a fixture of a neighbour
pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.cni]

KINDS = ["pasta", "slirp4netns"]


def running(path: str) -> list[int]:
    """Processes that were told of a namespace."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if path.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it has just ended
                continue
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_way_out_and_none_in(kind: str, net: Net, outside: tuple[str, str, str], tmp_path: Path) -> None:
    """A server outside is reached by this machine's address; what listens on the machine's loopback is not."""
    _namespace, _there, here = outside
    rootfs = make_rootfs(tmp_path / "rootfs")

    async def body() -> tuple[str, str, list[int]]:
        runtime = await open_runtime("runc", tmp_path / "state")
        networks = open_networks(OciConfig(network_mode=kind), net.state)
        try:
            async with networks.acquire("") as network:
                with serving(here) as port, serving("127.0.0.1") as private:
                    # Not half closed before the answer: older versions of pasta leave such a connection open.
                    ask = "{ printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 1; } | nc -w 3"
                    reached = await run_in(runtime, network, rootfs, f"ip addr; ip route; {ask} {here} {port}")
                    refused = await run_in(runtime, network, rootfs, f"{ask} 10.0.2.2 {private} || echo refused")
                return reached, refused, running(network)
        finally:
            await runtime.close()
            await networks.close()

    reached, refused, processes = asyncio.run(body())
    assert "inet 10.0.2.100/24" in reached and "default via 10.0.2.2 dev eth0" in reached
    assert "asked by 1" in reached
    assert "refused" in refused and "asked by" not in refused
    assert len(processes) >= 1
    assert not any(os.path.exists(f"/proc/{pid}") for pid in processes)
    assert not list(net.state.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_engines_processes_end(kind: str, net: Net) -> None:
    with holder(OciConfig(network_mode=kind, bridge_name=""), net.state, 2) as (dead, held):
        assert all(running(path) for path in held)
        dead.kill()
        dead.wait(60)
        recover_networks(net.state)
        assert eventually(lambda: not any(running(path) for path in held))
    assert net.mounts() == []


def test_another_process_of_that_number_is_left_alone(net: Net) -> None:
    """A note may outlive its process, and numbers are given again."""
    leases = Leases(net.state)
    lease = leases.new()
    other = subprocess.Popen(["sleep", "60"])
    try:
        lease.write("slirp4netns", {"pid": other.pid, "start": 1})
        leases.drop(lease)
        assert other.poll() is None
        lease = leases.new()
        lease.write("slirp4netns", {"pid": other.pid, "start": usermode._start_of(other.pid)})
        leases.drop(lease)
        assert other.wait(60) == -9
    finally:
        other.kill()
        other.wait()
        leases.close()


def test_a_program_that_ends_is_heard(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pasta").write_text("#!/bin/sh\necho no tun here >&2\nexit 3\n")
    (tmp_path / "bin/pasta").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    async def body() -> None:
        networks = open_networks(OciConfig(network_mode="pasta"), net.state)
        try:
            with pytest.raises(UnsupportedError, match="pasta could not connect a step: it ended with 3: no tun here") as found:
                async with networks.acquire(""):
                    raise AssertionError("there is no network")
            assert "/dev/net/tun" in str(found.value.hint)
        finally:
            await networks.close()

    asyncio.run(body())
    assert not list(net.state.iterdir())


def test_a_program_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFoundError, match="slirp4netns not found in PATH"):
        open_networks(OciConfig(network_mode="slirp4netns"), tmp_path / "net")
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_asked_of_the_machine(kind: str, net: Net) -> None:
    """The server that steps are given answers, though nobody can tell what the machine's own says here: any answer will do."""
    leases = Leases(net.state)
    provider = usermode.UserMode(kind)
    lease = leases.new()
    try:
        provider.attach(lease, "")
        query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01"  # RFC 1035, 4.1

        def ask() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(5)
                asking.sendto(query, (usermode.NAMESERVER, 53))
                return asking.recv(512)

        if _machine_answers(query):
            assert usermode.inside(str(lease.path), ask)[:2] == b"\x12\x34"
    finally:
        leases.drop(lease)
        provider.close()
        leases.close()


def _machine_answers(query: bytes) -> bool:
    servers = [line.split()[1] for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver ")]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(2)
        try:
            asking.sendto(query, (servers[0], 53))
            return bool(asking.recv(512))
        except (OSError, IndexError):
            return False


def test_both_are_here() -> None:
    """Installed by scripts/setup: without them the cases above would say nothing."""
    assert all(shutil.which(kind) for kind in KINDS)
