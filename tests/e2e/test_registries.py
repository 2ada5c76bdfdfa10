# SPDX-License-Identifier: Apache-2.0
"""Registries as builds meet them: mirrors, what is known offline, images from files, trust and proxies in steps, live config."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from ..conftest import Command, RealRegistry, free_port, make_base, push_tree, run_ok, start_docker, start_registry, write_config

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]


def blobs_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["chantier.registry.blobs"]
    return found


# Mirrors.


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that neither takes nor refuses a connection."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_dead_mirror_costs_once_and_explain_shows_it(
    registry: RealRegistry, base: str, tmp_path: Path, black_hole: str
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f'[registry."docker.io"]\nmirrors = ["{black_hole}", "{registry.host}"]\n'
        f'[chantier.registry."{black_hole}"]\nconnectTimeout = 1\n[chantier.registry."docker.io"]\nonly = true\n'
    )
    command = Command(root=tmp_path / "s", config=config)
    before = command("registry", "explain", "alpine", "--all")
    assert re.search(rf"1\. mirror +{black_hole} +tried: .*i/o timeout", before.out)
    for number in range(2):  # two processes: what the first one learnt is kept with the state
        metadata = tmp_path / "m.json"
        command.build(f"FROM alpine\nRUN echo {number} > /f\n", "--metadata-file", str(metadata), "--pull").ok()
        if number == 0:
            served = blobs_of(metadata)
            assert {one["host"] for one in served.values()} == {registry.host}
            assert all(one["seconds"] >= 0 and one["bytes"] > 0 for one in served.values())
            assert any(one["mediaType"].endswith(("gzip", ".tar")) for one in served.values())
    said = command("registry", "explain", "alpine")
    assert said.code == 0
    assert re.search(rf"1\. mirror +{black_hole} +skipped: circuit breaker open for \d+ s more: .*i/o timeout", said.out)
    assert re.search(rf"2\. mirror +{registry.host} +chosen: the first host that has it", said.out)
    assert re.search(r"3\. registry +registry-1.docker.io +skipped: only its mirrors are asked", said.out)
    assert re.search(rf"known here sha256:\w+ as {registry.host} said just now, the same", said.out)
    document = json.loads(command("registry", "explain", "alpine", "--json").out)
    assert [h["decision"] for h in document["hosts"]] == ["skipped", "chosen", "skipped"]
    assert document["hosts"][0]["breaker"] == "open"
    assert document["known"]["same"] is True
    assert document["served_by"] == registry.host


def test_transient_trouble_has_its_own_exit_code(tmp_path: Path, registry: RealRegistry, base: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[registry."docker.io"]\nmirrors = ["{registry.host}"]\n')
    command = Command(root=tmp_path / "s", config=config)
    gone = f"127.0.0.1:{free_port()}"
    done = command.build(f"FROM {gone}/app:1\n")
    assert done.code == 75
    assert "connection refused" in done.err
    assert f"hint: nothing listens at {gone}" in done.err
    done = command.build(f"FROM {registry.host}/no/such:1\n")
    assert done.code == 1
    assert f"{registry.host}/no/such:1: not found" in done.err


# Offline.


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealRegistry, Path]]:
    """A registry that a test may stop, and a base image's root."""
    folder = tmp_path_factory.mktemp("spare")
    found = start_registry(folder / "registry")
    root = make_base(folder)
    push_tree(root, f"{found.host}/team/base:1", folder)
    yield found, root
    found.stop()


