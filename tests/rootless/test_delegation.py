# SPDX-License-Identifier: Apache-2.0
"""Limits of an ordinary user's steps, in cgroups that were delegated to him."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chantier.runtime.delegation import Delegation, find, fit
from chantier.runtime.types import Container, Process, Resources

from .conftest import remove_group

pytestmark = pytest.mark.root

UNIFIED = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]


def left(groups: list[Path]) -> list[Path]:
    """Groups of containers that still are there."""
    return [Path(found) for group in groups for found, _, _ in os.walk(group) if Path(found).parent.name == "buildkit"]


def dockerfile(context: Path, command: str) -> str:
    (context / "Dockerfile").write_text(f"FROM scratch\nCOPY root /\nENV PATH=/bin\nRUN {command}\n")
    return str(context)


@pytest.mark.parametrize("binary", ["native", "runc"])
def test_a_step_is_killed_for_memory(somebody: Any, context: Path, groups: list[Path], binary: str) -> None:
    (somebody.where / "chantierd.toml").write_text(f'[worker.oci]\nbinary = "{binary}"\n')
    what = dockerfile(context, "busybox dd if=/dev/zero of=/dev/null bs=64M count=1; echo alive")
    limits = ("--resource=memory=16m", "--resource=memory-swap=16m", "--resource=cpu-quota=90000")
    done = somebody("build", "--progress=plain", "--no-cache", *limits, what, groups=groups)
    assert done.returncode != 0
    assert "without effect" not in done.stderr
    assert "memory" in done.stderr.splitlines()[-1] or "OOM" in done.stderr, done.stderr
    assert left(groups) == []
    plenty = somebody("build", "--progress=plain", "--no-cache", "--resource=memory=512m", what, groups=groups)
    assert plenty.returncode == 0, plenty.stderr
    assert left(groups) == []


def test_doctor_says_what_is_delegated(somebody: Any, groups: list[Path]) -> None:
    found = {one["name"]: one for one in json.loads(somebody("doctor", "--json", groups=groups).stdout)["findings"]}
    assert found["cgroups"]["state"] == "ok"
    assert "limits of memory, cpu, cpuset" in found["cgroups"]["found"]
    assert any(str(group) in found["cgroups"]["found"] for group in groups)
    without = {one["name"]: one for one in json.loads(somebody("doctor", "--json").stdout)["findings"]}
    assert without["cgroups"]["state"] == "warning"
    assert without["cgroups"]["fix"]


def test_an_oci_runtime_wants_every_hierarchy(somebody: Any, context: Path, groups: list[Path]) -> None:
    """With some of them only, the native sandbox sets what can be set, and runc nothing, which is said."""
    own = [group for group in groups if group.parent.name in ("memory", "devices")]
    if len(own) != 2:
        pytest.skip("one hierarchy for all controllers")
    what = dockerfile(context, "busybox dd if=/dev/zero of=/dev/null bs=64M count=1; echo alive")
    limits = ("--resource=memory=16m", "--resource=memory-swap=16m", "--resource=cpu-quota=90000")
    for binary, said, code in (("native", ": cpu-quota: ", 1), ("runc", ": memory, memory-swap, cpu-quota: ", 0)):
        (somebody.where / "chantierd.toml").write_text(f'[worker.oci]\nbinary = "{binary}"\n')
        done = somebody("build", "--progress=plain", "--no-cache", *limits, what, groups=own)
        assert f"WARNING: limits without effect{said}" in done.stderr
        assert done.returncode == code, done.stderr


_HOLD = """
import asyncio, os, sys
from pathlib import Path
from chantier.runtime import Container, Process, Resources, probe
from chantier.spec import new_id

async def main():
    runtime = await probe(Path(sys.argv[1]), binary=sys.argv[2])
    if len(sys.argv) > 3:
        what = Container(id=new_id(), rootfs=Path(sys.argv[3]), resources=Resources(memory=64 << 20),
                         process=Process(args=("/bin/busybox", "sleep", "600"), env=("PATH=/bin",)))
        await runtime.run(what, output=lambda *_: None, started=lambda: print("begun", flush=True))
    await runtime.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("binary", ["native", "runc"])
def test_groups_of_an_engine_that_was_killed_are_removed(
    somebody: Any, context: Path, groups: list[Path], binary: str, tmp_path: Path
) -> None:
    """With all that might have done it at once: the next start does."""
    script = somebody.where / "hold.py"
    script.write_text(_HOLD)
    state = somebody.where / "held"
    command = somebody.inside(somebody.python, str(script), str(state), binary)
    holding = somebody.start([*command, str(context / "root")], groups=groups)
    assert holding.stdout is not None
    assert holding.stdout.readline() == "begun\n"
    assert len({group.name for group in left(groups)}) == 1
    for number in (signal.SIGSTOP, signal.SIGKILL):  # none of them has the time to clean up after another
        for pid in within(groups):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
    holding.wait(60)
    assert left(groups) != []
    assert somebody.run(command, groups=groups).returncode == 0
    assert left(groups) == []


def within(groups: list[Path]) -> list[int]:
    """The engine, its helper or guard, the runtime, the step: all that are in these groups."""
    processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in processes if any(group.name in _text(f"/proc/{pid}/cgroup") for group in groups)]


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


# cgroup v2, on whatever of it this machine has: which controllers does not matter for how groups are divided.

