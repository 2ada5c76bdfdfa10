# SPDX-License-Identifier: Apache-2.0
"""Servers on this machine that cases fetch from: git over HTTP and ssh, files over HTTP. What they serve never changes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ..conftest import free_port, wait_for_port

TOKEN = "let-me-in"
_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "C",
    "GIT_COMMITTER_EMAIL": "c@example.com",
}
_WHEN = 1_600_000_000


class Repositories:
    """Bare repositories below one directory; their commits have the same names every time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._clock = _WHEN

    def git(self, where: Path, *args: str) -> str:
        self._clock += 60
        when = f"{self._clock} +0000"
        env = {**_ENV, "GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
        command = ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *args]
        return subprocess.run(command, cwd=where, env=env, check=True, capture_output=True, text=True).stdout.strip()

    def make(self, url: str) -> None:
        """`lib` is a submodule of `app` by a relative URL, so that each protocol reaches it by itself; `url` is not kept."""
        lib, app = self.root / "work/lib", self.root / "work/app"
        for path in (lib, app):
            path.mkdir(parents=True)
            self.git(path, "init", "-q")
        (lib / "lib.txt").write_text("library\n")
        self._commit(lib, "library")
        self.git(self.root, "clone", "-q", "--bare", str(lib), "lib.git")
        (app / "Dockerfile").write_text("FROM scratch\nCOPY sub/ /out/\nCOPY vendor/lib/ /lib/\n")
        (app / "sub").mkdir()
        (app / "sub/f").write_text("one\n")
        (app / "run.sh").write_text("#!/bin/sh\n")
        (app / "run.sh").chmod(0o755)
        (app / "link").symlink_to("sub/f")
        self._commit(app, "first")
        self.git(app, "tag", "-a", "v1", "-m", "the first")
        self.git(app, "submodule", "add", "-q", str(lib), "vendor/lib")
        (app / ".gitmodules").write_text('[submodule "vendor/lib"]\n\tpath = vendor/lib\n\turl = ../lib.git\n')
        (app / "sub/f").write_text("two\n")
        self._commit(app, "second")
        self.git(app, "branch", "feature/x")
        (app / "sub/g").write_text("three\n")
        self._commit(app, "third")
        self.git(self.root, "clone", "-q", "--bare", str(app), "app.git")
        plain = self.root / "work/plain"
        (plain / "sub").mkdir(parents=True)
        self.git(plain, "init", "-q")
        (plain / "sub/f").write_text("one\n")
        self._commit(plain, "first")
        self.git(plain, "tag", "-a", "v1", "-m", "the first")
        (plain / "sub/g").write_text("three\n")
        self._commit(plain, "second")
        self.git(self.root, "clone", "-q", "--bare", str(plain), "plain.git")
        for name in ("app.git", "lib.git", "plain.git"):
            self.git(self.root / name, "update-server-info")
            self.git(self.root / name, "config", "uploadpack.allowAnySHA1InWant", "true")

    def _commit(self, path: Path, message: str) -> None:
        self.git(path, "add", "-A")
        self.git(path, "commit", "-q", "-m", message)

    def commit_of(self, ref: str, repository: str = "app.git") -> str:
        return self.git(self.root / repository, "rev-parse", ref + "^{commit}")


