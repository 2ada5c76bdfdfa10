# SPDX-License-Identifier: Apache-2.0
"""Real parts: docker-registry behind nginx, with basic login, a token server, client certificates, a bound on bodies and a rate."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from chantier.config import parse
from chantier.errors import ChantierError, NotFoundError, RateLimitedError, RegistryError, UnauthorizedError
from chantier.registry import Login, MemoryWriter, Registries, Registry, RetryPolicy, explain
from chantier.spec import OCI_CONFIG, OCI_LAYER_TAR, OCI_MANIFEST, Descriptor, Reference, digest_of, new_id

pytestmark = pytest.mark.registry

QUICK = RetryPolicy(base_s=0.02, cap_s=0.1)
USER = Login(username="user", secret="secret")
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
BIG = 3 << 20

NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log warn; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  limit_req_zone $server_port zone=slow:1m rate=1r/s;
  ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {server}; ssl_certificate_key {server}; ssl_client_certificate {ca};
  proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto https; proxy_http_version 1.1; proxy_request_buffering off;
  server {{ listen 127.0.0.1:{basic} ssl; client_max_body_size 0;
    location /v2/ {{ auth_basic "registry"; auth_basic_user_file {folder}/htpasswd; proxy_set_header Authorization ""; proxy_pass http://{plain}; }} }}
  server {{ listen 127.0.0.1:{mtls} ssl; client_max_body_size 0; ssl_verify_client on;
    location /v2/ {{ proxy_pass http://{plain}; }} }}
  server {{ listen 127.0.0.1:{token} ssl; client_max_body_size 0;
    location /v2/ {{ proxy_pass http://{tokens}; }} location /token {{ proxy_pass {realm}; }} }}
  server {{ listen 127.0.0.1:{small} ssl; client_max_body_size 1m;
    location /v2/ {{ proxy_pass http://{plain}; }} }}
  server {{ listen 127.0.0.1:{slow} ssl; client_max_body_size 0; limit_req zone=slow burst=1 nodelay; limit_req_status 429;
    location /v2/ {{ add_header Retry-After 1 always; proxy_pass http://{plain}; }} }}
  server {{ listen 127.0.0.1:{moved} ssl;
    location ~ ^/v2/.*/blobs/ {{ return 307 https://127.0.0.1:{mtls}$request_uri; }}
    location /v2/ {{ proxy_pass http://{plain}; }} }}
}}
"""


@dataclass
class Front:
    """nginx. `ports` by the name of the server in the config above."""

    ports: dict[str, int]
    folder: Path
    certificates: Any
    plain: str
    made: list[Registries] = field(default_factory=list)
    seen: int = 0  # bytes of its log

    def authority(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def ref(self, name: str, text: str = "team/app:1") -> Reference:
        return Reference.parse(f"{self.authority(name)}/{text}")

    def config(self, *names: str, pairs: tuple[str, ...] = ()) -> str:
        text = ""
        for name in names:
            text += f'[registry."{self.authority(name)}"]\nhttp = false\nca = ["{self.certificates.ca}"]\n'
            if name in pairs:
                text += f'[[registry."{self.authority(name)}".keypair]]\ncert = "{self.certificates.client_cert}"\nkey = "{self.certificates.client_key}"\n'
        return text

    def open(self, config: str, login: Callable[[str], Login | None] = lambda host: USER, **more: Any) -> Registry:
        registries = Registries(parse(config), retry=QUICK)
        self.made.append(registries)
        return registries.open(credentials=login, **more)

    def log(self, least: int = 0) -> list[tuple[str, str]]:
        """(method, status) of every request since the last call; waits for `least` of them.

        nginx writes a line some time after its answer; its one worker has written it before that of a request made now, but for
        requests whose body it was still reading when it had answered.
        """
        mark = f"/{new_id()}"
        trust = ssl.create_default_context(cafile=self.certificates.ca)
        asking = http.client.HTTPSConnection("127.0.0.1", self.ports["small"], timeout=60, context=trust)
        asking.request("GET", mark)
        asking.getresponse().read()
        asking.close()
        path = self.folder / "access.log"
        end = time.monotonic() + 60
        while True:
            text = path.read_text()[self.seen :]
            lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n") and '"' in line]
            others = [line for line in lines if mark not in line]
            if len(others) >= least and len(others) < len(lines):
                break
            assert time.monotonic() < end, text
            time.sleep(0.01)
        self.seen += len(text)
        return [(line.split('"')[1].split()[0], line.split('"')[2].split()[0]) for line in others]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def front(
    tmp_path_factory: pytest.TempPathFactory, certificates: Any, real_plain: Any, real_token_behind: Any
) -> Iterator[Front]:
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not os.path.exists(program):
        if os.environ.get("CI"):
            pytest.fail("nginx is not installed, and CI may not skip")
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    for parent in folder.parents:
        if parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o711)  # its worker is another user
    ports: dict[str, int] = {"token": real_token_behind.front}
    while len(ports) < 6:
        ports[["basic", "mtls", "small", "slow", "moved"][len(ports) - 1]] = free_port()
    (folder / "htpasswd").write_text("user:{PLAIN}secret\n")
    (folder / "nginx.conf").write_text(
        NGINX.format(
            folder=folder,
            server=certificates.server,
            ca=certificates.ca,
            plain=real_plain.authority,
            tokens=real_token_behind.authority,
            realm=real_token_behind.realm,
            **ports,
        )
    )
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [program, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")], stdout=out, stderr=out
        )
    try:
        for port in ports.values():
            end = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > end:
                        pytest.fail(f"nginx did not start: {(folder / 'out').read_text()}{(folder / 'error.log').read_text()}")
                    time.sleep(0.02)
        made = Front(ports, folder, certificates, real_plain.authority)
        seed(made, real_plain.authority)
        seed(made, real_token_behind.authority, via=made)
        yield made
        for registries in made.made:
            registries.close()
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(60)


