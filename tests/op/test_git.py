# SPDX-License-Identifier: Apache-2.0
"""Git sources against real servers: the git protocol, and smart HTTP with credentials."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from chantier.errors import ChantierError, NotFoundError, UsageError
from chantier.op.agent import _bind
from chantier.op.git import GitOp, commit_object, named, redacted
from chantier.op.git_command import _reachable
from chantier.pb import ops_pb2 as pb
from chantier.session.local import LocalSession, SecretSource

if TYPE_CHECKING:
    from conftest import Bench, Job

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(shutil.which("git") is None, reason="no git")]

ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    **{f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_AUTHOR_DATE": "1000000000 +0000",
    "GIT_COMMITTER_DATE": "1000000000 +0000",
}


def git(where: Path, *args: str) -> str:
    command = ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *args]
    done = subprocess.run(command, cwd=where, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Remote:
    """Repositories below a directory, served by git-daemon."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = ["git", "daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1", f"--port={self.port}"]
        self.daemon = subprocess.Popen([*command, f"--base-path={root}"], env=ENV, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.02)

    def url(self, name: str) -> str:
        return f"git://127.0.0.1:{self.port}/{name}"

    def make(self, name: str) -> Path:
        (self.root / name).mkdir()
        git(self.root / name, "init", "--quiet")
        return self.root / name

    def commit(self, name: str, **files: str) -> str:
        where = self.root / name
        for path, text in files.items():
            place = where / path.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        git(where, "add", "--all")
        git(where, "commit", "--quiet", "--allow-empty", "-m", "change")
        return git(where, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    made = Remote(tmp_path_factory.mktemp("git") / "repos")
    made.make("one")
    made.commit("one", a="first", dir__f="f")
    os.chmod(made.root / "one/a", 0o755)
    git(made.root / "one", "branch", "old")
    made.commit("one", a="second", dir__f="f")
    git(made.root / "one", "tag", "-a", "v1", "-m", "tag")
    os.symlink("dir", made.root / "one/link")
    made.commit("one", b="b")
    yield made
    made.daemon.terminate()
    made.daemon.wait(60)


def op(bench: Bench, url: str, ref: str = "", **attrs: str) -> GitOp:
    named = {"git.fullurl": url, **{f"git.{key}": value for key, value in attrs.items()}}
    source = pb.SourceOp(identifier=f"git://{url.partition('://')[2]}#{ref}", attrs=named)
    return GitOp(bench.vertex(pb.Op(source=source)), bench.worker)


def head(remote: Remote, name: str = "main") -> str:
    return git(remote.root / "one", "rev-parse", name)


def test_default_branch(bench: Bench, remote: Remote, job: Job) -> None:
    old = os.umask(0o077)
    try:
        (ref,) = bench.run(op(bench, remote.url("one")), job=job)
    finally:
        os.umask(old)
    assert bench.files(ref) == {"a": "second 755", "b": "b", "dir": "/", "dir/f": "f", "link": "-> dir"}
    usage = {record.description for record in bench.cache.usage()}
    assert f"git snapshot for {remote.url('one')}#refs/heads/main" in usage
    assert f"shared git repo for {remote.url('one')}" in usage


@pytest.mark.parametrize("name", ["old", "refs/heads/old", "heads/old"])
def test_branches(bench: Bench, remote: Remote, name: str) -> None:
    (ref,) = bench.run(op(bench, remote.url("one"), name))
    assert bench.files(ref)["a"] == "first"


def test_tags_and_commits_have_one_key(bench: Bench, remote: Remote) -> None:
    commit = head(remote, "v1^{commit}")
    url = remote.url("one")
    keys = {bench.map_of(op(bench, url, ref)).digest for ref in ("v1", "refs/tags/v1", commit)}
    assert len(keys) == 1
    assert bench.map_of(op(bench, url, "v1", keepgitdir="true")).digest not in keys
    assert bench.map_of(op(bench, url, "v1:dir")).digest not in keys
    (ref,) = bench.run(op(bench, url, commit))
    assert bench.files(ref).keys() == {"a", "dir", "dir/f"}
    (ref,) = bench.run(op(bench, url, "v1"))
    assert bench.files(ref)["a"] == "second 755"


def test_subdir(bench: Bench, remote: Remote) -> None:
    (ref,) = bench.run(op(bench, remote.url("one"), "main:dir"))
    assert bench.files(ref) == {"f": "f"}
    with pytest.raises(UsageError, match="invalid subdir link: link is not a directory"):
        bench.run(op(bench, remote.url("one"), "main:link"))
    with pytest.raises(NotFoundError, match="invalid subdir none"):
        bench.run(op(bench, remote.url("one"), ":none"))


def test_checksums(bench: Bench, remote: Remote) -> None:
    sha = head(remote)
    bench.map_of(op(bench, remote.url("one"), "main", checksum=sha[:10]))
    bench.map_of(op(bench, remote.url("one"), sha, checksum=sha))
    bench.map_of(op(bench, remote.url("one"), "v1", checksum=head(remote, "v1^{commit}")))
    with pytest.raises(UsageError, match=f"^expected checksum to match {'0' * 40}, got {sha}$"):
        bench.map_of(op(bench, remote.url("one"), "main", checksum="0" * 40))


def test_unknown_things(bench: Bench, remote: Remote) -> None:
    with pytest.raises(NotFoundError, match=r'^repository does not contain ref none, output: ""$'):
        bench.map_of(op(bench, remote.url("one"), "none"))
    with pytest.raises(ChantierError, match=r"failed to fetch remote .*/nothing: git stderr:\n"):
        bench.map_of(op(bench, remote.url("nothing")))
    with pytest.raises(ChantierError, match=r"failed to fetch remote"):
        bench.run(op(bench, remote.url("one"), "1" * 40))
    with pytest.raises(UsageError, match="invalid checksum foobar for Git URL, expected hex commit hash"):
        op(bench, remote.url("one"), "main", checksum="foobar")
    with pytest.raises(UsageError, match="invalid git address"):
        op(bench, "--upload-pack=touch /x")


def test_a_branch_that_moves_between_key_and_run(bench: Bench, remote: Remote) -> None:
    remote.make("moving")
    remote.commit("moving", a="1")
    made = op(bench, remote.url("moving"), "main")
    bench.map_of(made)
    remote.commit("moving", a="2")
    (ref,) = bench.run(made)
    assert bench.files(ref) == {"a": "1"}
    (ref,) = bench.run(op(bench, remote.url("moving"), "main"))
    assert bench.files(ref) == {"a": "2"}


def test_git_dir_is_kept_clean(bench: Bench, remote: Remote) -> None:
    for name in ("main", "v1", head(remote, "old")):
        (ref,) = bench.run(op(bench, remote.url("one"), name, keepgitdir="true"))
        assert ref is not None
        with ref.mounted() as root:
            inside = lambda *args: git(Path("/"), "-c", "safe.directory=*", "-C", str(root), *args)  # noqa: E731
            assert inside("rev-parse", "HEAD") == head(remote, f"{name}^{{commit}}")
            assert inside("status", "--porcelain") == ""
            assert inside("config", "remote.origin.url") == remote.url("one")
            assert not (root / ".git/FETCH_HEAD").exists()
            if name == "v1":
                assert inside("describe", "--tags") == "v1"


def test_submodules(bench: Bench, remote: Remote) -> None:
    remote.make("sub")
    remote.commit("sub", s="s")
    remote.make("top")
    git(remote.root / "top", "submodule", "--quiet", "add", remote.url("sub"), "mod/sub")
    git(remote.root / "top", "submodule", "--quiet", "add", "--name", "rel", "--", remote.url("sub"), "rel")
    git(remote.root / "top", "config", "-f", ".gitmodules", "submodule.rel.url", "../sub")
    remote.commit("top", t="t")
    (ref,) = bench.run(op(bench, remote.url("top")))
    assert bench.files(ref).keys() == {".gitmodules", "mod", "mod/sub", "mod/sub/s", "rel", "rel/s", "t"}
    (ref,) = bench.run(op(bench, remote.url("top"), skipsubmodules="true"))
    assert "mod/sub/s" not in bench.files(ref)


class Files(SimpleHTTPRequestHandler):
    """A server that only serves files ("dumb" HTTP): no shallow clones, and no word of how objects are named."""

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    (tmp_path / "served").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(tmp_path / "served")))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield tmp_path / "served", f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("format", ["sha1", "sha256"])
def test_a_server_of_files(bench: Bench, files: tuple[Path, str], format: str) -> None:
    where, url = files
    repository = where / "r"
    repository.mkdir()
    git(repository, "init", "--quiet", f"--object-format={format}")
    (repository / "a").write_text("a")
    git(repository, "add", "a")
    git(repository, "commit", "--quiet", "-m", "one")
    git(repository, "branch", "old")
    (repository / "a").write_text("b")
    git(repository, "commit", "--quiet", "-a", "-m", "two")
    git(repository, "update-server-info")
    for name, wanted in (("", "b"), ("old", "a")):
        for keep in ("", "true"):
            (ref,) = bench.run(op(bench, f"{url}/r/.git", name, keepgitdir=keep))
            assert ref is not None
            with ref.mounted() as root:
                assert (root / "a").read_text() == wanted
                assert (root / ".git").exists() == bool(keep)


