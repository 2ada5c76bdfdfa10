# SPDX-License-Identifier: Apache-2.0
"""More ways out of a step, and into what runs beside it: publicly known attacks on runtimes, and what their kind suggests.

As in test_escapes.py the native sandbox refuses whatever runc does. Here the two are compared, too: every system call, every file
that can be written, every mount.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import NotFoundError
from chantier.kernel import in_user_namespace, libc, remove_tree, syscalls
from chantier.kernel.numbers import number
from chantier.runtime import Bind, Container, Process
from chantier.runtime.types import Hook
from chantier.snapshot.mount import Mount
from chantier.spec import new_id

from .attacks import outcomes, refused
from .conftest import Ran, make_rootfs, open_runtime
from .rootless import KINDS

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.parametrize("kind", KINDS, indirect=True)]

ENV = ("PATH=/bin",)
UNPRIVILEGED = in_user_namespace()

CALLS = """
unshare-time unshare-pid fspick fsmount quotactl-fd io-uring-register mount-unbindable umount-dev umount-console name-to-handle
oom-adj uid-map tioclinux tty-steal rt-priority set-mm keep-caps-inheritable
""".split()  # noqa: SIM905

WRITES = [
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/kernel/yama/ptrace_scope",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/kernel/poweroff_cmd",
    "/proc/sys/kernel/hotplug",
    "/proc/sys/kernel/usermodehelper/bset",
    "/proc/sys/kernel/kexec_load_disabled",
    "/proc/sys/vm/mmap_min_addr",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/fs/protected_symlinks",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sys/dev/tty/ldisc_autoload",
    "/proc/mtrr",
    "/proc/acpi/wakeup",
    "/proc/1/ns/mnt",
    "/sys/fs/cgroup/memory/notify_on_release",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/cgroup.kill",
    "/sys/module/kernel/parameters/panic",
    "/sys/kernel/debug/sched_features",
    "/sys/kernel/security/lockdown",
    "/sys/kernel/slab/cred_jar/validate",
    "/sys/kernel/reboot/mode",
    "/sys/bus/pci/rescan",
    "/sys/devices/system/cpu/cpu0/online",
    "/sys/block/loop0/queue/scheduler",
    "/sys/class/net/lo/mtu",
]


@pytest.mark.parametrize("call", CALLS)
def test_calls(sh: Any, armed: Path, kind: str, call: str) -> None:
    assert refused(outcomes(sh, kind, "attack {}", CALLS)[call])


@pytest.mark.parametrize("call", [*CALLS, "raw", "packet"])
def test_calls_of_an_ordinary_user(sh: Any, armed: Path, kind: str, call: str) -> None:
    assert refused(outcomes(sh, kind, "attack {}", [*CALLS, "raw", "packet"], uid=1000, gid=1001)[call])


@pytest.mark.parametrize("path", WRITES)
def test_writes(sh: Any, armed: Path, kind: str, path: str) -> None:
    assert refused(outcomes(sh, kind, "attack write {}", WRITES)[path])


# Compared with runc.

_BY_RUNC: dict[str, Ran] = {}


def both(using: Any, state: Path, rootfs: Path, what: str, *args: str) -> tuple[Ran, Ran]:
    """What a command says in a container of the runtime, and in one of runc."""

    async def once(runtime: Any) -> Ran:
        pieces: list[tuple[int, bytes]] = []
        container = Container(id=new_id(), rootfs=rootfs, process=Process(args=args, env=ENV))
        return Ran(await runtime.run(container, output=lambda s, d: pieces.append((s, d))), pieces)

    async def by_runc() -> Ran:
        runc = await open_runtime("runc", state)
        try:
            return await once(runc)
        finally:
            await runc.close()

    if what not in _BY_RUNC:
        _BY_RUNC[what] = asyncio.run(by_runc())
    return using(once), _BY_RUNC[what]


def as_lines(ran: Ran) -> dict[str, str]:
    assert ran.code == 0, ran.err
    return dict(line.partition(" ")[::2] for line in ran.out.splitlines())


_NOT = {"Operation not permitted", "Function not implemented", "killed", "Permission denied"}
# The profile lets these through; a runc that is older than they are knows no such names, and refuses them.
_NEW_NAMES = "cachestat statmount listmount mseal setxattrat getxattrat listxattrat removexattrat map_shadow_stack".split()  # noqa: SIM905
_NEWER = {str(syscalls(platform.machine())[name]) for name in _NEW_NAMES}
_TABLES = {"": "0", "x32": "0x40000000", "of no architecture": "0x10000"}


@pytest.mark.parametrize("table", _TABLES)
def test_no_system_call_goes_further(using: Any, state: Path, armed: Path, kind: str, table: str) -> None:
    if table == "x32" and platform.machine() != "x86_64":
        pytest.skip("there is no x32 here")
    first = int(_TABLES[table], 0)
    here, there = both(using, state, armed, table, "attack", "every-call", str(first), str(first + 480))
    ours, runcs = as_lines(here), as_lines(there)
    assert len(ours) > 450
    assert ours.keys() == runcs.keys()
    further = {number: (said, runcs[number]) for number, said in ours.items() if said not in _NOT and runcs[number] in _NOT}
    further = {number: both for number, both in further.items() if number not in _NEWER or both[1] != "Function not implemented"}
    assert further == {}
    if table:
        assert set(ours.values()) <= _NOT


@pytest.mark.parametrize("tree", ["/proc", "/sys", "/dev"])
def test_no_file_more_can_be_written(using: Any, state: Path, armed: Path, kind: str, tree: str) -> None:
    here, there = both(using, state, armed, tree, "attack", "writable", tree)
    assert here.code == there.code == 0
    ours, runcs = set(here.out.splitlines()), set(there.out.splitlines())
    own = ("/proc/self/", "/proc/thread-self/")
    assert {path for path in ours - runcs if not path.startswith(own)} == set()


def test_every_mount_is_as_closed(using: Any, state: Path, rootfs: Path, kind: str) -> None:
    here, there = both(using, state, rootfs, "mounts", "cat", "/proc/self/mountinfo")
    flags = {
        name: {
            line.split()[4]: set(line.split()[5].split(",")) & {"ro", "nosuid", "nodev", "noexec"}
            for line in ran.out.splitlines()
        }
        for name, ran in (("ours", here), ("runcs", there))
    }
    wider = {point: missing for point, held in flags["runcs"].items() if (missing := held - flags["ours"].get(point, held))}
    assert wider == {}
    masked = {point for point in flags["runcs"] if point.startswith(("/proc/", "/sys/")) and point != "/sys/fs/cgroup"}
    assert masked <= flags["ours"].keys() | {p for p in masked if p.startswith("/sys/fs/cgroup/")}


def test_the_process_holds_no_more(using: Any, state: Path, rootfs: Path, kind: str) -> None:
    here, there = both(using, state, rootfs, "status", "cat", "/proc/self/status")
    ours, runcs = (
        {line.partition(":")[0]: line.partition(":")[2].split() for line in ran.out.splitlines()} for ran in (here, there)
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(ours[name][0], 16) & ~int(runcs[name][0], 16) == 0, name
    assert ours["Seccomp"] == runcs["Seccomp"]
    assert ours["NSpid"][0] == "1" or len(ours["NSpid"]) == 1
    for name in ("SigBlk", "SigIgn"):
        assert int(ours[name][0], 16) == 0, name


# Links that lead out: of the working directory, of mount points, of what every container gets.

MAGIC = [
    "/proc/self/cwd",
    "/proc/self/root",
    "/proc/1/cwd",
    "/proc/1/root",
    *(f"/proc/self/fd/{n}" for n in range(3, 12)),
    "/proc/thread-self/cwd",
]


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory of the machine that a container must never see, right below its root where we may make it."""
    where = Path("/var/tmp" if UNPRIVILEGED else "/") / f"chantier-{new_id()}"
    where.mkdir()
    (where / "treasure").write_text("of the machine")
    yield where
    for name in os.listdir(where):
        (where / name).unlink()
    where.rmdir()


