# SPDX-License-Identifier: Apache-2.0
"""Real containers. What a step sees, how it ends, and that nothing of it is left however it ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import NotFoundError, UnsupportedError
from chantier.runtime import Bind, Container, Process, Resources, Rlimit, Runc, probe, recover
from chantier.runtime.host import this_host
from chantier.runtime.places import cgroup_roots
from chantier.snapshot.mount import Mount
from chantier.spec import new_id

pytestmark = [pytest.mark.root, pytest.mark.runc]


def processes_with(mark: str) -> list[int]:
    """Processes of the machine whose environment holds the mark."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if mark.encode() in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
    return found


def eventually(condition: Any, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


def cgroups_of(id: str) -> list[Path]:
    return [root / "buildkit" / id for root in cgroup_roots() if (root / "buildkit" / id).exists()]


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("sh -c 'kill -TERM $$'; exit $?", 143), ("exit 255", 255), ("kill -9 $$; exit 4", 4)],
)
def test_exit_code(sh: Any, script: str, code: int) -> None:
    assert sh(script).code == code


def test_a_signal_that_ends_the_first_process_is_128_more(using: Any, rootfs: Path) -> None:
    async def work(runtime: Runc) -> int:
        id = new_id()
        begun = asyncio.Event()
        container = Container(id=id, rootfs=rootfs, process=Process(args=("sleep", "60"), env=("PATH=/bin",)))
        running = asyncio.create_task(runtime.run(container, output=lambda *_: None, started=begun.set))
        await begun.wait()
        await runtime.signal(id, signal.SIGKILL)
        code = (await running).code
        with pytest.raises(NotFoundError, match="has stopped"):
            await runtime.signal(id, signal.SIGKILL)
        return code

    assert using(work) == 137


def test_other_signals_reach_the_first_process(using: Any, rootfs: Path) -> None:
    async def work(runtime: Runc) -> tuple[int, bytes]:
        id, said, ready = new_id(), [], asyncio.Event()

        def output(_stream: int, data: bytes) -> None:
            said.append(data)
            ready.set()

        script = "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.05; done"
        container = Container(id=id, rootfs=rootfs, process=Process(args=("sh", "-c", script), env=("PATH=/bin",)))
        running = asyncio.create_task(runtime.run(container, output=output))
        await ready.wait()
        await runtime.signal(id, signal.SIGUSR1)
        return (await running).code, b"".join(said)

    assert using(work) == (5, b"ready\ngot\n")


def test_a_missing_program_is_told_with_the_runtimes_words(sh: Any) -> None:
    ran = sh(("no-such-program", "x"))
    assert ran.code == 1
    assert 'exec: "no-such-program": executable file not found in $PATH' in ran.exit.message
    assert "no-such-program" in ran.err
    assert "level=error" not in ran.err


def test_streams_are_kept_apart(sh: Any) -> None:
    ran = sh("echo out; echo err >&2")
    assert (ran.out, ran.err) == ("out\n", "err\n")


def test_fifty_megabytes_arrive_whole(using: Any, rootfs: Path) -> None:
    size = 50 << 20
    expected = hashlib.sha256(b"".join(b"%015d\n" % n for n in range(1024)) * (size >> 14)).hexdigest()
    (rootfs / "block").write_bytes(b"".join(b"%015d\n" % n for n in range(1024)))
    script = f"i=0; while [ $i -lt {size >> 14} ]; do cat /block; i=$((i+1)); done"
    (rootfs / "block").write_bytes((rootfs / "block").read_bytes() * 64)
    script = f"i=0; while [ $i -lt {size >> 20} ]; do cat /block; i=$((i+1)); done"
    hasher = hashlib.sha256()
    total = 0

    def output(_stream: int, data: bytes) -> None:
        nonlocal total
        hasher.update(data)
        total += len(data)

    container = Container(id=new_id(), rootfs=rootfs, process=Process(args=("sh", "-c", script), env=("PATH=/bin",)))
    ended = using(lambda runtime: runtime.run(container, output=output))
    assert (ended.code, total) == (0, size)
    assert hasher.hexdigest() == expected


def test_output_comes_while_the_process_runs(using: Any, rootfs: Path) -> None:
    async def work(runtime: Runc) -> list[float]:
        times: list[float] = []
        script = "echo a; sleep 0.3; echo b"
        container = Container(id=new_id(), rootfs=rootfs, process=Process(args=("sh", "-c", script), env=("PATH=/bin",)))
        await runtime.run(container, output=lambda *_: times.append(time.monotonic()))
        return times

    first, second = using(work)
    assert second - first > 0.2


