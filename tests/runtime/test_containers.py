# SPDX-License-Identifier: Apache-2.0
"""What every runtime must do alike: what a step sees, how it ends, and that nothing of it is left however it ends.

The same cases for an OCI runtime and for the native sandbox with either helper, as root and as an ordinary user.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import NotFoundError
from chantier.runtime import Bind, Container, Process, Resources, Rlimit
from chantier.runtime.host import this_host
from chantier.runtime.places import cgroup_roots
from chantier.snapshot.mount import Mount
from chantier.spec import new_id

from .conftest import cgroups_of, eventually, processes_with
from .rootless import KINDS

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.parametrize("kind", KINDS, indirect=True)]

ENV = ("PATH=/bin",)
UNPRIVILEGED = this_host().user_namespace


def container(rootfs: Path, *args: str, env: tuple[str, ...] = ENV, **more: Any) -> Container:
    process = Process(args=args, env=env, **more.pop("process", {}))
    return Container(id=new_id(), rootfs=rootfs, process=process, **more)


class TestEnds:
    @pytest.mark.parametrize(
        ("script", "code"),
        [
            ("exit 0", 0),
            ("exit 3", 3),
            ("exit 127", 127),
            ("exit 255", 255),
            ("sh -c 'kill -TERM $$'; exit $?", 143),
            ("sh -c 'kill -9 $$'; exit $?", 137),
            ("true && false", 1),
        ],
    )
    def test_exit_code(self, sh: Any, script: str, code: int) -> None:
        assert sh(script).code == code

    def test_killed(self, using: Any, rootfs: Path) -> None:
        async def work(runtime: Any) -> int:
            begun = asyncio.Event()
            what = container(rootfs, "sleep", "60")
            running = asyncio.create_task(runtime.run(what, output=lambda *_: None, started=begun.set))
            await begun.wait()
            await runtime.signal(what.id, signal.SIGKILL)
            code = (await running).code
            with pytest.raises(NotFoundError, match="has stopped"):
                await runtime.signal(what.id, signal.SIGKILL)
            return int(code)

        assert using(work) == 137

    @pytest.mark.parametrize("name", ["USR1", "TERM", "HUP", "INT"])
    def test_signals_reach_the_step(self, using: Any, rootfs: Path, name: str) -> None:
        async def work(runtime: Any) -> tuple[int, bytes]:
            said: list[bytes] = []
            ready = asyncio.Event()

            def output(_stream: int, data: bytes) -> None:
                said.append(data)
                ready.set()

            script = f"trap 'echo got; exit 5' {name}; echo ready; while :; do sleep 0.02; done"
            what = container(rootfs, "sh", "-c", script)
            running = asyncio.create_task(runtime.run(what, output=output))
            await ready.wait()
            await runtime.signal(what.id, getattr(signal, f"SIG{name}"))
            return (await running).code, b"".join(said)

        assert using(work) == (5, b"ready\ngot\n")

    def test_orphans_do_not_outlive_the_step(self, sh: Any) -> None:
        mark = f"MARK={new_id()}"
        assert sh("(setsid sleep 6000 &); (sleep 6000 &); exit 4", process={"env": (*ENV, mark)}).code == 4  # or the test's limit
        assert processes_with(mark) == []

    def test_the_step_is_the_first_process(self, sh: Any) -> None:
        """As BuildKit's steps are: what looks at its own id, or is a program that expects to be an init, finds the same."""
        assert sh("echo $$; cat /proc/1/comm; exec sh -c 'echo $$'").out == "1\nsh\n1\n"

    @pytest.mark.parametrize("uid", [0, 1000])
    def test_a_killed_monitor_takes_the_step_along(self, using: Any, rootfs: Path, kind: str, uid: int) -> None:
        if not kind.startswith("native"):
            pytest.skip("a runtime that has no monitor")
        mark = f"MARK={new_id()}"
        what = container(rootfs, "sh", "-c", "echo ready; sleep 600", env=(*ENV, mark), process={"uid": uid, "gid": uid})

        async def work(runtime: Any) -> int:
            ready = asyncio.Event()
            running = asyncio.create_task(runtime.run(what, output=lambda *_: ready.set()))
            await ready.wait()
            parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in processes_with(mark)}
            (monitor,) = parents - set(processes_with(mark))
            os.kill(monitor, signal.SIGKILL)
            return int((await running).code)

        assert using(work) == 255
        assert eventually(lambda: processes_with(mark) == [])

    def test_cancelling_kills_the_whole_tree(self, using: Any, rootfs: Path) -> None:
        mark = f"MARK={new_id()}"
        script = (
            "for i in 1 2 3 4 5 6 7 8; do (setsid sh -c 'trap \"\" TERM INT HUP; sleep 600' &) ; done; trap '' TERM; "
            "echo ready; sleep 600"
        )
        what = container(rootfs, "sh", "-c", script, env=(*ENV, mark))

        async def work(runtime: Any) -> None:
            ready = asyncio.Event()
            running = asyncio.create_task(runtime.run(what, output=lambda *_: ready.set()))
            await ready.wait()
            assert eventually(lambda: len(processes_with(mark)) >= 9)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert processes_with(mark) == []

        using(work)
        assert cgroups_of(what.id) == []

    @pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.003, 0.006, 0.01, 0.02, 0.03])
    def test_cancelling_while_it_starts(self, using: Any, rootfs: Path, delay_s: float) -> None:
        mark = f"MARK={new_id()}"
        what = container(rootfs, "sleep", "600", env=(*ENV, mark))

        async def work(runtime: Any) -> None:
            running = asyncio.create_task(runtime.run(what, output=lambda *_: None))
            await asyncio.sleep(delay_s)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert processes_with(mark) == []

        using(work)
        assert cgroups_of(what.id) == []

    def test_a_second_cancellation_does_not_hurry_past_the_first(self, using: Any, rootfs: Path) -> None:
        mark = f"MARK={new_id()}"

        async def work(runtime: Any) -> None:
            begun = asyncio.Event()
            what = container(rootfs, "sleep", "600", env=(*ENV, mark))
            running = asyncio.create_task(runtime.run(what, output=lambda *_: None, started=begun.set))
            await begun.wait()
            running.cancel()
            await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert processes_with(mark) == []

        using(work)

    def test_closing_kills_what_runs(self, using: Any, rootfs: Path) -> None:
        mark = f"MARK={new_id()}"

        async def work(runtime: Any) -> None:
            begun = asyncio.Event()
            what = container(rootfs, "sleep", "600", env=(*ENV, mark))
            work.running = asyncio.create_task(runtime.run(what, output=lambda *_: None, started=begun.set))  # type: ignore[attr-defined]
            await begun.wait()

        using(work)
        assert processes_with(mark) == []

    def test_a_fork_bomb_ends_with_its_step(self, using: Any, rootfs: Path) -> None:
        mark = f"MARK={new_id()}"
        script = "i=0; while [ $i -lt 60 ]; do (sleep 600; true) & i=$((i+1)); done; echo ready; wait"

        async def work(runtime: Any) -> None:
            ready = asyncio.Event()
            what = container(rootfs, "sh", "-c", script, env=(*ENV, mark))
            running = asyncio.create_task(runtime.run(what, output=lambda *_: ready.set()))
            await ready.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        using(work)
        assert processes_with(mark) == []

    def test_many_at_once(self, using: Any, rootfs: Path) -> None:
        async def work(runtime: Any) -> list[int]:
            async def one(number: int) -> int:
                what = container(rootfs, "sh", "-c", f"exit {number}")
                return int((await runtime.run(what, output=lambda *_: None)).code)

            return await asyncio.gather(*(one(number) for number in range(12)))

        assert using(work) == list(range(12))