@pytest.mark.parametrize("link", MAGIC)
def test_a_working_directory_by_a_link(sh: Any, rootfs: Path, outside: Path, link: str) -> None:
    """CVE-2024-21626: WORKDIR that is a descriptor of the machine's, by itself or by a link of the image."""
    (rootfs / "w").symlink_to(link)
    for cwd in (link, "/w", f"{link}/../../..", f"/w{outside}", f"{link}{outside}"):
        ran = sh(f"ls . .. ../../.. .{outside}; cat treasure .{outside}/treasure ../..{outside}/treasure", process={"cwd": cwd})
        assert "of the machine" not in ran.out
        assert "treasure\n" not in ran.out


@pytest.mark.parametrize("link", MAGIC)
def test_a_mount_point_by_a_link(sh: Any, rootfs: Path, tmp_path: Path, outside: Path, link: str) -> None:
    """While a container is made its runtime stands outside: what leads there must not be mounted on, nor made."""
    (tmp_path / "given").mkdir()
    (rootfs / "m").symlink_to(link)
    for target in (f"/m{outside}", f"/m{outside}/new", f"/m/{outside.name}/made/deep"):
        sh("true", binds=(Bind(target=target, mount=Mount("bind", str(tmp_path / "given"), ("rbind",))),))
    assert os.listdir(outside) == ["treasure"]
    assert not os.path.ismount(outside)


