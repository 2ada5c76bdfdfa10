# SPDX-License-Identifier: Apache-2.0
"""The page's image with CNI plugins, built by us from a Dockerfile of its shape, and a builder whose steps have addresses."""

from __future__ import annotations

import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry, make_base, push_tree, run_ok, write_config
from .peers import Engine

pytestmark = [
    pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.network, pytest.mark.docker, pytest.mark.cni,
    pytest.mark.slow, pytest.mark.timeout(900),
]  # fmt: skip
PLUGINS = Path("/usr/lib/cni")
DOCKERFILE = """# syntax=docker/dockerfile:1

ARG BUILDKIT_VERSION=v0.32.2
ARG CNI_VERSION=v1.1.1

FROM --platform=$BUILDPLATFORM alpine AS cni-plugins
RUN apk add --no-cache curl
ARG CNI_VERSION
ARG TARGETOS
ARG TARGETARCH
WORKDIR /opt/cni/bin
RUN curl -Ls SITE/plugins/download/$CNI_VERSION/cni-plugins-$TARGETOS-$TARGETARCH-$CNI_VERSION.tgz | tar xzv

FROM moby/buildkit:${BUILDKIT_VERSION}
ARG BUILDKIT_VERSION
RUN apk add --no-cache iptables
COPY --from=cni-plugins /opt/cni/bin /opt/cni/bin
ADD SITE/buildkit/${BUILDKIT_VERSION}/cni.json /etc/buildkit/cni.json
"""
NETWORK = """{
  "cniVersion": "1.0.0",
  "name": "steps",
  "plugins": [
    {"type": "loopback"},
    {
      "type": "bridge", "bridge": "steps0", "isGateway": true, "ipMasq": true,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "firewall"}
  ]
}
"""
APK = '#!/bin/sh\n[ "$1" = add ]\n'
CURL = '#!/bin/sh\nfor last; do :; done\nexec wget -q -O - "$last"\n'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """Where the downloads of the Dockerfile come from here."""
    where = tmp_path / "site"
    plugins = where / "plugins/download/v1.1.1"
    plugins.mkdir(parents=True)
    with tarfile.open(plugins / "cni-plugins-linux-amd64-v1.1.1.tgz", "w:gz") as tar:
        for plugin in ("bridge", "host-local", "loopback", "portmap", "firewall"):
            tar.add(PLUGINS / plugin, plugin)
    config = where / "buildkit/v0.32.2"
    config.mkdir(parents=True)
    (config / "cni.json").write_text(NETWORK)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(where)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def images(registry: RealRegistry, builder_archive: Path, tmp_path: Path) -> str:
    """Stand-ins for `moby/buildkit` (our builder) and `alpine`, each with a package manager that has all one asks for."""
    program = tmp_path / "apk"
    program.write_text(APK)
    program.chmod(0o755)
    layout = tmp_path / "builder"
    run_ok("skopeo", "copy", "-q", f"docker-archive:{builder_archive}", f"oci:{layout}:b")
    run_ok("umoci", "insert", "--image", f"{layout}:b", str(program), "/sbin/apk")
    name = f"docker://{registry.host}/moby/buildkit:v0.32.2"
    run_ok("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:b", name)
    shutil.rmtree(layout)
    root = make_base(tmp_path / "alpine")
    (root / "sbin").mkdir()
    shutil.copy(program, root / "sbin/apk")
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/curl").write_text(CURL)
    (root / "usr/bin/curl").chmod(0o755)
    push_tree(root, f"{registry.host}/cni/alpine:1", tmp_path / "alpine")
    return f"alpine=docker-image://{registry.host}/cni/alpine:1"


@pytest.fixture
def command(tmp_path: Path, builder_engine: Engine, registry: RealRegistry) -> Iterator[Command]:
    env = {
        "BUILDX_CONFIG": str(tmp_path / "buildx"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "DOCKER_HOST": builder_engine.address,
    }
    found = Command(root=tmp_path / "state", config=write_config(tmp_path / "chantierd.toml", registry), env=env)
    yield found
    found("rm", "box")


def test_steps_have_addresses_of_their_own(command: Command, site: str, images: str, tmp_path: Path) -> None:
    command.build(
        DOCKERFILE.replace("SITE", site), "--build-context", images, "--network=host", "--allow=network.host",
        "--tag", "buildkit-cni:local", "--load", timeout=400,
    ).ok()  # fmt: skip
    command(
        "create", "--name", "box", "--bootstrap", "--driver", "docker-container", "--driver-opt", "image=buildkit-cni:local",
        "--buildkitd-flags", "--oci-worker-net=cni", "--use", timeout=200,
    ).ok()  # fmt: skip
    context = tmp_path / "context"
    context.mkdir()
    with tarfile.open(context / "root.tar", "w") as tar:
        tar.add(make_base(tmp_path / "base"), "/")
    (context / "Dockerfile").write_text(
        "FROM scratch AS base\nADD root.tar /\n"
        "FROM base AS one\nRUN ip -o addr > /one; nc -l -p 8080 -e true & sleep 2; netstat -ltn > /ports\n"
        "FROM base AS two\nRUN ip -o addr > /two; nc -l -p 8080 -e true & sleep 2; netstat -ltn | grep -q :8080\n"
        "FROM scratch\nCOPY --from=one /one /ports /\nCOPY --from=two /two /\n"
    )
    command("build", "--progress=plain", "-o", str(tmp_path / "out"), str(context), timeout=200).ok()
    addresses = {name: re.findall(r"inet (10\.77\.0\.\d+)/24", (tmp_path / "out" / name).read_text()) for name in ("one", "two")}
    assert [len(found) for found in addresses.values()] == [1, 1], addresses
    assert addresses["one"] != addresses["two"]
    assert ":8080" in (tmp_path / "out/ports").read_text()
