# SPDX-License-Identifier: Apache-2.0
"""A node's files on the machine of the client: whoever reaches its registries from here has the same trust."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trustme

from chantier.config import parse
from chantier.driver.delivery import files_of, unpacked
from chantier.errors import ConfigError, UsageError
from chantier.spec import Reference


def test_certificates_are_at_hand_while_it_lasts(tmp_path: Path) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("me.test")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair.private_key_pem.write_to_path(tmp_path / "me.key")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "me.pem")
    (tmp_path / "b.toml").write_text(
        f'[registry."reg.test:5000"]\nca = ["{tmp_path}/ca.pem"]\n'
        f'[[registry."reg.test:5000".keypair]]\nkey = "{tmp_path}/me.key"\ncert = "{tmp_path}/me.pem"\n'
    )
    files = files_of(tmp_path / "b.toml")
    with unpacked(files) as text:
        found = parse(text).registries[Reference.parse("reg.test:5000/x").domain]
        (ca,), (pair_,) = found.ca, found.keypairs
        assert Path(ca).read_bytes() == (tmp_path / "ca.pem").read_bytes()
        assert Path(pair_.key).read_bytes() == (tmp_path / "me.key").read_bytes()
        assert Path(pair_.cert).read_bytes() == (tmp_path / "me.pem").read_bytes()
        top = Path(ca).parents[2]
        assert os.stat(top).st_mode & 0o777 == 0o700
    assert not top.exists()


def test_authorities_of_the_network_travel_too(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "corp.pem")
    (tmp_path / "b.toml").write_text(f'[chantier.network]\nca = ["{tmp_path}/corp.pem"]\n')
    files = files_of(tmp_path / "b.toml")
    assert files["certs/chantier.network/corp.pem"] == (tmp_path / "corp.pem").read_bytes()
    assert parse(files["buildkitd.toml"].decode()).chantier.network.ca == ("/etc/buildkit/certs/chantier.network/corp.pem",)
    (tmp_path / "corp.pem").unlink()
    with pytest.raises(ConfigError, match=r"b\.toml:2: failed to read CA file: open .*corp\.pem: no such file or directory"):
        files_of(tmp_path / "b.toml")


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "certs/../../x"])
def test_paths_that_would_leave_the_directory(name: str) -> None:
    with pytest.raises(UsageError, match="invalid config file path"), unpacked({name: b""}):
        raise AssertionError