@pytest.mark.parametrize("link", ["/proc/self/cwd/dev", "/proc", "/proc/sys", "/proc/1/root/dev", "../../../../../../dev"])
@pytest.mark.parametrize("name", ["dev", "sys", "etc"])
def test_a_directory_of_every_container_by_a_link(sh: Any, rootfs: Path, tmp_path: Path, name: str, link: str) -> None:
    """/dev, /sys or /etc of the image leads elsewhere: nothing of /proc is covered, nothing of the machine is changed."""
    (tmp_path / "hosts").write_text("# given\n")
    for path in sorted((rootfs / name).iterdir()):
        path.unlink()
    (rootfs / name).rmdir()
    (rootfs / name).symlink_to(link)
    before = os.stat("/dev").st_mtime_ns, os.stat("/dev/null").st_ctime_ns, Path("/etc/hosts").read_bytes()
    binds = (Bind(target="/etc/hosts", mount=Mount("bind", str(tmp_path / "hosts"), ("rbind", "ro"))),)
    ran = sh(
        "grep -c . /proc/sys/kernel/hostname; echo x > /proc/sys/kernel/domainname && echo written; head -c1 /proc/kcore | wc -c",
        binds=binds,
    )
    assert "written" not in ran.out
    assert ran.out in ("", "1\n0\n")
    assert (os.stat("/dev").st_mtime_ns, os.stat("/dev/null").st_ctime_ns, Path("/etc/hosts").read_bytes()) == before


@pytest.mark.parametrize("file", ["/etc/hosts", "/etc/resolv.conf"])
@pytest.mark.parametrize(
    "link", ["/proc/sys/kernel/core_pattern", "/proc/self/cwd{}/treasure", "/proc/self/fd/3", "/proc/sysrq-trigger"]
)
def test_a_file_of_every_container_by_a_link(sh: Any, rootfs: Path, tmp_path: Path, outside: Path, file: str, link: str) -> None:
    (tmp_path / "given").write_text("# given\n")
    (rootfs / file[1:]).symlink_to(link.format(outside))
    ran = sh(f"cat {file}; head -c 3 /proc/sys/kernel/core_pattern; echo x > {file} && echo written", binds=(
        Bind(target=file, mount=Mount("bind", str(tmp_path / "given"), ("rbind", "ro"))),
    ))  # fmt: skip
    assert "of the machine" not in ran.out
    assert "written" not in ran.out
    assert (outside / "treasure").read_text() == "of the machine"


