# SPDX-License-Identifier: Apache-2.0
"""Addresses become commands and connections; what ends a command is said."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from chantier.client.client import Client
from chantier.driver.dial import channel_to, check_address, command_of
from chantier.errors import ChantierError, UsageError

KUBE = "kubectl --context=c --namespace=n exec --container= -i p -- buildctl dial-stdio"


@pytest.mark.parametrize(
    ("address", "command"),
    [
        ("ssh://host", "ssh -- host buildctl dial-stdio"),
        ("ssh://me@host:22/run/x.sock", "ssh -l me -p 22 -- host buildctl --addr unix:///run/x.sock dial-stdio"),
        ("docker-container://box", "docker exec -i box buildctl dial-stdio"),
        ("docker-container://box?context=far", "docker --context=far exec -i box buildctl dial-stdio"),
        ("podman-container://box", "podman exec -i box buildctl dial-stdio"),
        ("nerdctl-container://box?namespace=k", "nerdctl exec --namespace=k -i box buildctl dial-stdio"),
        ("kube-pod://p?context=c&namespace=n", KUBE),
    ],
)
def test_commands(address: str, command: str) -> None:
    assert " ".join(command_of(address)) == command


@pytest.mark.parametrize(
    "address",
    ["http://x", "x", "ssh://", "ssh://a:b@c", "ssh://h?x=1", "docker-container://", "kube-pod://A", "kube-pod://p?namespace=N_"],
)
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(UsageError):
        check_address(address)


def _program(directory: Path, name: str, text: str) -> dict[str, str]:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def test_what_the_command_says_is_the_error(tmp_path: Path) -> None:
    env = _program(tmp_path, "ssh", "echo 'ssh: Could not resolve hostname nowhere' >&2; exit 255")

    async def ask() -> None:
        async with Client(channel_to("ssh://nowhere", env=env)) as client:
            await client.workers(timeout_s=10)

    with pytest.raises(ChantierError) as found:
        asyncio.run(ask())
    assert "ended with exit code 255: ssh: Could not resolve hostname nowhere" in str(found.value)


def test_a_command_that_is_missing(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Client(channel_to("podman-container://x", env={"PATH": str(tmp_path)})) as client:
            await client.workers(timeout_s=10)

    with pytest.raises(ChantierError, match="failed to run podman: not found"):
        asyncio.run(ask())


def test_nobody_listens(tmp_path: Path) -> None:
    async def ask() -> None:
        async with Client(channel_to(f"unix://{tmp_path}/none.sock")) as client:
            await client.workers(timeout_s=10)

    with pytest.raises(ChantierError, match=r"failed to connect to unix://.*/none.sock: no such file or directory") as found:
        asyncio.run(ask())
    assert found.value.transient
