# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from chantier.runtime import DEFAULT_HOSTNAME, Dns, Files
from chantier.runtime.files import hosts_text, resolv_text


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "shared").mkdir()
    return Files(where=tmp_path / "shared", source=tmp_path / "resolv.conf", systemd=tmp_path / "systemd.conf")


def test_hosts_of_the_default_name_is_one_file_for_all(files: Files, tmp_path: Path) -> None:
    first, second = (files.hosts(tmp_path, DEFAULT_HOSTNAME, ()) for _ in range(2))
    assert first == second
    assert first.read_text() == "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    assert first.stat().st_mode & 0o777 == 0o644


def test_hosts_with_names_of_its_own(files: Files, tmp_path: Path) -> None:
    path = files.hosts(tmp_path, "mine", [("10.1.2.3", "one.test"), ("fd00::1", "six.test")])
    assert path.parent == tmp_path
    assert path.read_text() == hosts_text("mine", []) + "10.1.2.3\tone.test\nfd00::1\tsix.test\n"
    assert "localhost mine\n" in path.read_text()


@pytest.mark.parametrize(
    ("text", "dns", "host", "expected"),
    [
        ("nameserver 127.0.0.1\n# c\n", Dns(), True, "nameserver 127.0.0.1\n# c\n"),
        (
            "search a b\nnameserver 127.0.0.1\nnameserver ::1\nnameserver 10.0.0.1\noptions ndots:2\n",
            Dns(),
            False,
            "search a b\nnameserver 10.0.0.1\noptions ndots:2\n",
        ),
        (
            "nameserver 127.0.0.1\n",
            Dns(),
            False,
            "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\nnameserver 2001:4860:4860::8844\n",
        ),
        ("", Dns(), True, None),
        (
            "search old\nnameserver 10.0.0.1\noptions x\n",
            Dns(nameservers=("1.1.1.1",), options=("edns0",), search=("new",)),
            True,
            "search new\nnameserver 1.1.1.1\noptions edns0\n",
        ),
        ("search old\nsearch newer\nnameserver 10.0.0.1\n", Dns(), False, "search newer\nnameserver 10.0.0.1\n"),
        ("nameserver fe80::1%eth0\nnameserver ::1%lo\n", Dns(), False, "nameserver fe80::1%eth0\n"),
    ],
)
def test_resolv_conf(text: str, dns: Dns, host: bool, expected: str | None) -> None:
    got = resolv_text(text, dns, host=host)
    if expected is None:
        assert got.startswith("nameserver 8.8.8.8\n")
    else:
        assert got == expected


def test_who_serves_names_where_the_machine_cannot_be_asked() -> None:
    """A process that stands between (pasta, slirp4netns) reaches servers on the machine's loopback; a container does not."""
    local = "nameserver 127.0.0.1\noptions x\n"
    assert resolv_text(local, Dns(), host=False, otherwise=("10.0.2.3",)) == "nameserver 10.0.2.3\noptions x\n"
    assert resolv_text("nameserver 10.0.0.1\n", Dns(), host=False, otherwise=("10.0.2.3",)) == "nameserver 10.0.0.1\n"
    assert resolv_text(local, Dns(), host=True, otherwise=("10.0.2.3",)) == local


def test_systemd_stub_is_replaced_by_what_stands_behind_it(files: Files) -> None:
    files.source.write_text("nameserver 127.0.0.53\noptions edns0\n")
    files.systemd.write_text("nameserver 10.9.9.9\n")
    assert files.resolv_conf("none").read_text() == "nameserver 10.9.9.9\n"
    assert files.resolv_conf("host").read_text() == "nameserver 127.0.0.53\noptions edns0\n"


def test_a_change_of_the_source_is_seen_by_later_containers_only(files: Files) -> None:
    files.source.write_text("nameserver 10.0.0.1\n")
    path = files.resolv_conf("host")
    with path.open() as held:
        files.source.write_text("nameserver 10.0.0.2\n")
        assert files.resolv_conf("host") == path
        assert held.read() == "nameserver 10.0.0.1\n"
    assert path.read_text() == "nameserver 10.0.0.2\n"
