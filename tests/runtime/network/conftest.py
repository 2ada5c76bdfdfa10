# SPDX-License-Identifier: Apache-2.0
"""Names and subnets that no other test run on this machine uses, and what is seen of them from outside."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chantier.config import OciConfig
from chantier.runtime.network import firewall

PLUGINS = "/usr/lib/cni"


def ip(*args: str) -> Any:
    """iproute2's own view."""
    while True:
        done = subprocess.run(["ip", "-j", *args], capture_output=True, text=True, check=True)
        if "interrupted" not in done.stderr:  # else others have changed something meanwhile, and some may be missing
            return json.loads(done.stdout or "[]")


def links() -> set[str]:
    return {link["ifname"] for link in ip("link")}


@dataclass
class Net:
    """One test's network. `subnet` ends in .0/24; `data` is where host-local keeps its leases."""

    name: str
    prefix: str
    state: Path
    data: Path

    @property
    def subnet(self) -> str:
        return f"{self.prefix}.0/24"

    @property
    def gateway(self) -> str:
        return f"{self.prefix}.1"

    def bridge(self, **more: Any) -> OciConfig:
        return OciConfig(**{"network_mode": "bridge", "bridge_name": self.name, "bridge_subnet": self.subnet, **more})

    def plugins(self) -> list[dict[str, Any]]:
        ipam = {
            "type": "host-local", "dataDir": str(self.data), "ranges": [[{"subnet": self.subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
        }  # fmt: skip
        bridge = {"type": "bridge", "bridge": self.name, "isGateway": True, "ipMasq": True, "ipam": ipam}
        return [{"type": "loopback"}, bridge, {"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "firewall"}]

    def cni(self, plugins: list[dict[str, Any]] | None = None, *, dirs: str = PLUGINS, **more: Any) -> OciConfig:
        file = self.state / "cni.conflist"
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(json.dumps({"cniVersion": "1.0.0", "name": self.name, "plugins": plugins or self.plugins()}))
        return OciConfig(**{"network_mode": "cni", "cni_config_path": str(file), "cni_binary_path": dirs, **more})

    def leased(self) -> list[str]:
        """Addresses that host-local holds."""
        where = self.data / self.name
        return sorted(entry.name for entry in where.iterdir() if entry.name[0].isdigit()) if where.is_dir() else []

    def ports(self) -> list[str]:
        """What is connected to the bridge."""
        if self.name not in links():
            return []
        return [link["ifname"] for link in ip("link", "show", "master", self.name)]

    def mounts(self) -> list[str]:
        """Namespaces that are mounted below the state directory."""
        before: list[str] | None = None
        while True:  # it is read in pieces, between which others may mount something: one may be missing
            lines = Path("/proc/self/mountinfo").read_text().splitlines()
            found = [line.split()[4] for line in lines if line.split()[4].startswith(f"{self.state}/")]
            if found == before:
                return found
            before = found


_count = 0


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    global _count
    _count += 1
    pid = os.getpid()
    found = Net(
        name=f"ct{pid % 100000}n{_count}",
        prefix=f"10.{64 + _count % 32}.{pid % 256}",
        state=tmp_path / "net",
        data=tmp_path / "host-local",
    )
    yield found
    subprocess.run(["ip", "link", "del", found.name], capture_output=True, check=False)
    firewall.close(found.name, ipaddress.IPv4Network(found.subnet))
    assert found.mounts() == []


@pytest.fixture
def witness(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Makes a plugin that writes down what it was given: its directory, and the file of what it saw.

    It answers with what it was handed, as a chained plugin that adds nothing does (CNI specification, section 4).
    """

    def make(name: str = "witness", script: str = "") -> tuple[Path, Path]:
        directory, seen = tmp_path / "plugins", tmp_path / f"{name}.seen"
        directory.mkdir(exist_ok=True)
        program = directory / name
        program.write_text(
            f"""#!/usr/bin/python3
import json, os, sys
given = json.load(sys.stdin)
with open({str(seen)!r}, "a") as out:
    out.write(json.dumps({{"env": {{k: v for k, v in os.environ.items()}}, "given": given}}) + "\\n")
{script}
if os.environ["CNI_COMMAND"] == "ADD":
    print(json.dumps(given.get("prevResult") or {{"cniVersion": given["cniVersion"]}}))
"""
        )
        program.chmod(0o755)
        return directory, seen

    return make


def seen_by(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
