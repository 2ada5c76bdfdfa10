# SPDX-License-Identifier: Apache-2.0
"""Caches cross over with a stock BuildKit, in both directions. `scripts/peer DIR` starts one; CHANTIER_PEER=DIR names it here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry, make_base, push_tree
from .test_cache import RECORDED, context, steps

PEER = os.environ.get("CHANTIER_PEER", "")
pytestmark = [
    pytest.mark.root,
    pytest.mark.runc,
    pytest.mark.registry,
    pytest.mark.skipif(not PEER, reason="CHANTIER_PEER names no directory of scripts/peer"),
]
__all__ = ["context"]

TEXT = RECORDED.replace("ADD data/t.tar /unpacked/\n", "ADD data/c.txt /added/\n").replace(
    "data/c.txt /things/", "data/*.txt src/s* /things/"
)


@pytest.fixture(scope="module")
def image(registry: RealRegistry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base image by its full name: the peer knows no mirror."""
    work = tmp_path_factory.mktemp("peer-base")
    name = f"{registry.host}/peer/base:1"
    push_tree(make_base(work), name, work)
    return name


def docker(*args: str) -> str:
    env = {**os.environ, "DOCKER_HOST": f"unix://{PEER}/docker.sock", "DOCKER_CONFIG": f"{PEER}/config"}
    program = shutil.which("docker", path=f"{PEER}/tree/usr/bin") or "docker"
    done = subprocess.run([program, *args], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def peer_steps(text: str) -> dict[str, str]:
    """What became of each step at the peer. One whose layers are fetched says CACHED, then DONE."""
    names = dict(re.findall(r"^(#\d+) (\[[^\]]*\d+/\d+\] .*)$", text, re.M))
    return {name: "CACHED" if f"\n{number} CACHED" in text else "DONE" for number, name in names.items() if "FROM" not in name}


@pytest.mark.parametrize("kind", ["registry", "local"])
def test_every_step_crosses_over(
    make_command: Callable[..., Command], registry: RealRegistry, image: str, context: Path, tmp_path: Path, kind: str
) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(TEXT.replace("FROM alpine", f"FROM {image}"))
    build = ("-f", str(dockerfile), "--progress=plain")

    def to(name: str) -> str:
        ref = f"ref={registry.host}/peer/{name}:1" if kind == "registry" else f"dest={tmp_path}/{name}"
        return f"type={kind},{ref},mode=max"

    def source(name: str) -> str:
        return to(name).replace("dest=", "src=").replace(",mode=max", "")

    docker("buildx", "prune", "-af")
    docker("buildx", "build", *build, "--cache-to", to("theirs"), str(context))
    ours = make_command(name="ours")
    found = steps(ours("build", *build, "--cache-from", source("theirs"), str(context)).ok())
    assert len(found) >= 12
    assert set(found.values()) == {"CACHED"}, found

    fresh = make_command(name="fresh")
    fresh("build", *build, "--cache-to", to("mine"), str(context)).ok()
    docker("buildx", "prune", "-af")
    found = peer_steps(docker("buildx", "build", *build, "--cache-from", source("mine"), str(context)))
    assert len(found) >= 12
    assert set(found.values()) == {"CACHED"}, found