@pytest.mark.parametrize(
    "target",
    ["/proc/self/attr", "/proc/thread-self/attr/exec", "/proc/../proc/sys", "/./proc/self", "//proc//sysrq-trigger", "/etc/../proc/1",
     "/p/self/attr", "/p/sys/kernel", "/tmp/../p/../proc/sys", "/proc/fs", "/proc/uptime/../sys", "/proc/1/fd"],
)  # fmt: skip
def test_a_mount_into_proc_by_another_name(sh: Any, rootfs: Path, tmp_path: Path, target: str) -> None:
    """CVE-2025-52881, CVE-2019-19921: labels and limits are written to what a mount has put in the place of /proc."""
    (tmp_path / "fake").mkdir()
    (rootfs / "p").symlink_to("/proc")
    binds = (Bind(target=target, mount=Mount("bind", str(tmp_path / "fake"), ("rbind",))),)
    ran = sh("echo x > /proc/sys/kernel/domainname && echo written; grep -c ' /proc' /proc/self/mountinfo", binds=binds)
    assert ran.code != 0 or "written" not in ran.out
    assert os.listdir(tmp_path / "fake") == []
    assert ran.code != 0


# /dev of the step's own: what stands in it is not to be trusted (CVE-2025-31133, CVE-2025-52565).

FAKES = {
    "null": ["/proc/sys/kernel/core_pattern", "/etc/passwd", "/proc/self/fd/1", "/dev/zero", "/proc/kcore"],
    "console": ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/self/cwd/etc/hostname", "/proc/kcore"],
    "pts": ["/proc", "/proc/self/fd", "/tmp", "/proc/self/cwd/dev/pts"],
    "ptmx": ["/proc/self/fd/0", "/etc/passwd", "/proc/sysrq-trigger"],
}


@pytest.mark.parametrize(("name", "link"), [(name, link) for name, links in FAKES.items() for link in links])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_dev_of_ones_own_unmasks_nothing(
    sh: Any, armed: Path, tmp_path: Path, name: str, link: str, terminal: bool, kind: str
) -> None:
    if name == "null" and kind.startswith("runc"):
        pytest.skip("a runc without the mending of CVE-2025-31133 masks with whatever stands there")
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / name).symlink_to(link)
    before = (
        Path("/proc/sys/kernel/core_pattern").read_bytes(),
        Path("/etc/hostname").read_bytes() if Path("/etc/hostname").exists() else b"",
    )
    tries = "for f in /proc/kcore /proc/keys; do attack read $f; done; for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern; do attack write $f; done"
    ran = sh(tries, binds=(Bind(target="/dev", mount=Mount("bind", str(dev), ("rbind",))),), process={"terminal": terminal})
    assert "done" not in ran.out + ran.err
    assert before[0] == Path("/proc/sys/kernel/core_pattern").read_bytes()
    assert not Path("/etc/hostname").exists() or before[1] == Path("/etc/hostname").read_bytes()


# A process beside the first: the container does what it can to mislead whoever enters it.


def beside(
    using: Any, rootfs: Path, misleading: str, *entering: Process, binds: tuple[Bind, ...] = ()
) -> list[tuple[int, str, str]]:
    """What becomes of processes that are started in a container while it runs a script of its own, which says `go` first."""

    async def work(runtime: Any) -> list[tuple[int, str, str]]:
        begun = asyncio.Event()
        process = Process(args=("sh", "-c", f"echo go\n{misleading}\nsleep 600"), env=ENV)
        what = Container(id=new_id(), rootfs=rootfs, process=process, binds=binds)
        running = asyncio.create_task(runtime.run(what, output=lambda *_: begun.set()))
        await begun.wait()
        found = []
        for one in entering:
            said: list[bytes] = []
            ended = await asyncio.wait_for(runtime.exec(what.id, one, output=lambda _s, data, said=said: said.append(data)), 100)
            found.append((ended.code, b"".join(said).decode(errors="replace"), ended.message))
        running.cancel()
        await asyncio.wait((running,))
        return found

    found: list[tuple[int, str, str]] = using(work)
    return found