def test_a_submodule_on_a_server_of_files(bench: Bench, files: tuple[Path, str]) -> None:
    where, url = files
    for name in ("sub", "top"):
        (where / name).mkdir()
        git(where / name, "init", "--quiet")
    (where / "sub/s").write_text("s")
    git(where / "sub", "add", "s")
    git(where / "sub", "commit", "--quiet", "-m", "one")
    git(where / "sub", "update-server-info")
    git(where / "top", "submodule", "--quiet", "add", f"{url}/sub/.git", "sub")
    git(where / "top", "commit", "--quiet", "-m", "one")
    git(where / "top", "update-server-info")
    (ref,) = bench.run(op(bench, f"{url}/top/.git"))
    assert bench.files(ref)["sub/s"] == "s"


def test_a_build_asks_once_what_a_name_means(bench: Bench, remote: Remote, job: Job) -> None:
    remote.make("told")
    old = remote.commit("told", a="1")
    build = SimpleNamespace(resolved={})
    job.jobs.append(build)
    source = pb.SourceOp(identifier="git://x#main", attrs={"git.fullurl": remote.url("told")})
    told, name, _ = bench.wait(named(source, bench.worker, [], job=build))
    assert (told, name) == (old, "refs/heads/main")
    remote.commit("told", a="2")
    assert bench.wait(named(source, bench.worker, [], job=build))[0] == old
    (ref,) = bench.run(op(bench, remote.url("told"), "main"), job=job)
    assert bench.files(ref)["a"] == "1"
    (ref,) = bench.run(op(bench, remote.url("told"), "main"))
    assert bench.files(ref)["a"] == "2"


