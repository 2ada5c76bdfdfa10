# SPDX-License-Identifier: Apache-2.0
"""What is particular to OCI runtimes: the guard, what a killed engine leaves, and the probe. The rest is in test_containers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import UnsupportedError
from chantier.runtime import Native, Runc, probe, recover
from chantier.spec import new_id

from .conftest import cgroups_of, eventually, processes_with

pytestmark = [pytest.mark.root, pytest.mark.runc]


@pytest.mark.parametrize(("script", "code"), [("kill -9 $$; exit 4", 4), ("echo $$ $PPID; exit $$", 1)])
def test_the_step_is_the_first_process(sh: Any, script: str, code: int) -> None:
    assert sh(script).code == code


def test_devices_are_refused_by_their_cgroup(sh: Any) -> None:
    ran = sh("mknod /d b 8 0; cat /d")
    assert "Operation not permitted" in ran.err  # not the file mode


ENGINE = """
import asyncio, sys
from pathlib import Path
from chantier.runtime import Container, Process, probe

async def main(state, rootfs, id, mark):
    runtime = await probe(Path(state), binary="runc")
    script = "(setsid sleep 600 &); echo ready; sleep 600"
    container = Container(id=id, rootfs=Path(rootfs), process=Process(args=("sh", "-c", script), env=("PATH=/bin", mark)))
    await runtime.run(container, output=lambda _s, data: print(data.decode(), end="", flush=True))

asyncio.run(main(*sys.argv[1:]))
"""


def engine(state: Path, rootfs: Path, id: str, mark: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", ENGINE, str(state), str(rootfs), id, mark], stdout=subprocess.PIPE, text=True)


def test_containers_die_with_a_killed_engine(state: Path, rootfs: Path) -> None:
    mark, id = f"MARK={new_id()}", new_id()
    with engine(state, rootfs, id, mark) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(processes_with(mark)) >= 2
        process.kill()
        process.wait()
        assert eventually(lambda: not processes_with(mark))
        assert eventually(lambda: not cgroups_of(id))
    eventually(lambda: recover(state / "executor") or not list((state / "executor").iterdir()))
    assert list((state / "executor").iterdir()) == []


def test_the_next_start_ends_what_a_killed_engine_and_its_guard_left(state: Path, rootfs: Path) -> None:
    mark, id = f"MARK={new_id()}", new_id()
    with engine(state, rootfs, id, mark) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        owner = next((state / "executor").iterdir())
        (owner / "at" / id / "there").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(owner / "at" / id / "there")], check=True)
        assert recover(state / "executor") == []  # it lives
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        guards = [int(pid) for pid in children if b"chantier-guard" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(guards) == 1
        os.kill(guards[0], signal.SIGKILL)
        process.kill()
        process.wait()
    assert len(processes_with(mark)) >= 2
    assert recover(state / "executor") == [owner.name]
    assert eventually(lambda: not processes_with(mark))
    assert not owner.exists()
    assert cgroups_of(id) == []
    assert str(owner) not in Path("/proc/self/mountinfo").read_text()


def test_the_next_start_ends_a_runtime_that_was_still_starting(state: Path, rootfs: Path) -> None:
    mark = f"MARK={new_id()}"
    owner = state / "executor" / "dead"
    bundle = owner / "at" / "x"
    bundle.mkdir(parents=True)
    os.mkfifo(bundle / "config.json")  # it waits for that, and is nobody's container yet
    command = ["runc", "--root", str(owner / "at" / "state"), "run", "--bundle", str(bundle), "x"]
    with subprocess.Popen(command, env={**os.environ, "MARK": mark.removeprefix("MARK=")}, stderr=subprocess.DEVNULL) as process:
        held = os.open(bundle / "config.json", os.O_WRONLY)  # returns once it reads
        assert recover(state / "executor") == ["dead"]
        os.close(held)
        assert process.wait(60) == -signal.SIGKILL
    assert eventually(lambda: not processes_with(mark))
    assert not owner.exists()


@pytest.mark.parametrize("binary", ["runc", "native"])
def test_the_verdict_on_a_runtime_is_kept(tmp_path: Path, binary: str) -> None:
    async def work() -> None:
        verdicts = tmp_path / "runtime-probe.json"
        (await probe(tmp_path, binary=binary)).places.close()
        kept = verdicts.read_bytes()
        assert len(json.loads(kept)) == 1
        before = verdicts.stat()
        (await probe(tmp_path, binary=binary)).places.close()
        after = verdicts.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # a new trial is written down

    asyncio.run(work())


def test_a_runtime_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    bad = tmp_path / "bin" / "runc"
    bad.parent.mkdir()
    bad.write_text("#!/bin/sh\necho the sky is falling >&2\nexit 1\n")
    bad.chmod(0o755)
    with pytest.raises(UnsupportedError) as caught:
        asyncio.run(probe(tmp_path, binary=str(bad)))
    assert f"{bad}: the sky is falling" in str(caught.value)
    with pytest.raises(UnsupportedError, match="nope: not found in PATH"):
        asyncio.run(probe(tmp_path, binary="nope"))


def test_the_native_sandbox_is_the_first_choice_and_what_the_path_has_the_next(tmp_path: Path) -> None:
    async def work(**more: str) -> str:
        runtime = await probe(tmp_path, **more)
        await runtime.close()
        return type(runtime).__name__

    assert asyncio.run(work()) == Native.__name__
    assert asyncio.run(work(search=str(tmp_path / "none"))) == Native.__name__  # it needs no program
    assert asyncio.run(work(helper="of-another-kind")) == Runc.__name__


def test_a_runtime_without_seccomp_is_used_without(tmp_path: Path) -> None:
    picky = tmp_path / "bin" / "runc"
    picky.parent.mkdir()
    picky.write_text(f"""#!/bin/sh
for a; do
  [ "$p" = --bundle ] && grep -q '"seccomp"' "$a/config.json" && {{ echo seccomp is not compiled in >&2; exit 1; }}
  p=$a
done
exec {shutil.which("runc")} "$@"
""")
    picky.chmod(0o755)

    async def work() -> bool:
        runtime = await probe(tmp_path, binary=str(picky))
        assert isinstance(runtime, Runc)
        await runtime.close()
        return runtime._host.seccomp

    assert asyncio.run(work()) is False
