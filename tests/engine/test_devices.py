# SPDX-License-Identifier: Apache-2.0
"""Which devices a build is given: protocol.md 3.8."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chantier.engine.devices import Granted, allowed
from chantier.errors import NotFoundError, PolicyError, UsageError
from chantier.pb import ops_pb2 as pb
from chantier.runtime.cdi import Devices


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    made = {"cdiVersion": "0.6.0", "kind": "v.com/a", "devices": [{"name": "x"}, {"name": "y"}]}
    (tmp_path / "a.json").write_text(json.dumps(made))
    (tmp_path / "b.json").write_text(json.dumps({**made, "kind": "v.com/free"}))
    return Devices([str(tmp_path)], ["v.com/free"])


def given(devices: Devices | None, *names: str, grants: tuple[str, ...] = (), optional: bool = False) -> list[str]:
    op = pb.ExecOp(cdiDevices=[pb.CDIDevice(name=name, optional=optional) for name in names])
    return [device.name for device in allowed(op, devices, grants)]


def test_what_is_free_and_what_was_granted(devices: Devices) -> None:
    assert given(devices, "v.com/free=*") == ["v.com/free=x", "v.com/free=y"]
    for grants in (("device=v.com/a",), ("device=v.com/a=x",)):
        assert given(devices, "v.com/a", grants=grants) == ["v.com/a=x"]
    assert given(devices, "v.com/a=*", grants=("network.host", "device")) == ["v.com/a=*"]
    assert given(devices, "mine", grants=("device=v.com/a=y,alias=mine",)) == ["v.com/a=y"]


def test_what_is_refused(devices: Devices) -> None:
    with pytest.raises(PolicyError, match=r"device v\.com/a=x is requested by the build but not allowed"):
        given(devices, "v.com/a=x")
    with pytest.raises(PolicyError, match=r"devices v\.com/a=x, v\.com/a=y are requested by the build but not allowed"):
        given(devices, "v.com/a=*", "v.com/free=x")
    with pytest.raises(PolicyError, match=r"v\.com/a=y"):
        given(devices, "v.com/a=y", grants=("device=v.com/a=x",))
    with pytest.raises(NotFoundError, match=r'required device "v\.com/b" is not registered'):
        given(devices, "v.com/b")
    assert given(devices, "v.com/b", optional=True) == []


def test_devices_that_are_switched_off() -> None:
    with pytest.raises(NotFoundError, match="not registered"):
        given(None, "v.com/a")
    assert given(None, "v.com/a", optional=True) == []


@pytest.mark.parametrize("text", ["device=a.b/c,alias", "device=a.b/c,name=x"])
def test_grants_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="device config"):
        Granted.of((text,))
