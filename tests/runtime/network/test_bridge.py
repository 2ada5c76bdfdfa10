# SPDX-License-Identifier: Apache-2.0
"""The bridge of our own, looked at with iproute2 and from within containers."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import ConfigError, UnsupportedError
from chantier.runtime import Container, Process, open_networks
from chantier.runtime.network import firewall
from chantier.runtime.network.bridge import Bridge
from chantier.runtime.network.leases import Leases
from chantier.spec import new_id

from ..conftest import make_rootfs, open_runtime
from .conftest import Net, ip, links

pytestmark = [pytest.mark.root, pytest.mark.runc]


class _Echo(http.server.BaseHTTPRequestHandler):
    """Says from which address it was asked."""

    def do_GET(self) -> None:
        body = f"asked by {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def serving(address: str) -> Iterator[int]:
    with socketserver.ThreadingTCPServer((address, 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


async def run_in(runtime: Any, network: str, rootfs: Path, script: str) -> str:
    said: list[bytes] = []
    process = Process(args=("sh", "-c", script), env=("PATH=/bin",))
    container = Container(id=new_id(), rootfs=rootfs, process=process, network=network)
    ended = await runtime.run(container, output=lambda _stream, data: said.append(data))
    text = b"".join(said).decode()
    assert ended.code == 0, f"{ended}: {text}"
    return text


@pytest.mark.parametrize("kind", ["runc", "native", "native-python"])
def test_a_step_has_an_address_and_a_way_out(kind: str, net: Net, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")

    async def body() -> tuple[str, str]:
        runtime = await open_runtime(kind, tmp_path / "state")
        networks = open_networks(net.bridge(), net.state)
        try:
            async with networks.acquire("") as network:
                with serving(net.gateway) as port:
                    script = f"ip addr; ip route; printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {net.gateway} {port}"
                    return await run_in(runtime, network, rootfs, script), net.ports()[0]
        finally:
            await runtime.close()
            await networks.close()

    said, port = asyncio.run(body())
    own = next(line.split()[1] for line in said.splitlines() if f"inet {net.prefix}." in line)
    address = own.removesuffix("/24")
    assert own.endswith("/24") and f"default via {net.gateway} dev eth0" in said
    assert f"asked by {address}" in said  # a server on the bridge sees the step's own address
    assert "inet 127.0.0.1/8" in said and "inet6 ::1/128" in said
    assert f"0a:58:{int(address.split('.')[0]):02x}" in said  # the MAC follows from the address
    assert port == "ch-" + "".join(f"{int(part):02x}" for part in address.split("."))
    assert net.name not in links()  # the last one took the bridge with it


def test_two_servers_on_one_port(net: Net, tmp_path: Path) -> None:
    """Each has its own 8080; from the machine each answers for itself."""

    async def body() -> set[str]:
        runtime = await open_runtime("runc", tmp_path / "state")
        networks = open_networks(net.bridge(), net.state)

        async def serve(name: str, ready: asyncio.Event, done: asyncio.Event) -> None:
            rootfs = make_rootfs(tmp_path / name)
            (rootfs / "go").mkdir()
            async with networks.acquire("") as network:
                script = f"(printf 'HTTP/1.0 200 OK\\r\\n\\r\\n{name}' | nc -l -p 8080) & ip addr > /go/ip; wait"
                task = asyncio.create_task(run_in(runtime, network, rootfs, script))
                while not (rootfs / "go/ip").exists() or "inet " + net.prefix not in (rootfs / "go/ip").read_text():
                    assert not task.done(), task.result()
                    await asyncio.sleep(0.02)
                address = (rootfs / "go/ip").read_text().partition("inet " + net.prefix)[2].split("/")[0]
                ready.set()
                await done.wait()
                while True:  # until it listens
                    try:
                        answers.add(await asyncio.to_thread(_get, net.prefix + address, 8080))
                        break
                    except OSError:
                        await asyncio.sleep(0.05)
                await task

        answers: set[str] = set()
        first, second = asyncio.Event(), asyncio.Event()
        try:
            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                group.create_task(serve("one", first, second))
                group.create_task(serve("two", second, first))
        finally:
            await runtime.close()
            await networks.close()
        return answers

    assert asyncio.run(body()) == {"one", "two"}


def _get(host: str, port: int) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


@pytest.fixture
def outside(net: Net) -> Iterator[tuple[str, str, str]]:
    """A host behind this machine, which knows nothing of the bridge: its namespace, its address, this machine's."""
    name, mine = f"{net.name}o", "172.16." + net.prefix.rsplit(".", 1)[1]
    here, there = f"{mine}.1", f"{mine}.2"
    commands = (
        f"ip netns add {name}",
        f"ip link add {name} type veth peer name eth0 netns {name}",
        f"ip addr add {here}/24 dev {name}",
        f"ip link set {name} up",
        f"ip -n {name} addr add {there}/24 dev eth0",
        f"ip -n {name} link set eth0 up",
        f"ip -n {name} link set lo up",
        f"ip -n {name} route add default via {here}",  # so that it could reach steps, if it were let
    )
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
        yield name, there, here
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)