def test_what_background_processes_write_until_the_end_is_kept(sh: Any) -> None:
    ran = sh("(sleep 0.05; echo late) & sleep 0.2; echo last")
    assert ran.out == "late\nlast\n"


def test_standard_input_is_empty_or_given(sh: Any, using: Any, rootfs: Path) -> None:
    assert sh("wc -c").out.strip() == "0"
    pieces = [b"one", b"two", b""]
    said: list[bytes] = []

    async def stdin() -> bytes:
        return pieces.pop(0)

    container = Container(id=new_id(), rootfs=rootfs, process=Process(args=("cat",), env=("PATH=/bin",)))
    using(lambda runtime: runtime.run(container, output=lambda _s, data: said.append(data), stdin=stdin))
    assert b"".join(said) == b"onetwo"


def test_privileges(sh: Any) -> None:
    status = dict(line.split(":\t", 1) for line in sh("cat /proc/self/status").out.splitlines() if ":\t" in line)
    assert [status[f"Cap{kind}"] for kind in ("Bnd", "Prm", "Eff")] == ["00000000a80425fb"] * 3
    assert [int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Amb")] == [0, 0]
    assert status["NoNewPrivs"] == "0"
    assert status["Seccomp"] == ("2" if this_host().seccomp else "0")


def test_what_the_filter_and_the_capabilities_refuse(sh: Any) -> None:
    script = "mount -t tmpfs none /tmp && echo mounted; hostname other && echo renamed; chroot / true && echo rooted; mknod /n c 1 3 && echo made"
    assert sh(script).out == "rooted\nmade\n"


def test_insecure_may_mount(sh: Any) -> None:
    ran = sh("mount -t tmpfs none /tmp && echo mounted; grep Seccomp: /proc/self/status; ls /dev", insecure=True)
    assert ran.out.startswith("mounted\nSeccomp:\t0\n")
    if os.path.exists("/dev/loop-control"):
        assert "loop0" in ran.out


def test_masked_and_readonly_paths(sh: Any) -> None:
    ran = sh("cat /proc/kcore | wc -c; echo x > /proc/sys/kernel/hostname || echo refused; touch /sys/x || echo refused")
    assert ran.out == "0\nrefused\nrefused\n"


def test_devices(sh: Any) -> None:
    ran = sh(
        "cd /dev; ls; stat -c '%n %a %t:%T' null zero; ls -l /dev/fd >/dev/null; dd if=/dev/sda count=1 2>/dev/null; mknod /d b 8 0; cat /d"
    )
    names = ran.out.split("null 666")[0].split()
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "stdin"} <= set(names)
    assert "null 666 1:3\nzero 666 1:5\n" in ran.out
    assert "Operation not permitted" in ran.err  # the device cgroup, not the file mode


def test_first_process_alone_sees_itself(sh: Any) -> None:
    assert sh('echo "$$ $PPID"; ls -d /proc/[0-9]* | wc -l').out.split() == ["1", "0", "3"]
    assert sh("ls /proc/self/fd").out.split() == ["0", "1", "2", "3"]  # 3 is the listing itself


def test_user_and_groups(sh: Any) -> None:
    assert sh("id -u; id -g; id -G", process={"uid": 1000, "gid": 1001, "groups": (50,)}).out.split("\n")[:3] == [
        "1000",
        "1001",
        "1001 50",
    ]


def test_home_comes_from_passwd(sh: Any) -> None:
    assert sh("echo $HOME").out == "/root\n"
    assert sh("echo $HOME", process={"uid": 1000, "gid": 1001}).out == "/home/app\n"


def test_working_directory_and_hostname(sh: Any) -> None:
    assert sh("pwd; hostname", process={"cwd": "/home/app"}).out == "/home/app\nbuildkitsandbox\n"
    assert sh("hostname", hostname="mine").out == "mine\n"


def test_limits_of_a_process(sh: Any) -> None:
    ran = sh("ulimit -Sn; ulimit -Hn", process={"rlimits": (Rlimit(name="nofile", soft=512, hard=1024),)})
    assert ran.out == "512\n1024\n"


def test_network_none_has_loopback_only(sh: Any) -> None:
    ran = sh("cat /proc/net/dev; ip addr show lo", network="none")
    assert next(line.split(":")[0].strip() for line in ran.out.splitlines() if ":" in line and "|" not in line) == "lo"
    assert "eth0" not in ran.out
    assert "UP" in ran.out