class TestPrograms:
    def test_a_missing_one_is_told_in_gos_words(self, sh: Any) -> None:
        ran = sh(("no-such-program", "x"))
        assert ran.code == 1
        assert 'exec: "no-such-program": executable file not found in $PATH' in ran.exit.message
        assert "no-such-program" in ran.err

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("/bin/none", 'exec: "/bin/none": stat /bin/none: no such file or directory'),
            ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
            ("./none", 'exec: "./none": stat ./none: no such file or directory'),
        ],
    )
    def test_a_path_that_cannot_be_run(self, sh: Any, path: str, said: str) -> None:
        ran = sh((path,))
        assert ran.code == 1
        assert said in ran.exit.message

    def test_what_is_no_program(self, sh: Any, rootfs: Path) -> None:
        (rootfs / "bin/odd").write_bytes(b"\0\1\2 neither script nor ELF")
        (rootfs / "bin/odd").chmod(0o755)
        ran = sh(("odd",))
        assert ran.code != 0
        assert "exec format error" in ran.exit.message + ran.err

    def test_a_script_without_its_interpreter(self, sh: Any, rootfs: Path) -> None:
        (rootfs / "bin/odd").write_text("#!/opt/none\n")
        (rootfs / "bin/odd").chmod(0o755)
        ran = sh(("odd",))
        assert ran.code != 0
        assert "no such file or directory" in ran.exit.message + ran.err

    def test_path_of_the_environment_finds_it(self, sh: Any, rootfs: Path) -> None:
        (rootfs / "opt").mkdir()
        (rootfs / "opt/mine").write_text("#!/bin/sh\necho mine $1\n")
        (rootfs / "opt/mine").chmod(0o755)
        assert sh(("mine", "x"), process={"env": ("PATH=/none:/opt:/bin",)}).out == "mine x\n"

    def test_arguments_and_environment_arrive_as_they_are(self, sh: Any) -> None:
        ran = sh(
            ("sh", "-c", 'echo "[$0|$1|$2]"; env | grep ODD', "a b", "", "ü\n*"), process={"env": (*ENV, "ODD=x=y z", "ODD=last")}
        )
        assert ran.out == "[a b||ü\n*]\nODD=last\n"

    def test_a_missing_working_directory_is_made(self, sh: Any, rootfs: Path) -> None:
        assert sh("pwd", process={"cwd": "/new/place"}).out == "/new/place\n"
        assert (rootfs / "new/place").is_dir()