def test_offline(tmp_path: Path) -> None:
    spare = start_registry(tmp_path / "registry")
    push_tree(make_base(tmp_path), f"{spare.host}/team/base:1", tmp_path)
    config = tmp_path / "c.toml"
    config.write_text("")
    command = Command(root=tmp_path / "s", config=config)
    name = f"{spare.host}/team/base:1"
    text = f"FROM {name}\nRUN echo one > /f\n"
    never = command.build(text, "--pull=never")
    assert never.code == 1
    assert f"{name}: not known here, and pull mode never forbids to ask a registry" in never.err
    assert "--pull=missing" in never.err
    online = command.build(text, "--pull=missing", "-o", f"type=oci,dest={tmp_path}/a.tar").ok()
    assert "no registry was asked" not in online.err
    spare.stop()
    later = f"FROM {name}\nRUN echo two > /f\n"
    failed = command.build(later)
    assert failed.code == 75
    assert re.search(rf"hint: .*{name} was sha256:\w+ .*: build with --pull=missing to use that", failed.err)
    assert command.build(later, "--pull").code == 75
    for mode in ("missing", "never"):
        done = command.build(later, f"--pull={mode}", "-o", f"type=oci,dest={tmp_path}/{mode}.tar").ok()
        assert re.search(rf"{name} is sha256:\w+ as {spare.host} said just now; no registry was asked", done.err)
    wrong = command.build(later, "--pull=sometimes")
    assert wrong.code == 1
    assert "invalid pull mode 'sometimes'" in wrong.err


def test_never_means_layers_too(tmp_path: Path, spare: tuple[RealRegistry, Path]) -> None:
    """What a tag means is known, its layers were never needed: nothing is fetched, and the message says so."""
    registry, _ = spare
    config = tmp_path / "c.toml"
    config.write_text("")
    command = Command(root=tmp_path / "s", config=config)
    name = f"{registry.host}/team/base:1"
    command.build(f"FROM {name}\nENV A=1\n", "--call=outline").ok()
    command.build(f"FROM {name}\n", "-o", "type=image,name=x:1").ok()
    done = command.build(f"FROM {name}\nRUN true\n", "--pull=never")
    assert done.code == 1
    assert "is not all here, and pull mode never forbids to ask a registry" in done.err
    command.build(f"FROM {name}\nRUN true\n", "--pull=missing").ok()
    command.build(f"FROM {name}\nRUN true # again\n", "--pull=never").ok()


# Images that are files.


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive", "oci-layout", "old-docker-archive"])
def test_images_from_files(spare: tuple[RealRegistry, Path], tmp_path: Path, kind: str) -> None:
    registry, _ = spare
    config = tmp_path / "c.toml"
    config.write_text("")
    command = Command(root=tmp_path / "s", config=config, env={"TMPDIR": str(tmp_path / "tmp")})
    (tmp_path / "tmp").mkdir()
    source = f"docker://{registry.host}/team/base:1"
    copy = partial(run_ok, "skopeo", "copy", "-q", "--src-tls-verify=false", source)
    where = tmp_path / "image"
    if kind == "oci-layout":
        copy(f"oci:{where}:one")
        value = f"oci-layout://{where}:one"
    elif kind == "old-docker-archive":
        copy(f"docker-archive:{where}:team/base:1")
        value = f"docker-archive:{where}:team/base:1"
    elif kind == "docker-archive":
        copy(f"docker-archive:{where}:base:1")
        value = f"docker-archive:{where}"
    else:
        copy(f"oci-archive:{where}:one")
        value = f"oci-archive:{where}:one"
    text = "FROM base\nRUN cat /etc/passwd > /copied && busybox id -u app > /id\n"
    out = tmp_path / "out"
    command.build(text, "--build-context", f"base={value}", "--pull=never", "-o", str(out)).ok()
    assert (out / "id").read_text() == "1000\n"
    assert os.listdir(tmp_path / "tmp") == []  # what was unpacked for the build is gone
    again = command.build(text, "--build-context", f"base={value}", "--pull=never", "-o", str(out)).ok()
    assert "CACHED" in again.step("RUN cat")


