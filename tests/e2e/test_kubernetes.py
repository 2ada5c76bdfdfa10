# SPDX-License-Identifier: Apache-2.0
"""Builds in a cluster: an API server of ours with our daemon behind its pods, driven by our driver and by a real kubectl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from chantier.testing.kubernetes import FakeCluster

from ..conftest import Command, RealRegistry
from ..daemon.conftest import Chantierd, _starter, _stop_all
from .peers import unpacked

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, registry: RealRegistry, base: str) -> Iterator[Chantierd]:
    start, started = _starter(tmp_path_factory.mktemp("daemon"), registry)
    yield start("", "--debug")
    _stop_all(started)


@dataclass
class Place:
    cluster: FakeCluster
    command: Command
    kubeconfig: Path

    def kubectl(self, *args: str, stdin: str = "") -> str:
        argv = [str(unpacked() / "usr/bin/kubectl"), f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self.command.root}", *args]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def place(tmp_path: Path, daemon: Chantierd) -> Iterator[Place]:
    def inside(pod: str, argv: Sequence[str]) -> Sequence[str]:
        assert argv[0] == "buildctl"
        return [sys.executable, "-m", "chantier", "buildctl", "--addr", daemon.address, *argv[1:]]

    with FakeCluster(inside) as cluster:
        kubeconfig = cluster.kubeconfig(tmp_path / "kubeconfig", namespace="ci")
        env = {
            "BUILDX_CONFIG": str(tmp_path / "buildx"),
            "DOCKER_CONFIG": str(tmp_path / "docker"),
            "KUBECONFIG": str(kubeconfig),
            "PATH": f"{unpacked()}/usr/bin:{os.environ['PATH']}",
        }
        yield Place(cluster, Command(root=tmp_path / "state", config=daemon.config, env=env), kubeconfig)


TEXT = "FROM alpine\nRUN echo in the cluster > /said\n"


def test_a_builder_and_what_kubectl_sees_of_it(place: Place, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("debug = true\n")
    command = place.command
    made = command(
        "create", "--name", "kube", "--driver", "kubernetes", "--driver-opt", "replicas=2,timeout=120s,requests.cpu=500m",
        "--buildkitd-config", str(tmp_path / "b.toml"), "--bootstrap", "--use",
    ).ok()  # fmt: skip
    assert made.out == "kube\n" and "waiting for 2 pods to be ready, timeout: 2 minutes" in made.err
    pods = place.kubectl("get", "pods", "-l", "app=kube0", "-o", "name").split()
    assert len(pods) == 2
    command.build(TEXT, "-o", str(tmp_path / "out")).ok()
    assert (tmp_path / "out/said").read_text() == "in the cluster\n"
    listed = command("ls", "--format", "{{.Name}} {{.DriverEndpoint}} {{.Status}}").ok().out
    assert "kube kubernetes " in listed and "running" in listed
    (shown,) = json.loads(place.kubectl("get", "deployment", "-o", "json"))["items"]
    (container,) = shown["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "500m"}}
    assert place.kubectl("get", "configmap", "kube0-config", "-o", r"jsonpath={.data.buildkitd\.toml}") == "debug = true\n"
    assert "linux/amd64" in place.kubectl("exec", pods[0], "--", "buildctl", "debug", "workers")
    # The same pod as a remote builder: kubectl carries the connection.
    address = f"kube-pod://{pods[1].removeprefix('pod/')}?namespace=ci"
    command.build(TEXT, "--builder", address, "-o", str(tmp_path / "remote")).ok()
    assert (tmp_path / "remote/said").read_text() == "in the cluster\n"
    command("rm", "kube").ok()
    assert place.kubectl("get", "pods,deployments,configmaps", "-o", "name") == ""


def test_what_kubectl_made_is_used(place: Place) -> None:
    """A workload that is there already is left as it is."""
    from chantier.driver.group import Node
    from chantier.driver.kube_manifest import options_of, workload

    one = Node(name="own0", endpoint="kubernetes:///own", driver_opts={}, flags=())
    made = workload(one, options_of(one))
    made["metadata"]["annotations"] = {"mine": "yes"}
    assert place.kubectl("create", "--validate=false", "-f", "-", stdin=json.dumps(made)) == "deployment.apps/own0 created\n"
    place.command("create", "--name", "own", "--driver", "kubernetes", "--bootstrap").ok()
    (found,) = place.cluster.objects("deployments")
    assert found["metadata"]["annotations"] == {"mine": "yes"}


def test_a_pod_that_dies_during_a_build(place: Place, tmp_path: Path) -> None:
    """The build says so, soon; the next one goes to another pod."""
    command = place.command
    command("create", "--name", "kube", "--driver", "kubernetes", "--driver-opt", "replicas=2", "--bootstrap", "--use").ok()
    first, second = (p["metadata"]["name"] for p in place.cluster.objects("pods"))
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM alpine\nRUN echo begun; sleep 600\n")
    building = subprocess.Popen(
        command.argv("build", "--progress=plain", str(context)), env=command.environment(), stderr=subprocess.PIPE, text=True
    )
    assert building.stderr is not None
    said = ""
    while "begun\n" not in said.partition("RUN echo begun; sleep 600\n")[2]:
        line = building.stderr.readline()
        assert line, said
        said += line
    busy = next(p for p in (first, second) if place.cluster.busy(p))
    place.cluster.kill(busy)
    said += building.communicate(timeout=300)[1]
    assert building.returncode == 1
    assert f"pod {busy}" in said.rpartition("ERROR: ")[2], said
    assert "hint: the next build goes to another pod" in said
    (context / "Dockerfile").write_text(TEXT)
    command("build", "-o", str(tmp_path / "out"), str(context)).ok()
    assert (tmp_path / "out/said").exists()
