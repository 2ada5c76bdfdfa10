# SPDX-License-Identifier: Apache-2.0
"""How many requests a registry sees at once from one daemon, counted in front of a real one."""

from __future__ import annotations

import http.client
import http.server
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Command, RealRegistry, run_ok
from ..daemon.conftest import Chantierd, Start, start_daemon

__all__ = ["start_daemon"]  # a fixture of its own neighbours
pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]

_LEAST_S = 0.05  # a request lasts at least so long, so that those at once are seen at once
_HOP = {"connection", "transfer-encoding", "keep-alive"}  # RFC 9110, 7.6.1


@dataclass
class Seen:
    """One request. `upload` is the identity of the upload it belongs to, `digest` what it names."""

    start: float
    end: float
    blob: bool
    digest: str
    upload: str


class Counting(http.server.ThreadingHTTPServer):
    """Passes everything on, and remembers when each request was under way."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behind: str) -> None:
        self.behind = behind
        self.seen: list[Seen] = []
        super().__init__(("127.0.0.1", 0), _Relay)

    def server_bind(self) -> None:
        """Without the look-up of our own name."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def most(self, configs: set[str]) -> tuple[int, int, int]:
        """The most under way together: layers, all, metadata while there were four layers. Configs count as metadata."""
        of_upload = {each.upload: each.digest for each in self.seen if each.upload and each.digest}
        points = []
        for each in self.seen:
            layer = each.blob and (each.digest or of_upload.get(each.upload, "")) not in configs
            points += [(each.start, 1, layer), (each.end, -1, layer)]
        now = {True: 0, False: 0}
        layers = everything = beside = 0
        for _at, change, layer in sorted(points):
            now[layer] += change
            layers, everything = max(layers, now[True]), max(everything, now[True] + now[False])
            beside = max(beside, now[False]) if now[True] == 4 else beside
        return layers, everything, beside


class _Relay(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Counting

    def _pass(self) -> None:
        start = time.monotonic()
        behind = http.client.HTTPConnection(self.server.behind, timeout=300)
        body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self._chunks()
        names = {name.lower() for name in self.headers} - _HOP
        headers = {name: ", ".join(self.headers.get_all(name, ())) for name in names}
        if body is not None:
            headers["content-length"] = str(len(body))
        behind.request(self.command, self.path, body=body, headers=headers)
        answer = behind.getresponse()
        data = answer.read()
        behind.close()
        time.sleep(max(0.0, start + _LEAST_S - time.monotonic()))
        upload = re.search("/uploads/([0-9a-f-]+)", self.path + " " + (answer.getheader("Location") or ""))
        digest = re.search("sha256(?::|%3A)([0-9a-f]{64})", self.path)
        # Before the answer: what the client starts when it has it comes after this.
        self.server.seen.append(
            Seen(start, time.monotonic(), "/blobs/" in self.path, digest[1] if digest else "", upload[1] if upload else "")
        )
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in (*_HOP, "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)

    def _chunks(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return None
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def counting(registry: RealRegistry) -> Iterator[Counting]:
    with Counting(registry.host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_four_blobs_and_one_for_metadata(counting: Counting, start_daemon: Start, chantier: Command, tmp_path: Path) -> None:
    """Three builds of one daemon push twelve layers each and pull them again, all at once."""
    daemon = start_daemon(f'[registry."{counting.host}"]\nhttp = true')
    contexts = [tmp_path / f"c{n}" for n in range(3)]
    for number, context in enumerate(contexts):
        context.mkdir()
        for layer in range(12):
            (context / f"f{layer}").write_text(f"{number} {layer}\n" * 2000)
    layers = "".join(f"COPY f{layer} /\n" for layer in range(12))
    # Without attestations, whose configs are metadata too.
    pushed = lambda n: ("-t", f"{counting.host}/t/i{n}", "--push", "--provenance=false")  # noqa: E731
    at_once(chantier, daemon, contexts, lambda n: f"FROM scratch\n{layers}", pushed)
    configs = {config_of(counting.host, f"t/i{n}") for n in range(3)}
    assert len([each for each in counting.seen if each.blob]) >= 36
    layers_most, all_most, beside = counting.most(configs)
    assert layers_most == 4 and all_most <= 5 and beside <= 1
    counting.seen.clear()
    daemon = start_daemon(f'[registry."{counting.host}"]\nhttp = true', name="fresh")
    out = lambda n: ("-o", f"type=local,dest={tmp_path}/out{n}")  # noqa: E731
    at_once(chantier, daemon, contexts, lambda n: f"FROM {counting.host}/t/i{n}\nCOPY f0 /again\n", out)
    for number in range(3):
        assert (tmp_path / f"out{number}/f11").read_text() == f"{number} 11\n" * 2000
    layers_most, all_most, beside = counting.most(configs)
    assert layers_most == 4 and all_most <= 5 and beside <= 1


def config_of(host: str, name: str) -> str:
    """The digest of an image's config, by skopeo."""
    raw = json.loads(run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{host}/{name}"))
    if "manifests" in raw:
        digest = next(m["digest"] for m in raw["manifests"] if m["platform"]["os"] != "unknown")
        raw = json.loads(run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{host}/{name}@{digest}"))
    return str(raw["config"]["digest"]).removeprefix("sha256:")


def at_once(
    command: Command,
    daemon: Chantierd,
    contexts: list[Path],
    text: Callable[[int], str],
    args: Callable[[int], tuple[str, ...]],
) -> None:
    builds = []
    for number, context in enumerate(contexts):
        (context / "Dockerfile").write_text(text(number))
        argv = command.argv("build", "--builder", daemon.address, "--progress=plain", *args(number), str(context))
        builds.append(subprocess.Popen(argv, env=command.environment(), stderr=subprocess.PIPE, text=True))
    for build in builds:
        _out, err = build.communicate(timeout=300)
        assert build.returncode == 0, err
