# SPDX-License-Identifier: Apache-2.0
"""Layers and snapshots in a user namespace: overlay attributes under `user.`, no device nodes, few owners."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

_INSIDE = """
import io, json, os, shutil, sys, tarfile, tempfile
from pathlib import Path
from chantier import kernel
from chantier.errors import ChantierError
from chantier.layer import pack_diff, unpack
from chantier.snapshot import Overlay, mounted
from chantier.store.db import Db

def tar(*names):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name in names:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            if name == "null":
                info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 3
            if name == "foreign":
                info.uid = 4321
            made.addfile(info)
    return io.BytesIO(out.getvalue())

with tempfile.TemporaryDirectory() as name:
    root = Path(name)
    overlay = Overlay(root, Db(root / "db"))
    stack = ()
    for key, parent, names in (("a", None, ("a", "d/", "d/x", "null")), ("b", "a", (".wh.a", "d/.wh..wh..opq", "d/new"))):
        overlay.prepare(key, parent)
        unpack(tar(*names), overlay.upper(key), lowers=stack)
        overlay.commit(key, key)
        stack = overlay.layers(key)
    result = {"inside": kernel.in_user_namespace()}
    with mounted(overlay.mounts("b"), where=root) as tree:
        result["tree"] = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    overlay.prepare("c", "b")
    with mounted(overlay.mounts("c", readonly=False), where=root) as tree:
        shutil.rmtree(tree / "d")
        (tree / "d").mkdir()
        (tree / "d" / "q").touch()
    out = io.BytesIO()
    pack_diff(overlay.layers("b"), overlay.layers("c"), out.write)
    result["diff"] = tarfile.open(fileobj=io.BytesIO(out.getvalue())).getnames()
    try:
        unpack(tar("foreign"), overlay.upper("c"))
        result["owner"] = os.lstat(overlay.upper("c") / "foreign").st_uid
    except ChantierError as err:
        result["hint"] = err.hint
    print(json.dumps(result))
"""


def inside(count: int) -> dict[str, Any]:
    """What _INSIDE tells in a namespace of the first `count` ids."""
    waiting = 'echo ready; read mapped; exec "$0" -c "$1"'
    with subprocess.Popen(
        ["unshare", "--user", "--mount", "sh", "-c", waiting, sys.executable, _INSIDE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text(f"0 0 {count}\n")
        out, err = process.communicate("go\n", 60)
    assert err == ""
    result: dict[str, Any] = json.loads(out)
    assert result["inside"]
    assert result["tree"] == ["d", "d/new"]
    assert result["diff"] == ["d", "d/.wh.new", "d/q"]
    return result


def test_one_id() -> None:
    result = inside(1)
    assert result["owner"] == 0  # who else could it be: see docs/adr/0008


def test_an_owner_outside_of_the_ids() -> None:
    result = inside(100)
    assert "owner" not in result
    assert "/etc/subuid" in result["hint"]