def test_archives_that_are_wrong(chantier: Command, tmp_path: Path) -> None:
    def fails(value: str) -> str:
        done = chantier.build("FROM base\n", "--build-context", f"base={value}")
        assert done.code == 1
        assert "Traceback" not in done.err
        return done.err

    assert f"stat {tmp_path}/none: no such file or directory" in fails(f"docker-archive:{tmp_path}/none")
    (tmp_path / "text").write_text("hello")
    assert "failed to read the image archive" in fails(f"docker-archive:{tmp_path}/text")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    assert "is not an image archive: it has neither index.json nor manifest.json" in fails(f"oci-archive:{tmp_path}/empty.tar")
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as tar:
        info = tarfile.TarInfo("../../escaped")
        tar.addfile(info)
        link = tarfile.TarInfo("manifest.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert "is not an image archive" in fails(f"docker-archive:{evil}")
    assert not (tmp_path / "escaped").exists()
    assert (
        "start Docker or Podman's socket"
        in chantier.build(
            "FROM base\n", "--build-context", "base=docker-daemon:x", env={"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
        ).err
    )


@pytest.mark.docker
@pytest.mark.slow
def test_images_of_the_docker_engine(spare: tuple[RealRegistry, Path], tmp_path: Path) -> None:
    registry, _ = spare
    config = tmp_path / "c.toml"
    config.write_text("")
    with start_docker(tmp_path, f"--insecure-registry={registry.host}") as address:
        command = Command(root=tmp_path / "s", config=config, env={"DOCKER_HOST": address})
        run_ok("docker", "-H", address, "pull", "-q", f"{registry.host}/team/base:1")
        run_ok("docker", "-H", address, "tag", f"{registry.host}/team/base:1", "mine:local")
        out = tmp_path / "out"
        text = "FROM mine:local\nRUN busybox id -u app > /id\n"
        command.build(text, "--build-context", "mine:local=docker-daemon:mine:local", "-o", str(out)).ok()
        assert (out / "id").read_text() == "1000\n"
        done = command.build("FROM x\n", "--build-context", "x=docker-daemon:no/such:1")
        assert done.code == 1
        assert "no image no/such:1 in docker" in done.err


# Trust and proxies.


@dataclass
class Site:
    """A web site with TLS of an authority of its own; its files are those of a folder."""

    authority: str
    folder: Path
    ca: Path
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "site-ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    folder = tmp_path / "site"
    folder.mkdir()
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield Site(f"127.0.0.1:{server.server_address[1]}", folder, tmp_path / "site-ca.pem", asked)
    server.shutdown()
    server.server_close()


def test_one_trust_for_add_git_and_steps(site: Site, make_command: Callable[..., Command], tmp_path: Path) -> None:
    (site.folder / "file").write_text("from the site\n")
    repository = site.folder / "repo"
    repository.mkdir()
    git = partial(subprocess.run, check=True, capture_output=True, cwd=repository)
    git(["git", "init", "-q", "-b", "main"])
    (repository / "inside").write_text("from git\n")
    git(["git", "add", "."])
    git(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one"])
    git(["git", "update-server-info"])
    text = (
        f"FROM alpine\nADD https://{site.authority}/file /file\nADD https://{site.authority}/repo/.git#main /git\n"
        'RUN env > /env && cp "$SSL_CERT_FILE" /bundle && ls -l /dev/chantier-ca.pem > /mounted\n'
    )
    refused = make_command("", name="plain").build(text)
    assert refused.code == 1
    assert "certificate" in refused.err
    command = make_command(f'[chantier.network]\nca = ["{site.ca}"]\ninjectCA = true\n', name="trusting")
    out = tmp_path / "out"
    command.build(text, "-o", str(out)).ok()
    assert (out / "file").read_text() == "from the site\n"
    assert (out / "git/inside").read_text() == "from git\n"
    assert site.ca.read_text().strip() in (out / "bundle").read_text()
    env = dict(line.split("=", 1) for line in (out / "env").read_text().splitlines())
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"):
        assert env[name] == "/dev/chantier-ca.pem"
    # In the steps only: neither in a layer nor in the config.
    image = tmp_path / "image.tar"
    command.build(text, "-o", f"type=oci,dest={image}").ok()
    with tarfile.open(image) as tar:
        for member in tar.getmembers():
            data = tar.extractfile(member)
            raw = data.read() if data is not None else b""
            if raw[:2] == b"\x1f\x8b":
                import gzip
                import io

                with tarfile.open(fileobj=io.BytesIO(gzip.decompress(raw))) as layer:
                    assert not [n for n in layer.getnames() if "chantier-ca" in n]
            elif raw.startswith(b'{"architecture"'):
                assert not [entry for entry in json.loads(raw)["config"]["Env"] if "chantier" in entry]
    # A step's own choice stands.
    text = "FROM alpine\nENV SSL_CERT_FILE=/mine\nRUN echo $SSL_CERT_FILE $PIP_CERT > /f\n"
    command.build(text, "-o", str(out)).ok()
    assert (out / "f").read_text() == "/mine /dev/chantier-ca.pem\n"


def test_authorities_of_the_image_stay_trusted(site: Site, make_command: Callable[..., Command], tmp_path: Path) -> None:
    other = trustme.CA()
    command = make_command(f'[chantier.network]\nca = ["{site.ca}"]\ninjectCA = true\n')
    pem = other.cert_pem.bytes().decode()
    (tmp_path / "ctx").mkdir()
    (tmp_path / "ctx/own.pem").write_text(pem)
    text = "FROM alpine\nCOPY own.pem /etc/ssl/certs/ca-certificates.crt\nRUN cp $SSL_CERT_FILE /bundle\n"
    out = tmp_path / "out"
    command.build(text, "-o", str(out), context=tmp_path / "ctx").ok()
    assert (out / "bundle").read_text() == pem + site.ca.read_text()


class Proxy(BaseHTTPRequestHandler):
    """Knows one site, `http://behind.invalid`, and tunnels to this machine."""

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        body = b"through the proxy\n" if self.path.startswith("http://behind.invalid/") else b"no"
        self.send_response(200 if body != b"no" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", server.seen  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_one_proxy_setting(proxy: tuple[str, list[str]], make_command: Callable[..., Command], tmp_path: Path) -> None:
    address, seen = proxy
    text = "FROM alpine\nADD http://behind.invalid/file /file\nRUN env | sort | grep -i proxy > /env || true\n"
    settings = f'[chantier.network]\nproxy = "{address}"\nnoProxy = ["direct.invalid", "10.0.0.0/8"]\n'
    out = tmp_path / "out"
    make_command(settings, name="quiet").build(text, "-o", str(out), env={"http_proxy": "http://127.0.0.1:1"}).ok()
    assert seen == ["http://behind.invalid/file"]
    command = make_command(settings + "injectProxy = true\n", name="loud")
    command.build(text, "-o", str(out)).ok()
    env = dict(line.split("=", 1) for line in (out / "env").read_text().splitlines())
    assert env == {
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), address),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), "direct.invalid,10.0.0.0/8"),
    }
    failed = command.build("FROM direct.invalid/app:1\n")
    assert failed.code in (1, 75)
    assert "lookup direct.invalid" in failed.err
    failed = command.build("FROM far.invalid/app:1\n")
    assert "lookup far.invalid" not in failed.err  # the proxy was asked, which does not tunnel
    assert not [path for path in seen if "direct" in path]