@dataclass
class Behind:
    authority: str
    realm: str
    front: int


@pytest.fixture(scope="module")
def real_token_behind(tmp_path_factory: pytest.TempPathFactory, certificates: Any) -> Iterator[Behind]:
    """A registry that sends its clients to the token server through the front."""
    from .conftest import _real, _TokenServer

    port = free_port()
    with _TokenServer(certificates.authority) as tokens:
        token = {
            "realm": f"https://127.0.0.1:{port}/token",
            "service": "test",
            "issuer": "test-issuer",
            "rootcertbundle": certificates.ca,
        }
        for server in _real(tmp_path_factory.mktemp("behind"), {"auth": {"token": token}}, {}):
            yield Behind(server.authority, tokens.realm.removesuffix("/token"), port)


LAYER = os.urandom(BIG)


def seed(front: Front, authority: str, via: Front | None = None) -> None:
    """`team/app:1`, pushed to the registry itself, or through the front where that has the login."""
    where = via.ref("token") if via is not None else Reference.parse(f"{authority}/team/app:1")
    registry = front.open(front.config("token"))
    push(registry, where)


def push(registry: Registry, where: Reference, layer: bytes = LAYER) -> str:
    blobs = [(CONFIG, OCI_CONFIG), (layer, OCI_LAYER_TAR)]
    described = [Descriptor(media_type=t, digest=digest_of(d), size=len(d)) for d, t in blobs]
    for (data, _), descriptor in zip(blobs, described, strict=True):
        registry.push_blob(where, descriptor, lambda data=data: BytesIO(data))  # type: ignore[misc]
    plain = [f'{{"mediaType":"{d.media_type}","digest":"{d.digest}","size":{d.size}}}' for d in described]
    manifest = f'{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{plain[0]},"layers":[{plain[1]}]}}'.encode()
    return str(registry.push_manifest(where, manifest, OCI_MANIFEST))


def pull(registry: Registry, where: Reference) -> str:
    found = registry.resolve(where)
    registry.manifest(where, found.descriptor)
    writer = MemoryWriter()
    layer = Descriptor(media_type=OCI_LAYER_TAR, digest=digest_of(LAYER), size=len(LAYER))
    done = registry.fetch_blob(where, layer, writer)
    assert bytes(writer.data) == LAYER
    return done.host


@dataclass(frozen=True, kw_only=True)
class Case:
    server: str
    steps: str
    error: type[ChantierError] | None = None
    said: str = ""
    hint: str = ""
    login: Login | None = USER
    pairs: tuple[str, ...] = ()
    ca: bool = True


