# SPDX-License-Identifier: Apache-2.0
"""The namespace that is made when something is in the way: one id rather than none, and why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chantier.kernel import userns

pytestmark = [pytest.mark.root]

SHOW = "cat /proc/self/uid_map; cat /proc/self/setgroups; echo one=$CHANTIER_ONE_ID"


def enter(somebody: Any, path: str) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = somebody.run([somebody.python, *userns.command(["sh", "-c", SHOW])[1:]], PATH=path)
    return done


def put_helper(somebody: Any, text: str = "") -> str:
    """A PATH on which newuidmap comes first: a script, or the machine's own but for its privilege."""
    where = somebody.where / "helpers"
    where.mkdir()
    if text:
        (where / "newuidmap").write_text(f"#!/bin/sh\n{text}\n")
    else:
        shutil.copy(shutil.which("newuidmap") or "/usr/bin/newuidmap", where / "newuidmap")
    (where / "newuidmap").chmod(0o755)
    return f"{where}:{os.environ['PATH']}"


def test_all_ids_by_the_helpers(somebody: Any) -> None:
    done = enter(somebody, os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [line.split()[2] for line in done.stdout.splitlines()[:2]] == ["1", "65536"]
    assert done.stdout.splitlines()[2:] == ["allow", "one="]


@pytest.mark.parametrize(
    ("text", "said", "fix"),
    [
        ("", "newuidmap refused: newuidmap: write to uid_map failed: Operation not permitted", "chmod u+s"),
        ("echo 'uid range [1-2) -> [3-4) not allowed' >&2; exit 1", "newuidmap refused: uid range", "chmod u+s"),
        ("exit 3", "newuidmap refused: exit code 3", "chmod u+s"),
    ],
)
def test_a_helper_that_refuses_leaves_one_id(somebody: Any, text: str, said: str, fix: str) -> None:
    done = enter(somebody, put_helper(somebody, text))
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"WARNING: one user id only: {said}")
    assert "several owners" in lines[2]
    assert fix in lines[3]
    rows = done.stdout.splitlines()
    assert rows[0].split() == ["0", str(somebody.uid), "1"]
    assert rows[1] == "deny"
    assert said in rows[2]


def test_a_build_and_the_doctor_say_why(somebody: Any, context: Path) -> None:
    path = put_helper(somebody, "echo 'no entry' >&2; exit 1")
    (context / "Dockerfile").write_text("FROM scratch\nCOPY root /\nENV PATH=/bin\nRUN id -u\n")
    env = {"PATH": path, "CHANTIER_ROOT": str(somebody.where / "one"), "CHANTIER_CONFIG": str(somebody.where / "chantierd.toml")}
    done = somebody.run([somebody.python, "-m", "chantier", "build", str(context)], **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("WARNING: one user id only: newuidmap refused: no entry\n")
    done = somebody.run([somebody.python, "-m", "chantier", "doctor"], **env)
    assert "(newuidmap refused: no entry)" in done.stdout
    (somebody.where / "lib.py").write_text(f"""
import chantier
def told(event):
    if isinstance(event, chantier.progress.Log):
        print(event.data.decode(), end="")
chantier.build({str(context)!r}, root={str(somebody.where / "lib")!r}, on_event=told)
""")
    done = somebody.run([somebody.python, "lib.py"], **env)
    assert "one user id only: newuidmap refused: no entry" in done.stdout, done.stderr


def as_container_root(drop: str) -> subprocess.CompletedProcess[str]:
    argv = ["setpriv", f"--bounding-set={drop}", sys.executable, *userns.command(["sh", "-c", SHOW])[1:]]
    return subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")


def test_root_of_a_container_keeps_the_numbers_it_has() -> None:
    """What docker gives root: everything but CAP_SYS_ADMIN, as far as this matters."""
    done = as_container_root("-sys_admin")
    assert done.returncode == 0, done.stderr
    _, _, mine = Path("/proc/self/uid_map").read_text().split()
    inside, outside, size = done.stdout.splitlines()[0].split()
    assert (inside, outside) == ("0", "0")
    # A map of everything would be taken for the machine's own root, by others too.
    assert int(size) == int(mine) - (int(mine) == 2**32 - 1)


def test_root_of_a_container_without_capabilities_is_told_what_it_lacks() -> None:
    done = as_container_root("-all")
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == "root without CAP_SETFCAP cannot be mapped into a user namespace"
    assert "--cap-add" in done.stderr
    done = as_container_root("-sys_admin,-setuid,-setgid")  # may map itself, and nobody else
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("WARNING: one user id only: ")
    assert done.stdout.splitlines()[0].split() == ["0", "0", "1"]
