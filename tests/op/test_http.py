# SPDX-License-Identifier: Apache-2.0
"""HTTP sources against a real server."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from chantier.errors import ChantierError, FetchError, IntegrityError, NotFoundError, UsageError
from chantier.op.http import HttpOp, fetched, last_modified
from chantier.pb import ops_pb2 as pb
from chantier.session.local import LocalSession, SecretSource

if TYPE_CHECKING:
    from conftest import Bench, Job

pytestmark = pytest.mark.root

Answer = Callable[[BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes]]
WHEN = "Sun, 09 Sep 2001 01:46:40 GMT"  # 1_000_000_000


class Server:
    """Answers by path; remembers what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
                answer = outer.answers.get(self.path.partition("?")[0])
                status, headers, body = answer(self) if answer is not None else (404, {}, b"no")
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD" and status != 304:
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def serve(self, path: str, body: bytes = b"hello", status: int = 200, **headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        def answer(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
            asked = request.headers.get("If-None-Match") or ""
            if "ETag" in named and named["ETag"].removeprefix("W/") in asked:
                return 304, named, b""
            return status, named, body

        self.answers[path] = answer
        return f"http://{self.host}{path}"

    def methods(self) -> list[str]:
        found = [method for method, _, _ in self.asked]
        self.asked.clear()
        return found


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def op(bench: Bench, url: str, **attrs: str) -> HttpOp:
    named = {f"http.{key}": value for key, value in attrs.items()}
    return HttpOp(bench.vertex(pb.Op(source=pb.SourceOp(identifier=url, attrs=named))), bench.worker)


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_file_with_its_name_mode_and_time(bench: Bench, server: Server) -> None:
    url = server.serve("/dir/a%20file", Last_Modified=WHEN)
    (ref,) = bench.run(op(bench, url + "?x=1"))
    assert bench.files(ref) == {"a file": "hello 600"}
    assert ref is not None
    with ref.mounted() as root:
        assert os.stat(root / "a file").st_mtime == 1_000_000_000
    (ref,) = bench.run(op(bench, url, filename="n", perm="0755", uid="3", gid="4"))
    assert bench.files(ref) == {"n": "hello 755 3:4"}
    url = server.serve("/", Content_Disposition='attachment; filename="../up/named.txt"')
    (ref,) = bench.run(op(bench, url))
    assert bench.files(ref) == {"named.txt": "hello 600"}
    assert ref is not None
    with ref.mounted() as root:
        assert os.stat(root / "named.txt").st_mtime == 0


def test_key_is_the_content(bench: Bench, server: Server) -> None:
    url = server.serve("/f")
    key = bench.map_of(op(bench, url)).digest
    assert key == bench.map_of(op(bench, server.serve("/other"), filename="")).digest
    assert key != bench.map_of(op(bench, url, perm="0644")).digest
    server.serve("/f", b"changed")
    assert key != bench.map_of(op(bench, url)).digest


def test_fetched_once_for_key_and_run(bench: Bench, server: Server) -> None:
    made = op(bench, server.serve("/f"))
    bench.map_of(made)
    bench.map_of(made)
    bench.run(made)
    assert server.methods() == ["GET"]


def test_checksum_needs_no_request_for_the_key(bench: Bench, server: Server) -> None:
    url = server.serve("/f")
    made = op(bench, url, checksum=sha(b"hello"))
    bench.map_of(made)
    assert server.methods() == []
    (ref,) = bench.run(made)
    assert bench.files(ref) == {"f": "hello 600"}
    with pytest.raises(IntegrityError) as caught:
        bench.run(op(bench, url, checksum=sha(b"other")))
    assert str(caught.value) == f"digest mismatch for {url}: {sha(b'hello')} (expected: {sha(b'other')})"
    with pytest.raises(ChantierError, match="invalid digest"):
        op(bench, url, checksum="sha256:x")


def test_etags_save_the_transfer(bench: Bench, server: Server) -> None:
    url = server.serve("/f", ETag='W/"one"')
    (first,) = bench.run(op(bench, url))
    assert server.methods() == ["GET"]
    (second,) = bench.run(op(bench, url))
    assert server.methods() == ["HEAD"]
    assert first is not None
    assert second is not None
    assert first.id == second.id
    server.serve("/f", b"changed", ETag='"two"')
    (third,) = bench.run(op(bench, url))
    assert bench.files(third) == {"f": "changed 600"}
    assert server.methods() == ["HEAD", "GET"]
    server.serve("/f", ETag='"one"')
    (again,) = bench.run(op(bench, url))
    assert again is not None
    assert again.id == first.id
    # A server whose tags have no quotes, and that compares them as text
    odd = server.serve("/odd", ETag="three")
    bench.run(op(bench, odd))
    server.asked.clear()
    bench.run(op(bench, odd))
    assert [asked[2].get("if-none-match") for asked in server.asked] == ["three"]
    # A server that knows no HEAD
    server.asked.clear()
    plain = server.answers["/f"]
    server.answers["/f"] = lambda r: (405, {}, b"") if r.command == "HEAD" else plain(r)
    server.asked.clear()
    (again,) = bench.run(op(bench, url))
    assert again is not None
    assert again.id == first.id
    assert server.methods() == ["HEAD", "GET"]


def test_statuses(bench: Bench, server: Server) -> None:
    with pytest.raises(ChantierError, match=r"^invalid response status 404$"):
        bench.run(op(bench, f"http://{server.host}/none"))
    assert server.methods() == ["GET"]
    calls = iter([503, 200])
    server.answers["/flaky"] = lambda _r: (next(calls), {}, b"ok")
    (ref,) = bench.run(op(bench, f"http://{server.host}/flaky"))
    assert bench.files(ref) == {"flaky": "ok 600"}
    with pytest.raises(ChantierError, match=r"failed to load http://u:xxxxx@127.0.0.1:1/f"):
        bench.run(op(bench, "http://u:secret@127.0.0.1:1/f"))


def test_redirects_and_credentials(bench: Bench, server: Server, job: Job) -> None:
    elsewhere = Server()
    target = elsewhere.serve("/there", b"moved")
    server.answers["/r"] = lambda _r: (302, {"Location": target}, b"")
    server.answers["/near"] = lambda _r: (302, {"Location": "/here"}, b"")
    server.serve("/here", b"near")
    job.sessions.append(LocalSession(secrets={f"HTTP_AUTH_TOKEN_{server.host}": SecretSource(value=b"tok")}))
    (ref,) = bench.run(op(bench, f"http://{server.host}/r"), job=job)
    assert bench.files(ref) == {"r": "moved 600"}
    assert server.asked[-1][2]["authorization"] == "Bearer tok"
    assert "authorization" not in elsewhere.asked[-1][2]
    bench.run(op(bench, f"http://{server.host}/near"), job=job)
    assert server.asked[-1][2]["authorization"] == "Bearer tok"
    elsewhere.http.shutdown()
    elsewhere.http.server_close()


def test_headers_and_named_secret(bench: Bench, server: Server, job: Job) -> None:
    url = server.serve("/f")
    made = op(bench, url, authheadersecret="S", **{"header.accept": "x/y", "header.user-agent": "me"})
    with pytest.raises(NotFoundError, match="failed to retrieve HTTP auth secret S: not found"):
        bench.run(made, job=job)
    job.sessions.append(LocalSession(secrets={"S": SecretSource(value=b"Basic abc\n")}))
    bench.run(made, job=job)
    sent = server.asked[-1][2]
    assert (sent["authorization"], sent["accept"], sent["user-agent"]) == ("Basic abc", "x/y", "me")


def test_tokens_by_host_name(bench: Bench, server: Server, job: Job) -> None:
    """BuildKit names the secret by the host alone; one with the port is for one server, and goes first."""
    url = server.serve("/token", b"t")
    secrets = {"HTTP_AUTH_TOKEN_127.0.0.1": SecretSource(value=b"host")}
    job.sessions.append(LocalSession(secrets=secrets))
    bench.run(op(bench, url), job=job)
    assert server.asked[-1][2]["authorization"] == "Bearer host"
    job.sessions[:] = [LocalSession(secrets={**secrets, f"HTTP_AUTH_HEADER_{server.host}": SecretSource(value=b"own")})]
    bench.run(op(bench, url), job=job)
    assert server.asked[-1][2]["authorization"] == "own"


def test_a_build_sees_one_content(bench: Bench, server: Server, job: Job) -> None:
    url = server.serve("/moving", b"first", ETag='"1"')
    build = SimpleNamespace(resolved={})
    job.jobs.append(build)
    held: list[Any] = []
    source = pb.SourceOp(identifier=url)
    found = bench.wait(fetched(source, bench.worker, [], job=build, hold=held.append, suffixed=("sha512", b"more")))
    assert (found.digest, found.name) == ("sha256:" + hashlib.sha256(b"first").hexdigest(), "moving")
    assert found.suffixed == "sha512:" + hashlib.sha512(b"firstmore").hexdigest()
    server.serve("/moving", b"second", ETag='"2"')
    (ref,) = bench.run(op(bench, url), job=job)
    assert bench.files(ref)["moving"].startswith("first")
    (ref,) = bench.run(op(bench, url))
    assert bench.files(ref)["moving"].startswith("second")
    for one in held:
        one.release()


def test_client_streams(bench: Bench, job: Job) -> None:
    job.sessions += [LocalSession(), LocalSession(uploads={"abc": (io.BytesIO(b"x" * 3_000_000), b"head")})]
    made = op(bench, "http://buildkit-session/abc", filename="context")
    bench.map_of(made, job=job)
    (ref,) = bench.run(made, job=job)
    assert bench.files(ref) == {"context": "head" + "x" * 3_000_000 + " 600"}
    with pytest.raises(NotFoundError, match="no client offers it"):
        bench.run(op(bench, "http://buildkit-session/abc"), job=job)


def test_last_modified(bench: Bench, server: Server) -> None:
    source = pb.SourceOp(identifier=server.serve("/f", Last_Modified=WHEN))
    assert bench.wait(last_modified(source, bench.worker, [])) == 1_000_000_000
    source = pb.SourceOp(identifier=server.serve("/g", Last_Modified="soon"))
    assert bench.wait(last_modified(source, bench.worker, [])) is None


def test_half_a_signature_is_a_mistake(bench: Bench) -> None:
    for name in ("sig.pubkey", "sig.signature"):
        with pytest.raises(UsageError, match="a signature needs a public key, and a key a signature"):
            op(bench, "http://x/f", **{name: "text"})


def test_a_truncated_body_leaves_nothing(bench: Bench, server: Server) -> None:
    def answer(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"short")
        request.close_connection = True
        raise ConnectionAbortedError

    server.answers["/cut"] = answer
    server.http.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
    before = len(bench.cache.usage())
    with pytest.raises(ChantierError, match="failed to load"):
        bench.run(op(bench, f"http://{server.host}/cut"))
    assert len(bench.cache.usage()) == before
    assert len([1 for _, path, _ in server.asked if path == "/cut"]) == 4


def test_a_body_that_breaks_off_goes_on(bench: Bench, server: Server) -> None:
    whole = bytes(range(256)) * 400
    cuts = iter([30_000, 70_000])

    def answer(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        start = int((request.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        request.send_response(206 if start else 200)
        request.send_header("ETag", '"one"')
        request.send_header("Content-Length", str(len(whole) - start))
        request.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        request.end_headers()
        request.wfile.write(whole[start : next(cuts, len(whole))])
        request.close_connection = True
        raise ConnectionAbortedError

    server.answers["/long"] = answer
    server.http.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
    made = op(bench, f"http://{server.host}/long")
    bench.run(made)
    assert bench.map_of(made).digest == bench.map_of(op(bench, server.serve("/long2", whole))).digest
    asked = [(h.get("range"), h.get("if-range")) for _, path, h in server.asked if path == "/long"]
    assert asked == [(None, None), ("bytes=30000-", '"one"'), ("bytes=70000-", '"one"')]


def test_another_file_in_place_of_the_rest(bench: Bench, server: Server) -> None:
    """A server without ranges, or whose file has changed, sends all of it: what was there before goes."""
    bodies = iter([(b"old" * 1000, 2000), (b"new" * 900, 2700)])

    def answer(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        body, sent = next(bodies)
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[:sent])
        request.close_connection = True
        raise ConnectionAbortedError

    server.answers["/f"] = answer
    server.http.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
    (ref,) = bench.run(op(bench, f"http://{server.host}/f"))
    assert bench.files(ref) == {"f": "new" * 900 + " 600"}


def test_trouble_that_passes_has_a_code_of_its_own(bench: Bench, server: Server) -> None:
    server.answers["/down"] = lambda _r: (503, {}, b"")
    with pytest.raises(FetchError, match=r"^invalid response status 503$") as caught:
        bench.run(op(bench, f"http://{server.host}/down"))
    assert (caught.value.transient, caught.value.exit_code, len(server.asked)) == (True, 75, 4)
    with pytest.raises(FetchError) as final:
        bench.run(op(bench, f"http://{server.host}/gone"))
    assert (final.value.transient, final.value.exit_code) == (False, 1)


def test_login_in_the_address(bench: Bench, server: Server) -> None:
    server.serve("/f")
    bench.run(op(bench, f"http://me:p%40ss@{server.host}/f"))
    assert server.asked[-1][2]["authorization"] == "Basic bWU6cEBzcw=="