def test_network_by_path(sh: Any, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    try:
        wanted = os.stat(path).st_ino
        assert sh("stat -Lc %i /proc/self/ns/net", network=str(path)).out.strip() == str(wanted)
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_mounts(sh: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "f").write_text("text")
    binds = (
        Bind(target="/in/ro", mount=Mount("bind", str(source), ("rbind", "ro"))),
        Bind(target="/rw", mount=Mount("bind", str(source), ("rbind", "rw"))),
        Bind(target="/file", mount=Mount("bind", str(source / "f"), ("rbind", "ro"))),
        Bind(target="/t", mount=Mount("tmpfs", "tmpfs", ("nosuid", "size=65536"))),
    )
    ran = sh("cat /in/ro/f /file; touch /in/ro/x || echo refused; echo y > /rw/y; df -k /t | grep -c 64", binds=binds)
    assert ran.out == "texttextrefused\n1\n"
    assert (source / "y").read_text() == "y\n"
    assert not (source / "x").exists()


def test_readonly_root(sh: Any, rootfs: Path) -> None:
    ran = sh("touch /x || echo refused; touch /dev/shm/x && echo made", readonly=True)
    assert ran.out == "refused\nmade\n"
    assert not (rootfs / "x").exists()


def test_memory_limit(sh: Any) -> None:
    if not os.path.isdir("/sys/fs/cgroup/memory") and this_host().cgroups != "v2":
        pytest.fail("no memory controller on this machine")
    limits = Resources(memory=16 << 20, memory_swap=16 << 20)
    ran = sh("dd if=/dev/zero of=/dev/null bs=64M count=1; exit 9", resources=limits)
    assert ran.exit.oom


def test_cancelling_kills_orphans_and_leaves_nothing(using: Any, rootfs: Path, state: Path) -> None:
    mark = f"MARK={new_id()}"
    id = new_id()

    async def work(runtime: Runc) -> float:
        ready = asyncio.Event()
        script = (
            "for i in 1 2 3 4 5 6 7 8; do (setsid sh -c 'trap \"\" TERM INT HUP; sleep 600' &) ; done; "
            "trap '' TERM; echo ready; sleep 600"
        )
        container = Container(id=id, rootfs=rootfs, process=Process(args=("sh", "-c", script), env=("PATH=/bin", mark)))
        running = asyncio.create_task(runtime.run(container, output=lambda *_: ready.set()))
        await ready.wait()
        await asyncio.sleep(0.1)
        assert len(processes_with(mark)) >= 9
        begun = time.monotonic()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        took = time.monotonic() - begun
        assert processes_with(mark) == []
        return took

    assert using(work) < 1.0
    assert cgroups_of(id) == []


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03])
def test_cancelling_while_it_starts(using: Any, rootfs: Path, delay_s: float) -> None:
    mark = f"MARK={new_id()}"
    id = new_id()

    async def work(runtime: Runc) -> float:
        container = Container(id=id, rootfs=rootfs, process=Process(args=("sleep", "600"), env=("PATH=/bin", mark)))
        running = asyncio.create_task(runtime.run(container, output=lambda *_: None))
        await asyncio.sleep(delay_s)
        begun = time.monotonic()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return time.monotonic() - begun

    assert using(work) < 1.5
    assert processes_with(mark) == []
    assert cgroups_of(id) == []


def test_a_second_cancellation_does_not_hurry_past_the_first(using: Any, rootfs: Path) -> None:
    mark = f"MARK={new_id()}"

    async def work(runtime: Runc) -> None:
        begun = asyncio.Event()
        container = Container(id=new_id(), rootfs=rootfs, process=Process(args=("sleep", "600"), env=("PATH=/bin", mark)))
        running = asyncio.create_task(runtime.run(container, output=lambda *_: None, started=begun.set))
        await begun.wait()
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert processes_with(mark) == []

    using(work)


