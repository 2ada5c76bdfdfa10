# SPDX-License-Identifier: Apache-2.0
"""TLS, client certificates, redirects to other hosts, proxies, the fall back to plain HTTP, and the log."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chantier.display.logfmt import TextFormatter
from chantier.errors import ConfigError, RegistryError
from chantier.registry import Login, Peer, Registry
from chantier.registry.messages import Request
from chantier.registry.trace import redact_header, redact_url
from chantier.registry.transport import Transport
from chantier.spec import Descriptor, Reference
from chantier.testing.registry import FakeRegistry

Make = Callable[..., Registry]


def ref(registry: FakeRegistry) -> Reference:
    return Reference.parse(f"{registry.authority}/app:1")


def table(registry: FakeRegistry, *lines: str) -> str:
    return f'[registry."{registry.authority}"]\nhttp = false\n' + "\n".join(lines) + "\n"


def pair(registry: FakeRegistry, certificates: Any) -> str:
    return (
        f'[[registry."{registry.authority}".keypair]]\ncert = "{certificates.client_cert}"\nkey = "{certificates.client_key}"\n'
    )


def test_unknown_authority(certificates: Any, client: Make) -> None:
    with FakeRegistry(tls=certificates.context(clients=False)) as fake:
        fake.add_image("app", "1")
        with pytest.raises(RegistryError) as caught:
            client(table(fake)).resolve(ref(fake))
        assert "tls: failed to verify certificate: unable to get local issuer certificate" in caught.value.brief
        assert (
            caught.value.hint
            == f'name the certificate authority of {fake.authority} as ca in [registry."{fake.authority}"] of the config'
        )
        assert not caught.value.transient
        assert client(table(fake, f'ca = ["{certificates.ca}"]')).resolve(ref(fake)).descriptor.size
        assert client(table(fake, "insecure = true")).resolve(ref(fake)).descriptor.size
        assert client(f'[registry."{fake.authority}"]\nhttp = false\n').insecure().resolve(ref(fake)).descriptor.size


def test_client_certificate(certificates: Any, client: Make) -> None:
    with FakeRegistry(tls=certificates.context(clients=True)) as fake:
        fake.add_image("app", "1")
        ca = f'ca = ["{certificates.ca}"]'
        assert client(table(fake, ca) + pair(fake, certificates)).resolve(ref(fake)).descriptor.size
        with pytest.raises(RegistryError) as caught:
            client(table(fake, ca)).resolve(ref(fake))
        assert "certificate required" in caught.value.brief
        assert "wants a client certificate: name one as keypair" in (caught.value.hint or "")


def test_directory_of_certificates(certificates: Any, client: Make, tmp_path: Path) -> None:
    shutil.copy(certificates.ca, tmp_path / "ca.crt")
    shutil.copy(certificates.client_cert, tmp_path / "client.cert")
    shutil.copy(certificates.client_key, tmp_path / "client.key")
    with FakeRegistry(tls=certificates.context(clients=True)) as fake:
        fake.add_image("app", "1")
        assert client(table(fake, f'tlsconfigdir = ["/does/not/exist", "{tmp_path}"]')).resolve(ref(fake)).descriptor.size


def test_certificates_that_change_are_read_anew(certificates: Any, client: Make, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(Path(certificates.server).read_text().split("-----BEGIN CERT", 1)[0] + Path(certificates.ca).read_text())
    with FakeRegistry(tls=certificates.context(clients=False)) as fake:
        fake.add_image("app", "1")
        registry = client(table(fake, f'ca = ["{ca}"]'))
        registry.resolve(ref(fake))
        import trustme

        trustme.CA().cert_pem.write_to_path(str(ca))
        os.utime(ca, ns=(1, 1))
        with pytest.raises(RegistryError, match="failed to verify certificate"):
            registry.resolve(ref(fake))


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ('ca = ["/no/such.pem"]', "failed to read CA file /no/such.pem: no such file or directory"),
        ('ca = ["/etc/hostname"]', "failed to read CA file /etc/hostname: not a PEM file"),
    ],
)
def test_unusable_files(client: Make, lines: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        client(f'[registry."r.test"]\n{lines}\n').resolve(Reference.parse("r.test/app:1"))


def test_key_of_another_certificate(client: Make, certificates: Any) -> None:
    text = f'[[registry."r.test".keypair]]\ncert = "{certificates.ca}"\nkey = "{certificates.client_key}"\n'
    with pytest.raises(ConfigError, match="the key does not belong to the certificate"):
        client(text).resolve(Reference.parse("r.test/app:1"))


def test_plain_http_where_tls_was_expected(fake: FakeRegistry, client: Make) -> None:
    fake.add_image("app", "1")
    with pytest.raises(RegistryError) as caught:
        client(table(fake)).resolve(ref(fake))
    assert "server gave HTTP response to HTTPS client" in caught.value.brief
    assert "set http = true" in (caught.value.hint or "")


def test_fall_back_to_plain_http(fake: FakeRegistry, client: Make) -> None:
    fake.add_image("app", "1")
    registry = client(f'[registry."{fake.authority}"]\nhttp = true\ninsecure = true\n')
    assert registry.hosts(ref(fake))[0].scheme == "https"
    assert registry.resolve(ref(fake)).descriptor.size
    before = fake.connections
    registry.resolve(ref(fake))
    assert fake.connections == before  # remembered: no second handshake


# Redirects.


def test_blobs_from_a_cdn_without_credentials(client: Make) -> None:
    with FakeRegistry() as cdn, FakeRegistry(users={"u": "p"}, cdn=cdn) as fake:
        blob = fake.add_blob("app", b"layer")
        registry = client(credentials=lambda host: Login(username="u", secret="p"))
        assert registry.read_blob(ref(fake), blob) == b"layer"
        assert [r.method for r in fake.seen()] == ["GET", "GET"]
        assert cdn.count("GET") == 1
        assert "authorization" not in cdn.seen()[0].headers
        assert cdn.seen()[0].query == {"X-Signature": "signed-secret"}


def test_resume_goes_through_the_registry_again(client: Make) -> None:
    with FakeRegistry() as cdn, FakeRegistry(cdn=cdn) as fake:
        blob = fake.add_blob("app", b"x" * 50_000)
        cdn.fail("eof", after=20_000)
        assert client().read_blob(ref(fake), blob) == b"x" * 50_000
        assert [r.headers.get("range") for r in cdn.seen()] == [None, "bytes=20000-"]


def test_client_certificates_stay_at_home(certificates: Any, client: Make) -> None:
    """The other host asks for a certificate and gets none."""
    with (
        FakeRegistry(tls=certificates.context(clients=True)) as cdn,
        FakeRegistry(tls=certificates.context(clients=True), cdn=cdn) as fake,
    ):
        blob = fake.add_blob("app", b"layer")
        home = table(fake, f'ca = ["{certificates.ca}"]') + pair(fake, certificates)
        with pytest.raises(RegistryError, match=r"certificate required|EOF|reset"):
            client(home).read_blob(ref(fake), blob)
        assert cdn.count() == 0
        both = home + table(cdn, f'ca = ["{certificates.ca}"]') + pair(cdn, certificates)
        assert client(both).read_blob(ref(fake), blob) == b"layer"


def test_redirects_end(fake: FakeRegistry, client: Make) -> None:
    blob = fake.add_blob("app", b"layer")
    fake.fail("redirect", location="/v2/app/blobs/again", times=-1)
    with pytest.raises(RegistryError, match="redirects more than 10 times"):
        client().read_blob(ref(fake), blob)
    fake.heal()
    fake.fail("redirect", location="file:///etc/passwd")
    with pytest.raises(RegistryError, match="not an http address"):
        client().read_blob(ref(fake), blob)


def test_layers_with_addresses_of_their_own(fake: FakeRegistry, client: Make) -> None:
    with FakeRegistry(users={"u": "p"}) as registry_of_origin:
        blob = fake.add_blob("elsewhere", b"foreign")
        described = Descriptor(
            media_type=blob.media_type,
            digest=blob.digest,
            size=blob.size,
            urls=(f"{fake.url}/v2/elsewhere/blobs/{blob.digest}",),
        )
        assert client().read_blob(ref(registry_of_origin), described) == b"foreign"
        assert registry_of_origin.count() == 0


# Proxies.


class Proxy(BaseHTTPRequestHandler):
    seen: list[tuple[str, str, str | None]] = []

    def do_GET(self) -> None:
        self.seen.append((self.command, self.path, self.headers.get("proxy-authorization")))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return None


def test_proxies_of_the_environment() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://me:pw@127.0.0.1:{server.server_address[1]}"
    transport = Transport(user_agent="t", environment={"HTTP_PROXY": address, "NO_PROXY": "direct.invalid"})
    peer = Peer(connect_timeout_s=0.5)
    with transport.send(Request(method="GET", url="http://some.invalid/x"), peer) as response:
        assert response.status == 200
    assert Proxy.seen == [("GET", "http://some.invalid/x", "Basic bWU6cHc=")]
    for url in ("http://direct.invalid/x", "http://127.0.0.1:1/x"):
        with pytest.raises(RegistryError, match=r"no such host|temporary failure|refused"):
            transport.send(Request(method="GET", url=url), peer)
    assert len(Proxy.seen) == 1
    server.shutdown()
    server.server_close()


# The log.


def test_log_of_a_pull(client: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "chantier.registry")
    with FakeRegistry() as cdn, FakeRegistry(users={"u": "hunter2"}, auth="token", cdn=cdn) as fake, FakeRegistry() as mirror:
        fake.add_image("app", "1", [b"layer"])
        registry = client(
            f'[registry."{fake.authority}"]\nmirrors = ["{mirror.authority}"]\n',
            credentials=lambda host: Login(username="u", secret="hunter2"),
            fields={"build": "b1"},
        )
        registry.resolve(ref(fake))
        registry.read_blob(ref(fake), fake.add_blob("app", b"layer"))
        tokens = list(fake.tokens)
        origin, near = fake.authority, mirror.authority
    lines = [TextFormatter().format(r).split(" ", 1)[1] for r in caplog.records]
    text = "\n".join(lines)
    assert all("build=b1" in line for line in lines)
    first = next(line for line in lines if 'msg="do request"' in line)
    assert first.startswith(f'level=debug msg="do request" build=b1 host="{near}" request.header.accept="application/')
    assert " request.method=HEAD " in first
    assert first.endswith(f'url="http://{near}/v2/app/manifests/1?ns={origin}"')
    assert f'msg="fetch response received" build=b1 host="{near}"' in text
    assert 'response.status="404 Not Found"' in text
    assert 'msg="trying next host after status: 404 Not Found"' in text
    assert "msg=Unauthorized" in text
    assert "msg=resolving" in text
    assert "msg=resolved" in text
    assert "X-Signature=REDACTED" in text
    assert 'request.header.authorization="Bearer REDACTED"' in text
    assert "request.header.user-agent=chantier/" in text
    for secret in ("hunter2", "signed-secret", "dTpodW50ZXIy", *tokens):
        assert secret not in text


def test_log_of_a_push(fake: FakeRegistry, client: Make, caplog: pytest.LogCaptureFixture) -> None:
    from io import BytesIO

    caplog.set_level(logging.DEBUG, "chantier.registry")
    blob = FakeRegistry().add_blob("x", b"layer")
    client().push_blob(ref(fake), blob, lambda: BytesIO(b"layer"))
    said = [r.getMessage() for r in caplog.records]
    assert said[0] == "checking and pushing to"
    assert "signed-secret" not in " ".join(TextFormatter().format(r) for r in caplog.records)


def test_redaction() -> None:
    assert redact_url("https://u:p@h/p?ns=docker.io&sig=abc&x=y#f") == "https://h/p?ns=docker.io&sig=REDACTED&x=REDACTED#f"
    assert redact_url("/v2/a?_state=s") == "/v2/a?_state=REDACTED"
    assert redact_header("Authorization", "Basic abc") == "Basic REDACTED"
    assert redact_header("authorization", "abc") == "REDACTED"
    assert redact_header("Set-Cookie", "a=b") == "REDACTED"
    assert redact_header("Link", '</v2/_catalog?last=x&n=1>; rel="next"') == '</v2/_catalog?last=REDACTED&n=REDACTED>; rel="next"'
    assert redact_header("accept", "a/b") == "a/b"


def test_user_agent(fake: FakeRegistry, client: Make) -> None:
    fake.add_image("app", "1")
    client().resolve(ref(fake))
    assert fake.seen()[0].headers["user-agent"].startswith("chantier/")
