# SPDX-License-Identifier: Apache-2.0
"""The page "Configure BuildKit" walked with a real dockerd: our builder image, configs, certificates, both tools on one store."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from chantier.testing.registry import FakeRegistry

from ..conftest import Command, Done, RealRegistry, start_registry
from .conftest import BUILDER_IMAGE
from .peers import Engine

pytestmark = [
    pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.network, pytest.mark.docker, pytest.mark.slow,
    pytest.mark.timeout(900),
]  # fmt: skip


@pytest.fixture
def engine(builder_engine: Engine) -> Engine:
    return builder_engine


@pytest.fixture
def command(tmp_path: Path, engine: Engine, registry: RealRegistry, base: str) -> Iterator[Command]:
    env = {"BUILDX_CONFIG": str(tmp_path / "buildx"), "DOCKER_CONFIG": str(tmp_path / "docker"), "DOCKER_HOST": engine.address}
    (tmp_path / "none.toml").write_text("")
    found = Command(root=tmp_path / "state", config=tmp_path / "none.toml", env=env)
    yield found
    for name in ("box", "other"):
        found("rm", name)


def create(command: Command, name: str, config: Path, *more: str) -> Done:
    opts = f"image={BUILDER_IMAGE},network=host"
    args = ("--driver", "docker-container", "--driver-opt", opts, "--buildkitd-config", str(config), "--bootstrap")
    return command("create", "--name", name, *args, *more, timeout=300).ok()


def test_a_mirror(command: Command, engine: Engine, registry: RealRegistry, tmp_path: Path, counting: FakeRegistry) -> None:
    config = tmp_path / "buildkitd.toml"
    config.write_text(
        f'debug = true\n[registry."docker.io"]\nmirrors = ["{registry.host}"]\n[registry."{registry.host}"]\nhttp = true\n'
        f'[registry."{counting.authority}"]\nhttp = true\n[worker.oci]\nmax-parallelism = 4\n'
    )
    made = create(command, "box", config)
    assert made.out == "box\n" and "creating container buildx_buildkit_box0" in made.err
    command.build("FROM alpine\nRUN echo in > /the-box\n", "--builder", "box", "-o", str(tmp_path / "out")).ok()
    assert (tmp_path / "out/the-box").read_text() == "in\n"
    _the_mirror_answered(engine.docker("logs", "buildx_buildkit_box0", check=False), registry.host)
    stored = engine.docker("exec", "buildx_buildkit_box0", "cat", "/etc/buildkit/buildkitd.toml")
    assert f"[registry.'docker.io']\nmirrors = ['{registry.host}']" in stored
    host = engine.docker("inspect", "--format", "{{.HostConfig.Privileged}}", "buildx_buildkit_box0")
    assert host.strip() == "false"
    _four_steps_at_a_time(command, tmp_path)
    _four_connections_for_blobs_and_one_for_metadata(command, counting, tmp_path)
    _change(command, engine, config)
    command("stop", "box").ok()
    assert "box0 stopped" in command("ls", "--format", "{{.Name}} {{.Status}}").ok().out
    command.build("FROM alpine\nRUN echo in > /the-box\n", "--builder", "box", "-o", str(tmp_path / "out")).ok()
    command("rm", "box").ok()
    assert engine.docker("ps", "-aq").strip() == "" and engine.docker("volume", "ls", "-q").strip() == ""


def _the_mirror_answered(log: str, mirror: str) -> None:
    """Requests and answers with their headers, as the page shows them."""
    asked = [line for line in log.splitlines() if 'msg="do request"' in line and f"host={mirror}" in line.replace('"', "")]
    assert any("request.method=HEAD" in line or "request.method=GET" in line for line in asked), log
    answers = [line for line in log.splitlines() if 'msg="fetch response received"' in line]
    good = [line for line in answers if 'response.status="200 OK"' in line and mirror in line]
    headers = {name for line in good for name in re.findall(r"response\.header\.([\w-]+)=", line)}
    assert {"content-length", "content-type", "date", "docker-content-digest", "docker-distribution-api-version"} <= headers
    assert f"http://{mirror}/v2/library/alpine/manifests/latest?ns=docker.io" in log


_STAGE = 'FROM alpine AS s{0}\nRUN cut -d" " -f1 /proc/uptime >/t{0}; sleep 1.5; cut -d" " -f1 /proc/uptime >>/t{0}\n'


def _four_steps_at_a_time(command: Command, tmp_path: Path) -> None:
    text = "".join(_STAGE.format(i) for i in range(12)) + "FROM scratch\n"
    text += "".join(f"COPY --from=s{i} /t{i} /\n" for i in range(12))
    command.build(text, "--builder", "box", "-o", str(tmp_path / "times")).ok()
    points = []
    for i in range(12):
        begun, ended = (tmp_path / f"times/t{i}").read_text().split()
        points += [(float(begun), 1), (float(ended), -1)]
    most = now = 0
    for _, change in sorted(points):
        now += change
        most = max(most, now)
    assert 2 < most <= 4


@pytest.fixture
def counting() -> Iterator[FakeRegistry]:
    """With an image of twelve layers that take their time."""
    with FakeRegistry(delay_s=0.3) as found:
        found.add_image("many", "1", [_layer(i) for i in range(12)])
        yield found


def _layer(number: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        data = str(number).encode() * 1000
        info = tarfile.TarInfo(f"f{number}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _four_connections_for_blobs_and_one_for_metadata(command: Command, counting: FakeRegistry, tmp_path: Path) -> None:
    image = f"{counting.authority}/many:1"
    text = f"FROM {image} AS one\nFROM scratch\nCOPY --from=one / /\n"
    command.build(text, "--builder", "box", "-o", str(tmp_path / "many")).ok()
    assert len(list((tmp_path / "many").iterdir())) == 12
    assert counting.peak_blobs == 4
    assert counting.peak_metadata == 1


def _change(command: Command, engine: Engine, config: Path) -> None:
    config.write_text(config.read_text().replace("max-parallelism = 4", "max-parallelism = 2"))
    done = command("update", "box", "--config", str(config)).ok()
    assert "-max-parallelism = 4" in done.out and "+max-parallelism = 2" in done.out
    assert "box0: applied" in done.err
    config.write_text("[worker.oci]\nmax-paralelism = 2\n")
    wrong = command("update", "box", "--config", str(config))
    assert wrong.code == 1 and "max-parallelism" in wrong.err
    assert "max-parallelism = 2" in engine.docker("exec", "buildx_buildkit_box0", "cat", "/etc/buildkit/buildkitd.toml")


def test_a_daemon_that_does_not_start(command: Command, engine: Engine) -> None:
    args = ("--driver", "docker-container", "--driver-opt", f"image={BUILDER_IMAGE}", "--buildkitd-flags", "--nonsense")
    done = command("create", "--name", "box", *args, "--bootstrap", timeout=300)
    assert done.code == 1
    assert (
        "ERROR: failed to boot builder buildx_buildkit_box0: the daemon ended: chantierd: unrecognized arguments: --nonsense"
        in done.err
    )
    done = command("create", "--name", "other", "--driver", "docker-container", "--driver-opt", "image=no/such:1", "--bootstrap")
    assert done.code == 1
    assert "ERROR: failed to pull image no/such:1, which the Docker engine does not have: " in done.err


def test_certificates_travel(command: Command, engine: Engine, registry: RealRegistry, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for stem, name in (("server", "127.0.0.1"), ("client", "me@client.test")):
        pair = authority.issue_cert(name)
        pair.private_key_pem.write_to_path(tmp_path / f"{stem}.key")
        pair.cert_chain_pems[0].write_to_path(tmp_path / f"{stem}.pem")
    tls = f"  tls:\n    certificate: {tmp_path}/server.pem\n    key: {tmp_path}/server.key\n    clientcas: [{tmp_path}/ca.pem]\n"
    safe = start_registry(tmp_path / "safe", tls)
    base = f'[registry."docker.io"]\nmirrors = ["{registry.host}"]\n[registry."{registry.host}"]\nhttp = true\n'
    certs = f'ca = ["{tmp_path}/ca.pem"]\n[[registry."{safe.host}".keypair]]\nkey = "{tmp_path}/client.key"\ncert = "{tmp_path}/client.pem"\n'
    try:
        (tmp_path / "with.toml").write_text(base + f'[registry."{safe.host}"]\nhttp = false\n' + certs)
        (tmp_path / "without.toml").write_text(base)
        create(command, "box", tmp_path / "with.toml")
        folder = f"certs/{safe.host.replace(':', '_')}"
        listed = engine.docker("exec", "buildx_buildkit_box0", "ls", f"/etc/buildkit/{folder}").split()
        assert listed == ["ca.pem", "client.key", "client.pem"]
        stored = engine.docker("exec", "buildx_buildkit_box0", "cat", "/etc/buildkit/buildkitd.toml")
        assert f"ca = ['/etc/buildkit/{folder}/ca.pem']" in stored
        text = "FROM alpine\nRUN echo safe\n"
        done = command.build(text, "--builder", "box", "-t", f"{safe.host}/app:1", "--push").ok()
        assert done.out.startswith("sha256:")
        create(command, "other", tmp_path / "without.toml")
        refused = command.build(text, "--builder", "other", "-t", f"{safe.host}/app:2", "--push")
        assert refused.code == 1 and safe.host in refused.err
        (tmp_path / "client.key").write_bytes((tmp_path / "server.key").read_bytes())
        wrong = command(
            "create", "--name", "wrong", "--driver", "docker-container", "--buildkitd-config", str(tmp_path / "with.toml")
        )
        assert wrong.code == 1 and "is not that of the certificate" in wrong.err
        assert "wrong" not in command("ls", "--format", "{{.Name}}").ok().out
    finally:
        safe.stop()


def test_stock_buildx_uses_what_we_made_and_the_other_way_round(command: Command, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("debug = true\n")
    create(command, "box", tmp_path / "empty.toml")
    plugin = engine.programs / "usr/libexec/docker/cli-plugins/docker-buildx"

    def buildx(*args: str) -> str:
        done = subprocess.run(
            [plugin, *args], env=command.environment(), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    context = tmp_path / "c"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /d\n")
    assert "box0" in buildx("ls") and "running" in buildx("ls")
    buildx("build", "--builder", "box", "-o", str(tmp_path / "theirs"), str(context))
    assert (tmp_path / "theirs/d").exists()
    command("rm", "box").ok()
    buildx("create", "--name", "other", "--driver", "docker-container", "--driver-opt", f"image={BUILDER_IMAGE}", "--use")
    assert "other*" in command("ls").ok().out
    command("build", "-o", str(tmp_path / "ours"), str(context), timeout=200).ok()  # not booted yet, and chosen
    assert (tmp_path / "ours/d").exists()
