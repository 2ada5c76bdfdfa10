# SPDX-License-Identifier: Apache-2.0
"""A builder of two nodes: each builds its platforms, the registry gets one index of both; and pushes of a Docker engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry, run_ok
from ..daemon.conftest import Chantierd, _starter, _stop_all
from .peers import Engine

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]
TEXT = "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /which\n"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, registry: RealRegistry, base: str) -> Iterator[list[Chantierd]]:
    start, started = _starter(tmp_path_factory.mktemp("daemons"), registry)
    yield [start("", name="one"), start("", name="two")]
    _stop_all(started)


@pytest.fixture
def command(tmp_path: Path, nodes: list[Chantierd]) -> Command:
    env = {"BUILDX_CONFIG": str(tmp_path / "buildx"), "DOCKER_CONFIG": str(tmp_path / "docker")}
    found = Command(root=tmp_path / "state", config=nodes[0].config, env=env)
    found("create", "--name", "two", "--platform", "linux/amd64", "--use", nodes[0].address).ok()
    found("create", "--name", "two", "--append", "--platform", "linux/arm64", nodes[1].address).ok()
    return found


@pytest.fixture
def context(tmp_path: Path) -> Path:
    where = tmp_path / "context"
    where.mkdir()
    for name in ("amd64", "arm64"):
        (where / name).write_text(name)
    return where


def raw(image: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{image}"))
    return found


def test_one_index_of_what_two_nodes_pushed(command: Command, registry: RealRegistry, context: Path, tmp_path: Path) -> None:
    names = [f"{registry.host}/several/app:{tag}" for tag in ("1", "2")]
    metadata = tmp_path / "md.json"
    done = command.build(
        TEXT, "--platform", "linux/amd64,linux/arm64", "--provenance=false", "-t", names[0], "-t", names[1], "--push",
        "--annotation", "index:who=us", "--metadata-file", str(metadata), context=context,
    ).ok()  # fmt: skip
    assert f"merging manifest list {','.join(names)}" in done.err
    index = raw(names[0])
    assert raw(names[1]) == index
    assert index["annotations"] == {"who": "us"}
    manifests = index["manifests"]
    assert isinstance(manifests, list)
    found = {m["platform"]["architecture"]: m["digest"] for m in manifests}
    assert set(found) == {"amd64", "arm64"} and len(manifests) == 2
    digest = run_ok("skopeo", "inspect", "--format", "{{.Digest}}", "--tls-verify=false", f"docker://{names[0]}").strip()
    assert json.loads(metadata.read_text())["containerimage.digest"] == digest
    for arch, one in found.items():
        layout = tmp_path / arch
        image = f"{registry.host}/several/app@{one}"
        run_ok("skopeo", "copy", "-q", "--src-tls-verify=false", "--override-arch", arch, f"docker://{image}", f"oci:{layout}:a")
        run_ok("umoci", "raw", "unpack", "--image", f"{layout}:a", tmp_path / f"{arch}-tree")
        assert (tmp_path / f"{arch}-tree/which").read_text() == arch


def test_each_node_builds_its_own_platform_only(command: Command, nodes: list[Chantierd], context: Path, tmp_path: Path) -> None:
    command.build(TEXT + "LABEL alone=1\n", "--platform", "linux/arm64", "-o", str(tmp_path / "out"), context=context).ok()
    assert (tmp_path / "out/which").read_text() == "arm64"
    done = command.build(TEXT, "--platform", "linux/amd64,linux/arm64", "-o", str(tmp_path / "both"), context=context).ok()
    assert {p.name: (p / "which").read_text() for p in (tmp_path / "both").iterdir()} == {
        "linux_amd64": "amd64", "linux_arm64": "arm64",
    }, done.err  # fmt: skip
    refused = command.build(
        TEXT, "--platform", "linux/amd64,linux/arm64", "-o", f"type=oci,dest={tmp_path}/x.tar", context=context
    )
    assert refused.code == 1 and "oci for multi-node builds currently not supported" in refused.err


def test_a_node_comes_and_goes(command: Command, tmp_path: Path) -> None:
    gone = tmp_path / "gone.sock"
    command("create", "--name", "two", "--append", "--node", "third", "--platform", "linux/s390x", f"unix://{gone}").ok()
    listed = command("ls", "--format", "{{.Name}} {{.Status}}").ok().out.splitlines()
    assert {"two0 running", "two1 running", "third inactive"} <= set(listed)
    assert command("create", "--name", "two", "--leave", "--node", "third").ok().out == "two\n"
    assert "third" not in command("inspect", "two").ok().out


@pytest.mark.docker
@pytest.mark.network
def test_a_docker_engine_pushes(docker_engine: Engine, registry: RealRegistry, context: Path, tmp_path: Path) -> None:
    """Through the engine's own BuildKit, which has no exporter that pushes: the engine pushes the names it then has."""
    env = {"BUILDX_CONFIG": str(tmp_path / "bx"), "DOCKER_CONFIG": str(tmp_path / "dc"), "DOCKER_HOST": docker_engine.address}
    command = Command(root=tmp_path / "state", config=tmp_path / "none.toml", env=env)
    name = f"{registry.host}/several/docker:1"
    done = command.build(TEXT, "--builder", "default", "-t", name, "--push", context=context).ok()
    assert f"pushing {name} with docker" in done.err
    inspected = json.loads(run_ok("skopeo", "inspect", "--tls-verify=false", f"docker://{name}"))
    assert inspected["Architecture"] == "amd64"
    assert done.out.strip() == inspected["Digest"]
    refused = command.build(TEXT, "--builder", "default", "-t", name, "--platform", "linux/amd64,linux/arm64", context=context)
    assert refused.code == 1 and "Multi-platform build is not supported for the docker driver" in refused.err
