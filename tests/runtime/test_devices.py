# SPDX-License-Identifier: Apache-2.0
"""Device nodes and hooks of a container: what CDI files add to a step, by every runtime the same."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from chantier.kernel import in_user_namespace
from chantier.runtime import Container, Process
from chantier.runtime.types import DeviceNode, Hook
from chantier.spec import new_id

from .conftest import eventually, processes_with
from .rootless import KINDS

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.parametrize("kind", KINDS, indirect=True)]

UNPRIVILEGED = in_user_namespace()
as_root_only = pytest.mark.skipif(UNPRIVILEGED, reason="the machine's own node is bound, as it is")
FULL = DeviceNode(path="/dev/mine", kind="c", major=1, minor=7, mode=0o640, gid=44, access="r", host_path="/dev/full")
ENV = ("PATH=/bin",)


def fuse(access: str) -> DeviceNode:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse here, or not for us")
    return DeviceNode(path="/dev/given", kind="c", major=10, minor=229, access=access, host_path="/dev/fuse")


class TestDevices:
    def test_a_node_is_there(self, sh: Any) -> None:
        ran = sh("stat -c '%t:%T %a %u:%g' /dev/mine", devices=(FULL,))
        assert ran.out == ("1:7 666 65534:65534\n" if UNPRIVILEGED else "1:7 640 0:44\n")

    @pytest.mark.parametrize("user", [{}, {"uid": 1000, "gid": 1001}])
    def test_only_what_was_given_can_be_opened(self, sh: Any, user: dict[str, int]) -> None:
        script = "(: < /dev/given) 2>/dev/null && echo read; (: > /dev/given) 2>/dev/null && echo written; true"
        assert sh(script, devices=(fuse("rw"),), process=user).out == "read\nwritten\n"
        assert sh(f"mknod /dev/given c 10 229; {script}").out == ""

    @as_root_only
    def test_what_may_be_done_with_it(self, sh: Any) -> None:
        script = "(: < /dev/given) 2>/dev/null && echo read; (: > /dev/given) 2>/dev/null && echo written; true"
        assert sh(script, devices=(fuse("r"),)).out == "read\n"

    def test_it_may_stand_anywhere(self, sh: Any) -> None:
        node = DeviceNode(path="/opt/deep/er/zero", kind="c", major=1, minor=5, host_path="/dev/zero")
        assert sh("head -c 3 /opt/deep/er/zero | wc -c", devices=(node,)).out.strip() == "3"

    @as_root_only
    def test_a_pipe(self, sh: Any) -> None:
        node = DeviceNode(path="/dev/pipe", kind="p", major=0, minor=0, mode=0o600, uid=7)
        ran = sh("test -p /dev/pipe; echo $?; stat -c '%a %u' /dev/pipe; (echo x > /dev/pipe &); cat /dev/pipe", devices=(node,))
        assert ran.out == "0\n600 7\nx\n"

    @as_root_only
    @pytest.mark.parametrize(
        "link", ["/proc/self/cwd", "/proc/self/fd/4", "/proc/1/root", "/proc/self/root/../..", "../../../../.."]
    )
    def test_no_link_of_the_image_leads_it_outside(self, sh: Any, rootfs: Path, link: str) -> None:
        outside = Path(f"/chantier-{new_id()}")
        outside.touch()
        try:
            (rootfs / "opt").symlink_to(link)
            sh("true", devices=(DeviceNode(path=f"/opt{outside}", kind="c", major=1, minor=5, host_path="/dev/zero"),))
            assert outside.is_file()
        finally:
            outside.unlink()

    @as_root_only
    def test_other_steps_do_not_have_it(self, using: Any, rootfs: Path) -> None:
        async def work(runtime: Any) -> list[str]:
            async def one(*devices: DeviceNode) -> str:
                said: list[bytes] = []
                script = "mknod /dev/x c 10 229; (: < /dev/x) 2>/dev/null && echo read"
                what = Container(id=new_id(), rootfs=rootfs, devices=devices, process=Process(args=("sh", "-c", script), env=ENV))
                await runtime.run(what, output=lambda _s, data: said.append(data))
                return b"".join(said).decode()

            return [await one(fuse("rw")), await one(), await one(fuse("rw"))]

        assert using(work) == ["read\n", "", "read\n"]


def script(text: str, name: str, **more: Any) -> Hook:
    return Hook(name=name, path="/bin/sh", args=("sh", "-c", text), env=("PATH=/usr/bin:/bin", "MINE=yes"), **more)


class TestHooks:
    def test_they_see_the_container_being_made(self, sh: Any, rootfs: Path, tmp_path: Path, kind: str) -> None:
        outside = [
            script(
                f"cat > {tmp_path}/{name}; readlink /proc/self/ns/mnt > {tmp_path}/{name}.ns; env > {tmp_path}/{name}.env", name
            )
            for name in ("createRuntime", "createContainer", "poststart", "poststop")
        ]
        inside = script("cat > /tmp/state; id -u > /tmp/uid; grep CapEff /proc/self/status > /tmp/caps", "startContainer")
        (rootfs / "tmp/here").touch()
        looking = script(f"ls -d tmp/here {rootfs}/dev/null {tmp_path}", "createContainer")  # from the root, on the machine
        ran = sh("echo ran", hooks=(*outside, inside, looking))
        assert (ran.code, ran.out) == (0, "ran\n"), ran
        states = {hook.name: json.loads((tmp_path / hook.name).read_text()) for hook in outside}
        states["startContainer"] = json.loads((rootfs / "tmp/state").read_text())
        assert states["poststart"].pop("status") in ("running", "created")  # runc reads it a moment too early
        assert {name: state["status"] for name, state in states.items() if "status" in state} == {
            "createRuntime": "creating", "createContainer": "creating", "startContainer": "created",
            "poststop": "stopped",
        }  # fmt: skip
        assert len({state["id"] for state in states.values()}) == 1
        assert states["createRuntime"]["pid"] > 1
        assert states["createContainer"]["pid"] == states["startContainer"]["pid"] == 1  # as it knows itself
        own = os.readlink("/proc/self/ns/mnt") + "\n"
        namespaces = {hook.name: (tmp_path / f"{hook.name}.ns").read_text() for hook in outside}
        assert namespaces["createRuntime"] == namespaces["poststop"] == own
        assert namespaces["createContainer"] != own
        assert (rootfs / "tmp/uid").read_text() == "0\n"
        assert (rootfs / "tmp/caps").read_text().split()[1] == "00000000a80425fb"
        for hook in outside:
            names = {line.partition("=")[0] for line in (tmp_path / f"{hook.name}.env").read_text().splitlines()}
            assert names <= {"PATH", "MINE", "PWD", "SHLVL", "_", "OLDPWD"}

    def test_they_find_the_root_in_the_bundle(self, sh: Any, rootfs: Path, tmp_path: Path) -> None:
        keep = script(f'b=$(sed \'s/.*"bundle": *"//; s/".*//\'); cp $b/config.json {tmp_path}/kept', "createContainer")
        assert sh("true", hooks=(keep,)).code == 0
        assert json.loads((tmp_path / "kept").read_text())["root"]["path"] == str(rootfs)

    @pytest.mark.parametrize("name", ["createRuntime", "createContainer", "startContainer"])
    def test_one_that_fails_stops_the_container(self, sh: Any, rootfs: Path, tmp_path: Path, name: str) -> None:
        ran = sh("touch /tmp/ran", hooks=(script("echo boom >&2; exit 3", name), script("touch /tmp/second", name)))
        assert ran.code != 0
        said = ran.exit.message + ran.err  # runc leaves the last one's to the step's own output
        assert "hook #0" in said
        assert "exit status 3" in said
        assert "boom" in said
        assert not (rootfs / "tmp/ran").exists()
        assert not (rootfs / "tmp/second").exists()

    @pytest.mark.parametrize("name", ["createRuntime", "createContainer", "startContainer"])
    def test_one_that_takes_too_long(self, sh: Any, rootfs: Path, name: str) -> None:
        mark = f"MARK={new_id()}"
        slow = Hook(name=name, path="/bin/sh", args=("sh", "-c", "exec sleep 600"), env=("PATH=/usr/bin:/bin", mark), timeout_s=1)
        ran = sh("touch /tmp/ran", hooks=(slow,))
        assert ran.code != 0
        assert "timeout" in ran.exit.message + ran.err
        assert not (rootfs / "tmp/ran").exists()
        assert eventually(lambda: not processes_with(mark), 60)

    @pytest.mark.parametrize("name", ["createRuntime", "createContainer", "startContainer"])
    def test_one_that_is_not_there(self, sh: Any, rootfs: Path, name: str) -> None:
        ran = sh("touch /tmp/ran", hooks=(Hook(name=name, path="/no/such/hook"),))
        assert ran.code != 0
        assert "/no/such/hook" in ran.exit.message + ran.err
        assert not (rootfs / "tmp/ran").exists()

    @pytest.mark.parametrize("name", ["createRuntime", "createContainer", "startContainer"])
    def test_one_that_reads_nothing_and_says_much(self, sh: Any, name: str) -> None:
        loud = script(
            "exec <&-; i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done", name
        )
        assert sh("echo ran", hooks=(loud, loud)).out == "ran\n"

    @pytest.mark.parametrize("name", ["createRuntime", "createContainer", "startContainer"])
    def test_cancelled_meanwhile(self, using: Any, rootfs: Path, name: str) -> None:
        mark = f"MARK={new_id()}"

        async def work(runtime: Any) -> None:
            slow = Hook(name=name, path="/bin/sh", args=("sh", "-c", "exec sleep 600"), env=("PATH=/usr/bin:/bin", mark))
            process = Process(args=("sh", "-c", "touch /tmp/ran"), env=ENV)
            what = Container(id=new_id(), rootfs=rootfs, hooks=(slow,), process=process)
            running = asyncio.create_task(runtime.run(what, output=lambda *_: None))
            while not processes_with(mark):
                await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        using(work)
        assert eventually(lambda: not processes_with(mark), 60)
        assert not (rootfs / "tmp/ran").exists()
