# SPDX-License-Identifier: Apache-2.0
"""Debian 13's docker buildx, as it is, against chantierd: a remote builder on a unix socket, and on TCP with client certificates."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from ..conftest import RealRegistry, free_port, run_ok, start_registry, tree_of
from ..daemon.conftest import Chantierd, Start, _starter, _stop_all, mark, start_daemon, those_that_run
from ..daemon.test_life import report

__all__ = ["start_daemon"]  # a fixture of its own neighbours
pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.network, pytest.mark.slow]

_SCRIPT = Path(__file__).parents[2] / "scripts/get-buildx"


@pytest.fixture(scope="session")
def plugin() -> Path:
    """The program, unpacked once for a machine."""
    if named := os.environ.get("CHANTIER_TEST_BUILDX"):
        return Path(named)
    where = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chantier-tests/buildx"
    found = where / "usr/libexec/docker/cli-plugins/docker-buildx"
    if not found.exists():
        done = subprocess.run([_SCRIPT, where], capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
    return found


@dataclass
class Done:
    code: int
    out: str
    err: str

    def ok(self) -> Done:
        assert self.code == 0, self.err
        return self


@dataclass
class Buildx:
    """The program with a builder `b` of its own."""

    program: Path
    home: Path

    def argv(self, *args: str | Path) -> list[str]:
        return [str(self.program), *map(str, args)]

    def env(self, more: dict[str, str] | None = None) -> dict[str, str]:
        home = str(self.home)
        return {
            **os.environ,
            "HOME": home,
            "DOCKER_CONFIG": f"{home}/.docker",
            "DOCKER_HOST": "unix:///nonexistent",
            **(more or {}),
        }

    def __call__(self, *args: str | Path, env: dict[str, str] | None = None) -> Done:
        done = subprocess.run(self.argv(*args), capture_output=True, text=True, env=self.env(env), timeout=300, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    def build(self, context: Path, *args: str | Path, env: dict[str, str] | None = None) -> Done:
        return self("build", "--builder", "b", "--progress", "plain", *args, context, env=env)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, registry: RealRegistry, base: str) -> Iterator[Chantierd]:
    start, started = _starter(tmp_path_factory.mktemp("daemon"), registry)
    yield start("", "--debug")
    _stop_all(started)


@pytest.fixture
def buildx(plugin: Path, tmp_path: Path, daemon: Chantierd) -> Buildx:
    found = Buildx(plugin, tmp_path / "home")
    found.home.mkdir()
    found("create", "--name", "b", "--driver", "remote", daemon.address).ok()
    return found


def context(tmp_path: Path, dockerfile: str, **files: str) -> Path:
    where = tmp_path / "ctx"
    where.mkdir(exist_ok=True)
    (where / "Dockerfile").write_text(dockerfile)
    for name, text in files.items():
        (where / name).write_text(text)
    return where


STAGES = """FROM alpine AS build
ARG WHO=nobody
RUN echo "hello $WHO" > /greeting
COPY f /f
FROM scratch AS out
COPY --from=build /greeting /f /
"""


def test_inspect_shows_the_worker(buildx: Buildx) -> None:
    done = buildx("inspect", "--bootstrap", "b").ok()
    assert re.search(r"Status:\s+running", done.out)
    assert "linux/amd64" in done.out
    assert "org.mobyproject.buildkit.worker.executor" in done.out
    assert "GC Policy rule#0" in done.out


def test_stages_arguments_and_a_folder(buildx: Buildx, tmp_path: Path) -> None:
    where = context(tmp_path, STAGES, f="file")
    done = buildx.build(where, "--build-arg", "WHO=world", "-o", tmp_path / "out", "--metadata-file", tmp_path / "md").ok()
    assert (tmp_path / "out/greeting").read_text() == "hello world\n"
    assert (tmp_path / "out/f").read_text() == "file"
    assert re.search(r"#\d+ \[build 3/3\] COPY f /f\n#\d+ DONE", done.err)
    assert re.search(r"transferring context: \d+B done", done.err)
    assert "buildx.build.ref" in json.loads((tmp_path / "md").read_text())
    again = buildx.build(where, "--build-arg", "WHO=world", "-o", tmp_path / "out").ok()
    assert re.search(r"#\d+ \[build 2/3\] RUN .*\n#\d+ CACHED", again.err)


def test_files_of_images(buildx: Buildx, tmp_path: Path) -> None:
    where = context(tmp_path, STAGES, f="file")
    oci, docker, tar = tmp_path / "oci.tar", tmp_path / "docker.tar", tmp_path / "tree.tar"
    buildx.build(where, "-o", f"type=oci,dest={oci}", "--metadata-file", tmp_path / "md").ok()
    metadata = json.loads((tmp_path / "md").read_text())
    buildx.build(where, "-t", "test/x:1", "-o", f"type=docker,dest={docker}").ok()
    buildx.build(where, "-o", f"type=tar,dest={tar}").ok()
    for kind, file in (("oci-archive", oci), ("docker-archive", docker)):
        run_ok("skopeo", "copy", f"{kind}:{file}", f"oci:{tmp_path}/{kind}:b")
        run_ok("umoci", "raw", "unpack", "--image", f"{tmp_path}/{kind}:b", tmp_path / f"{kind}-tree")
    (tmp_path / "tar-tree").mkdir()
    run_ok("tar", "-xpf", tar, "-C", tmp_path / "tar-tree")
    trees = [tree_of(tmp_path / name) for name in ("oci-archive-tree", "docker-archive-tree", "tar-tree")]
    assert trees[0] == trees[1] == trees[2]
    assert set(trees[0]) == {"f", "greeting"}
    assert metadata["containerimage.descriptor"]["digest"] == metadata["containerimage.digest"]
    assert json.loads(run_ok("tar", "-xOf", docker, "manifest.json"))[0]["RepoTags"] == ["test/x:1"]


def test_several_platforms_without_run(buildx: Buildx, tmp_path: Path) -> None:
    text = "FROM --platform=$BUILDPLATFORM alpine AS b\nARG TARGETARCH\nRUN echo $TARGETARCH > /a\nFROM scratch\nCOPY --from=b /a /\n"
    where = context(tmp_path, text)
    both = "linux/amd64,linux/arm64"
    buildx.build(where, "--platform", both, "-o", f"type=oci,dest={tmp_path}/i.tar").ok()
    run_ok("skopeo", "copy", "--all", f"oci-archive:{tmp_path}/i.tar", f"dir:{tmp_path}/all")
    manifest = json.loads((tmp_path / "all/manifest.json").read_text())
    architectures = [m["platform"]["architecture"] for m in manifest["manifests"]]
    assert architectures == ["amd64", "arm64", "unknown", "unknown"]  # an index carries what is attested of its images
    buildx.build(where, "--platform", both, "-o", tmp_path / "out").ok()
    assert (tmp_path / "out/linux_amd64/a").read_text() == "amd64\n"
    assert (tmp_path / "out/linux_arm64/a").read_text() == "arm64\n"


def test_provenance(buildx: Buildx, daemon: Chantierd, registry: RealRegistry, tmp_path: Path) -> None:
    """What buildx asks for by itself, and by its flags; `imagetools` reads it."""
    where = context(tmp_path, STAGES, f="file")
    name = f"{registry.host}/buildx/provenance"
    buildx.build(where, "-t", f"{name}:min", "--push").ok()
    buildx.build(where, "-t", f"{name}:max", "--push", "--attest", "type=provenance,mode=max", "--build-arg", "WHO=me").ok()
    buildx.build(where, "-t", f"{name}:none", "--push", "--provenance=false").ok()

    def shown(tag: str) -> str:
        return buildx("imagetools", "inspect", "--format", "{{json .Provenance}}", f"{name}:{tag}").ok().out

    request = json.loads(shown("min"))["SLSA"]["buildDefinition"]["externalParameters"]["request"]
    assert request["frontend"] == "dockerfile.v0"
    most = json.loads(shown("max"))["SLSA"]
    assert most["buildDefinition"]["externalParameters"]["request"]["args"]["build-arg:WHO"] == "me"
    assert most["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"]
    assert json.loads(shown("none")) in ({}, None)


def test_secrets_agents_and_cache_mounts(buildx: Buildx, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2")
    where = context(
        tmp_path,
        "FROM alpine\n"
        "RUN --mount=type=secret,id=t cat /run/secrets/t | wc -c && ! grep -r hunter2 /etc\n"
        "RUN --mount=type=secret,id=e,env=E test \"$E\" = fromenv\n"
        "RUN --mount=type=ssh test -S $SSH_AUTH_SOCK && ls -l $SSH_AUTH_SOCK\n"
        "ARG N\n"
        "RUN --mount=type=cache,target=/c echo $N >> /c/n; wc -l < /c/n\n",
    )  # fmt: skip
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "agent").exists():
            time.sleep(0.01)
        flags = ["--secret", f"id=t,src={tmp_path}/token", "--secret", "id=e,env=SOME", "--ssh", f"default={tmp_path}/agent"]
        env = {"SOME": "fromenv"}
        first = buildx.build(where, *flags, "--build-arg", "N=1", env=env).ok()
        second = buildx.build(where, *flags, "--build-arg", "N=2", env=env).ok()
    finally:
        agent.terminate()
        agent.wait()
    assert re.search(r"#\d+ [\d.]+ 7\n", first.err)
    assert "hunter2" not in first.err.replace("grep -r hunter2", "")
    assert re.search(r"#\d+ [\d.]+ 1\n", first.err)
    assert re.search(r"#\d+ [\d.]+ 2\n", second.err)
    missing = buildx.build(context(tmp_path, "FROM alpine\nRUN --mount=type=secret,id=gone,required=true true\n"))
    assert missing.code == 1
    assert "ERROR: failed to solve: secret gone: not found" in missing.err


def test_a_context_on_standard_input(buildx: Buildx, tmp_path: Path) -> None:
    where = context(tmp_path, "FROM scratch\nCOPY f /\n", f="piped")
    tar = subprocess.run(["tar", "-C", where, "-cf", "-", "."], capture_output=True, check=True).stdout
    argv = buildx.argv("build", "--builder", "b", "--progress", "plain", "-o", tmp_path / "out", "-")
    done = subprocess.run(argv, input=tar, env=buildx.env(), capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "out/f").read_text() == "piped"


def test_a_named_context(buildx: Buildx, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "o").write_text("other")
    where = context(tmp_path, "FROM scratch\nCOPY --from=more o /\n")
    buildx.build(where, "--build-context", f"more={other}", "-o", tmp_path / "out").ok()
    assert (tmp_path / "out/o").read_text() == "other"


def test_push_with_a_password(start_daemon: Start, plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(run_ok("htpasswd", "-nbB", "me", "secret"))
    guarded = start_registry(tmp_path / "reg", f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}}}\n")
    try:
        daemon = start_daemon(f'[registry."{guarded.host}"]\nhttp = true')
        buildx = Buildx(plugin, tmp_path / "home")
        buildx.home.mkdir()
        buildx("create", "--name", "b", "--driver", "remote", daemon.address).ok()
        where = context(tmp_path, STAGES, f="file")
        name = f"{guarded.host}/me/x:1"
        refused = buildx.build(where, "-t", name, "--push")
        assert refused.code == 1
        assert "401" in refused.err or "authorization failed" in refused.err or "unauthorized" in refused.err.lower()
        import base64

        auth = base64.b64encode(b"me:secret").decode()
        (buildx.home / ".docker").mkdir(exist_ok=True)
        (buildx.home / ".docker/config.json").write_text(json.dumps({"auths": {guarded.host: {"auth": auth}}}))
        done = buildx.build(where, "-t", name, "--push", "--metadata-file", tmp_path / "md").ok()
        assert f"pushing manifest for {name}@sha256:" in done.err
        digest = json.loads((tmp_path / "md").read_text())["containerimage.digest"]
        inspected = run_ok("skopeo", "inspect", "--tls-verify=false", "--creds=me:secret", f"docker://{name}")
        assert json.loads(inspected)["Digest"] == digest
    finally:
        guarded.stop()


def test_a_failing_step(buildx: Buildx, tmp_path: Path) -> None:
    where = context(tmp_path, "FROM alpine\nRUN echo before\nRUN echo to stdout; echo to stderr >&2; exit 7\nRUN true\n")
    done = buildx.build(where)
    assert done.code == 1
    assert "   3 | >>> RUN echo to stdout; echo to stderr >&2; exit 7\n" in done.err
    last = done.err.strip().splitlines()[-1]
    command = 'process "/bin/sh -c echo to stdout; echo to stderr >&2; exit 7"'
    assert last == f"ERROR: failed to solve: {command} did not complete successfully: exit code: 7"
    assert "to stderr" in done.err.split("------")[1]


def test_files_that_are_not_there(buildx: Buildx, tmp_path: Path) -> None:
    copied = buildx.build(context(tmp_path, "FROM scratch\nCOPY missing /x\n"))
    assert re.search(r'ERROR: failed to solve: failed to compute cache key: .*"/missing": not found', copied.err)
    assert "   2 | >>> COPY missing /x" in copied.err
    unknown = buildx.build(context(tmp_path, "FROM alpine\nRUNN x\n"))
    assert "ERROR: failed to solve: dockerfile parse error on line 2: unknown instruction: RUNN" in unknown.err
    assert "   2 | >>> RUNN x" in unknown.err
    no_file = buildx.build(tmp_path / "ctx", "-f", tmp_path / "ctx/nope")
    assert "no such file or directory" in no_file.err


def test_interrupting_kills_the_step(buildx: Buildx, tmp_path: Path, daemon: Chantierd) -> None:
    marker = f"sleep 97{os.getpid()}"
    where = context(tmp_path, f"FROM alpine\nRUN (setsid {marker} &); echo started; {marker}\n")
    argv = buildx.argv("build", "--builder", "b", "--progress", "plain", where)
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, env=buildx.env())
    assert process.stderr is not None
    for line in process.stderr:
        if b"started" in line and b"RUN" not in line:
            break
    process.send_signal(signal.SIGINT)
    end = time.monotonic() + 60
    while marker in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout:
        assert time.monotonic() < end, "the step still runs"
        time.sleep(0.02)
    process.stderr.read()
    assert process.wait(60) != 0
    assert not asyncio.run(report(daemon))["builds"]


def test_usage_and_prune(start_daemon: Start, plugin: Path, tmp_path: Path) -> None:
    daemon = start_daemon()
    buildx = Buildx(plugin, tmp_path / "home")
    buildx.home.mkdir()
    buildx("create", "--name", "b", "--driver", "remote", daemon.address).ok()
    buildx.build(context(tmp_path, STAGES, f="file")).ok()
    assert re.search(r"Reclaimable:\s+[\d.]+MB", buildx("du", "--builder", "b").ok().out)
    verbose = buildx("du", "--builder", "b", "--verbose").ok().out
    assert re.search(r"Description:\s+mount / from exec /bin/sh -c echo", verbose)
    assert re.search(r"Total:\s+[\d.]+MB", buildx("prune", "--builder", "b", "-f", "-a").ok().out)
    assert re.search(r"Total:\s+0B", buildx("du", "--builder", "b").ok().out)


def test_twenty_builds_at_once(buildx: Buildx, tmp_path: Path) -> None:
    where = context(
        tmp_path, "FROM alpine\nARG N\nRUN echo $N > /n; sleep 0.2\nFROM scratch\nCOPY --from=0 /n /\nCOPY f /\n", f="f"
    )
    processes = []
    for number in range(20):
        argv = buildx.argv(
            "build", "--builder", "b", "--progress", "plain", "--build-arg", f"N={number}", "-o", tmp_path / f"out{number}", where
        )
        processes.append(subprocess.Popen(argv, stderr=subprocess.PIPE, env=buildx.env()))
    for number, process in enumerate(processes):
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(300) == 0, err.decode()
        assert (tmp_path / f"out{number}/n").read_text() == f"{number}\n"


def test_bake(buildx: Buildx, tmp_path: Path) -> None:
    where = context(tmp_path, STAGES, f="file")
    (where / "docker-bake.json").write_text(
        json.dumps(
            {
                "group": {"default": {"targets": ["a", "b"]}},
                "target": {
                    name: {"context": ".", "args": {"WHO": name}, "output": [f"{tmp_path}/{name}"]} for name in ("a", "b")
                },
            }
        )
    )
    argv = buildx.argv("bake", "--builder", "b", "--progress", "plain")
    done = subprocess.run(argv, cwd=where, env=buildx.env(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a/greeting").read_text() == "hello a\n"
    assert (tmp_path / "b/greeting").read_text() == "hello b\n"


def test_outline_and_targets(buildx: Buildx, tmp_path: Path) -> None:
    where = context(tmp_path, STAGES, f="file")
    env = {"BUILDX_EXPERIMENTAL": "1"}
    done = buildx("build", "--builder", "b", "--print=targets", where, env=env).ok()
    assert "build" in done.out
    assert "out" in done.out
    outline = buildx("build", "--builder", "b", "--print=outline", "--target", "build", where, env=env).ok()
    assert "WHO" in outline.out


def test_tcp_with_client_certificates(start_daemon: Start, plugin: Path, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, issuer in (("good", authority), ("bad", stranger)):
        client = issuer.issue_cert(f"{name}.test")
        client.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        client.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    port = free_port()
    start_daemon(
        "", "--addr", f"tcp://127.0.0.1:{port}", "--tlscert", str(tmp_path / "server.pem"),
        "--tlskey", str(tmp_path / "server.key"), "--tlscacert", str(tmp_path / "ca.pem"),
    ).wait_for(f"running server on tcp://127.0.0.1:{port}")  # fmt: skip
    where = context(tmp_path, STAGES, f="file")
    for name, works in (("good", True), ("bad", False)):
        buildx = Buildx(plugin, tmp_path / f"home-{name}")
        buildx.home.mkdir()
        options = f"cacert={tmp_path}/ca.pem,cert={tmp_path}/{name}.pem,key={tmp_path}/{name}.key"
        buildx("create", "--name", "b", "--driver", "remote", "--driver-opt", options, f"tcp://127.0.0.1:{port}").ok()
        done = subprocess.Popen(
            buildx.argv("build", "--builder", "b", "-o", tmp_path / name, where), env=buildx.env(), stderr=subprocess.DEVNULL
        )
        try:
            code: int | None = done.wait(240 if works else 5)
        except subprocess.TimeoutExpired:  # it tries again and again
            done.kill()
            code = done.wait()
        assert (code == 0) == works
    assert (tmp_path / "good/greeting").read_text() == "hello nobody\n"
    assert not (tmp_path / "bad").exists()


def test_a_client_that_is_gone_is_noticed(buildx: Buildx, tmp_path: Path, daemon: Chantierd) -> None:
    command = mark()
    where = context(tmp_path, f"FROM alpine\nRUN echo started; {command}\n")
    argv = buildx.argv("build", "--builder", "b", "--progress", "plain", where)
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, env=buildx.env())
    assert process.stderr is not None
    for line in process.stderr:
        if b"started" in line and b"RUN" not in line:
            break
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while asyncio.run(report(daemon))["builds"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not those_that_run(command)