ENGINE = """
import asyncio, sys
from pathlib import Path
from chantier.runtime import Container, Process, probe

async def main(state, rootfs, id, mark):
    runtime = await probe(Path(state))
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
        assert eventually(lambda: not processes_with(mark), 3)
        assert eventually(lambda: not cgroups_of(id), 3)
    eventually(lambda: recover(state / "executor") or not list((state / "executor").iterdir()), 3)
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
    assert eventually(lambda: not processes_with(mark), 1)
    assert not owner.exists()
    assert cgroups_of(id) == []
    assert str(owner) not in Path("/proc/self/mountinfo").read_text()


def test_closing_kills_what_runs(using: Any, rootfs: Path) -> None:
    mark = f"MARK={new_id()}"

    async def work(runtime: Runc) -> asyncio.Task[Any]:
        begun = asyncio.Event()
        container = Container(id=new_id(), rootfs=rootfs, process=Process(args=("sleep", "600"), env=("PATH=/bin", mark)))
        running = asyncio.create_task(runtime.run(container, output=lambda *_: None, started=begun.set))
        await begun.wait()
        return running

    using(work)
    assert processes_with(mark) == []


def test_exec_in_a_running_container(using: Any, rootfs: Path) -> None:
    async def work(runtime: Runc) -> tuple[int, bytes, bool]:
        id, said = new_id(), []
        env = ("PATH=/bin", "A=b")
        container = Container(id=id, rootfs=rootfs, process=Process(args=("sleep", "600"), env=env))
        running = asyncio.create_task(runtime.run(container, output=lambda *_: None))
        await asyncio.sleep(0)  # it is known from now on; exec waits until it has started
        script = "id -u; echo $A; pwd; grep CapEff /proc/self/status; exit 6"
        process = Process(args=("sh", "-c", script), env=env, uid=0, cwd="/tmp")
        ended = await runtime.exec(id, process, output=lambda _s, data: said.append(data))
        sleeping = asyncio.create_task(runtime.exec(id, Process(args=("sleep", "9"), env=env), output=lambda *_: None))
        await asyncio.sleep(0.2)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        alive = not running.done()
        running.cancel()
        await asyncio.wait((running,))
        with pytest.raises(NotFoundError, match="has stopped"):
            await runtime.exec(id, process, output=lambda *_: None)
        return ended.code, b"".join(said), alive

    code, said, alive = using(work)
    assert (code, alive) == (6, True)
    assert said == b"0\nb\n/tmp\nCapEff:\t00000000a80425fb\n"


def test_a_terminal(using: Any, rootfs: Path) -> None:
    async def work(runtime: Runc) -> tuple[int, bytes]:
        id, said, ready, lines = new_id(), [], asyncio.Event(), asyncio.Queue[bytes]()

        def output(_stream: int, data: bytes) -> None:
            said.append(data)
            if b"ready" in b"".join(said):
                ready.set()

        script = "test -t 0 && test -t 1 && test -t 2 && echo ready; read line; stty size 2>/dev/null || /bin/busybox stty size; echo got $line"
        process = Process(args=("sh", "-c", script), env=("PATH=/bin", "TERM=xterm"), terminal=True)
        container = Container(id=id, rootfs=rootfs, process=process)
        running = asyncio.create_task(runtime.run(container, output=output, stdin=lines.get))
        await ready.wait()
        runtime.resize(id, 33, 77)
        await asyncio.sleep(0.2)
        lines.put_nowait(b"hello\n")
        return (await running).code, b"".join(said)

    code, said = using(work)
    assert code == 0
    assert b"got hello\r\n" in said
    assert b"33 77" in said


def test_the_verdict_on_a_runtime_is_kept(tmp_path: Path) -> None:
    async def work() -> None:
        (await probe(tmp_path)).places.close()
        kept = json.loads((tmp_path / "runtime-probe.json").read_text())
        assert len(kept) == 1
        begun = time.monotonic()
        (await probe(tmp_path)).places.close()
        assert time.monotonic() - begun < 0.1

    asyncio.run(work())


def test_a_runtime_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    bad = tmp_path / "bin" / "runc"
    bad.parent.mkdir()
    bad.write_text("#!/bin/sh\necho the sky is falling >&2\nexit 1\n")
    bad.chmod(0o755)
    with pytest.raises(UnsupportedError) as caught:
        asyncio.run(probe(tmp_path, search=str(bad.parent)))
    text = str(caught.value)
    assert "buildkit-runc: not found in PATH" in text
    assert f"{bad}: the sky is falling" in text
    assert "crun: not found in PATH" in text
    with pytest.raises(UnsupportedError, match="nope: not found in PATH"):
        asyncio.run(probe(tmp_path, binary="nope"))


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
        runtime = await probe(tmp_path, search=str(picky.parent))
        await runtime.close()
        return runtime._host.seccomp

    assert asyncio.run(work()) is False


def test_many_at_once(using: Any, rootfs: Path) -> None:
    async def work(runtime: Runc) -> list[int]:
        async def one(number: int) -> int:
            process = Process(args=("sh", "-c", f"exit {number}"), env=("PATH=/bin",))
            return (await runtime.run(Container(id=new_id(), rootfs=rootfs, process=process), output=lambda *_: None)).code

        return await asyncio.gather(*(one(number) for number in range(12)))

    assert using(work) == list(range(12))
