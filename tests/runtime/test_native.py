# SPDX-License-Identifier: Apache-2.0
"""What is the native sandbox's own: one helper for all steps of a process, and nothing of it that outlives `close`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from chantier.errors import UnsupportedError
from chantier.runtime import Container, Native, Process
from chantier.runtime.native import find_helper
from chantier.runtime.places import recover
from chantier.spec import new_id

from .conftest import eventually

pytestmark = pytest.mark.root
ENV = ("PATH=/bin",)


def children(pid: int | str = "self") -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def container(rootfs: Path, *args: str) -> Container:
    return Container(id=new_id(), rootfs=rootfs, process=Process(args=args, env=ENV, cwd="/"))


@pytest.mark.parametrize("helper", ["c", "python"])
def test_steps_that_begin_together_share_one_helper(rootfs: Path, tmp_path: Path, helper: str) -> None:
    before = children()

    async def main() -> None:
        runtime = Native(tmp_path / "executor", helper=helper)
        try:
            runs = [runtime.run(container(rootfs, "true"), output=lambda *_: None) for _ in range(8)]
            assert [done.code for done in await asyncio.gather(*runs)] == [0] * 8
            assert len(children() - before) == 1
        finally:
            await runtime.close()

    asyncio.run(main())
    assert not children() - before
    assert os.listdir(tmp_path / "executor") == []


@pytest.mark.parametrize("wait_s", [0.0, 0.0005, 0.002, 0.01])
def test_the_first_step_is_cancelled_while_the_helper_is_made(rootfs: Path, tmp_path: Path, wait_s: float) -> None:
    before = children()

    async def main() -> None:
        runtime = Native(tmp_path / "executor", helper="python")
        first = asyncio.create_task(runtime.run(container(rootfs, "sleep", "600"), output=lambda *_: None))
        await asyncio.sleep(wait_s)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await runtime.close()

    asyncio.run(main())
    assert not children() - before
    assert not (tmp_path / "executor").exists() or os.listdir(tmp_path / "executor") == []


def started_by(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has just ended
        return []


def made_ahead(server: int) -> tuple[int, int] | None:
    """A monitor that waits for a request and its first process; the monitor of a container that has just ended may still be there."""
    for monitor in started_by(server):
        for first in started_by(monitor):
            with suppress(OSError):
                if Path(f"/proc/{first}/comm").read_text() == "chantier-first\n":
                    return monitor, first
    return None


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("victim", ["spare", "first", "server"])
def test_a_monitor_made_ahead_that_is_killed_is_replaced(rootfs: Path, tmp_path: Path, victim: str) -> None:
    """The helper in Python forks one before it is asked; nobody notices that it has gone."""
    before = children()

    async def main() -> None:
        runtime = Native(tmp_path / "executor", helper="python")
        try:
            for _ in range(4):
                for _ in range(2):  # the first one may be served by hand; after it there is one made ahead again
                    assert (await runtime.run(container(rootfs, "true"), output=lambda *_: None)).code == 0
                (server,) = children() - before
                while (made := made_ahead(server)) is None:
                    await asyncio.sleep(0.005)
                doomed = {"server": server, "spare": made[0], "first": made[1]}[victim]
                os.kill(doomed, signal.SIGKILL)
                gone = [server, *made] if victim == "server" else [doomed]
                while any(is_alive(pid) for pid in gone):  # what it has made dies with the server
                    await asyncio.sleep(0.005)
        finally:
            await runtime.close()

    asyncio.run(asyncio.wait_for(main(), 100))
    assert not children() - before
    assert os.listdir(tmp_path / "executor") == []


def test_a_monitor_made_ahead_leaves_the_cgroups_with_its_server(rootfs: Path, tmp_path: Path) -> None:
    async def main() -> list[str]:
        runtime = Native(tmp_path / "executor", helper="python")
        for _ in range(3):
            assert (await runtime.run(container(rootfs, "true"), output=lambda *_: None)).code == 0
        assert runtime._opening is not None
        shared = list(runtime._opening.result()[1].shared)
        await runtime.close()
        return shared

    assert not [group for group in asyncio.run(main()) if os.path.exists(group)]


def test_the_helper_is_compiled_once_for_all_roots_where_only_we_can_write(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    first = find_helper((shared, own), "c").program
    assert first.parent == shared
    made = first.stat().st_ino
    assert find_helper((shared, own), "c").program.stat().st_ino == made
    assert not own.exists()
    for path, mode in ((shared, 0o777), (first, 0o775)):
        before = path.stat().st_mode & 0o7777
        path.chmod(mode)
        assert find_helper((shared, own), "c").program.parent == own
        path.chmod(before)
    os.chown(first, 1, 1)
    assert find_helper((shared, own), "c").program.parent == own
    (tmp_path / "file").touch()
    assert find_helper((tmp_path / "file", own), "c").program.parent == own
    with pytest.raises(UnsupportedError, match="can be kept in none of"):
        find_helper((tmp_path / "file",), "c")
    assert find_helper((tmp_path / "file",)).kind == "python"


_ENGINE = """
import asyncio, sys
from pathlib import Path
from chantier.runtime import Container, Native, Process

async def main(executor, rootfs):
    runtime = Native(Path(executor))
    process = Process(args=("sh", "-c", "echo ready; sleep 600"), env=("PATH=/bin",), cwd="/")
    await runtime.run(Container(id="x", rootfs=Path(rootfs), process=process), output=lambda _s, d: print(d.decode(), end="", flush=True))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/sys/fs/cgroup/devices").is_dir(), reason="cgroup v1 only: on v2 an engine has no group of its own")
def test_an_engine_on_another_state_removes_the_group_of_one_that_was_killed(rootfs: Path, tmp_path: Path) -> None:
    def groups() -> set[str]:
        return {entry.name for entry in Path("/sys/fs/cgroup/devices/buildkit").glob("engine-*")}

    def its_own(pid: int) -> str:
        """The group that its helper, the only child, sits in."""
        (helper,) = children(pid)
        (line,) = (line for line in Path(f"/proc/{helper}/cgroup").read_text().splitlines() if ":devices:" in line)
        return os.path.basename(line)

    async def run_one(executor: Path) -> None:
        runtime = Native(executor)
        try:
            assert (await runtime.run(container(rootfs, "true"), output=lambda *_: None)).code == 0
        finally:
            await runtime.close()

    command = [sys.executable, "-c", _ENGINE]
    with subprocess.Popen([*command, tmp_path / "dead", rootfs], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            group = its_own(process.pid)
            assert group in groups()
            asyncio.run(run_one(tmp_path / "other"))
            assert group in groups()  # it lives
        finally:
            process.kill()
            process.wait()

    def is_empty() -> bool:
        try:
            return not Path(f"/sys/fs/cgroup/devices/buildkit/{group}/cgroup.procs").read_text()
        except OSError:  # an engine of somebody else's has removed it
            return True

    assert eventually(is_empty)  # the helper and the step end with the engine
    asyncio.run(run_one(tmp_path / "other"))
    assert eventually(lambda: group not in groups())  # or somebody else's is about to
    recover(tmp_path / "dead")
