# SPDX-License-Identifier: Apache-2.0
"""Manifests that Kubernetes' own schemas accept, and the driver against an API server."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from chantier.driver.group import Node
from chantier.driver.kube_manifest import config_maps, options_of, workload
from chantier.driver.kube_pick import sticky
from chantier.driver.kubernetes import Kubernetes
from chantier.driver.node import INACTIVE, RUNNING, STOPPED, NotRunning
from chantier.errors import ChantierError, UsageError
from chantier.pb import control_pb2
from chantier.progress import Recorder, Silent, Vertex
from chantier.spec import Platform
from chantier.testing.kubernetes import FakeCluster
from chantier.wire import Server, Service

FILES = {"buildkitd.toml": b"debug = true\n", "certs/reg_5000/ca.pem": b"PEM", "certs/other/key.der": b"\xff\x00"}


def node(**opts: str) -> Node:
    return Node(
        name="my_node0",
        endpoint="kubernetes:///b",
        driver_opts={k.replace("__", "-").replace("_", "."): v for k, v in opts.items()},
        flags=("--allow-insecure-entitlement=network.host",),
        files=FILES,
        platforms=(Platform("linux", "amd64"), Platform("linux", "arm64")),
    )


VARIANTS: list[dict[str, str]] = [
    {},
    {"rootless": "true", "buildkit__root__volume__memory": "1Gi"},
    {"buildkit__root__volume__memory": "512Mi", "privileged": "false"},
    {"persistent__volume__claim_requests_storage": "10Gi", "replicas": "3"},
    {"requests_cpu": "500m", "limits_memory": "2Gi", "qemu_install": "true", "serviceaccount": "sa", "schedulername": "s"},
    {
        "nodeselector": '"a=b,c=d"',
        "tolerations": "key=k,operator=Exists,effect=NoExecute,tolerationSeconds=60;key=x",
        "env_A": "1",
    },
    {"annotations": "note=1", "labels": "team=x"},
]


@pytest.mark.parametrize("opts", VARIANTS)
def test_manifests_are_valid(opts: dict[str, str]) -> None:
    one = node(**opts)
    for body in [workload(one, options_of(one)), *config_maps(one, options_of(one))]:
        kubernetes_validate.validate(body, "1.31", strict=True)


def test_what_is_in_a_manifest() -> None:
    one = node()
    made = workload(one, options_of(one))
    assert made["kind"] == "Deployment" and made["metadata"]["name"] == "my-node0"
    assert made["metadata"]["annotations"] == {"buildx.docker.com/platform": "linux/amd64,linux/arm64"}
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"] == {"privileged": True}
    assert container["args"] == ["--allow-insecure-entitlement=network.host"]
    assert {m["mountPath"] for m in container["volumeMounts"]} == {
        "/etc/buildkit", "/etc/buildkit/certs/other", "/etc/buildkit/certs/reg_5000",
    }  # fmt: skip
    maps = config_maps(one, options_of(one))
    assert [m["metadata"]["name"] for m in maps] == ["my-node0-config", "my-node0-config-1", "my-node0-config-2"]
    assert maps[0]["data"] == {"buildkitd.toml": "debug = true\n"}
    assert maps[1]["binaryData"] == {"key.der": "/wA="}


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ({"foo": "1"}, "invalid driver option foo for driver kubernetes"),
        ({"loadbalance": "x"}, 'invalid loadbalance "x"'),
        ({"labels": "app=x"}, 'the label "app" is reserved and cannot be customized'),
        ({"tolerations": "key=a,other=b"}, 'invalid tolaration "other=b"'),
        ({"replicas": "none"}, "invalid value 'none' of replicas"),
        ({"requests_cpu": "many"}, "invalid value 'many' of requests.cpu"),
        ({"timeout": "soon"}, "invalid value 'soon' of timeout"),
    ],
)
def test_options_that_cannot_be(opts: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError) as found:
        options_of(node(**opts))
    assert text in str(found.value)


def test_the_ring_is_that_of_buildx() -> None:
    pods = [f"ks0-abc{i}" for i in range(7)]
    assert sticky(pods, "/tmp/bxhome/h8/ctx4") == "ks0-abc5"
    assert sticky(pods, "/tmp/bxhome/h8/ctx2") == "ks0-abc1"


def driver(kubeconfig: Path, **opts: str) -> Kubernetes:
    return Kubernetes("b", node(**opts), env={"KUBECONFIG": str(kubeconfig)})


def test_life_of_a_node(tmp_path: Path) -> None:
    async def work(cluster: FakeCluster) -> None:
        one = driver(cluster.kubeconfig(tmp_path / "kc"), replicas="2", namespace="ci")
        assert await one.status() == INACTIVE
        seen = Recorder()
        await one.boot(seen)
        await one.boot(seen)  # there is nothing more to do
        assert await one.status() == RUNNING
        assert {e.name for e in seen.events if isinstance(e, Vertex)} == {"[internal] booting buildkit"}
        assert len(cluster.objects("configmaps")) == 3
        assert [p["metadata"]["namespace"] for p in cluster.objects("pods")] == ["ci", "ci"]
        first = (await one.pods())[0].metadata.name
        cluster.kill(first)
        assert first not in [p.metadata.name for p in await one.pods()]
        await one.remove()
        assert cluster.objects("deployments") == [] and cluster.objects("configmaps") == [] and cluster.objects("pods") == []
        with pytest.raises(NotRunning, match="no running buildkit pods found"):
            await one.client()
        await one.close()

    with FakeCluster() as cluster:
        asyncio.run(work(cluster))


def test_pods_that_never_become_ready(tmp_path: Path) -> None:
    async def work(cluster: FakeCluster) -> None:
        one = driver(cluster.kubeconfig(tmp_path / "kc"), timeout="300ms")
        with pytest.raises(ChantierError, match="expected 1 replicas to be ready, got 0"):
            await one.boot(Silent())
        assert await one.status() == STOPPED
        await one.close()

    with FakeCluster(ready=False) as cluster:
        asyncio.run(work(cluster))


def test_an_api_server_that_is_not_there(tmp_path: Path) -> None:
    with FakeCluster() as cluster:
        path = cluster.kubeconfig(tmp_path / "kc")
    one = driver(path)
    with pytest.raises(ChantierError, match="failed to reach the Kubernetes API at"):
        asyncio.run(one.status())


_RELAY = """import os, socket, sys, threading
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
def back():
    while data := s.recv(65536): os.write(1, data)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