class TestStreams:
    def test_they_are_kept_apart(self, sh: Any) -> None:
        ran = sh("echo out; echo err >&2")
        assert (ran.out, ran.err) == ("out\n", "err\n")

    def test_a_hundred_megabytes_arrive_whole(self, using: Any, rootfs: Path) -> None:
        size = 100 << 20
        block = b"".join(b"%015d\n" % n for n in range(1024)) * 64
        (rootfs / "block").write_bytes(block)
        expected = hashlib.sha256()
        for _ in range(size >> 20):
            expected.update(block)
        hasher, total = hashlib.sha256(), 0

        def output(_stream: int, data: bytes) -> None:
            nonlocal total
            hasher.update(data)
            total += len(data)

        script = f"i=0; while [ $i -lt {size >> 20} ]; do cat /block; i=$((i+1)); done"
        ended = using(lambda runtime: runtime.run(container(rootfs, "sh", "-c", script), output=output))
        assert (ended.code, total) == (0, size)
        assert hasher.hexdigest() == expected.hexdigest()

    def test_output_comes_while_it_runs(self, using: Any, rootfs: Path) -> None:
        async def work(runtime: Any) -> list[bytes]:
            said: list[bytes] = []
            heard = asyncio.Event()

            def output(_stream: int, data: bytes) -> None:
                said.append(data)
                heard.set()

            async def stdin() -> bytes:  # the step goes on when its first word was heard
                await heard.wait()
                return b"" if len(said) > 1 else b"go\n"

            what = container(rootfs, "sh", "-c", "echo a; read line; echo b $line")
            await runtime.run(what, output=output, stdin=stdin)
            return said

        assert using(work) == [b"a\n", b"b go\n"]

    def test_what_background_processes_write_until_the_end_is_kept(self, sh: Any) -> None:
        script = "(sleep 0.05; echo late; touch /tmp/said) & while ! test -e /tmp/said; do sleep 0.01; done; echo last"
        assert sh(script).out == "late\nlast\n"

    def test_no_input_is_the_end_of_it(self, sh: Any) -> None:
        assert sh("wc -c").out.strip() == "0"

    def test_input_in_pieces(self, sh: Any) -> None:
        pieces = [b"one", b"two", b""]

        async def stdin() -> bytes:
            return pieces.pop(0)

        assert sh(("cat",), stdin=stdin).out == "onetwo"

    def test_ten_megabytes_of_input(self, sh: Any) -> None:
        pieces = [os.urandom(1 << 20) for _ in range(10)]
        todo = [*pieces, b""]

        async def stdin() -> bytes:
            return todo.pop(0)

        assert sh("wc -c", stdin=stdin).out.strip() == str(10 << 20)

    def test_a_step_that_does_not_read_its_input(self, sh: Any) -> None:
        async def stdin() -> bytes:
            await asyncio.sleep(0)
            return b"x" * 65536

        assert sh("exit 6", stdin=stdin).code == 6

    def test_streams_by_their_names(self, sh: Any) -> None:
        user = {"uid": 1000, "gid": 1001}
        ran = sh("echo o > /dev/stdout; echo e > /dev/stderr; echo f > /dev/fd/1", process=user)
        assert (ran.out, ran.err) == ("o\nf\n", "e\n")

    def test_bytes_that_are_no_text(self, sh: Any, rootfs: Path) -> None:
        data = bytes(range(256)) * 64
        (rootfs / "data").write_bytes(data)
        assert b"".join(piece for _, piece in sh(("cat", "/data")).pieces) == data