def test_commit_times(bench: Bench, remote: Remote) -> None:
    (ref,) = bench.run(op(bench, remote.url("one"), mtime="commit"))
    assert ref is not None
    with ref.mounted() as root:
        assert {os.lstat(root / name).st_mtime for name in ("a", "dir", "dir/f", "link")} == {1_000_000_000}


def test_empty_tree_and_commit_object(bench: Bench, remote: Remote) -> None:
    remote.make("empty")
    remote.commit("empty")
    (ref,) = bench.run(op(bench, remote.url("empty")))
    assert bench.files(ref) == {}
    source = pb.SourceOp(identifier="git://x#v1", attrs={"git.fullurl": remote.url("one")})
    raw = bench.wait(commit_object(source, bench.worker, [], job=SimpleNamespace(resolved={})))
    assert raw.startswith(b"tree ")
    assert b"1000000000 +0000" in raw


def test_redacted() -> None:
    assert redacted("https://u:secret@h/x.git") == "https://u:xxxxx@h/x.git"
    assert redacted("https://h/x.git") == "https://h/x.git"
    assert redacted("git@h:x.git") == "git@h:x.git"


class Smart(BaseHTTPRequestHandler):
    """git-http-backend behind a header."""

    root = Path()
    want = ""
    seen: list[str] = []

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization") or "")
        if self.headers.get("Authorization") != self.want:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        env = {
            **ENV,
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
        out = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=True).stdout
        head, _, rest = out.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in head.decode().split("\r\n"):
            name, _, value = line.partition(": ")
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return None


def test_credentials_over_http(bench: Bench, remote: Remote, job: Job) -> None:
    token = "basic " + base64.b64encode(b"x-access-token:tok").decode()
    handler = type("Handler", (Smart,), {"root": remote.root, "want": token, "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    host = f"127.0.0.1:{server.server_address[1]}"
    url = f"http://{host}/one"
    attrs = {"authtokensecret": "GIT_AUTH_TOKEN", "authheadersecret": "GIT_AUTH_HEADER"}
    with pytest.raises(ChantierError, match="failed to fetch remote"):
        bench.map_of(op(bench, url, **attrs), job=job)
    job.sessions.append(LocalSession(secrets={"GIT_AUTH_TOKEN": SecretSource(value=b"tok\n")}))
    (ref,) = bench.run(op(bench, url, **attrs), job=job)
    assert "b" in bench.files(ref)
    job.sessions[:] = [
        LocalSession(
            secrets={
                f"GIT_AUTH_HEADER.{host}": SecretSource(value=token.encode()),
                "GIT_AUTH_TOKEN": SecretSource(value=b"wrong"),
            }
        )
    ]
    (ref,) = bench.run(op(bench, url, "old", keepgitdir="true", **attrs), job=job)
    assert ref is not None
    with ref.mounted() as root:
        assert "tok" not in (root / ".git/config").read_text()
        assert token not in (root / ".git/config").read_text()
    server.shutdown()
    server.server_close()


def test_an_agent_below_a_deep_state_can_be_reached(tmp_path: Path) -> None:
    """By ssh, which knows paths alone."""
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    listening = _bind(deep / "agent")
    listening.listen()
    with _reachable(deep / "agent") as name, socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
    listening.close()
    with _reachable(Path("/short/agent")) as name:
        assert name == "/short/agent"
