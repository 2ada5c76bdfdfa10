# SPDX-License-Identifier: Apache-2.0
"""Networks of an ordinary user's steps: pasta and slirp4netns work, what needs privilege says so."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import run_ok
from ..runtime.network.test_bridge import serving

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.cni]

ASK = r"'GET / HTTP/1.0\r\n\r\n'"
TEXT = (
    "FROM scratch\nCOPY root /\nENV PATH=/bin\n"
    f"RUN busybox ip -4 addr; (busybox printf {ASK}; sleep 1) | busybox nc -w 9 ADDRESS\n"
)


@pytest.fixture
def tun() -> Iterator[None]:
    """/dev/net/tun as a distribution's udev has it: everybody's, as a namespace is needed to do anything with it."""
    before = stat.S_IMODE(os.stat("/dev/net/tun").st_mode)
    os.chmod("/dev/net/tun", 0o666)
    yield
    os.chmod("/dev/net/tun", before)


def outer_address() -> str:
    """The machine's own, on the interface of its default route."""
    words = run_ok("ip", "-4", "route", "get", "192.0.2.254").split()
    return words[words.index("src") + 1]


@pytest.mark.parametrize("kind", ["pasta", "slirp4netns"])
@pytest.mark.parametrize("runtime", ["runc", "native"])
def test_a_way_out(kind: str, runtime: str, somebody: Any, context: Path, tun: None) -> None:
    (somebody.where / "chantierd.toml").write_text(f'[worker.oci]\nnetworkMode = "{kind}"\nbinary = "{runtime}"\n')
    mine = outer_address()
    with serving(mine) as port:
        (context / "Dockerfile").write_text(TEXT.replace("ADDRESS", f"{mine} {port}"))
        done = somebody("build", "--progress=plain", str(context))
    assert done.returncode == 0, done.stderr
    assert "inet 10.0.2.100/24" in done.stderr and "asked by" in done.stderr


def test_a_bridge_needs_privilege(somebody: Any, context: Path) -> None:
    (somebody.where / "chantierd.toml").write_text('[worker.oci]\nnetworkMode = "bridge"\nbridgeName = "ctrootless"\n')
    (context / "Dockerfile").write_text(TEXT.replace("ADDRESS", "192.0.2.1 1"))
    done = somebody("build", "--progress=plain", str(context))
    assert done.returncode != 0
    assert "failed to connect a step to the bridge ctrootless" in done.stderr and "Operation not permitted" in done.stderr
    assert "pasta or slirp4netns" in done.stderr