def command(script: str, **more: Any) -> Process:
    return Process(args=("sh", "-c", script), env=ENV, **more)


@pytest.mark.parametrize("link", MAGIC)
def test_entering_by_a_working_directory_that_leads_out(using: Any, rootfs: Path, outside: Path, link: str) -> None:
    (rootfs / "w").symlink_to(link)
    look = command(f"ls . .. ../..; cat .{outside}/treasure", cwd="/w")
    for _, said, _ in beside(
        using, rootfs, "true", look, command(f"ls . .{outside}", cwd=link), command("ls ..", cwd=f"{link}{outside}")
    ):
        assert "of the machine" not in said
        assert "treasure\n" not in said


def test_entering_while_the_working_directory_changes(using: Any, rootfs: Path, outside: Path) -> None:
    swap = "(while :; do for l in /proc/1/root /proc/self/cwd /proc/self/fd/4 /proc/self/fd/5 /tmp ../../../..; do ln -sfn $l /w; done; done) &"
    look = command(f"ls .; cat .{outside}/treasure ../../..{outside}/treasure", cwd="/w")
    for _, said, _ in beside(using, rootfs, swap, *[look] * 15):
        assert "of the machine" not in said


def test_whoever_enters_brings_nothing(using: Any, rootfs: Path) -> None:
    look = command("ls /proc/self/fd; cat /proc/[0-9]*/comm; cat /proc/1/environ")
    ((_, said, _),) = beside(using, rootfs, "true", look)
    lines = said.splitlines()
    assert lines[:4] == ["0", "1", "2", "3"]
    assert {line for line in lines[4:] if "=" not in line} <= {"sh", "sleep", "ls", "cat"}


def test_who_enters_is_not_to_be_caught(using: Any, rootfs: Path, armed: Path) -> None:
    """The container looks for whoever comes in: its memory, its descriptors, its root are those of the machine until it has changed."""
    hunt = (
        "(while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] && continue; ls $p/root/var/lib $p/cwd/../../var/lib 2>/dev/null;"
        " readlink $p/exe; ls -l $p/fd 2>/dev/null; done; done) > /tmp/prey 2>/dev/null &"
    )
    beside(using, rootfs, hunt, *[command("true")] * 15)
    prey = (rootfs / "tmp/prey").read_text(errors="replace")
    assert "memfd:chantier" not in prey
    assert "dpkg" not in prey
    assert "python" not in prey
    assert "socket:" not in prey


def test_the_terminal_of_who_enters_is_the_containers(using: Any, rootfs: Path, kind: str) -> None:
    """Another file in the place of /dev/pts/ptmx, /dev/ptmx or /dev/tty is not opened for him."""
    fake = "rm -f /dev/ptmx /dev/tty /dev/console; mkdir -p /dev/x; ln -s /etc/passwd /dev/ptmx; ln -s /etc/passwd /dev/tty"
    ((code, said, _),) = beside(using, rootfs, fake, command("test -t 0 && tty", terminal=True))
    assert not kind.startswith("native") or (code == 0 and "/dev/pts/" in said)
    assert "app:x:1000" in (rootfs / "etc/passwd").read_text()