_ON_V2 = """
import asyncio, json, os, sys
from pathlib import Path
from chantier.runtime import Container, Native, Process, delegation
from chantier.runtime.host import this_host
from chantier.spec import new_id
from chantier.values import replace

if sys.argv[2]:
    delegation.CONTROLLERS = tuple(sys.argv[2].split(","))
found = delegation.find("v2")
settled = delegation.settle("v2")

async def main():
    runtime = Native(Path(sys.argv[1]), host=replace(this_host(), cgroups="v2", cgroup_namespace=True), helper=sys.argv[3])
    said = []
    process = Process(args=("/bin/busybox", "cat", "/proc/self/cgroup"), env=("PATH=/bin",))
    what = Container(id=new_id(), rootfs=Path(sys.argv[4]), process=process, cgroup_parent="up")
    ended = await runtime.run(what, output=lambda _s, data: said.append(data))
    await runtime.close()
    return ended.code, b"".join(said).decode()

code, said = asyncio.run(main()) if settled.places else (0, "")
print(json.dumps({"found": sorted(found.places), "why": found.why, "settled": {k: str(v) for k, v in settled.places.items()},
                  "own": open("/proc/self/cgroup").read(), "code": code, "said": said}))
"""


@pytest.fixture
def unified(somebody: Any) -> Iterator[tuple[Path, Path, str]]:
    """A group of his on a v2 hierarchy, one in it, and the name of a controller there."""
    top = next((place for place in UNIFIED if (place / "cgroup.controllers").exists()), None)
    names = (top / "cgroup.controllers").read_text().split() if top is not None else []
    if top is None or not names:
        pytest.skip("no controller on a v2 hierarchy here")
    group = top / f"chantier-v2-{os.getpid()}"
    inner = group / "inner"
    (top / "cgroup.subtree_control").write_text(f"+{names[0]}")
    inner.mkdir(parents=True)
    for place in (group, inner):
        for name in (".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(place / name, somebody.uid, somebody.uid)
    yield group, inner, names[0]
    remove_group(group)


def on_v2(somebody: Any, context: Path, group: Path, name: str, helper: str = "c") -> dict[str, Any]:
    script = somebody.where / "v2.py"
    script.write_text(_ON_V2)
    inside = (somebody.python, str(script), str(somebody.where / "executor"), name, helper, str(context / "root"))
    done = somebody.run(somebody.inside(*inside), groups=[group])
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("helper", ["c", "python"])
def test_our_own_group_is_divided(somebody: Any, context: Path, unified: tuple[Path, Path, str], helper: str) -> None:
    group, _, name = unified
    (group / "inner").rmdir()
    said = on_v2(somebody, context, group, name, helper)
    assert said["found"] == [name]
    assert said["settled"] == {name: str(group)}
    assert f"0::/{group.name}/chantier-engine\n" in said["own"]  # no process may be where controllers are handed down
    assert (group / "cgroup.subtree_control").read_text().split() == [name]
    assert said["code"] == 0
    assert "0::/\n" in said["said"]  # the step was born in its group, and sees nothing above
    assert [entry.name for entry in (group / "up/buildkit").iterdir() if entry.is_dir()] == []
    # Where an engine has been, the next one finds its way.
    again = on_v2(somebody, context, group / "chantier-engine", name, helper)
    assert again["settled"] == {name: str(group / "chantier-engine")}
    assert again["code"] == 0


def test_beside_others_the_group_above_is_used(somebody: Any, context: Path, unified: tuple[Path, Path, str]) -> None:
    group, inner, name = unified
    other = subprocess.Popen(["sleep", "600"])
    try:
        (inner / "cgroup.procs").write_text(str(other.pid))
        said = on_v2(somebody, context, inner, name)
        assert said["found"] == []
        assert "other processes are in the cgroup" in said["why"]
        (group / "cgroup.subtree_control").write_text(f"+{name}")
        said = on_v2(somebody, context, inner, name)
        assert said["settled"] == {name: str(group)}
        assert (said["code"], "0::/\n" in said["said"]) == (0, True)
        assert f"/{inner.name}\n" in said["own"]
    finally:
        other.kill()
        other.wait()


# What is said.


def test_what_is_not_delegated_is_named() -> None:
    what = Container(
        id="x", rootfs=Path("/"), process=Process(args=("a",)), cgroup_parent="p",
        resources=Resources(memory=1, cpu_quota=2, cpuset_cpus="0"),
    )  # fmt: skip
    some = Delegation(layout="v2", places={"memory": Path("/g")}, why="WHY", fix="FIX")
    fitted, said = fit(what, some)
    assert said == "WARNING: limits without effect: cpu-quota, cpuset-cpus: WHY; FIX\n"
    assert (fitted.resources, fitted.cgroup_parent) == (Resources(memory=1), "p")
    fitted, said = fit(what, Delegation(why="WHY", fix="FIX"))
    assert said == "WARNING: limits without effect: memory, cpu-quota, cpuset-cpus, cgroup-parent: WHY; FIX\n"
    assert (fitted.resources, fitted.cgroup_parent) == (Resources(), "")
    every = Delegation(layout="v1", places={name: Path("/g") for name in ("memory", "cpu", "cpuset")}, closed=("pids",))
    assert fit(what, every) == (what, "")
    assert fit(what, every, everywhere=True)[1].startswith("WARNING: limits without effect: memory, ")
    assert "pids" in fit(what, every, everywhere=True)[1]


def test_a_container_sees_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    """What is mounted there begins at its own group; a path of another part leads nowhere."""
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        (tmp_path / name).touch()
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    mounts = f"30 29 0:26 /docker/abc {tmp_path} rw,nosuid - cgroup2 cgroup rw\n"
    assert set(find("v2", own="0::/docker/abc\n", mounts=mounts).places.values()) == {tmp_path}
    assert set(find("v2", own="0::/\n", mounts=mounts.replace("/docker/abc", "/")).places) == {"memory", "cpu", "cpuset"}
    for path in ("/", "/docker/abcd", "/../../x", "/docker/abc/../x"):
        found = find("v2", own=f"0::{path}\n", mounts=mounts)
        assert not found.places
        assert found.why