CASES = {
    "basic login": Case(server="basic", steps="HEAD.401 HEAD.200 GET.200 GET.200"),
    "basic, no login": Case(server="basic", steps="HEAD.401", error=UnauthorizedError, login=None, said="no basic auth credentials", hint="log in to 127.0.0.1"),
    "basic, wrong password": Case(server="basic", steps="HEAD.401 HEAD.401", error=UnauthorizedError, login=Login(username="user", secret="no"), said="authorization failed", hint="were refused"),
    "token login": Case(server="token", steps="HEAD.401 GET.200 HEAD.200 GET.200 GET.200"),
    "token, no login": Case(server="token", steps="HEAD.401 GET.200 HEAD.401", error=UnauthorizedError, login=None, said="pull access denied, repository does not exist or may require authorization"),
    "token, wrong password": Case(server="token", steps="HEAD.401 GET.401 POST.501", error=UnauthorizedError, login=Login(username="user", secret="no"), said="failed to fetch oauth token"),
    "client certificate": Case(server="mtls", steps="HEAD.200 GET.200 GET.200", pairs=("mtls",)),
    "no client certificate": Case(server="mtls", steps="HEAD.400", error=RegistryError, said="400 Bad Request"),
    "no authority": Case(server="mtls", steps="", error=RegistryError, ca=False, said="tls: failed to verify certificate", hint="name the certificate authority of 127.0.0.1"),
    "blobs behind a redirect to client certificates": Case(server="moved", steps="HEAD.200 GET.200 GET.307 GET.200", pairs=("mtls",)),
    "a redirect's certificates are its own": Case(server="moved", steps="HEAD.200 GET.200 GET.307 GET.400", pairs=("moved",), error=RegistryError, said="400 Bad Request"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_pull(front: Front, name: str) -> None:
    case = CASES[name]
    config = front.config("basic", "token", "mtls", "moved", pairs=case.pairs)
    if not case.ca:
        config = f'[registry."{front.authority(case.server)}"]\nhttp = false\n'
    registry = front.open(config, lambda host: case.login)
    front.log()
    if case.error is None:
        assert pull(registry, front.ref(case.server)) == front.authority(case.server)
    else:
        with pytest.raises(case.error) as caught:
            pull(registry, front.ref(case.server))
        assert case.said in caught.value.brief
        assert case.hint in (caught.value.hint or "")
        assert caught.value.exit_code == 1
    assert " ".join(f"{m}.{s}" for m, s in front.log(len(case.steps.split()))) == case.steps


@pytest.mark.parametrize("server", ["basic", "token", "mtls"])
def test_push_and_pull_back(front: Front, server: str) -> None:
    registry = front.open(front.config("basic", "token", "mtls", pairs=("mtls",)))
    layer = os.urandom(2 << 20)
    where = front.ref(server, f"pushed/{server}:1")
    digest = push(registry, where, layer)
    assert registry.resolve(where).descriptor.digest == digest
    assert registry.read_blob(where, Descriptor(media_type=OCI_CONFIG, digest=digest_of(CONFIG), size=len(CONFIG))) == CONFIG


def test_a_proxy_that_bounds_bodies_gets_chunks(front: Front) -> None:
    """nginx answers 413, or cuts the connection while the body is still on its way: either leads to smaller chunks."""
    registry = front.open(front.config("small"))
    front.log()
    push(registry, front.ref("small", "chunked/app:1"), os.urandom(BIG))
    log = front.log()
    assert ("PATCH", "202") in log
    assert [status for method, status in log if method == "PATCH"].count("202") >= 3


def test_a_rate_limit_is_waited_for(front: Front) -> None:
    registry = front.open(front.config("slow"))
    front.log()
    began = time.monotonic()
    for _ in range(4):
        registry.resolve(front.ref("slow"))
    assert time.monotonic() - began > 0.9
    log = front.log()
    assert ("HEAD", "429") in log
    assert log.count(("HEAD", "200")) == 4


def test_a_rate_limit_that_is_not(front: Front) -> None:
    registries = Registries(parse(front.config("slow")), retry=RetryPolicy(attempts=1, attempts_alive=1))
    front.made.append(registries)
    with pytest.raises(RateLimitedError) as caught:
        for _ in range(12):
            registries.open().resolve(front.ref("slow"))
    assert caught.value.exit_code == 75
    assert caught.value.retry_after_s == 1
    assert "try again in 1s" in (caught.value.hint or "")


def test_mirrors_with_different_logins_before_a_registry(front: Front, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("secret\n")
    origin = front.plain
    config = front.config("basic", "mtls", pairs=("mtls",)) + (
        f'[registry."{origin}"]\nmirrors = ["{front.authority("basic")}", "{front.authority("mtls")}"]\n'
        f'[chantier.registry."{front.authority("basic")}".credentials]\nusername = "user"\npasswordFile = "{tmp_path}/pw"\n'
    )
    asked: list[str] = []

    def client(host: str) -> None:
        asked.append(host)

    where = Reference.parse(f"{origin}/team/app:1")
    assert pull(front.open(config, client), where) == front.authority("basic")
    (tmp_path / "pw").write_text("changed\n")
    assert pull(front.open(config, client), where) == front.authority("mtls")
    assert asked == []


def test_missing(front: Front) -> None:
    with pytest.raises(NotFoundError, match="team/app:none: not found"):
        front.open(front.config("basic")).resolve(front.ref("basic", "team/app:none"))


def test_explain(front: Front) -> None:
    config = front.config("basic", "token", "mtls", pairs=("mtls",)) + (
        f'[registry."{front.plain}"]\nmirrors = ["{front.authority("token")}/no", "{front.authority("mtls")}"]\n'
    )
    registries = Registries(parse(config), retry=QUICK)
    front.made.append(registries)
    said = explain(
        registries, Reference.parse(f"{front.plain}/team/app:1"), credentials=lambda host: USER, source="a test", everyone=True
    )
    assert [(h.role, h.decision) for h in said.hosts] == [("mirror", "tried"), ("mirror", "chosen"), ("registry", "not needed")]
    token, mtls, origin = said.hosts
    assert token.auth is not None
    assert (token.auth.scheme, token.auth.service, token.auth.username, token.auth.source) == ("bearer", "test", "user", "a test")
    assert mtls.tls is not None
    assert mtls.tls.version == "TLSv1.3"
    assert mtls.tls.verified
    assert mtls.tls.issuer
    assert mtls.tls.expires
    assert mtls.connect_s is not None
    assert mtls.answer_s is not None
    assert mtls.address == front.authority("mtls")
    assert (origin.scheme, origin.status, origin.tls) == ("http", "200 OK", None)
    assert said.served_by == front.authority("mtls")