def test_a_container_without_pts_gives_no_terminal(using: Any, rootfs: Path, tmp_path: Path, kind: str) -> None:
    dev = tmp_path / "dev"
    (dev / "pts").mkdir(parents=True)
    (dev / "pts/ptmx").write_text("untouched")
    (tmp_path / "nothing").mkdir()
    binds = (
        Bind(target="/dev", mount=Mount("bind", str(dev), ("rbind",))),
        Bind(target="/dev/pts", mount=Mount("bind", str(dev / "pts"), ("rbind",))),
    )
    with suppress(NotFoundError):  # runc does not start such a container
        found = beside(using, rootfs, "true", command("echo in", terminal=True), binds=binds)
        assert all(code != 0 and "in" not in said.split() for code, said, _ in found)
    assert (dev / "pts/ptmx").read_text() == "untouched"


def test_signals_to_everybody_reach_nobody_else(using: Any, rootfs: Path, tmp_path: Path, kind: str) -> None:
    async def work(runtime: Any) -> list[int]:
        begun = asyncio.Event()
        quiet = Container(id=new_id(), rootfs=make_rootfs(tmp_path / "quiet"), process=command("echo go; sleep 2; exit 7"))
        running = asyncio.create_task(runtime.run(quiet, output=lambda *_: begun.set()))
        await begun.wait()
        loud = Container(
            id=new_id(),
            rootfs=rootfs,
            process=command("for s in TERM INT HUP KILL STOP; do kill -$s -1; kill -$s 0; done; exit 6"),
        )
        first = await asyncio.wait_for(runtime.run(loud, output=lambda *_: None), 60)
        return [first.code, (await running).code]

    codes = using(work)
    assert codes[1] == 7
    assert codes[0] in (6, 129, 130, 137, 143)  # its own signals may end it


# What of the machine is beside the files.


def test_abstract_sockets_are_those_of_the_network(sh: Any, armed: Path, kind: str) -> None:
    name = f"chantier-{new_id()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(b"\0" + name.encode())
        server.listen()
        assert refused(sh(("attack", "abstract", name), network="none").out)
        assert sh(("attack", "abstract", name), network="host").out == "done\n"


def test_insecure_steps_have_keys_of_their_own(sh: Any, armed: Path, kind: str) -> None:
    """Without a filter, too: the session keyring is neither the engine's nor another step's."""
    ids = {sh(("attack", "session-keyring"), insecure=True).out.strip() for _ in range(2)}
    ours = libc.syscall(number("keyctl"), 0, -3, 0)
    assert len(ids) == 2
    assert str(ours) not in ids


@pytest.mark.parametrize("network", ["host", "none"])
def test_nothing_of_the_engine_is_named(sh: Any, rootfs: Path, tmp_path: Path, network: str) -> None:
    """Paths of the machine in what a step can read of itself; those of its mounts, /proc/self/mountinfo has."""
    ran = sh(
        "cat /proc/self/cgroup /proc/1/cmdline /proc/1/maps; env; ls -l /proc/self/fd /proc/1/fd /proc/1/cwd /proc/1/root /proc/1/exe",
        network=network,
    )
    root = str(tmp_path)
    assert not any(root in line for line in ran.out.splitlines())


# What an image says of its users, and what is asked of a process.

HUGE = 2**32 - 1


@pytest.mark.parametrize(
    "ids",
    [
        {"uid": HUGE},
        {"gid": HUGE},
        {"groups": (HUGE,)},
        {"groups": (1001, 2**32)},
        {"groups": (-1,)},
        {"uid": HUGE, "gid": HUGE},
        {"uid": 2**32},
        {"uid": -1},
    ],
)
def test_an_id_that_means_no_change_is_no_root(sh: Any, ids: dict[str, Any]) -> None:
    """setresuid(2) takes -1 for "as it is", which would be root."""
    ran = sh("id -u; echo ran", process={"uid": 1000, "gid": 1001, **ids})
    assert "ran" not in ran.out
    assert ran.code != 0


