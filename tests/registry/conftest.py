# SPDX-License-Identifier: Apache-2.0
"""Registries to test against: FakeRegistry, and a real docker-registry with basic, token and client certificate login."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme

from chantier.config import Config, parse
from chantier.registry import Login, Registries, Registry, RetryPolicy
from chantier.spec import Reference
from chantier.testing.registry import FakeRegistry

QUICK = RetryPolicy(base_s=0.01, cap_s=0.05)
USER = Login(username="user", secret="secret")
HTPASSWD = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"  # bcrypt of "secret"


@dataclass
class Certificates:
    """An authority, a server's and a client's certificate, as files."""

    folder: Path
    authority: trustme.CA
    ca: str
    server: str
    client_cert: str
    client_key: str

    def context(self, *, clients: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        if clients:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certs")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    server = authority.issue_cert("127.0.0.1", "localhost")
    server.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    client = authority.issue_cert("client@example.test")
    client.cert_chain_pems[0].write_to_path(str(folder / "client.cert"))
    client.private_key_pem.write_to_path(str(folder / "client.key"))
    return Certificates(
        folder,
        authority,
        str(folder / "ca.pem"),
        str(folder / "server.pem"),
        str(folder / "client.cert"),
        str(folder / "client.key"),
    )


@dataclass
class Server:
    """A registry under test and what a client must know of it."""

    authority: str
    config: str = ""
    login: Login | None = None
    fake: FakeRegistry | None = None
    made: list[Registries] = field(default_factory=list)

    def registries(self, config: str | None = None) -> Registries:
        registries = Registries(parse(self.config if config is None else config), retry=QUICK)
        self.made.append(registries)
        return registries

    def open(self, login: Login | str | None = "own") -> Registry:
        chosen = self.login if isinstance(login, str) else login
        return self.registries().open(credentials=lambda host: chosen if host == self.authority else None)

    def ref(self, text: str) -> Reference:
        return Reference.parse(f"{self.authority}/{text}")


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def client() -> Iterator[Callable[..., Registry]]:
    """`client(config, credentials=…)`: a Registry with quick retries."""
    made: list[Registries] = []

    def make(config: str | Config = "", **options: Any) -> Registry:
        registries = Registries(parse(config) if isinstance(config, str) else config, retry=QUICK)
        made.append(registries)
        return registries.open(**options)

    yield make
    for registries in made:
        registries.close()


REAL = [pytest.param(f"real-{kind}", marks=pytest.mark.registry) for kind in ("plain", "basic", "token", "mtls")]


@pytest.fixture(params=["fake-plain", "fake-basic", "fake-token", "fake-mtls", *REAL])
def server(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Server]:
    name, _, kind = request.param.partition("-")
    if name == "fake":
        yield from _fake(kind, certificates)
    else:
        yield request.getfixturevalue(f"real_{kind}")


def _fake(kind: str, certificates: Certificates) -> Iterator[Server]:
    options: dict[str, Any] = {}
    if kind in ("basic", "token"):
        options = {"users": {"user": "secret"}, "auth": kind, "public": False}
    if kind == "mtls":
        options = {"tls": certificates.context(clients=True)}
    with FakeRegistry(**options) as fake:
        config = mtls_config(fake.authority, certificates) if kind == "mtls" else ""
        yield Server(fake.authority, config, USER if "users" in options else None, fake)


def mtls_config(authority: str, certificates: Certificates) -> str:
    return (
        f'[registry."{authority}"]\nhttp = false\nca = ["{certificates.ca}"]\n'
        f'[[registry."{authority}".keypair]]\ncert = "{certificates.client_cert}"\nkey = "{certificates.client_key}"\n'
    )


# The real one.


def _program() -> str:
    found = shutil.which("docker-registry")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("docker-registry is not installed, and CI may not skip")
        pytest.skip("docker-registry is not installed")
    return found


@pytest.fixture(scope="session")
def real_plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _real(tmp_path_factory.mktemp("plain"), {}, {})


@pytest.fixture(scope="session")
def real_basic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("basic")
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    yield from _real(folder, {"auth": auth}, {}, login=USER)


@pytest.fixture(scope="session")
def real_mtls(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Server]:
    key = certificates.folder / "server.pem"
    tls = {"tls": {"certificate": certificates.server, "key": str(key), "clientcas": [certificates.ca]}}
    for server in _real(tmp_path_factory.mktemp("mtls"), {}, tls):
        server.config = mtls_config(server.authority, certificates)
        yield server


@pytest.fixture(scope="session")
def real_token(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Server]:
    with _TokenServer(certificates.authority) as tokens:
        token = {"realm": tokens.realm, "service": "test", "issuer": "test-issuer", "rootcertbundle": certificates.ca}
        yield from _real(tmp_path_factory.mktemp("token"), {"auth": {"token": token}}, {}, login=USER)


def _real(folder: Path, top: dict[str, Any], http: dict[str, Any], login: Login | None = None) -> Iterator[Server]:
    program = _program()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", **http},
        **top,
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        _wait_for(port, process, folder / "log")
        yield Server(f"127.0.0.1:{port}", "", login)
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"docker-registry did not start: {log.read_text()}")
            time.sleep(0.02)


class _TokenServer:
    """distribution's token protocol: JWTs signed by a certificate of the test's authority."""

    def __init__(self, authority: trustme.CA) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from cryptography.x509 import load_pem_x509_certificate

        issued = authority.issue_cert("tokens.test", key_type=trustme.KeyType.RSA)
        self._key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        certificate = load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
        from cryptography.hazmat.primitives.serialization import Encoding

        self._chain = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def __enter__(self) -> _TokenServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        given = handler.headers.get("authorization", "")
        if given and given != "Basic " + base64.b64encode(b"user:secret").decode():
            handler.send_response(401)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        scopes = parse_qs(urlsplit(handler.path).query).get("scope", []) if given else []
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":", 2)
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        data = json.dumps({"token": self._jwt(access), "expires_in": 300}).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _jwt(self, access: list[dict[str, Any]]) -> str:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.hashes import SHA256

        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        claims = {
            "iss": "test-issuer",
            "sub": "user",
            "aud": "test",
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": str(time.monotonic_ns()),
            "access": access,
        }
        signed = ".".join(_b64(json.dumps(part).encode()) for part in (header, claims))
        assert isinstance(self._key, RSAPrivateKey)
        return f"{signed}.{_b64(self._key.sign(signed.encode(), PKCS1v15(), SHA256()))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
