# SPDX-License-Identifier: Apache-2.0
"""RUN --device: steps with devices of this machine, described by files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import Command

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

DOCKERFILE = """FROM alpine
RUN --device=v.com/a=full stat -c 'node %t:%T of %g' /dev/mine; echo x > /dev/mine || echo refused; echo env $MINE; cat /vendor/f; id -G
"""


def test_a_step_has_its_devices(make_command: Callable[..., Command], tmp_path: Path) -> None:
    specs, vendor = tmp_path / "cdi", tmp_path / "vendor"
    specs.mkdir()
    vendor.mkdir()
    (vendor / "f").write_text("file of the vendor\n")
    edits = {
        "env": ["MINE=yes"],
        "deviceNodes": [{"path": "/dev/mine", "hostPath": "/dev/full", "gid": 7}],
        "mounts": [{"hostPath": str(vendor), "containerPath": "/vendor", "options": ["ro", "rbind"]}],
        "additionalGids": [77],
    }
    device = {"name": "full", "containerEdits": edits}
    (specs / "v.json").write_text(json.dumps({"cdiVersion": "0.6.0", "kind": "v.com/a", "devices": [device]}))
    command = make_command(f'[cdi]\nspecDirs = ["{specs}"]\n')

    done = command.build(DOCKERFILE)
    assert done.code != 0
    assert "device v.com/a=full is requested by the build but not allowed" in done.err

    shown = command.build(DOCKERFILE, "--allow", "device=v.com/a").ok().step("RUN --device")
    for line in ("node 1:7 of 7", "refused", "env yes", "file of the vendor", "0 77"):
        assert any(said.endswith(f" {line}") for said in shown.splitlines()), (line, shown)

    optional = DOCKERFILE.replace("v.com/a=full", "v.com/other").replace("stat", "true || stat")
    command.build(optional).ok()
    done = command.build(optional.replace("v.com/other", "v.com/other,required"))
    assert 'required device "v.com/other" is not registered' in done.err
    off = make_command(f'[cdi]\ndisabled = true\nspecDirs = ["{specs}"]\n', name="off")
    assert "is not registered" in off.build(DOCKERFILE.replace("=full", "=full,required"), "--allow", "device=v.com/a").err