@pytest.mark.parametrize(
    "env",
    [
        tuple(f"V{n}={'x' * 1000}" for n in range(4000)),
        ("A=" + "x" * (1 << 20),),
        tuple(f"V{n}=" for n in range(60000)),
    ],
    ids=["much", "long", "many"],
)
def test_an_environment_without_end(sh: Any, env: tuple[str, ...]) -> None:
    ran = sh("echo ran", process={"env": ("PATH=/bin", *env)})
    assert (ran.code == 0) == (ran.out == "ran\n")
    assert ran.code == 0 or "argument list too long" in (ran.exit.message + ran.err).lower()


def test_names_of_variables_are_taken_as_they_are(sh: Any) -> None:
    ran = sh("env", process={"env": ("PATH=/bin", "LD_PRELOAD=/x.so", "A B=c", "é=ü", "GLIBC_TUNABLES=a=b", "X=\n\t\x01")})
    assert ran.code == 0
    assert "LD_PRELOAD=/x.so\n" in ran.out


@pytest.mark.parametrize("entry", ["=x", "="])
def test_a_variable_without_a_name_is_refused(sh: Any, entry: str) -> None:
    ran = sh("echo ran", process={"env": ("PATH=/bin", entry)})
    assert ran.out == ""
    assert "environment variable name can't be empty" in ran.exit.message


@pytest.mark.parametrize("hostname", ["x" * 65, "a\nb", "x" * 5000, "%s%n", "../../etc"])
def test_a_name_of_the_host(sh: Any, hostname: str) -> None:
    ran = sh("hostname", hostname=hostname)
    assert ran.code != 0 or ran.out == hostname + "\n"


@pytest.mark.parametrize(
    "cwd", ["/" + "d/" * 3000, "/" + "x" * 300, "/a/../../../../b", "relative/../..", "/tmp/" + "../" * 1200 + "c", "/%s%n%n"]
)
def test_a_working_directory_of_any_length(sh: Any, rootfs: Path, cwd: str) -> None:
    before = sorted(os.listdir("/"))
    try:
        ran = sh("pwd", process={"cwd": cwd})
    finally:
        remove_tree(rootfs)  # it may be deeper than what pytest removes it with can descend
    assert ran.code != 0 or ran.out.startswith("/")
    assert sorted(os.listdir("/")) == before


@pytest.mark.parametrize("program", ["", "/", "/tmp", "x" * 5000, "/bin/" + "x" * 5000, "/proc/self/fd/3", "%n%n%s", "/dev/null"])
def test_a_program_that_is_none(sh: Any, program: str) -> None:
    ran = sh((program, "%s%n"))
    assert ran.code != 0
    assert ran.exit.message or ran.err


def test_links_swapped_below_a_device_hook_or_mount(using: Any, tmp_path: Path, outside: Path, kind: str) -> None:
    """As in test_escapes.py, with links that lead to where the runtime itself stands."""
    shared = tmp_path / "shared"
    (shared / "real").mkdir(parents=True)
    (tmp_path / "source").mkdir()
    rootfs = make_rootfs(tmp_path / "rootfs")
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            target = ("/proc/self/cwd", "/proc/1/cwd", "/proc/self/fd/5", "/proc/self/fd/6", "real", "/proc/self/root")[
                number % 6
            ]
            os.symlink(target, shared / "new")
            os.replace(shared / "new", shared / "sub")
            number += 1

    async def work(runtime: Any) -> None:
        binds = (
            Bind(target="/s", mount=Mount("bind", str(shared), ("rbind",))),
            Bind(target=f"/s/sub{outside}/made", mount=Mount("bind", str(tmp_path / "source"), ("rbind",))),
        )
        hooks = (Hook(name="createContainer", path="/bin/true", args=("true",)),)
        for _ in range(15):
            script = f"touch /s/sub{outside}/made/x; ls /s/sub{outside}"
            what = Container(id=new_id(), rootfs=rootfs, process=command(script), binds=binds, hooks=hooks)
            await runtime.run(what, output=lambda *_: None)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        using(work)
    finally:
        stop.set()
        swapping.join()
    assert os.listdir(outside) == ["treasure"]
