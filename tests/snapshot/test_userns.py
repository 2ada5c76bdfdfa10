# SPDX-License-Identifier: Apache-2.0
"""Layers and snapshots in a user namespace: overlay attributes under `user.`, no device nodes, few owners."""

from __future__ import annotations

import json
import subprocess
import sys

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
    with mounted(overlay.mounts("b"), where=root / "m") as tree:
        result["tree"] = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    overlay.prepare("c", "b")
    with mounted(overlay.mounts("c", readonly=False), where=root / "m") as tree:
        shutil.rmtree(tree / "d")
        (tree / "d").mkdir()
        (tree / "d" / "q").touch()
    out = io.BytesIO()
    pack_diff(overlay.layers("b"), overlay.layers("c"), out.write)
    result["diff"] = tarfile.open(fileobj=io.BytesIO(out.getvalue())).getnames()
    try:
        unpack(tar("foreign"), overlay.upper("c"))
    except ChantierError as err:
        result["hint"] = err.hint
    print(json.dumps(result))
"""


def test_inside_a_user_namespace() -> None:
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", _INSIDE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert result["inside"]
    assert result["tree"] == ["d", "d/new"]
    assert result["diff"] == ["d", "d/.wh.new", "d/q"]
    assert "/etc/subuid" in result["hint"]