def _tar(compress: Callable[[bytes], bytes] = bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data, mode in (
            ("t/a", b"A\n", 0o644),
            ("t/run", b"#!\n", 0o755),
            ("Dockerfile", b"FROM scratch\nCOPY t /t\n", 0o644),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime, info.uid, info.gid = len(data), mode, _WHEN, 7, 8
            tar.addfile(info, io.BytesIO(data))
    return compress(out.getvalue())


FILES = {
    "/plain.txt": b"plain\n",
    "/Dockerfile": b"FROM scratch\nADD plain.txt /\n",
    "/only.dockerfile": b"FROM scratch\nCOPY . /here/\n",
    "/app.tar": _tar(),
    "/app.tar.gz": _tar(lambda data: gzip.compress(data, mtime=0)),
}
PLAIN = "sha256:" + hashlib.sha256(FILES["/plain.txt"]).hexdigest()


class _Web(BaseHTTPRequestHandler):
    """Files; `/git/` is git-http-backend, `/private/` the same for who has the token; `/moved/` redirects."""

    root = Path()
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.startswith("/git/"):
            self._git(path.removeprefix("/git"), query)
        elif path.startswith("/private/"):
            self._private(path.removeprefix("/private"), query)
        elif path.startswith("/moved/"):
            self._answer(302, b"", {"Location": path.removeprefix("/moved")})
        elif path == "/named":
            self._answer(200, b"named\n", {"Content-Disposition": 'attachment; filename="given.name"'})
        elif path in FILES:
            self._answer(200, FILES[path], {"Last-Modified": "Sun, 13 Sep 2020 12:26:40 GMT", "ETag": f'"{len(FILES[path])}"'})
        else:
            self._answer(404, b"no such file\n", {})

    do_POST = do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _private(self, path: str, query: str) -> None:
        given = self.headers.get("Authorization", "")
        token = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
        if given.lower() not in (f"basic {token}".lower(), f"bearer {TOKEN}"):
            self._answer(401, b"", {"WWW-Authenticate": "Basic"})
        elif path in FILES:
            self._answer(200, FILES[path], {})
        else:
            self._git(path, query)

    def _git(self, path: str, query: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        env = {
            **_ENV,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
            "CONTENT_LENGTH": str(len(body)),
        }
        out = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False).stdout
        head, _, rest = out.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        self._answer(int(headers.pop("Status", "200").split()[0]), rest, headers)

    def log_message(self, format: str, *args: object) -> None:
        return None


@dataclass(frozen=True)
class Servers:
    """`names` are what `{NAME}` in a case becomes."""

    names: dict[str, str]
    key: Path | None  # of the user who may log in over ssh
    known_hosts: Path | None

    def fill(self, text: str) -> str:
        for name, value in self.names.items():
            text = text.replace("{" + name + "}", value)
        return text

    def hide(self, text: str) -> str:
        """The same the other way round, for messages."""
        for name, value in sorted(self.names.items(), key=lambda item: -len(item[1])):
            text = text.replace(value, "{" + name + "}")
        return text


@contextmanager
def serving(work: Path, *, ssh: bool = True) -> Iterator[Servers]:
    repositories = Repositories(work / "git")
    repositories.root.mkdir(parents=True)
    handler = type("Web", (_Web,), {"root": repositories.root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    host = f"127.0.0.1:{server.server_address[1]}"
    try:
        repositories.make(f"http://{host}/git")
        names = {
            "http": f"http://{host}",
            "host": host,
            "plain": PLAIN,
            "first": repositories.commit_of("v1"),
            "second": repositories.commit_of("feature/x"),
            "main": repositories.commit_of("main"),
        }
        with _sshd(work, repositories.root) if ssh and shutil.which("sshd", path="/usr/sbin:/usr/bin") else _nothing() as found:
            port, key, known = found
            yield Servers(
                {**names, "ssh": f"ssh://root@127.0.0.1:{port}{repositories.root}" if port else "ssh://nowhere"}, key, known
            )
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _nothing() -> Iterator[tuple[int, Path | None, Path | None]]:
    yield 0, None, None


@contextmanager
def _sshd(work: Path, repositories: Path) -> Iterator[tuple[int, Path | None, Path | None]]:
    """An sshd of our own on the loopback, whose one user may run git-upload-pack and nothing else."""
    place = work / "sshd"
    place.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
    script = place / "only-git"
    script.write_text(
        '#!/bin/sh\ncase "$SSH_ORIGINAL_COMMAND" in "git-upload-pack "*) exec git-shell -c "$SSH_ORIGINAL_COMMAND";; esac\nexit 1\n'
    )
    script.chmod(0o755)
    (place / "authorized").write_text(f'command="{script}" ' + (place / "user.pub").read_text())
    port = free_port()
    (place / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nAuthorizedKeysFile {place}/authorized\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin forced-commands-only\n"
    )
    os.makedirs("/run/sshd", exist_ok=True)
    log = open(place / "log", "wb")
    process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(place / "config")], stdout=log, stderr=log)
    try:
        wait_for_port(port, process=process)
        known = place / "known"
        known.write_text(f"[127.0.0.1]:{port} " + (place / "host.pub").read_text())
        yield port, place / "user", known
    finally:
        process.terminate()
        process.wait(60)


__all__ = ["FILES", "PLAIN", "TOKEN", "Servers", "serving"]
