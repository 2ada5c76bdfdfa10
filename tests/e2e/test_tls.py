# SPDX-License-Identifier: Apache-2.0
"""A registry with TLS that wants client certificates: `ca` and `keypair` of the config open it, nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from ..conftest import Command, RealRegistry, free_port, start_registry, write_config

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[tuple[RealRegistry, Path]]:
    ca = trustme.CA()
    certs = tmp_path / "certs"
    certs.mkdir()
    ca.cert_pem.write_to_path(certs / "ca.pem")
    server = ca.issue_cert("127.0.0.1", "localhost")
    server.private_key_pem.write_to_path(certs / "server.key")
    for number, blob in enumerate(server.cert_chain_pems):
        blob.write_to_path(certs / "server.pem", append=number > 0)
    client = ca.issue_cert("client@example.org")
    client.private_key_pem.write_to_path(certs / "client.key")
    for number, blob in enumerate(client.cert_chain_pems):
        blob.write_to_path(certs / "client.pem", append=number > 0)
    found = start_registry(
        tmp_path / "locked",
        f"  tls:\n    certificate: {certs}/server.pem\n    key: {certs}/server.key\n    clientcas: [{certs}/ca.pem]\n",
        port=free_port(),
    )
    yield found, certs
    found.stop()


def test_push_with_client_certificates(
    locked: tuple[RealRegistry, Path], registry: RealRegistry, base: str, tmp_path: Path
) -> None:
    secure, certs = locked
    extra = (
        f'[registry."{secure.host}"]\nhttp = false\nca = ["{certs}/ca.pem"]\n'
        f'[[registry."{secure.host}".keypair]]\nkey = "{certs}/client.key"\ncert = "{certs}/client.pem"\n'
    )
    command = Command(root=tmp_path / "s", config=write_config(tmp_path / "with.toml", registry, extra))
    text = "FROM alpine\nRUN echo locked > /f\n"
    command.build(text, "-t", f"{secure.host}/locked:1", "--push").ok()
    # And what was pushed can be used from there.
    command = Command(root=tmp_path / "s2", config=command.config)
    command.build(f"FROM {secure.host}/locked:1\nRUN cat /f\n").ok()


@pytest.mark.parametrize("kind", ["no-ca", "no-keypair"])
def test_push_without_them_fails_clearly(
    locked: tuple[RealRegistry, Path], registry: RealRegistry, base: str, tmp_path: Path, kind: str
) -> None:
    secure, certs = locked
    extra = f'[registry."{secure.host}"]\nhttp = false\n' + (f'ca = ["{certs}/ca.pem"]\n' if kind == "no-keypair" else "")
    command = Command(root=tmp_path / "s", config=write_config(tmp_path / "c.toml", registry, extra))
    done = command.build("FROM alpine\nRUN true\n", "-t", f"{secure.host}/locked:1", "--push")
    assert done.code == 1
    error = done.err[done.err.rindex("ERROR: ") :]
    assert secure.host in error
    assert "certificate" in error, error
    assert "hint: " in error
    assert len(error.splitlines()) < 6
    assert "Traceback" not in done.err