# A daemon's config, changed while it runs.


def test_live_config(registry: RealRegistry, base: str, tmp_path: Path, site: Site) -> None:
    other = start_registry(tmp_path / "other")
    push_tree(make_base(tmp_path), f"{other.host}/library/alpine:latest", tmp_path)
    (site.folder / "file").write_text("from the site\n")
    config = write_config(tmp_path / "d.toml", registry)
    address, log = f"unix://{tmp_path}/d.sock", tmp_path / "d.log"
    argv = [sys.executable, "-c", "from chantier.daemon import main; raise SystemExit(main())", "--config", str(config)]
    argv += ["--root", str(tmp_path / "root"), "--addr", address]
    with log.open("wb") as out:
        daemon = subprocess.Popen(argv, stdout=out, stderr=out)
    command = Command(root=tmp_path / "unused", config=config)
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)

    def logged(text: str) -> None:
        end = time.monotonic() + 60
        while text not in log.read_text():
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)

    def build(text: str) -> Any:
        args = ("build", "--builder", address, "--progress=plain", "-f", "-", "--pull", "--no-cache")
        metadata = tmp_path / "metadata.json"
        return command(*args, "--metadata-file", str(metadata), str(empty), stdin=text.encode())

    def reload(text: str, said: str) -> None:
        before = log.read_text().count(said)
        config.write_text(text)
        daemon.send_signal(signal.SIGHUP)
        end = time.monotonic() + 60
        while log.read_text().count(said) == before:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)

    def status() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(command("daemon", "status", address, "--format", "json").ok().out)
        return found

    add = f"FROM alpine\nADD https://{site.authority}/file /file\n"
    try:
        logged("running server on")
        build("FROM alpine\nRUN true\n").ok()
        assert build(add).code == 1
        assert build(f"FROM 127.0.0.1:{free_port()}/app:1\n").code == 75  # as without a daemon
        assert registry.host in json.dumps([one for one in history(address) if one])
        hosts = {h["host"]: h["breaker"] for h in status()["registries"]["hosts"]}
        assert hosts.pop(registry.host) == "closed"
        assert list(hosts.values()) == ["open"]  # the one that nobody listens at
        # A mirror and a limit.
        mirror = f'[system]\nmaxRegistryConcurrency = 2\n[registry."docker.io"]\nmirrors = ["{other.host}"]\n'
        reload(mirror, "the config was loaded anew")
        build("FROM alpine\nRUN true\n").ok()
        assert other.host in [h["host"] for h in status()["registries"]["hosts"]]
        # A CA.
        trusting = mirror + f'[chantier.network]\nca = ["{site.ca}"]\n'
        reload(trusting, "the config was loaded anew")
        build(add).ok()
        # Bad files are refused whole: a syntax error, an unknown key, a CA that is not there.
        for bad in (
            mirror + "[chantier",
            mirror.replace("mirrors", "mirors"),
            mirror + '[chantier.network]\nca = ["/none.pem"]\n',
        ):
            reload(bad, "level=error")
            build(add).ok()
        assert daemon.poll() is None
    finally:
        daemon.terminate()
        daemon.wait(60)
        other.stop()