@pytest.mark.parametrize("program", ["iptables", "nft"])
def test_the_outside_sees_the_machine_and_can_only_answer(
    program: str, net: Net, outside: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shutil.which(program, path=firewall._PATH)
    assert found, f"{program} is not here"
    only = tmp_path / "sbin"
    only.mkdir()
    (only / program).symlink_to(found)
    monkeypatch.setattr(firewall, "_PATH", str(only))
    namespace, there, here = outside
    rootfs = make_rootfs(tmp_path / "rootfs")
    server = subprocess.Popen(
        ["ip", "netns", "exec", namespace, "python3", "-c", _SERVER, there], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    port = server.stdout.readline().strip()

    async def body() -> tuple[str, str]:
        runtime = await open_runtime("runc", tmp_path / "state")
        networks = open_networks(net.bridge(), net.state)
        try:
            async with networks.acquire("") as network:
                said = await run_in(runtime, network, rootfs, f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {there} {port}")
                address = int(net.ports()[0].removeprefix("ch-"), 16).to_bytes(4, "big")
                step = ".".join(str(byte) for byte in address)
                listening = asyncio.create_task(run_in(runtime, network, rootfs, "while true; do nc -l -p 8080 </dev/null; done"))
                try:
                    await until_reached(step)
                    knock = ["ip", "netns", "exec", namespace, "python3", "-c", _KNOCK, step]
                    heard = (await asyncio.to_thread(subprocess.run, knock, check=True, capture_output=True, text=True)).stdout
                    await until_reached(step)  # it had listened all the time
                finally:
                    listening.cancel()
                    await asyncio.wait((listening,))
                return said, heard
        finally:
            await runtime.close()
            await networks.close()

    try:
        said, heard = asyncio.run(body())
    finally:
        server.kill()
        server.wait()
    assert f"asked by {here}" in said
    assert heard == "TimeoutError\n"
    left = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    left += subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    assert net.name not in left


async def until_reached(step: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                socket.create_connection((step, 8080), 1).close()
                return
            except OSError:
                await asyncio.sleep(0.02)


_KNOCK = """
import socket, sys
for _ in range(2):
    try:
        socket.create_connection((sys.argv[1], 8080), 1)
    except OSError as err:
        answer = type(err).__name__
    else:
        sys.exit("reached")
print(answer)
"""
_SERVER = """
import http.server, socketserver, sys
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"asked by {self.client_address[0]}".encode())
server = socketserver.TCPServer((sys.argv[1], 0), Echo)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def test_every_address_once_whoever_gives_it(net: Net) -> None:
    """Two engines on one bridge of eight addresses: five are free, and one that is given back is free again."""
    subnet = f"{net.prefix}.8/29"
    one, two = Bridge(net.name, subnet), Bridge(net.name, subnet)
    leases = Leases(net.state)
    held = []
    try:
        for bridge in (one, two, one, two, one):
            lease = leases.new()
            bridge.attach(lease, "")
            held.append(lease)
        expected = {f"ch-{'%02x' * 3}" % tuple(int(p) for p in net.prefix.split(".")) + f"{last:02x}" for last in range(10, 15)}
        assert set(net.ports()) == expected
        extra = leases.new()
        held.append(extra)
        with pytest.raises(UnsupportedError, match=f"every address of {subnet} is taken on the bridge {net.name}"):
            two.attach(extra, "")
        one.close()
        assert net.name in links()  # there are steps on it
        leases.drop(held.pop(0))
        two.attach(extra, "")
        assert set(net.ports()) == expected
    finally:
        for lease in held:
            leases.drop(lease)
        two.close()
        leases.close()
    assert net.name not in links()
    assert not list(net.state.iterdir())


def test_what_is_in_the_way_is_named(net: Net) -> None:
    leases = Leases(net.state)
    lease = leases.new()
    try:
        subprocess.run(["ip", "link", "add", net.name, "type", "veth"], check=True)
        subprocess.run(["ip", "addr", "add", f"{net.prefix}.77/25", "dev", net.name], check=True)
        with pytest.raises(UnsupportedError, match=f"overlaps {net.prefix}.77/25 of {net.name}") as overlapping:
            Bridge(net.name[:-1] + "x", net.subnet).attach(lease, "")
        assert "bridgeSubnet" in str(overlapping.value.hint)
        with pytest.raises(UnsupportedError, match=net.name):  # no bridge at all
            Bridge(net.name, net.subnet).attach(lease, "")
        foreign = Bridge("", net.subnet)
        foreign.name = net.name
        with pytest.raises(UnsupportedError, match=f"interface {net.name} that chantier did not make") as unknown:
            foreign.attach(lease, "")
        assert "bridgeName" in str(unknown.value.hint)
    finally:
        leases.drop(lease)
        leases.close()


def test_a_bridge_that_is_there_is_used_and_kept(net: Net) -> None:
    subprocess.run(["ip", "link", "add", net.name, "type", "bridge"], check=True)
    bridge, leases = Bridge(net.name, net.subnet), Leases(net.state)
    lease = leases.new()
    try:
        bridge.attach(lease, "")
        assert len(net.ports()) == 1
        assert [a["local"] for a in ip("addr", "show", net.name)[0]["addr_info"] if a["family"] == "inet"] == [net.gateway]
    finally:
        leases.drop(lease)
        bridge.close()
        leases.close()
    assert net.name in links()
    firewall.close(net.name, bridge._subnet)


@pytest.mark.parametrize(
    ("name", "subnet", "says"),
    [
        ("", "10.0.0.0/30", "too small"),
        ("", "10.0.0.1/16", "host bits set"),
        ("", "fd00::/64", "invalid bridge subnet"),
        ("", "ten", "invalid bridge subnet 'ten'"),
        ("a-name-of-sixteen", "", "invalid bridge name 'a-name-of-sixteen'"),
        ("a/b", "", "invalid bridge name"),
        ("a b", "", "invalid bridge name"),
    ],
)
def test_bad_configuration(name: str, subnet: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as found:
        Bridge(name, subnet)
    assert found.value.hint
