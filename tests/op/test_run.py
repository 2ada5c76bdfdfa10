# SPDX-License-Identifier: Apache-2.0
"""RUN on a real cache with real containers: what a step gets, what its result is, what is left when it fails."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chantier.cache import Ref
from chantier.errors import ChantierError, NotFoundError, SessionError, StepError, UnsupportedError
from chantier.llb.definition import LoadedVertex
from chantier.op.run import RunOp
from chantier.op.worker import Worker
from chantier.pb import ops_pb2 as pb
from chantier.progress import Log
from chantier.runtime import probe

if TYPE_CHECKING:
    from conftest import Bench

pytestmark = [pytest.mark.root, pytest.mark.runc]

APPLETS = (
    "sh",
    "cat",
    "id",
    "ls",
    "echo",
    "sleep",
    "stat",
    "touch",
    "mkdir",
    "rm",
    "df",
    "grep",
    "awk",
    "nc",
    "mv",
    "env",
    "wc",
    "mount",
)


@dataclass
class Client:
    """A session that knows some secrets and has an agent that shouts back."""

    secrets: Mapping[str, bytes] = field(default_factory=dict)
    agents: tuple[str, ...] = ()
    gone: bool = False
    asked: list[str] = field(default_factory=list)
    id: str = "client"
    shared_key: str = "k"

    async def secret(self, id: str) -> bytes | None:
        self.asked.append(id)
        if self.gone:
            raise SessionError("the client is gone")
        return self.secrets.get(id)

    async def has_agent(self, id: str) -> bool:
        return id in self.agents

    async def agent(self, id: str) -> Shouter:
        return Shouter()


class Shouter:
    def __init__(self) -> None:
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        return await self.heard.get()

    async def write(self, data: bytes, /) -> None:
        self.heard.put_nowait(data.upper())

    async def close(self) -> None:
        self.heard.put_nowait(b"")


def base(root: Path) -> None:
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "root", "home/app"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        os.symlink("busybox", root / "bin" / applet)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\napps:x:1001:\nstaff:x:50:app\n")


@dataclass
class Shop:
    """A bench with a runtime and a base image."""

    bench: Bench
    root: Ref
    job: Callable[..., Any]

    @property
    def worker(self) -> Worker:
        return self.bench.worker

    def op(self, args: str | tuple[str, ...], *mounts: pb.Mount, inputs: int = 1, **more: Any) -> RunOp:
        limits = more.pop("limits", None)
        platform = more.pop("platform", None)
        output = more.pop("output", 0)
        exec_fields = {key: more.pop(key) for key in ("network", "security", "secretenv") if key in more}
        argv = ("sh", "-c", args) if isinstance(args, str) else args
        root = () if any(m.dest == "/" for m in mounts) else (pb.Mount(input=0, dest="/", output=output),)
        op = pb.Op(exec=pb.ExecOp(meta=pb.Meta(args=argv, **more), mounts=[*root, *mounts], **exec_fields))
        if platform is not None:
            op.platform.CopyFrom(platform)
        edges = tuple((f"sha256:{i:064x}", 0) for i in range(inputs))
        metadata = pb.OpMetadata(linux_resources=limits) if limits is not None else pb.OpMetadata()
        return RunOp(LoadedVertex("sha256:" + "0" * 64, op, edges, metadata, "sha256:" + "0" * 64), self.worker)

    def run(self, op: RunOp, *inputs: Ref | None, job: Any = None) -> list[Ref | None]:
        return self.bench.run(op, (self.root, *inputs), job)

    def said(self, op: RunOp, *inputs: Ref | None, job: Any = None) -> str:
        job = job or self.job()
        self.run(op, *inputs, job=job)
        return log_of(job)

    def sh(self, script: str, *mounts: pb.Mount, **more: Any) -> str:
        return self.said(self.op(script, *mounts, **more))

    def files(self, ref: Ref | None) -> dict[str, str]:
        """path -> content, `/` for a directory."""
        assert ref is not None
        found = {}
        with ref.mounted() as root:
            for top, directories, files in os.walk(root):
                below = os.path.relpath(top, root)
                found.update((os.path.normpath(f"{below}/{name}"), "/") for name in directories)
                for name in files:
                    path = Path(top, name)
                    text = "busybox" if name == "busybox" or path.is_symlink() else path.read_text()
                    found[os.path.normpath(f"{below}/{name}")] = text
        return found

    def changed(self, ref: Ref | None) -> dict[str, str]:
        """What a result has changed on the base: new or other files, `-` for those that are gone."""
        files, before = self.files(ref), self.files(self.root)
        out = {path: text for path, text in files.items() if before.get(path) != text}
        return {**out, **{path: "-" for path in before if path not in files}}


def log_of(job: Any) -> str:
    return b"".join(event.data for event in job.recorder.events if isinstance(event, Log)).decode()


@pytest.fixture
def shop(bench: Bench, job: Any) -> Iterator[Shop]:
    # Not the native sandbox: its helper belongs to one event loop, and each run here has its own.
    bench.worker.runtime = asyncio.run(probe(bench.worker.root, binary="runc"))
    yield Shop(bench, bench.tree(base), type(job))
    asyncio.run(bench.worker.runtime.close())
    executor = bench.worker.executor
    for owner in executor.iterdir():
        assert mounts_below(owner / "at") == [str(owner / "at")]
        assert [entry.name for entry in (owner / "at").iterdir() if entry.is_dir()] == []  # every step's directory is gone
    bench.worker.close()
    assert mounts_below(executor) == []


def mounts_below(path: Path) -> list[str]:
    return [
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4].startswith(str(path))
    ]


def test_the_result_is_what_the_process_wrote(shop: Shop) -> None:
    (made,) = shop.run(shop.op("echo hello > /out; rm /etc/group; mkdir -p /d/e; echo said; echo wrong >&2"))
    assert shop.changed(made) == {"out": "hello\n", "etc/group": "-", "d": "/", "d/e": "/"}
    assert shop.files(shop.root)["etc/group"]


def test_output_is_logged_by_stream(shop: Shop) -> None:
    job = shop.job()
    shop.run(shop.op("echo said; echo wrong >&2"), job=job)
    assert {(event.stream, event.data) for event in job.recorder.events if isinstance(event, Log)} == {
        (1, b"said\n"),
        (2, b"wrong\n"),
    }


def test_nothing_written_is_nothing_changed(shop: Shop) -> None:
    (made,) = shop.run(shop.op("cat /etc/hosts /etc/resolv.conf > /dev/null"))
    assert shop.changed(made) == {}


def test_a_failing_process_is_an_error_with_its_command_and_code(shop: Shop) -> None:
    with pytest.raises(StepError) as caught:
        shop.run(shop.op('echo "x"; exit 3'))
    assert str(caught.value) == 'process "sh -c echo \\"x\\"; exit 3" did not complete successfully: exit code: 3'
    assert (caught.value.exit_status, caught.value.argv) == (3, ("sh", "-c", 'echo "x"; exit 3'))


def test_other_codes_may_be_valid(shop: Shop) -> None:
    shop.run(shop.op("exit 3", validExitCodes=[3, 4]))
    with pytest.raises(StepError, match=r"exit code: 0$"):
        shop.run(shop.op("exit 0", validExitCodes=[3]))


def test_a_missing_program_has_a_hint(shop: Shop) -> None:
    job = shop.job()
    with pytest.raises(StepError, match=r'process "nope x" did not complete successfully: exit code: 1$') as caught:
        shop.run(shop.op(("nope", "x")), job=job)
    assert "not in the image" in (caught.value.hint or "")
    assert 'exec: "nope": executable file not found in $PATH' in log_of(job)
    with pytest.raises(StepError) as caught:
        shop.run(shop.op(("/nope",)))
    assert "not in the image" in (caught.value.hint or "")


def test_a_file_that_is_missing_for_another_reason_has_no_such_hint(shop: Shop) -> None:
    """A tmpfs in the place of /proc: what is missing then is no program."""
    with pytest.raises(StepError) as caught:
        shop.run(shop.op("true", pb.Mount(input=-1, output=-1, dest="/proc", mountType=pb.TMPFS)))
    assert caught.value.hint is None


def test_user_cwd_and_environment(shop: Shop) -> None:
    said = shop.sh("id -u; id -G; pwd; echo $HOME; echo $A; stat -c '%u:%g %a' . ..", user="app", cwd="/srv/a/b", env=["A=b"])
    assert said.split("\n")[:5] == ["1000", "1001 50", "/srv/a/b", "/home/app", "b"]
    assert said.split("\n")[5:7] == ["1000:1001 755", "1000:1001 755"]
    assert shop.sh("echo $PATH") == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    assert shop.sh("echo $PATH", env=["PATH=/bin"]) == "/bin\n"


def test_a_working_directory_through_a_link_stays_inside(shop: Shop) -> None:
    (made,) = shop.run(shop.op("mkdir /real; rm -r /home; cd / && /bin/busybox ln -s /real /link"))
    said = shop.job()
    (then,) = shop.bench.run(shop.op("pwd -P", cwd="/link/new"), [made], said)
    assert log_of(said) == "/real/new\n"
    assert "real/new" in shop.files(then)


def test_unknown_users_and_groups(shop: Shop) -> None:
    with pytest.raises(StepError) as caught:
        shop.run(shop.op("true", user="nobody2"))
    assert str(caught.value) == (
        'process "sh -c true" did not complete successfully: unable to find user nobody2: no matching entries in passwd file'
    )
    with pytest.raises(StepError, match="unable to find group no2: no matching entries in group file"):
        shop.run(shop.op("true", user="app:no2"))


def test_hosts_hostname_and_proxies(shop: Shop) -> None:
    hosts = [pb.HostIP(Host="one.test", IP="10.1.2.3")]
    assert shop.sh("cat /etc/hosts", extraHosts=hosts).endswith("ip6-loopback\n10.1.2.3\tone.test\n")
    assert shop.sh("/bin/busybox hostname; cat /etc/hosts", hostname="mine").startswith("mine\n127.0.0.1\tlocalhost mine\n")
    said = shop.sh("env | grep -i proxy", proxy_env=pb.ProxyEnv(http_proxy="http://p:1", no_proxy="x"))
    assert sorted(said.split()) == ["HTTP_PROXY=http://p:1", "NO_PROXY=x", "http_proxy=http://p:1", "no_proxy=x"]


def test_limits_and_network(shop: Shop) -> None:
    assert shop.sh("ulimit -Sn; ulimit -Hn", ulimit=[pb.Ulimit(Name="nofile", Soft=512, Hard=1024)]) == "512\n1024\n"
    assert "lo:" in shop.sh("cat /proc/net/dev", network=pb.NONE)
    own = os.stat("/proc/self/ns/net").st_ino
    assert shop.sh("stat -Lc %i /proc/self/ns/net").strip() == str(own)
    assert shop.sh("stat -Lc %i /proc/self/ns/net", network=pb.NONE).strip() != str(own)


def test_memory_limit(shop: Shop) -> None:
    limits = pb.LinuxResources(memory=16 << 20, memorySwap=16 << 20)
    with pytest.raises(StepError, match=r"did not complete successfully: cannot allocate memory$"):
        shop.run(shop.op("/bin/busybox dd if=/dev/zero of=/dev/null bs=64M count=1", limits=limits))


def test_insecure(shop: Shop) -> None:
    assert shop.sh("mount -t tmpfs none /tmp && echo mounted", security=pb.INSECURE) == "mounted\n"


# Mounts


def context(root: Path) -> None:
    (root / "d/sub").mkdir(parents=True)
    (root / "f").write_text("text")
    (root / "d/x").write_text("x")
    (root / "link").symlink_to("../../../etc")
    (root / "abs").symlink_to("/d/x")


def test_readonly_bind_of_a_part(shop: Shop) -> None:
    src = shop.bench.tree(context)
    op = shop.op(
        "cat /m/x /file /abs; touch /m/new || echo refused; ls /",
        pb.Mount(input=1, dest="/m", selector="/d", output=-1, readonly=True),
        pb.Mount(input=1, dest="/file", selector="f", output=-1, readonly=True),
        pb.Mount(input=1, dest="/abs", selector="abs", output=-1, readonly=True),
        inputs=2,
    )
    job = shop.job()
    (made,) = shop.run(op, src, job=job)
    assert "xtextx" in log_of(job)
    assert "refused" in log_of(job)
    assert shop.changed(made) == {}  # the mount points are gone again


def test_a_selector_cannot_leave_its_tree(shop: Shop) -> None:
    src = shop.bench.tree(context)
    with pytest.raises(NotFoundError, match='failed to mount /m: "link/passwd": not found'):
        shop.run(shop.op("true", pb.Mount(input=1, dest="/m", selector="link/passwd", output=-1, readonly=True), inputs=2), src)


def test_writes_to_a_bind_without_output_are_dropped(shop: Shop) -> None:
    src = shop.bench.tree(context)
    op = shop.op("echo new > /m/f; cat /m/f", pb.Mount(input=1, dest="/m", output=-1), inputs=2)
    assert shop.said(op, src) == "new\n"
    assert shop.files(src)["f"] == "text"


def test_outputs_come_in_order(shop: Shop) -> None:
    src = shop.bench.tree(context)
    op = shop.op(
        "echo one > /m/one; echo two > /n/two; echo zero > /zero",
        pb.Mount(input=1, dest="/m", output=1),
        pb.Mount(input=-1, dest="/n", output=2),
        pb.Mount(input=1, dest="/same", output=3, readonly=True),
        inputs=2,
    )
    first, second, third, fourth = shop.run(op, src)
    assert shop.changed(first) == {"zero": "zero\n"}
    assert shop.files(second) == {**shop.files(src), "one": "one\n"}
    assert shop.files(third) == {"two": "two\n"}
    assert fourth is not None
    assert fourth.id == src.id


def test_a_relative_target_is_below_the_working_directory(shop: Shop) -> None:
    src = shop.bench.tree(context)
    op = shop.op("cat /w/m/f", pb.Mount(input=1, dest="m", output=-1, readonly=True), inputs=2, cwd="/w")
    assert shop.said(op, src) == "text"


def test_readonly_root(shop: Shop) -> None:
    op = shop.op(
        "touch /x || echo refused; cat /m/f", pb.Mount(input=0, dest="/", output=-1, readonly=True), _tmpfs("/m"), inputs=1
    )
    job = shop.job()
    with pytest.raises(StepError):
        shop.run(op, job=job)
    assert "refused" in log_of(job)
    assert shop.run(shop.op("true", pb.Mount(input=0, dest="/", output=-1, readonly=True))) == []


def _tmpfs(dest: str, size: int = 0, **more: Any) -> pb.Mount:
    return pb.Mount(input=-1, dest=dest, output=-1, mountType=pb.TMPFS, TmpfsOpt=pb.TmpfsOpt(size=size), **more)


def test_tmpfs(shop: Shop) -> None:
    job = shop.job()
    (made,) = shop.run(
        shop.op("df -k /t | awk 'NR==2{print $2}'; grep ' /t ' /proc/mounts; echo x > /t/x", _tmpfs("/t", 65536)), job=job
    )
    said = log_of(job)
    assert said.startswith("64\ntmpfs /t tmpfs rw,nosuid"), said
    assert shop.changed(made) == {}
    assert shop.sh("touch /t/x 2>/dev/null || echo refused", _tmpfs("/t", readonly=True)) == "refused\n"
    assert shop.sh("df -k /dev/shm | awk 'NR==2{print $2}'", _tmpfs("/dev/shm", 131072)) == "128\n"


def test_stubs_below_missing_directories(shop: Shop) -> None:
    (made,) = shop.run(shop.op("true", _tmpfs("/a/b/c")))
    assert shop.changed(made) == {"a": "/", "a/b": "/"}
    (made,) = shop.run(shop.op("true", _tmpfs("/a/b/c"), removeMountStubsRecursive=True))
    assert shop.changed(made) == {}


def _cache(dest: str, id: str = "c", sharing: int = pb.SHARED, **more: Any) -> pb.Mount:
    fields = {"input": -1, "output": -1, **more}
    return pb.Mount(dest=dest, mountType=pb.CACHE, cacheOpt=pb.CacheOpt(ID=id, sharing=sharing), **fields)


def test_cache_mounts_are_kept_apart_and_kept(shop: Shop) -> None:
    (made,) = shop.run(shop.op("echo kept > /c/f", _cache("/c")))
    assert shop.changed(made) == {}
    assert shop.sh("cat /other/f; ls /d", _cache("/other"), _cache("/d", "another")) == "kept\n"
    with pytest.raises(StepError):
        shop.run(shop.op("echo more >> /c/f; exit 1", _cache("/c")))
    assert shop.sh("cat /c/f", _cache("/c")) == "kept\nmore\n"  # a failure does not undo it
    assert shop.sh("echo x > /c/g; cat /e/g", _cache("/c"), _cache("/e")) == "x\n"  # one id, one tree
    assert shop.sh("touch /c/h 2>/dev/null || echo refused", _cache("/c", readonly=True)) == "refused\n"


def test_a_cache_mount_on_a_part_of_a_base(shop: Shop) -> None:
    src = shop.bench.tree(context)
    op = shop.op("cat /c/x; echo y >> /c/x", _cache("/c", input=1, selector="/d"), inputs=2)
    assert shop.said(op, src) == "x"
    assert shop.said(op, src) == "xy\n"
    assert shop.files(src)["d/x"] == "x"


async def _both(shop: Shop, sharing: int, scripts: tuple[str, str]) -> list[str]:
    jobs = [shop.job(), shop.job()]
    ops = [shop.op(script, _cache("/c", sharing=sharing)) for script in scripts]
    made = await asyncio.gather(*(op.run(job, [shop.root]) for op, job in zip(ops, jobs, strict=True)))
    shop.bench.keep += [ref for results in made for ref in results if ref is not None]
    return [log_of(job) for job in jobs]


def test_shared_private_and_locked(shop: Shop) -> None:
    meet = "touch /c/$$-{0}; n=0; while [ ! -e /c/{1} ] && [ $n -lt {2} ]; do n=$((n+1)); sleep 0.02; done; touch /c/{0}; [ -e /c/{1} ] && echo met; true"
    pair = ("touch /c/a; " + meet.format("a", "b", 100), "touch /c/b; " + meet.format("b", "a", 100))
    assert asyncio.run(_both(shop, pb.SHARED, pair)) == ["met\n", "met\n"]
    shop.worker.cache.clear_index("cache-dir:c")
    pair = ("touch /c/a; " + meet.format("a", "b", 20), "touch /c/b; " + meet.format("b", "a", 20))
    assert asyncio.run(_both(shop, pb.PRIVATE, pair)) == ["", ""]
    shop.worker.cache.clear_index("cache-dir:c")
    alone = "[ -e /c/busy ] && echo met; touch /c/busy; sleep 0.1; rm /c/busy; echo x >> /c/count; cat /c/count | wc -l"
    assert sorted(asyncio.run(_both(shop, pb.LOCKED, (alone, alone)))) == ["1\n", "2\n"]


def _secret(dest: str, id: str, mode: int = 0o400, **more: Any) -> pb.Mount:
    option = pb.SecretOpt(ID=id, mode=mode, **more)
    return pb.Mount(input=-1, dest=dest, output=-1, mountType=pb.SECRET, secretOpt=option)


def test_secrets_as_files(shop: Shop) -> None:
    job = shop.job(sessions=[Client(gone=True), Client(), Client({"key": b"\x00bin\xff"}), Client({"key": b"no"})])
    op = shop.op(
        "wc -c < /run/secrets/key; stat -c '%u:%g %a' /run/secrets/key; grep secrets/key /proc/mounts; touch /run/secrets/key 2>/dev/null || echo refused; ls /none 2>/dev/null",
        _secret("/run/secrets/key", "key", uid=5, gid=6, mode=0o440),
        _secret("/none", "absent", optional=True),
        validExitCodes=[1],
    )
    (made,) = shop.run(op, job=job)
    lines = log_of(job).splitlines()
    assert lines[:2] == ["5", "5:6 440"]
    assert lines[2].startswith("tmpfs /run/secrets/key tmpfs ro,nosuid,nodev,noexec")
    assert "refused" in lines
    assert "run/secrets/key" not in shop.files(made)


def test_a_missing_secret_is_named(shop: Shop) -> None:
    with pytest.raises(NotFoundError) as caught:
        shop.run(shop.op("true", _secret("/s", "gone")))
    assert str(caught.value) == "secret gone: not found"
    with pytest.raises(SessionError):
        shop.run(shop.op("true", _secret("/s", "gone", optional=True)), job=shop.job(sessions=[Client(gone=True)]))


def test_secrets_in_the_environment_are_nowhere_else(shop: Shop) -> None:
    marker = "v4lue-0f-the-secret"
    job = shop.job(sessions=[Client({"key": marker.encode()})])
    seen: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for name in os.listdir("/proc"):
                if name.isdigit():
                    try:
                        seen.append(Path(f"/proc/{name}/cmdline").read_text(errors="replace"))
                    except OSError:
                        continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    env = [pb.SecretEnv(ID="key", name="KEY"), pb.SecretEnv(ID="no", name="NO", optional=True)]
    op = shop.op("echo ${#KEY}; echo [$NO]; sleep 0.2", secretenv=env)
    try:
        (made,) = shop.run(op, job=job)
    finally:
        stop.set()
        watcher.join()
    assert log_of(job) == f"{len(marker)}\n[]\n"
    assert not [line for line in seen if marker in line]
    assert marker not in str(job.recorder.events)
    assert made is not None


def test_ssh_agent(shop: Shop) -> None:
    option = pb.SSHOpt(ID="default", uid=1000, gid=1001, mode=0o600)
    mount = pb.Mount(input=-1, dest="/run/agent.sock", output=-1, mountType=pb.SSH, SSHOpt=option)
    job = shop.job(sessions=[Client(), Client(agents=("default",))])
    script = "stat -c '%u:%g %a %F' /run/agent.sock; while [ ! -e /tmp/go ]; do sleep 0.02; done"

    async def work() -> tuple[Ref | None, list[bytes]]:
        running = asyncio.create_task(shop.op(script, mount).run(job, [shop.root]))
        while "socket" not in log_of(job):
            await asyncio.sleep(0.01)
        (path,) = shop.worker.executor.glob("*/at/*/agent-1")
        answers = []
        for text in (b"hello", b"again"):  # each connection is one of its own
            directory = os.open(path.parent, os.O_PATH)  # its whole name is longer than a socket's address may be
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{path.name}")
            os.close(directory)
            writer.write(text)
            answers.append(await reader.readexactly(5))
            writer.close()
        (path.parent / "rootfs/tmp/go").touch()
        (made,) = await running
        return made, answers

    made, answers = asyncio.run(work())
    assert made is not None
    shop.bench.keep.append(made)
    assert answers == [b"HELLO", b"AGAIN"]
    assert log_of(job) == "1000:1001 600 socket\n"
    assert "run/agent.sock" not in shop.files(made)
    with pytest.raises(NotFoundError, match=r'^no SSH key "default" forwarded from the client$'):
        shop.run(shop.op("true", mount))
    mount.SSHOpt.optional = True
    assert shop.sh("ls /run/agent.sock 2>/dev/null || echo none", mount).endswith("none\n")


# Lifetimes


def test_cancelling_leaves_nothing(shop: Shop) -> None:
    async def work() -> None:
        job = shop.job()
        op = shop.op("echo ready; sleep 600", _cache("/c", sharing=pb.LOCKED), _tmpfs("/t"))
        running = asyncio.create_task(op.run(job, [shop.root]))
        while "ready" not in log_of(job):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(work())
    assert shop.sh("echo free", _cache("/c", sharing=pb.LOCKED)) == "free\n"


def test_cancelling_while_waiting_for_a_cache_mount(shop: Shop) -> None:
    async def work() -> None:
        held = shop.worker.cache.mutable("cache-dir:c", sharing="locked")
        waiting = asyncio.create_task(shop.op("true", _cache("/c", sharing=pb.LOCKED)).run(shop.job(), [shop.root]))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 60)
        held.release()

    asyncio.run(work())


def test_failures_give_everything_back(shop: Shop) -> None:
    before = len(shop.worker.cache.usage())
    for op in (
        shop.op("exit 1"),
        shop.op("true", user="nobody2"),
        shop.op("true", pb.Mount(input=-1, dest="/m", selector="/none", output=1)),
        shop.op("true", _secret("/s", "gone")),
    ):
        with pytest.raises(ChantierError):
            shop.run(op)
    assert len(shop.worker.cache.usage()) == before


def test_parallelism_is_a_hard_bound(bench: Bench) -> None:
    worker = Worker(root=bench.worker.root, cache=bench.cache, config=bench.worker.config, parallelism=2)
    now = most = 0

    async def one() -> None:
        nonlocal now, most
        async with worker.slot():
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1

    async def work() -> None:
        await asyncio.gather(*(one() for _ in range(8)))

    asyncio.run(work())
    assert most == 2


def test_a_device_that_a_step_needs_is_told_to_be_missing(shop: Shop) -> None:
    op = shop.op("true")
    op._op.cdiDevices.add(name="vendor.example/device=one", optional=True)
    shop.run(op)
    op._op.cdiDevices.add(name="vendor.example/device=two")
    with pytest.raises(NotFoundError, match=r'required device "vendor.example/device=two" is not registered'):
        shop.run(op)


def test_no_runtime_and_no_emulator_are_told(shop: Shop) -> None:
    foreign = pb.Platform(OS="linux", Architecture="mips64")
    with pytest.raises(UnsupportedError, match="no emulator for linux/mips64 is registered on this linux/"):
        shop.run(shop.op("true", platform=foreign))
    runtime, shop.worker.runtime = shop.worker.runtime, None
    shop.worker.no_runtime = "no runtime works on this machine: runc: not found in PATH"
    try:
        with pytest.raises(UnsupportedError, match="runc: not found in PATH"):
            shop.run(shop.op("true"))
    finally:
        shop.worker.runtime = runtime