def history(address: str) -> list[dict[str, Any]]:
    """Of each finished build in the daemon's history, which host served what."""
    from chantier.pb import control_pb2
    from chantier.wire import Stub, dial

    async def ask() -> list[dict[str, Any]]:
        found = []
        async with dial(address) as channel:
            stub = Stub(channel, "moby.buildkit.v1.Control")
            async with stub.stream("ListenBuildHistory") as call:
                await call.send(control_pb2.BuildHistoryRequest(EarlyExit=True))
                call.close_send()
                async for event in call:
                    raw = event.record.ExporterResponse.get("chantier.registry.blobs", "")
                    found.append(json.loads(base64.b64decode(raw)) if raw else {})
        return found

    return asyncio.run(ask())


def test_metadata_is_readable_for_stock_tools(chantier: Command, registry: RealRegistry, tmp_path: Path) -> None:
    """In an answer's map of strings it is base64 of JSON, as BuildKit's own documents are."""
    metadata = tmp_path / "m.json"
    chantier.build("FROM alpine\nRUN true\n", "--metadata-file", str(metadata), "-o", f"type=oci,dest={tmp_path}/o.tar").ok()
    served = blobs_of(metadata)
    assert base64.b64encode(json.dumps(served).encode())
    assert {one["repository"] for one in served.values()} == {"docker.io/library/alpine"}
    assert {one["host"] for one in served.values()} == {registry.host}


def test_a_digest_opens_no_repository_but_its_own(chantier: Command, registry: RealRegistry, base: str) -> None:
    """Who knows a digest that is here already must still be able to get it where he says it is from."""
    raw = run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/library/alpine:latest")
    digest = "sha256:" + hashlib.sha256(raw.encode()).hexdigest()
    chantier.build("FROM alpine\nRUN true\n").ok()
    for name in (f"{registry.host}/nosuch/repo", "library/elsewhere"):
        done = chantier.build(f"FROM {name}@{digest}\nRUN true\n")
        assert done.code != 0
        assert "not found" in done.err
    chantier.build(f"FROM alpine@{digest}\nRUN true\n").ok()
