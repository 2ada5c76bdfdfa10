# SPDX-License-Identifier: Apache-2.0
"""`chantier build` on chantierd over every kind of address, with what a build takes of the user's machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from chantier.kernel.mounts import mount_points

from ..conftest import Command, Done, RealRegistry, free_port
from ..daemon.conftest import Chantierd, _starter, _stop_all

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("certs")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(where / "ca.pem")
    for name in ("127.0.0.1", "me@client.test"):
        pair = authority.issue_cert(name)
        stem = "server" if name == "127.0.0.1" else "client"
        pair.private_key_pem.write_to_path(where / f"{stem}.key")
        pair.cert_chain_pems[0].write_to_path(where / f"{stem}.pem")
    return where


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, registry: RealRegistry, base: str, certs: Path, port: int
) -> Iterator[Chantierd]:
    start, started = _starter(tmp_path_factory.mktemp("daemon"), registry)
    tls = ("--tlscacert", str(certs / "ca.pem"), "--tlscert", str(certs / "server.pem"), "--tlskey", str(certs / "server.key"))
    yield start("", "--addr", f"tcp://127.0.0.1:{port}", *tls)
    _stop_all(started)


@pytest.fixture
def command(tmp_path: Path, daemon: Chantierd) -> Command:
    """With a home of its own, and programs on PATH that reach the daemon as ssh, docker and kubectl would."""
    programs = tmp_path / "bin"
    programs.mkdir()
    relay = f"exec {sys.executable} -m chantier buildctl --addr {daemon.address} dial-stdio"
    for name in ("ssh", "docker", "kubectl"):
        (programs / name).write_text(f'#!/bin/sh\necho "$0 $*" >> {tmp_path}/calls\n{relay}\n')
        (programs / name).chmod(0o755)
    env = {
        "BUILDX_CONFIG": str(tmp_path / "buildx"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    return Command(root=tmp_path / "state", config=daemon.config, env=env)


TEXT = 'FROM alpine\nARG WHO\nRUN --mount=type=secret,id=s echo "hello $WHO $(cat /run/secrets/s)" > /out\n'


def build(command: Command, builder: str, out: Path, *more: str) -> Done:
    args = ("--build-arg", "WHO=you", "--secret", "id=s,env=S", "-o", f"type=local,dest={out}")
    return command.build(TEXT, "--builder", builder, *args, *more, env={"S": "secret"})


@pytest.mark.parametrize(
    "address",
    ["unix", "ssh://me@far.test/run/x.sock", "docker-container://box?context=far", "kube-pod://pod-1?namespace=ci"],
)
def test_every_kind_of_address(address: str, command: Command, daemon: Chantierd, tmp_path: Path) -> None:
    done = build(command, daemon.address if address == "unix" else address, tmp_path / "out").ok()
    assert (tmp_path / "out/out").read_text() == "hello you secret\n"
    assert "instance using remote driver" in done.err
    expected = {
        "ssh": "ssh -l me -- far.test buildctl --addr unix:///run/x.sock dial-stdio",
        "docker-container": "docker --context=far exec -i box buildctl dial-stdio",
        "kube-pod": "kubectl --context= --namespace=ci exec --container= -i pod-1 -- buildctl dial-stdio",
    }.get(address.partition("://")[0])
    if expected is not None:
        assert expected in (tmp_path / "calls").read_text()


def test_a_builder_behind_dial_stdio(command: Command, daemon: Chantierd, tmp_path: Path) -> None:
    """`chantier dial-stdio` stands where `buildctl dial-stdio` would: the builder of that machine is reached through it."""
    command("create", "--name", "there", daemon.address).ok()
    program = tmp_path / "bin/ssh"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -m chantier dial-stdio --builder there\n")
    build(command, "ssh://far.test", tmp_path / "out").ok()
    assert (tmp_path / "out/out").read_text() == "hello you secret\n"
    refused = command("dial-stdio", "--builder", "embedded")
    assert refused.code == 1 and "the embedded engine has no connection to proxy" in refused.err


def test_a_builder_on_tcp_with_client_certificates(
    command: Command, daemon: Chantierd, certs: Path, port: int, tmp_path: Path
) -> None:
    opts = f"cacert={certs}/ca.pem,cert={certs}/client.pem,key={certs}/client.key"
    command("create", "--name", "safe", "--use", "--driver-opt", opts, f"tcp://127.0.0.1:{port}").ok()
    command.build(TEXT, "--build-arg", "WHO=you", "--secret", "id=s,env=S", "-o", str(tmp_path / "out"), env={"S": "secret"}).ok()
    assert (tmp_path / "out/out").read_text() == "hello you secret\n"
    listed = command("ls", "--format", "{{.Name}} {{.Status}}").ok().out.splitlines()
    assert "safe0 running" in listed
    command("create", "--name", "bare", "--driver-opt", f"cacert={certs}/ca.pem", f"tcp://127.0.0.1:{port}").ok()
    refused = build(command, "bare", tmp_path / "no")
    assert refused.code == 1 and f"tcp://127.0.0.1:{port}" in refused.err
    assert "Traceback" not in refused.err


def test_a_failing_step_prints_its_place(command: Command, daemon: Chantierd) -> None:
    done = command.build("FROM alpine\nRUN echo before\nRUN echo lost >&2; exit 7\n", "--builder", daemon.address)
    assert done.code == 1
    assert "   3 | >>> RUN echo lost >&2; exit 7" in done.err
    text = 'process "/bin/sh -c echo lost >&2; exit 7" did not complete successfully: exit code: 7'
    assert f"ERROR: failed to build: failed to solve: {text}" in done.err
    assert done.err.count("lost") > 2  # the step's last lines stand above


def test_metadata_calls_and_images(command: Command, daemon: Chantierd, registry: RealRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/remote/app:1"
    made = command.build(
        "FROM alpine\nRUN echo 1\n", "--builder", daemon.address, "-t", name, "--push", "--metadata-file", f"{tmp_path}/m"
    ).ok()
    metadata = json.loads((tmp_path / "m").read_text())
    assert metadata["containerimage.digest"] == made.out.strip()
    assert metadata["image.name"] == name
    assert metadata["buildx.build.ref"].startswith(f"{daemon.address}/remote0/")
    checked = command.build("from alpine\nRUN echo 1\n", "--builder", daemon.address, "--check")
    assert checked.code == 1 and "WARNING: " in checked.out
    both = command.build(
        "FROM alpine\n",
        "--builder",
        daemon.address,
        "-o",
        f"type=oci,dest={tmp_path}/a.tar",
        "-o",
        f"type=tar,dest={tmp_path}/b.tar",
    ).ok()
    assert (tmp_path / "a.tar").stat().st_size and (tmp_path / "b.tar").stat().st_size
    assert "sending tarball" in both.err


def test_an_interrupt_stops_the_step(command: Command, daemon: Chantierd, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/Dockerfile").write_text("FROM alpine\nRUN echo started; sleep 300\n")
    argv = command.argv("build", "--progress=plain", "--builder", daemon.address, "--no-cache", str(tmp_path / "c"))
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(argv, env=command.environment(), stdout=log, stderr=log)
        end = time.monotonic() + 60
        while b" started" not in (tmp_path / "log").read_bytes():
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    text = (tmp_path / "log").read_text()
    assert "CANCELED" in text and "Traceback" not in text


def test_a_daemon_that_dies_is_named(command: Command, tmp_path: Path, registry: RealRegistry) -> None:
    start, started = _starter(tmp_path, registry)
    daemon = start()
    (tmp_path / "c").mkdir()
    (tmp_path / "c/Dockerfile").write_text("FROM alpine\nRUN echo started; sleep 300\n")
    argv = command.argv("build", "--progress=plain", "--builder", daemon.address, str(tmp_path / "c"))
    try:
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(argv, env=command.environment(), stdout=log, stderr=log)
            end = time.monotonic() + 60
            while b" started" not in (tmp_path / "log").read_bytes():
                assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.05)
            daemon.process.kill()
            assert process.wait(60) == 1
        text = (tmp_path / "log").read_text()
        assert f"connection to {daemon.address} ended" in text or f"session was lost: {daemon.address}" in text
        left = set(mount_points(daemon.root))
        assert left
        command.build("FROM alpine\nRUN true\n", "--builder", start().address).ok()  # the next daemon on that state
        assert not left & set(mount_points(daemon.root))
    finally:
        _stop_all(started)


def test_du_and_prune(command: Command, daemon: Chantierd) -> None:
    command.build("FROM alpine\nRUN echo 1 > /pruned\n", "--builder", daemon.address, "--no-cache").ok()
    rows = [json.loads(line) for line in command("du", "--builder", daemon.address, "--format", "json").ok().out.splitlines()]
    assert any("/pruned" in row["Description"] for row in rows)
    asked = command("prune", "--builder", daemon.address, stdin=b"n\n").ok()
    assert "WARNING! This will remove all dangling build cache" in asked.out and "Total:" not in asked.out
    only = ("--filter", f"id={next(row['ID'] for row in rows if '/pruned' in row['Description'])}")
    (gone,) = command("prune", "--builder", daemon.address, "--force", *only, "--format", "json").ok().out.splitlines()
    assert "/pruned" in json.loads(gone)["Description"]
    all_of_it = command("prune", "--builder", daemon.address, "--force", "--all").ok()
    assert "Total:\t" in all_of_it.out
    rows = [json.loads(line) for line in command("du", "--builder", daemon.address, "--format", "json").ok().out.splitlines()]
    assert not any("/pruned" in row["Description"] for row in rows)


def test_the_library(command: Command, daemon: Chantierd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import chantier

    for name, value in command.env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "c").mkdir()
    events: list[object] = []
    output = f"type=local,dest={tmp_path}/out"
    chantier.build(
        tmp_path / "c",
        builder=daemon.address,
        dockerfile_text="FROM alpine\nRUN echo 1 > /lib\n",
        outputs=[output],
        on_event=events.append,
    )
    assert (tmp_path / "out/lib").read_text() == "1\n" and events
    with pytest.raises(chantier.ChantierError) as found:
        chantier.build(tmp_path / "c", builder=daemon.address, dockerfile_text="FROM alpine\nRUN exit 3\n")
    assert found.value.sources[0].ranges[0].start == 2
    assert type(found.value.__cause__).__name__ == "StepError" and found.value.__cause__.exit_status == 3  # type: ignore[union-attr]