while data := os.read(0, 65536): s.sendall(data)
"""


def test_grpc_over_exec_and_a_pod_that_dies(tmp_path: Path) -> None:
    address = tmp_path / "s"

    def exec_(pod: str, argv: Sequence[str]) -> Sequence[str]:
        assert list(argv) == ["buildctl", "dial-stdio"]
        return [sys.executable, "-c", _RELAY, str(address)]

    async def info(request: Any, call: Any) -> control_pb2.InfoResponse:
        made = control_pb2.InfoResponse()
        made.buildkitVersion.version = "v1.2.3"
        return made

    asked = asyncio.Event()

    async def workers(request: Any, call: Any) -> control_pb2.ListWorkersResponse:
        asked.set()
        await asyncio.sleep(3600)
        raise AssertionError

    async def work(cluster: FakeCluster) -> None:
        server = Server([Service("moby.buildkit.v1.Control", {"Info": info, "ListWorkers": workers})])
        await server.listen(f"unix://{address}")
        one = driver(cluster.kubeconfig(tmp_path / "kc"))
        await one.boot(Silent())
        async with await one.client(sticky="/ctx") as client:
            found = await client.version(timeout_s=30)
            assert found is not None and found.version == "v1.2.3"
            waiting = asyncio.create_task(client.workers())
            await asyncio.wait_for(asked.wait(), 60)
            await asyncio.to_thread(cluster.kill, one.pod)
            with pytest.raises(ChantierError, match=f"pod {one.pod}"):
                await asyncio.wait_for(waiting, 60)
        await one.close()
        with contextlib.suppress(Exception):
            await server.close(0)

    with FakeCluster(exec_) as cluster:
        asyncio.run(work(cluster))
