# SPDX-License-Identifier: Apache-2.0
"""Certificates of registries are checked before they are used; what is wrong is said."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from chantier.config import parse
from chantier.driver.certificate import check_config, validities


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    found = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(found.cert_pem.bytes())
    return found


def issue(authority: trustme.CA, tmp_path: Path, name: str, **more: object) -> None:
    pair = authority.issue_cert(f"{name}.test", **more)  # type: ignore[arg-type]
    (tmp_path / f"{name}.pem").write_bytes(b"".join(p.bytes() for p in pair.cert_chain_pems))
    (tmp_path / f"{name}.key").write_bytes(pair.private_key_pem.bytes())


def problems(tmp_path: Path, text: str, *, connect: bool = False, host: str = "reg.test") -> list[str]:
    config = parse(f'[registry."{host}"]\n' + text.replace("@", str(tmp_path)), "x.toml")
    errors, warnings = check_config(config, connect=connect)
    return [str(e) for e in errors] + [f"warning: {w}" for w in warnings]


def test_good_ones(authority: trustme.CA, tmp_path: Path) -> None:
    issue(authority, tmp_path, "me")
    assert problems(tmp_path, 'ca = ["@/ca.pem"]\nkeypair = [{key = "@/me.key", cert = "@/me.pem"}]\n') == []
    ends = validities((tmp_path / "me.pem").read_bytes())[0].ends
    assert ends > dt.datetime.now(dt.UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ca = ["@/none.pem"]', "failed to read CA file: open @/none.pem: no such file or directory"),
        ('ca = ["@/empty"]', 'the ca of registry "reg.test" cannot be used: @/empty: no certificate in it'),
        ('keypair = [{key = "@/none", cert = "@/me.pem"}]', "failed to read key file: open @/none: no such file or directory"),
        ('keypair = [{key = "@/me.key", cert = "@/none"}]', "failed to read cert file: open @/none: no such file or directory"),
        (
            'keypair = [{key = "@/you.key", cert = "@/me.pem"}]',
            'registry "reg.test": the key @/you.key is not that of the certificate @/me.pem',
        ),
        (
            'keypair = [{key = "@/old.key", cert = "@/old.pem"}]',
            'the certificate of registry "reg.test" has expired: @/old.pem: on 2020-01-02',
        ),
    ],
)
def test_bad_ones(authority: trustme.CA, tmp_path: Path, text: str, expected: str) -> None:
    issue(authority, tmp_path, "me")
    issue(authority, tmp_path, "you")
    utc = dt.UTC
    issue(
        authority, tmp_path, "old", not_before=dt.datetime(2020, 1, 1, tzinfo=utc),
        not_after=dt.datetime(2020, 1, 2, tzinfo=utc),
    )  # fmt: skip
    (tmp_path / "empty").write_text("")
    assert problems(tmp_path, text) == [expected.replace("@", str(tmp_path))]


@contextmanager
def registry(authority: trustme.CA, *, client: bool = False) -> Iterator[str]:
    """A TLS server on this machine that answers anything with a line."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if client:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    sock, _ = server.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(sock, server_side=True) as tls:
                        tls.recv(100)
                        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                except OSError:
                    continue

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_the_chain_of_the_registry(authority: trustme.CA, tmp_path: Path) -> None:
    with registry(authority) as host:
        assert problems(tmp_path, 'ca = ["@/ca.pem"]', connect=True, host=host) == []
    other = trustme.CA()
    with registry(other) as host:
        (found,) = problems(tmp_path, 'ca = ["@/ca.pem"]', connect=True, host=host)
        assert found.startswith(f"the certificate of registry {host} does not verify: ")
    (found,) = problems(tmp_path, 'ca = ["@/ca.pem"]', connect=True, host="127.0.0.1:1")
    assert found == "warning: registry 127.0.0.1:1 could not be asked for its certificate: connection refused"


def test_a_registry_that_wants_a_client_certificate(authority: trustme.CA, tmp_path: Path) -> None:
    issue(authority, tmp_path, "me")
    with registry(authority, client=True) as host:
        (found,) = problems(tmp_path, 'ca = ["@/ca.pem"]', connect=True, host=host)
        assert found.startswith(f"registry {host} refused the connection")
        good = 'ca = ["@/ca.pem"]\nkeypair = [{key = "@/me.key", cert = "@/me.pem"}]'
        assert problems(tmp_path, good, connect=True, host=host) == []
