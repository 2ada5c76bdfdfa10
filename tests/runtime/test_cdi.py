# SPDX-License-Identifier: Apache-2.0
"""Devices described by files: names, files that are wrong, what is added to a container."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import ConfigError, NotFoundError
from chantier.runtime.cdi import Devices
from chantier.runtime.types import DeviceNode, Hook


def describe(path: Path, kind: str, *devices: dict[str, Any], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cdiVersion": "0.6.0", "kind": kind, "devices": list(devices), **more}))


def env(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "containerEdits": {"env": [f"{name.upper()}=injected"]}, **more}


def names(devices: Devices, *wanted: str) -> list[str]:
    return [device.name for device in devices.find([(name, False) for name in wanted])]


def test_names_stand_for_devices(tmp_path: Path) -> None:
    of_class = {"annotations": {"org.mobyproject.buildkit.device.class": "fast"}}
    describe(tmp_path / "a.json", "v.com/gpu", env("one", **of_class), env("b"), env("c", **of_class))
    devices = Devices([str(tmp_path)])
    assert [device.name for device in devices.every()] == ["v.com/gpu=b", "v.com/gpu=c", "v.com/gpu=one"]
    assert names(devices, "v.com/gpu=one") == ["v.com/gpu=one"]
    assert names(devices, "v.com/gpu") == ["v.com/gpu=b"]
    assert names(devices, "v.com/gpu=*", "v.com/gpu=b") == ["v.com/gpu=b", "v.com/gpu=c", "v.com/gpu=one"]
    assert names(devices, "fast") == ["v.com/gpu=c", "v.com/gpu=one"]
    for missing in ("v.com/gpu=x", "w.com/gpu", "slow"):
        with pytest.raises(NotFoundError, match=f'required device "{missing}" is not registered'):
            names(devices, missing)
        assert devices.find([(missing, True)]) == []


def test_who_may_have_a_device_without_asking(tmp_path: Path) -> None:
    describe(tmp_path / "a.json", "v.com/a", env("x"), annotations={"org.mobyproject.buildkit.device.autoallow": "true"})
    describe(tmp_path / "b.json", "v.com/b", env("x"), env("y"))
    describe(tmp_path / "c.json", "v.com/c", env("x"))
    devices = Devices([str(tmp_path)], ["v.com/b=y", "v.com/c"])
    assert [d.name for d in devices.every() if devices.auto_allowed(d)] == ["v.com/a=x", "v.com/b=y", "v.com/c=x"]


def test_later_directories_count_and_doubles_do_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    describe(first / "a.json", "v.com/a", env("x"), env("y"))
    devices = Devices([str(first), str(second), str(tmp_path / "missing")])
    assert devices.edits([("v.com/a=x", False)]).env == ("X=injected",)
    describe(second / "a.json", "v.com/a", {"name": "x", "containerEdits": {"env": ["X=second"]}})
    assert devices.edits([("v.com/a=x", False)]).env == ("X=second",)  # seen while running
    describe(first / "b.json", "v.com/a", env("y"))
    assert [d.name for d in devices.every()] == ["v.com/a=x"]
    assert "described by another file there too" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON"),
        ("[]", "no CDI description"),
        ('{"kind": "nothing", "devices": []}', "invalid kind 'nothing'"),
        ('{"kind": "a.b/c", "devices": [{"name": "x=y"}]}', "invalid device name 'x=y'"),
    ],
)
def test_files_that_are_wrong_take_no_others_away(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, said: str) -> None:
    describe(tmp_path / "a.json", "v.com/a", env("x"))
    (tmp_path / "b.json").write_text(text)
    assert [d.name for d in Devices([str(tmp_path)]).every()] == ["v.com/a=x"]
    assert said in caplog.text
    assert str(tmp_path / "b.json") in caplog.text


def test_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        'cdiVersion: "0.6.0"\nkind: "v.com/a"\nannotations:\n  org.mobyproject.buildkit.device.autoallow: true\n'
        "devices:\n- name: x\n  containerEdits:\n    env:\n    - X=1\n"
    )
    devices = Devices([str(tmp_path)])
    (device,) = devices.every()
    assert devices.auto_allowed(device)
    assert devices.edits([("v.com/a=x", False)]).env == ("X=1",)


def test_edits(tmp_path: Path) -> None:
    node = {"path": "/dev/mine", "hostPath": "/dev/null", "permissions": "r", "gid": 44}
    made = {"path": "/dev/made", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600}
    hook = {"hookName": "createContainer", "path": "/bin/true", "args": ["true", "x"], "env": ["A=b"], "timeout": 3}
    mount = {"hostPath": "/usr/lib", "containerPath": "/lib/v", "options": ["ro", "rbind"]}
    describe(
        tmp_path / "a.json",
        "v.com/a",
        {"name": "x", "containerEdits": {"deviceNodes": [node, made], "hooks": [hook], "additionalGids": [44]}},
        env("y"),
        containerEdits={"env": ["ALL=1"], "mounts": [mount]},
    )
    edits = Devices([str(tmp_path)]).edits([("v.com/a=*", False)])
    assert edits.env == ("ALL=1", "Y=injected")  # what is for all devices comes once
    assert edits.groups == (44,)
    assert edits.hooks == (Hook(name="createContainer", path="/bin/true", args=("true", "x"), env=("A=b",), timeout_s=3),)
    (bind,) = edits.binds
    assert (bind.target, bind.mount.source, bind.mount.options) == ("/lib/v", "/usr/lib", ("ro", "rbind"))
    mode = stat.S_IMODE(os.stat("/dev/null").st_mode)
    assert edits.devices == (
        DeviceNode(path="/dev/mine", kind="c", major=1, minor=3, mode=mode, gid=44, access="r", host_path="/dev/null"),
        DeviceNode(path="/dev/made", kind="c", major=1, minor=5, mode=0o600, host_path="/dev/made"),
    )


def test_edits_that_cannot_be_made(tmp_path: Path) -> None:
    describe(
        tmp_path / "a.json",
        "v.com/a",
        {"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/there-is-no-such"}]}},
        {"name": "odd", "containerEdits": {"hooks": [{"hookName": "sometimes", "path": "/x"}]}},
    )
    devices = Devices([str(tmp_path)])
    with pytest.raises(ConfigError, match="/dev/there-is-no-such: no such file"):
        devices.edits([("v.com/a=gone", False)])
    with pytest.raises(ConfigError, match="unknown hook 'sometimes'"):
        devices.edits([("v.com/a=odd", False)])