class TestPrivileges:
    def status(self, sh: Any, **more: Any) -> dict[str, str]:
        return dict(line.split(":\t", 1) for line in sh("cat /proc/self/status", **more).out.splitlines() if ":\t" in line)

    def test_capabilities(self, sh: Any) -> None:
        status = self.status(sh)
        assert [status[f"Cap{kind}"] for kind in ("Bnd", "Prm", "Eff")] == ["00000000a80425fb"] * 3
        assert [int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Amb")] == [0, 0]

    def test_an_ordinary_user_has_none(self, sh: Any) -> None:
        status = self.status(sh, process={"uid": 1000, "gid": 1001})
        assert [int(status[f"Cap{kind}"], 16) for kind in ("Prm", "Eff", "Inh", "Amb")] == [0, 0, 0, 0]
        assert status["CapBnd"] == "00000000a80425fb"

    def test_setuid_programs_work(self, sh: Any) -> None:
        status = self.status(sh)
        assert status["NoNewPrivs"] == "0"

    def test_the_filter_is_on(self, sh: Any) -> None:
        assert self.status(sh)["Seccomp"] == ("2" if this_host().seccomp else "0")

    def test_signals_are_not_blocked(self, sh: Any) -> None:
        status = self.status(sh)
        assert int(status["SigBlk"], 16) == 0
        assert int(status["SigIgn"], 16) & 0x1000 == 0  # SIGPIPE: Python ignores it, a step must not

    @pytest.mark.parametrize(
        ("script", "works"),
        [
            ("mount -t tmpfs none /tmp", False),
            ("hostname other", False),
            ("chroot / true", True),
            ("unshare -n true", False),
            ("insmod /bin/busybox", False),
            ("swapon /bin/busybox", False),
            ("chown 5 /tmp/mine", True),
            ("mknod /tmp/p p", True),
        ],
    )
    def test_what_may_be_done(self, sh: Any, script: str, works: bool) -> None:
        assert (sh(f"touch /tmp/mine; {script} 2>/dev/null").code == 0) is works

    def test_insecure_may_mount(self, sh: Any) -> None:
        ran = sh("mount -t tmpfs none /tmp && echo mounted; grep Seccomp: /proc/self/status", insecure=True)
        assert ran.out == "mounted\nSeccomp:\t0\n"

    @pytest.mark.skipif(UNPRIVILEGED, reason="an ordinary user has no cgroups to give")
    def test_insecure_may_make_cgroups(self, sh: Any, kind: str) -> None:
        """In each hierarchy; they end with the step, and so does what it had put there."""
        if kind.endswith("rootless"):
            pytest.skip("an ordinary user has no cgroups to give")
        id = new_id()
        script = (
            "cd /sys/fs/cgroup; for d in . */; do test -f $d/cgroup.procs || continue;"
            f" mkdir -p $d/{id}/inner || exit 1; echo $$ > $d/{id}/cgroup.procs 2>/dev/null; done; ls -d */{id} {id} 2>/dev/null | wc -l"
        )
        ran = sh(script, insecure=True)
        assert ran.code == 0, ran.err
        assert int(ran.out) >= len([root for root in cgroup_roots() if root.name != "unified"])
        assert not any(id in names for root in cgroup_roots() for _, names, _ in os.walk(root))  # others come and go meanwhile

    def test_user_and_groups(self, sh: Any) -> None:
        ran = sh("id -u; id -g; id -G", process={"uid": 1000, "gid": 1001, "groups": (50,)})
        assert ran.out.split("\n")[:3] == ["1000", "1001", "1001 50"]

    def test_root_has_its_group_only(self, sh: Any) -> None:
        assert sh("id -u; id -g; id -G").out.split("\n")[:3] == ["0", "0", "0"]

    def test_a_user_without_an_entry(self, sh: Any) -> None:
        assert sh("id -u; echo $HOME", process={"uid": 4242, "gid": 4242}).out == "4242\n/\n"

    def test_home_comes_from_passwd(self, sh: Any) -> None:
        assert sh("echo $HOME").out == "/root\n"
        assert sh("echo $HOME", process={"uid": 1000, "gid": 1001}).out == "/home/app\n"
        assert sh("echo $HOME", process={"env": (*ENV, "HOME=/h")}).out == "/h\n"

    def test_another_users_file_stays_closed(self, sh: Any, rootfs: Path) -> None:
        (rootfs / "secret").write_text("x")
        (rootfs / "secret").chmod(0o600)
        assert sh("cat /secret 2>/dev/null || echo closed", process={"uid": 1000, "gid": 1001}).out == "closed\n"

    def test_limits_of_a_process(self, sh: Any) -> None:
        ran = sh("ulimit -Sn; ulimit -Hn", process={"rlimits": (Rlimit(name="nofile", soft=512, hard=1024),)})
        assert ran.out == "512\n1024\n"

    def test_umask(self, sh: Any) -> None:
        assert sh("umask; touch /tmp/f; stat -c %a /tmp/f").out == "0022\n644\n"


class TestView:
    def test_no_other_process_is_seen(self, sh: Any) -> None:
        ran = sh('echo $PPID; ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm; echo "$$"')
        parent, count, _, own = ran.out.split()
        assert int(parent) in (0, 1)
        assert int(own) in (1, 2)
        assert int(count) <= 4

    def test_three_descriptors(self, sh: Any) -> None:
        assert sh("ls /proc/self/fd").out.split() == ["0", "1", "2", "3"]  # 3 is the listing itself

    def test_hostname(self, sh: Any) -> None:
        assert sh("hostname").out == "buildkitsandbox\n"
        assert sh("hostname", hostname="mine").out == "mine\n"

    def test_working_directory(self, sh: Any) -> None:
        assert sh("pwd", process={"cwd": "/home/app"}).out == "/home/app\n"

    def test_the_root_is_the_rootfs(self, sh: Any, rootfs: Path) -> None:
        (rootfs / "here").touch()
        assert "here" in sh("ls /").out.split()
        assert sh("ls /..").out == sh("ls /").out
        assert sh("cat /proc/1/root/here 2>/dev/null; readlink /proc/self/root").out == "/\n"

    @pytest.mark.parametrize(
        "path", ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/acpi", "/proc/scsi"]
    )
    def test_masked(self, sh: Any, path: str) -> None:
        ran = sh(f"if [ -d {path} ]; then ls {path}; else head -c 16 {path} 2>/dev/null; fi | wc -c")
        assert ran.out.strip() == "0"

    @pytest.mark.parametrize("path", ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity"])
    def test_read_only(self, sh: Any, path: str) -> None:
        assert sh(f"echo b 2>/dev/null > {path} || echo refused").out == "refused\n"

    @pytest.mark.skipif(UNPRIVILEGED, reason="there is no /sys in a user namespace, as upstream has it")
    def test_sys_is_read_only(self, sh: Any) -> None:
        ran = sh(
            "touch /sys/x 2>/dev/null || echo refused; for d in /sys/fs/cgroup/*/; do mkdir $d/x 2>/dev/null && echo made; done"
        )
        assert ran.out == "refused\n"

    def test_network_none_has_loopback_only(self, sh: Any) -> None:
        ran = sh("cat /proc/net/dev; ip addr show lo", network="none")
        names = [line.split(":")[0].strip() for line in ran.out.splitlines() if ":" in line and "|" not in line]
        assert names[0] == "lo"
        assert "eth0" not in ran.out
        assert "UP" in ran.out
        assert "127.0.0.1" in ran.out

    def test_network_by_path(self, sh: Any, tmp_path: Path) -> None:
        path = tmp_path / "net"
        path.touch()
        subprocess.run(["unshare", f"--net={path}", "true"], check=True)
        try:
            wanted = os.stat(path).st_ino
            assert sh("stat -Lc %i /proc/self/ns/net", network=str(path)).out.strip() == str(wanted)
        finally:
            subprocess.run(["umount", str(path)], check=True)

    def test_network_host_is_the_engines(self, sh: Any) -> None:
        assert sh("stat -Lc %i /proc/self/ns/net").out.strip() == str(os.stat("/proc/self/ns/net").st_ino)

    @pytest.mark.parametrize("name", ["pid", "ipc", "uts", "mnt"])
    def test_own_namespaces(self, sh: Any, name: str) -> None:
        assert sh(f"stat -Lc %i /proc/self/ns/{name}").out.strip() != str(os.stat(f"/proc/self/ns/{name}").st_ino)


class TestDevices:
    def test_names(self, sh: Any) -> None:
        names = set(sh("ls /dev").out.split())
        assert {
            "null",
            "zero",
            "full",
            "random",
            "urandom",
            "tty",
            "ptmx",
            "pts",
            "shm",
            "mqueue",
            "stdin",
            "stdout",
            "fd",
        } <= names
        assert not {name for name in names if name.startswith(("sd", "vd", "nvme", "mem", "kmsg", "loop"))}

    @pytest.mark.parametrize(
        ("name", "numbers"),
        [("null", "1:3"), ("zero", "1:5"), ("full", "1:7"), ("random", "1:8"), ("urandom", "1:9"), ("tty", "5:0")],
    )
    def test_nodes(self, sh: Any, name: str, numbers: str) -> None:
        assert sh(f"stat -c '%a %t:%T' /dev/{name}").out == f"666 {numbers}\n"

    def test_they_work(self, sh: Any) -> None:
        ran = sh(
            "head -c 4 /dev/zero | wc -c; echo x > /dev/null && echo y; head -c 3 /dev/urandom | wc -c; echo x > /dev/full || echo full"
        )
        assert ran.out.split() == ["4", "y", "3", "full"]

    def test_a_disk_cannot_be_opened(self, sh: Any) -> None:
        ran = sh(
            "mknod /d b 254 0 2>/dev/null; mknod /e b 8 0 2>/dev/null; cat /d >/dev/null 2>&1 || cat /e >/dev/null 2>&1 || echo closed"
        )
        assert ran.out == "closed\n"

    def test_memory_cannot_be_opened(self, sh: Any) -> None:
        assert sh("mknod /m c 1 1 2>/dev/null; head -c 1 /m >/dev/null 2>&1 || echo closed").out == "closed\n"

    def test_terminals_are_its_own(self, sh: Any) -> None:
        assert sh("ls /dev/pts").out.split() == ["ptmx"]


class TestMounts:
    def test_binds(self, sh: Any, tmp_path: Path) -> None:
        source = tmp_path / "source"
        (source / "d").mkdir(parents=True)
        (source / "f").write_text("text")
        binds = (
            Bind(target="/in/ro", mount=Mount("bind", str(source), ("rbind", "ro"))),
            Bind(target="/rw", mount=Mount("bind", str(source), ("rbind", "rw"))),
            Bind(target="/file", mount=Mount("bind", str(source / "f"), ("rbind", "ro"))),
        )
        assert sh("cat /in/ro/f /file; touch /in/ro/x || echo refused; echo y > /rw/y", binds=binds).out == "texttextrefused\n"
        assert (source / "y").read_text() == "y\n"
        assert not (source / "x").exists()

    def test_tmpfs(self, sh: Any, rootfs: Path) -> None:
        binds = (Bind(target="/t", mount=Mount("tmpfs", "tmpfs", ("nosuid", "size=65536"))),)
        assert (
            sh(
                "df -k /t | grep -c 64; echo x > /t/x; dd if=/dev/zero of=/t/y bs=64k count=2 2>/dev/null || echo full",
                binds=binds,
            ).out
            == "1\nfull\n"
        )
        assert list((rootfs / "t").iterdir()) == []

    def test_flags(self, sh: Any, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.mkdir()
        (source / "run").write_text("#!/bin/sh\necho ran\n")
        (source / "run").chmod(0o755)
        binds = (Bind(target="/n", mount=Mount("bind", str(source), ("rbind", "noexec", "nosuid", "nodev"))),)
        ran = sh("/n/run 2>/dev/null || echo refused; grep ' /n ' /proc/mounts", binds=binds)
        assert ran.out.startswith("refused\n")
        assert {"noexec", "nosuid", "nodev"} <= set(ran.out.split()[4].split(","))

    def test_a_mount_in_a_mount(self, sh: Any, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / name).touch()
        binds = (
            Bind(target="/m/sub", mount=Mount("bind", str(tmp_path / "b"), ("rbind",))),
            Bind(target="/m", mount=Mount("bind", str(tmp_path / "a"), ("rbind",))),
        )
        assert sh("ls /m /m/sub", binds=binds).out.split() == ["/m:", "a", "sub", "/m/sub:", "b"]

    @pytest.mark.parametrize("link", ["/elsewhere", "../elsewhere", "/missing/deep"])
    def test_links_on_the_way_stay_inside(self, sh: Any, rootfs: Path, tmp_path: Path, link: str) -> None:
        source = tmp_path / "source"
        source.mkdir()
        (source / "f").touch()
        (rootfs / "elsewhere").mkdir()
        (rootfs / "var").mkdir()
        (rootfs / "var/run").symlink_to(link)
        binds = (Bind(target="/var/run/it", mount=Mount("bind", str(source), ("rbind",))),)
        assert sh("ls /var/run/it", binds=binds).out == "f\n"
        assert (rootfs / link.lstrip("./") / "it").is_dir()

    def test_a_link_out_of_the_root_is_no_way_out(self, sh: Any, rootfs: Path, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (rootfs / "out").symlink_to(tmp_path / "outside")
        (rootfs / "up").symlink_to("../../../../../../../../.." + str(tmp_path / "outside"))
        binds = tuple(Bind(target=f"/{name}/x", mount=Mount("tmpfs", "tmpfs", ())) for name in ("out", "up"))
        assert sh("touch /out/x/y /up/x/y", binds=binds).code == 0
        assert list((tmp_path / "outside").iterdir()) == []

    def test_secrets(self, sh: Any, tmp_path: Path, rootfs: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("hush")
        secret.chmod(0o400)
        binds = (Bind(target="/run/secrets/s", mount=Mount("bind", str(secret), ("rbind", "ro", "nosuid", "nodev", "noexec"))),)
        ran = sh("cat /run/secrets/s; echo x 2>/dev/null > /run/secrets/s || echo refused", binds=binds)
        assert ran.out == "hushrefused\n"
        assert (rootfs / "run/secrets/s").read_text() == ""

    def test_readonly_root(self, sh: Any, rootfs: Path) -> None:
        ran = sh("touch /x || echo refused; touch /dev/shm/x && echo made; touch /etc/passwd || echo refused", readonly=True)
        assert ran.out == "refused\nmade\nrefused\n"
        assert not (rootfs / "x").exists()

    def test_writable_mounts_in_a_readonly_root(self, sh: Any, tmp_path: Path) -> None:
        (tmp_path / "w").mkdir()
        binds = (Bind(target="/w", mount=Mount("bind", str(tmp_path / "w"), ("rbind", "rw"))),)
        assert sh("touch /w/x && echo made", binds=binds, readonly=True).out == "made\n"

    def test_shared_memory_can_have_a_size(self, sh: Any) -> None:
        binds = (Bind(target="/dev/shm", mount=Mount("tmpfs", "shm", ("nosuid", "nodev", "noexec", "size=1048576"))),)
        assert "1024" in sh("df -k /dev/shm", binds=binds).out

    def test_files_of_every_container(self, sh: Any, tmp_path: Path) -> None:
        for name in ("hosts", "resolv.conf"):
            (tmp_path / name).write_text(f"# {name}\n")
        binds = tuple(
            Bind(target=f"/etc/{name}", mount=Mount("bind", str(tmp_path / name), ("rbind", "ro", "nosuid", "noexec", "nodev")))
            for name in ("resolv.conf", "hosts")
        )
        ran = sh("cat /etc/hosts /etc/resolv.conf; echo x 2>/dev/null >> /etc/hosts || echo refused", binds=binds)
        assert ran.out == "# hosts\n# resolv.conf\nrefused\n"

    def test_mounts_of_the_machine_are_gone(self, sh: Any, rootfs: Path) -> None:
        points = [line.split()[4] for line in sh("cat /proc/self/mountinfo").out.splitlines()]
        assert points[0] == "/"
        assert all(point.startswith(("/proc", "/dev", "/sys", "/")) and str(rootfs) not in point for point in points)
        assert len(points) < 40

    def test_nothing_stays_mounted(self, sh: Any, rootfs: Path) -> None:
        before = Path("/proc/self/mountinfo").read_text()
        sh("true")
        assert str(rootfs) not in Path("/proc/self/mountinfo").read_text().replace(before, "")


class TestLimits:
    def test_memory(self, sh: Any) -> None:
        limits = Resources(memory=16 << 20, memory_swap=16 << 20)
        assert sh("dd if=/dev/zero of=/dev/null bs=64M count=1; exit 9", resources=limits).exit.oom

    def test_processors(self, sh: Any) -> None:
        limits = Resources(cpuset_cpus="0", cpu_shares=200, cpu_quota=50000, cpu_period=100000)
        ran = sh("grep Cpus_allowed_list /proc/self/status", resources=limits)
        assert ran.out == "Cpus_allowed_list:\t0\n"

    def test_a_parent_cgroup(self, sh: Any) -> None:
        assert "/chantier-test/" in sh("cat /proc/self/cgroup", cgroup_parent="chantier-test").out

    def test_enough_memory_is_no_event(self, sh: Any) -> None:
        ran = sh("exit 137", resources=Resources(memory=256 << 20))
        assert (ran.code, ran.exit.oom) == (137, False)


class TestExec:
    def test_in_a_running_container(self, using: Any, rootfs: Path) -> None:
        async def work(runtime: Any) -> tuple[int, bytes, bool]:
            said: list[bytes] = []
            what = container(rootfs, "sleep", "600", env=(*ENV, "A=b"))
            running = asyncio.create_task(runtime.run(what, output=lambda *_: None))
            await asyncio.sleep(0)  # it is known from now on; exec waits until it has started
            script = "id -u; echo $A; pwd; grep CapEff /proc/self/status; exit 6"
            process = Process(args=("sh", "-c", script), env=(*ENV, "A=b"), cwd="/tmp")
            ended = await runtime.exec(what.id, process, output=lambda _s, data: said.append(data))
            sleeping = asyncio.create_task(runtime.exec(what.id, Process(args=("sleep", "600"), env=ENV), output=lambda *_: None))
            await asyncio.sleep(0.2)
            sleeping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sleeping
            alive = not running.done()
            running.cancel()
            await asyncio.wait((running,))
            with pytest.raises(NotFoundError, match="has stopped"):
                await runtime.exec(what.id, process, output=lambda *_: None)
            return ended.code, b"".join(said), alive

        assert using(work) == (6, b"0\nb\n/tmp\nCapEff:\t00000000a80425fb\n", True)

    def test_it_sees_what_the_container_sees(self, using: Any, rootfs: Path, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m/f").touch()

        async def work(runtime: Any) -> bytes:
            said: list[bytes] = []
            binds = (Bind(target="/m", mount=Mount("bind", str(tmp_path / "m"), ("rbind",))),)
            what = container(rootfs, "sleep", "600", binds=binds, hostname="there")
            running = asyncio.create_task(runtime.run(what, output=lambda *_: None))
            await asyncio.sleep(0)
            script = "ls /m; hostname; grep -c sleep /proc/[0-9]*/comm | grep -c :1; grep Seccomp: /proc/self/status; echo $$ > /tmp/x && cat /etc/group | head -1"
            process = Process(args=("sh", "-c", script), env=ENV, uid=1000, gid=1001)
            await runtime.exec(what.id, process, output=lambda _s, data: said.append(data))
            running.cancel()
            await asyncio.wait((running,))
            return b"".join(said)

        assert using(work).splitlines()[:4] == [b"f", b"there", b"1", b"Seccomp:\t2"]

    def test_input_and_a_missing_program(self, using: Any, rootfs: Path) -> None:
        async def work(runtime: Any) -> tuple[bytes, int, str]:
            said: list[bytes] = []
            pieces = [b"in", b""]

            async def stdin() -> bytes:
                return pieces.pop(0)

            what = container(rootfs, "sleep", "600")
            running = asyncio.create_task(runtime.run(what, output=lambda *_: None))
            await asyncio.sleep(0)
            await runtime.exec(what.id, Process(args=("cat",), env=ENV), output=lambda _s, data: said.append(data), stdin=stdin)
            missing = await runtime.exec(what.id, Process(args=("nope",), env=ENV), output=lambda *_: None)
            running.cancel()
            await asyncio.wait((running,))
            return b"".join(said), missing.code, missing.message

        said, code, message = using(work)
        assert said == b"in"
        assert code != 0
        assert "nope" in message

    def test_it_ends_with_its_container(self, using: Any, rootfs: Path) -> None:
        mark = f"MARK={new_id()}"

        async def work(runtime: Any) -> int:
            what = container(rootfs, "sleep", "600")
            running = asyncio.create_task(runtime.run(what, output=lambda *_: None))
            await asyncio.sleep(0)
            process = Process(args=("sh", "-c", "sleep 600; true"), env=(*ENV, mark))
            other = asyncio.create_task(runtime.exec(what.id, process, output=lambda *_: None))
            while not processes_with(mark):
                await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.wait((running,))
            return int((await other).code)

        assert using(work) != 0
        assert processes_with(mark) == []


def sized(rows_and_columns: str) -> str:
    """Shell that waits until the terminal has that size (an OCI runtime is told by a signal), and exits with 9 if it never has."""
    return f"n=0; while [ \"$(stty size 2>/dev/null)\" != '{rows_and_columns}' ]; do sleep 0.05; n=$((n+1)); [ $n -lt 1200 ] || exit 9; done"


class TestTerminal:
    def talk(self, using: Any, rootfs: Path, script: str, line: bytes, **process: Any) -> tuple[int, bytes]:
        async def work(runtime: Any) -> tuple[int, bytes]:
            said: list[bytes] = []
            ready, lines = asyncio.Event(), asyncio.Queue[bytes]()

            def output(_stream: int, data: bytes) -> None:
                said.append(data)
                if b"ready" in b"".join(said):
                    ready.set()

            what = container(rootfs, "sh", "-c", script, env=(*ENV, "TERM=xterm"), process={"terminal": True, **process})
            running = asyncio.create_task(runtime.run(what, output=output, stdin=lines.get))
            await ready.wait()
            runtime.resize(what.id, 33, 77)
            lines.put_nowait(line)
            return (await running).code, b"".join(said)

        return using(work)

    def test_it_is_one_and_has_a_size(self, using: Any, rootfs: Path) -> None:
        script = f"test -t 0 && test -t 1 && test -t 2 && echo ready; read line; {sized('33 77')}; echo got $line"
        code, said = self.talk(using, rootfs, script, b"hello\n")
        assert code == 0
        assert b"got hello\r\n" in said

    def test_of_a_second_process_has_every_size_that_is_asked(self, using: Any, rootfs: Path) -> None:
        async def work(runtime: Any) -> tuple[int, bytes]:
            said: list[bytes] = []
            resize: list[Any] = []
            ready, wide = asyncio.Event(), asyncio.Event()

            def output(_stream: int, data: bytes) -> None:
                said.append(data)
                if b"ready" in b"".join(said):
                    ready.set()
                if b"wide" in b"".join(said):
                    wide.set()

            what = container(rootfs, "sleep", "600")
            running = asyncio.create_task(runtime.run(what, output=lambda *_: None))
            await asyncio.sleep(0)
            script = f"test -t 0 && echo ready; {sized('40 80')}; echo wide; {sized('60 100')}"
            process = Process(args=("sh", "-c", script), env=(*ENV, "TERM=xterm"), terminal=True)
            other = asyncio.create_task(runtime.exec(what.id, process, output=output, resized=resize.append))
            await ready.wait()
            resize[0](40, 80)
            await wide.wait()
            resize[0](60, 100)
            code = (await other).code
            running.cancel()
            await asyncio.wait((running,))
            return code, b"".join(said)

        code, said = using(work)
        assert code == 0
        assert said.split() == [b"ready", b"wide"]

    def test_control_c_interrupts_what_runs_in_it(self, using: Any, rootfs: Path) -> None:
        code, said = self.talk(
            using, rootfs, "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.02; done", b"\x03"
        )
        assert code == 9
        assert b"interrupted" in said

    def test_it_has_a_name_inside(self, using: Any, rootfs: Path) -> None:
        _, said = self.talk(using, rootfs, "echo ready; read x; tty; stat -c %u $(tty)", b"\n", uid=1000, gid=1001)
        assert b"/dev/pts/0" in said or b"/dev/console" in said
        assert b"1000" in said
