# SPDX-License-Identifier: Apache-2.0
"""Ways out of a step, and leaks into it: each is refused by the native sandbox as it is by runc, or it is stricter.

Calls are made by attack.c, which is compiled for the test; whatever the kernel answers, it must not be "done". The few where
runc lets a step do more than the native sandbox does are marked: there its own first process is the victim.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from chantier.runtime import Bind, Container, Native, Process
from chantier.snapshot.mount import Mount
from chantier.spec import new_id

from .attacks import outcomes, refused
from .conftest import make_rootfs
from .rootless import KINDS

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.parametrize("kind", KINDS, indirect=True)]

ENV = ("PATH=/bin",)

CALLS = """
mount-tmpfs mount-proc mount-sysfs mount-cgroup mount-cgroup2 mount-devtmpfs mount-overlay mount-bind mount-move
remount-proc-sys remount-root-shared umount-mask umount-proc-sys pivot-root fsopen open-tree move-mount mount-setattr
unshare-user unshare-mount unshare-net unshare-cgroup clone-user clone3 setns-mount setns-pidfd
keyctl keyctl-search add-key request-key bpf-map bpf-prog perf-event userfaultfd io-uring open-by-handle
init-module finit-module delete-module kexec-load kexec-file-load reboot swapon swapoff acct quotactl
settimeofday clock-settime adjtimex sethostname setdomainname syslog vhangup lookup-dcookie move-pages set-mempolicy kcmp
pidfd-getfd personality vsock fanotify all-capabilities loopback-down nice
iopl ioperm x32-mount i386-unshare i386-keyctl
""".split()  # noqa: SIM905

# What runc's first process, which is the step itself, may do to itself.
CALLS_OF_RUNC = ["vsock-high-bits"]  # the profile of runc lets it through

READS = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/kallsyms-of-nobody",
    "/sys/firmware/acpi/tables/DSDT",
    "/sys/firmware/dmi/tables/DMI",
    "/sys/devices/virtual/powercap/intel-rapl/enabled",
    "/dev/mem",
    "/dev/kmsg",
]

WRITES = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/bus/pci/devices",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/ksm/run",
    "/sys/power/state",
    "/sys/fs/cgroup/release_agent",
    "/sys/fs/cgroup/memory/release_agent",
    "/sys/fs/cgroup/memory/cgroup.procs",
    "/sys/fs/cgroup/devices/devices.allow",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/fs/cgroup/cgroup.subtree_control",
]

NODES = {
    "memory": "c 1 1",
    "port": "c 1 4",
    "kernel-log": "c 1 11",
    "console": "c 5 1",
    "first-terminal": "c 4 0",
    "fuse": "c 10 229",
    "kvm": "c 10 232",
    "loop-control": "c 10 237",
    "tun": "c 10 200",
    "scsi-disk": "b 8 0",
    "virtual-disk": "b 254 0",
    "loop": "b 7 0",
}


@pytest.mark.parametrize("call", CALLS)
def test_calls(sh: Any, armed: Path, kind: str, call: str) -> None:
    assert refused(outcomes(sh, kind, "attack {}", CALLS)[call])


@pytest.mark.parametrize("call", CALLS)
def test_calls_of_an_ordinary_user(sh: Any, armed: Path, kind: str, call: str) -> None:
    assert refused(outcomes(sh, kind, "attack {}", CALLS, uid=1000, gid=1001)[call])


@pytest.mark.parametrize("call", CALLS_OF_RUNC)
def test_calls_that_the_native_sandbox_refuses(sh: Any, armed: Path, call: str, kind: str) -> None:
    if not kind.startswith("native"):
        pytest.skip("its filter compares 32 bits of an argument")
    assert refused(outcomes(sh, kind, "attack {}", CALLS_OF_RUNC)[call])


@pytest.mark.parametrize("path", READS)
def test_reads(sh: Any, armed: Path, kind: str, path: str) -> None:
    assert refused(outcomes(sh, kind, "attack read {}", READS)[path])


@pytest.mark.parametrize("path", WRITES)
def test_writes(sh: Any, armed: Path, kind: str, path: str) -> None:
    assert refused(outcomes(sh, kind, "attack write {}", WRITES)[path])


@pytest.mark.parametrize("node", NODES)
def test_devices(sh: Any, armed: Path, node: str, kind: str) -> None:
    if node == "tun" and not kind.startswith("native"):
        pytest.skip("runc before 1.2 lets every container open it")
    ran = sh(
        f"mknod /n {NODES[node]} 2>/dev/null; mknod /dev/n {NODES[node]} 2>/dev/null; for n in /n /dev/n; do attack read $n; attack write $n; done"
    )
    assert "done" not in ran.out


def test_a_chroot_is_no_way_out(sh: Any, armed: Path, tmp_path: Path) -> None:
    assert not sh(("attack", "chroot-out", str(tmp_path))).out.startswith("done")


def test_processes_of_the_machine_cannot_be_signalled(sh: Any, armed: Path) -> None:
    outside = [str(os.getpid()), str(os.getppid())]
    for pid in outside:
        if int(pid) > 20:
            assert sh(("attack", "kill", pid)).out.startswith("refused ")


@pytest.mark.parametrize("user", [{}, {"uid": 1000, "gid": 1001}])
def test_no_process_but_the_steps_own_is_to_be_seen(sh: Any, user: dict[str, int]) -> None:
    """Nothing of ours is in the container: no memory, no descriptor and no root directory to reach for."""
    ran = sh("echo $$; for p in /proc/[0-9]*; do cat $p/comm; done; tr '\\0' '\\n' </proc/1/environ", process=user)
    pid, *names = ran.out.splitlines()
    assert pid == "1"
    assert {name for name in names if "=" not in name} <= {"sh", "cat", "tr"}
    assert {name.partition("=")[0] for name in names if "=" in name} <= {"PATH", "HOME"}


def test_no_descriptor_is_inherited(sh: Any, tmp_path: Path) -> None:
    held = [os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY) for _ in range(20)]
    for fd in held:
        os.set_inheritable(fd, True)
    try:
        ran = sh("ls -l /proc/self/fd | grep -v 'proc/[0-9]*/fd$'; ls /proc/self/fd")
    finally:
        for fd in held:
            os.close(fd)
    assert str(tmp_path) not in ran.out
    assert ran.out.split()[-4:] == ["0", "1", "2", "3"]


def test_the_environment_of_the_engine_stays_outside(sh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_SECRET", "hush-hush")
    ran = sh("env; cat /proc/*/environ 2>/dev/null")
    assert "hush-hush" not in ran.out


def test_secrets_of_another_step_are_not_seen(using: Any, rootfs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("buried-treasure")
    other = make_rootfs(tmp_path / "neighbours-tree")

    async def work(runtime: Any) -> str:
        binds = (Bind(target="/run/secrets/x", mount=Mount("bind", str(secret), ("rbind", "ro"))),)
        process = Process(args=("sh", "-c", "sleep 600"), env=(*ENV, "TOKEN=buried-treasure"))
        holder = Container(id=new_id(), rootfs=other, process=process, binds=binds)
        begun = asyncio.Event()
        running = asyncio.create_task(runtime.run(holder, output=lambda *_: None, started=begun.set))
        await begun.wait()
        said: list[bytes] = []
        script = "cat /proc/*/environ /proc/*/cmdline /run/secrets/* /proc/*/root/run/secrets/* 2>/dev/null; cat /proc/self/mountinfo; ls /run"
        spy = Container(id=new_id(), rootfs=rootfs, process=Process(args=("sh", "-c", script), env=ENV))
        await runtime.run(spy, output=lambda _s, data: said.append(data))
        running.cancel()
        await asyncio.wait((running,))
        return b"".join(said).decode(errors="replace")

    said = using(work)
    assert "buried-treasure" not in said
    assert "neighbours-tree" not in said
    assert str(secret) not in said


def test_secrets_are_on_no_disk(using: Any, rootfs: Path, state: Path) -> None:
    async def work(runtime: Any) -> list[str]:
        process = Process(args=("sleep", "600"), env=(*ENV, "TOKEN=not-to-be-found"))
        begun = asyncio.Event()
        holder = Container(id=new_id(), rootfs=rootfs, process=process)
        running = asyncio.create_task(runtime.run(holder, output=lambda *_: None, started=begun.set))
        await begun.wait()
        found = []
        for directory, _, names in os.walk(state):
            for name in names:
                path = Path(directory, name)
                on_disk = os.statvfs(path).f_fsid if path.is_file() else 0
                if path.is_file() and on_disk == os.statvfs(state).f_fsid and b"not-to-be-found" in path.read_bytes():
                    found.append(str(path))
        running.cancel()
        await asyncio.wait((running,))
        return found

    assert using(work) == []


def test_the_helper_cannot_be_overwritten(using: Any, rootfs: Path, kind: str) -> None:
    if not kind.startswith("native"):
        pytest.skip("runc has its own ways (CVE-2019-5736)")

    async def work(runtime: Native) -> None:
        (rootfs / "evil").write_text("#!/proc/self/exe\n")
        (rootfs / "evil").chmod(0o755)
        evil = Container(id=new_id(), rootfs=rootfs, process=Process(args=("/evil",), env=ENV))
        await asyncio.wait_for(runtime.run(evil, output=lambda *_: None), 60)
        assert runtime._opening is not None
        server = runtime._opening.result()[0]._pid
        assert os.readlink(f"/proc/{server}/exe").startswith("/memfd:")
        with pytest.raises(OSError):
            os.close(os.open(f"/proc/{server}/exe", os.O_WRONLY))

    using(work)


@pytest.mark.parametrize("insecure", [False, True])
def test_the_helpers_program_is_no_file_of_the_machine(using: Any, rootfs: Path, kind: str, insecure: bool) -> None:
    if not kind.startswith("native"):
        pytest.skip("runc has its own ways (CVE-2019-5736)")

    async def work(runtime: Native) -> bytes:
        said: list[bytes] = []
        script = "readlink /proc/1/exe; echo x > /proc/1/exe && echo overwritten; true"
        process = Process(args=("sh", "-c", script), env=ENV)
        spy = Container(id=new_id(), rootfs=rootfs, process=process, insecure=insecure)
        await runtime.run(spy, output=lambda _s, data: said.append(data))
        return b"".join(said)

    said = using(work)
    assert b"overwritten" not in said
    assert b"memfd" not in said


def test_links_swapped_while_mounting_lead_nowhere(using: Any, tmp_path: Path) -> None:
    """Another step writes to a directory that is mounted here too, and races the mounts below it (CVE-2021-30465)."""
    shared, outside = tmp_path / "shared", tmp_path / "outside"
    shared.mkdir()
    outside.mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source/f").touch()
    rootfs = make_rootfs(tmp_path / "rootfs")
    (shared / "real").mkdir()
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            target = (str(outside), "/proc", "/proc/sys", "real", "..", "../../../../../../../../../..")[number % 6]
            os.symlink(target, shared / "new")
            os.replace(shared / "new", shared / "sub")
            number += 1

    async def work(runtime: Any) -> list[str]:
        binds = (
            Bind(target="/s", mount=Mount("bind", str(shared), ("rbind",))),
            Bind(target="/s/sub/deep", mount=Mount("bind", str(tmp_path / "source"), ("rbind",))),
        )
        outputs = []
        for _ in range(25):
            said: list[bytes] = []
            script = "touch /s/sub/deep/g 2>/dev/null; mount | grep -c ' /proc type proc'; echo x 2>/dev/null > /proc/sys/kernel/domainname && echo written"
            process = Process(args=("sh", "-c", script), env=ENV)
            what = Container(id=new_id(), rootfs=rootfs, process=process, binds=binds)
            await runtime.run(what, output=lambda s, data, said=said: said.append(data) if s == 1 else None)
            outputs.append(b"".join(said).decode())
        return outputs

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        outputs = using(work)
    finally:
        stop.set()
        swapping.join()
    assert list(outside.iterdir()) == []
    assert not any("written" in output for output in outputs)


@pytest.mark.parametrize("link", ["/tmp", "../tmp", "/proc/self/root/tmp"])
def test_proc_is_not_mounted_through_a_link(sh: Any, rootfs: Path, link: str) -> None:
    (rootfs / "proc").rmdir()
    (rootfs / "proc").symlink_to(link)
    assert sh("true").code != 0


def test_a_mount_over_proc_is_refused(sh: Any, tmp_path: Path) -> None:
    (tmp_path / "fake").mkdir()
    for target in ("/proc", "/proc/sys", "/proc/self/attr"):
        assert sh("true", binds=(Bind(target=target, mount=Mount("bind", str(tmp_path / "fake"), ("rbind",))),)).code != 0


def test_a_working_directory_outside_is_refused(sh: Any) -> None:
    for cwd in ("/proc/self/fd/3", "/proc/self/fd/7", "/proc/1/cwd"):
        assert sh("pwd; ls ../../../../../etc/shadow-of-the-machine", process={"cwd": cwd}).code != 0


def test_a_tmpfs_in_the_place_of_proc_is_refused(sh: Any) -> None:
    ran = sh("true", binds=(Bind(target="/proc", mount=Mount("tmpfs", "tmpfs", ("rw",))),))
    assert ran.code != 0
