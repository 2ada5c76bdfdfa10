# SPDX-License-Identifier: Apache-2.0
"""What is in effect and where it came from; a file whose certificates cannot be used says which and on which line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trustme

from chantier.cli.main import main
from chantier.config import Setting, parse, settings, show

TEXT = """debug = true
[worker.oci]
MAX-parallelism = 4
[registry."docker.io"]
mirrors = [
  "mirror.test:5000",
]
[[registry."reg.test:5000".keypair]]
key = "/k"
cert = "/c"
[chantier.registry]
"mirror.test:5000" = { connectTimeout = "2s" }
"""


def found(text: str, env: dict[str, str] | None = None, disk_bytes: int = 0) -> dict[str, Setting]:
    made = settings(parse(text, "b.toml"), text, env=env or {}, disk_bytes=disk_bytes)
    assert len({one.key for one in made}) == len(made)
    return {one.key: one for one in made}


def test_the_line_of_each_value() -> None:
    made = found(TEXT)
    lines = {key: one.origin for key, one in made.items() if one.origin.startswith("b.toml:")}
    assert lines == {
        "debug": "b.toml:1",
        "log.level": "b.toml:1",  # debug asks for it
        "worker.oci.max-parallelism": "b.toml:3",
        'registry."docker.io".mirrors': "b.toml:5",
        'registry."reg.test:5000".keypair[0].key': "b.toml:9",
        'registry."reg.test:5000".keypair[0].cert': "b.toml:10",
        'chantier.registry."mirror.test:5000".connectTimeout': "b.toml:12",
    }
    assert made["log.level"].value == "debug"


def test_defaults_that_mean_something() -> None:
    made = found("", disk_bytes=100_000_000_000)
    assert {one.origin for one in made.values()} == {"default"}
    assert made["system.maxRegistryConcurrency"].value == 4
    # docs of buildkitd.toml: four rules; 10% of the disk (10 GB at most) is reserved, 80% (100 GB at most) used; a percentage of
    # the disk is taken in GiB, rounded up, and then in GB
    assert made["worker.oci.gcpolicy[3].all"].value is True
    assert made["worker.oci.gcpolicy[3].reservedSpace"].value == 10_000_000_000
    assert made["worker.oci.gcpolicy[3].maxUsedSpace"].value == 75_000_000_000


def test_variables_are_named() -> None:
    env = {"CHANTIER_ROOT": "/var/r", "HTTPS_PROXY": "http://p.test:1", "no_proxy": "a,b"}
    made = found('root = "/elsewhere"\n', env)
    assert (made["root"].value, made["root"].origin) == ("/var/r", "CHANTIER_ROOT")
    assert made["chantier.network.httpsProxy"].origin == "HTTPS_PROXY"
    assert (made["chantier.network.noProxy"].value, made["chantier.network.noProxy"].origin) == (["a", "b"], "no_proxy")
    made = found('[chantier.network]\nproxy = "http://q.test:1"\n', env)  # then the engine looks at no variable
    assert "chantier.network.httpsProxy" not in made and made["chantier.network.proxy"].origin == "b.toml:2"


@pytest.mark.parametrize("text", [TEXT, "", (Path(__file__).parent / "whole.toml").read_text()], ids=["some", "none", "whole"])
def test_what_is_shown_means_the_same(text: str) -> None:
    """Shown again as a file, everything is there with the values it had."""
    first = settings(parse(text, "b.toml"), text, env={}, disk_bytes=10**11)
    again = show(first)
    second = settings(parse(again, "c.toml"), again, env={}, disk_bytes=10**11)
    values = {one.key: one.value for one in second}
    assert {one.key: one.value for one in first} == values


def test_show_and_check_as_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "b.toml"
    file.write_text(
        '[registry."reg.test"]\nca = ["/nope.pem"]\n[[registry."reg.test".keypair]]\nkey = "/nope.key"\ncert = "/no"\n'
    )
    monkeypatch.setenv("CHANTIER_CONFIG", str(file))
    assert main(["config", "show"]) == 0
    assert f'ca = ["/nope.pem"]  # {file}:2\n' in capsys.readouterr().out
    assert main(["config", "check", "--offline"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"ERROR: {file}:2: failed to read CA file: open /nope.pem")
    assert f"{file}:4: failed to read key file: open /nope.key" in said
    assert main(["config", "check", "--format", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [(e["line"], e["key"]) for e in document["errors"]] == [
        (2, 'registry."reg.test".ca[0]'),
        (4, 'registry."reg.test".keypair[0].key'),
        (5, 'registry."reg.test".keypair[0].cert'),
    ]


def test_the_certificate_of_the_daemon_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = trustme.CA()
    for name in ("one", "two"):
        pair = authority.issue_cert(f"{name}.test")
        pair.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        pair.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    file = tmp_path / "b.toml"
    file.write_text(f'[grpc.tls]\ncert = "{tmp_path}/one.pem"\nkey = "{tmp_path}/one.key"\n')
    assert main(["config", "check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: ok\n"
    file.write_text(file.read_text().replace("one.key", "two.key"))
    assert main(["config", "check", str(file)]) == 1
    assert f"{file}:3: the daemon: the key {tmp_path}/two.key is not that of the certificate" in capsys.readouterr().err
