# SPDX-License-Identifier: Apache-2.0
"""Containers by an OCI runtime's command line (runc, crun): one process of it a container, in the foreground.

    EXECUTOR/OWNER/state/       the runtime's --root
    EXECUTOR/OWNER/ID/          bundle: config.json, pid, log.json

The runtime hands our pipes to the container as they are, so output does not pass through it. When we are killed, our
guard (a shell that waits for the end of a pipe from us) deletes our containers; what even it could not delete, the next
start does (`places.recover`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal as signals
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from chantier.errors import NotFoundError, StoreError, UnsupportedError
from chantier.spec import new_id
from chantier.values import dataclass, field, replace

from . import oci
from .delegation import fit, is_limited, settle
from .host import Host, this_host
from .output import Piped, Stdin, Terminal
from .places import Places, end_cgroup
from .processes import descendants, parent_of
from .types import Container, Exit, OnOutput, Process, Resize, Signal

T = TypeVar("T")

# The engine's environment is nobody's business inside a runtime, and its hooks would see it.
_ENV = ("PATH", "XDG_RUNTIME_DIR", "HOME", "TMPDIR", "DBUS_SESSION_BUS_ADDRESS")

_AGAIN_S = 0.05  # between two attempts to kill
_STUCK = 20  # attempts after which the runtime itself is killed
_START_POLL_S = 0.004

# Arguments: binary, state directory. A line means that we ended in order; end of file without one, that we were killed.
# A container may still be starting then, so it looks until there was nothing for a while.
_GUARD = """
read -r line && exit 0
i=0; quiet=0
while [ $i -lt 200 ] && [ $quiet -lt 10 ]; do
  quiet=$((quiet+1)); i=$((i+1))
  for d in "$2"/*/; do
    [ -d "$d" ] || continue
    quiet=0; id=${d%/}; id=${id##*/}
    "$1" --root "$2" kill "$id" KILL; "$1" --root "$2" delete --force "$id"
  done
  sleep 0.1
done
"""


@dataclass(kw_only=True, eq=False)
class _Running:
    container: Container
    bundle: Path
    piped: Piped | None = None
    terminal: Terminal | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def resize(self, rows: int, columns: int) -> None:
        """The process has a terminal of its own, to which the runtime copies: it looks at ours again when it is told to."""
        if self.terminal is not None and self.piped is not None:
            self.terminal.resize(rows, columns)
            self.piped.send_signal(signals.SIGWINCH)


class Runc:
    """Implements `Runtime`. `root` is the executor directory; several processes may share one.

    `no_pivot` is for a root on a ramdisk. `process_sandbox` off shares the engine's pid namespace (rootless only).
    """

    def __init__(
        self,
        binary: str,
        root: Path,
        *,
        host: Host | None = None,
        apparmor: str = "",
        selinux: str = "",
        no_pivot: bool = False,
        process_sandbox: bool = True,
    ) -> None:
        self.binary = binary
        self.name = os.path.basename(binary)
        self.places = Places(root)
        self._host = host or this_host()
        self._apparmor = apparmor
        self._selinux = selinux
        self._no_pivot = no_pivot
        self._process_sandbox = process_sandbox
        self._running: dict[str, _Running] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._env = {name: os.environ[name] for name in _ENV if name in os.environ}

    async def run(
        self,
        container: Container,
        *,
        output: OnOutput,
        stdin: Stdin | None = None,
        started: Callable[[], None] | None = None,
    ) -> Exit:
        """Run to the end. Cancelling the awaiting task kills the whole process tree, reaps it, and then raises CancelledError."""
        self._watch()
        bundle = self.places.new(container.id)
        running = _Running(container=container, bundle=bundle)
        self._running[container.id] = running
        noted: tuple[Path, ...] = ()
        try:
            if self._host.user_namespace and is_limited(container):
                container, noted, unmet = await asyncio.to_thread(self._delegated, container)
                if unmet:
                    output(2, unmet.encode())
            self._describe(container, bundle, self._group_of(container, noted))
            limited = bool(container.resources.memory)
            argv = self._command("run", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), log=bundle / "log.json")
            argv += ["--no-pivot"] if self._no_pivot else []
            argv += ["--keep"] if limited else []
            argv.append(container.id)
            code = await self._foreground(argv, running, container.process.terminal, output, stdin, started)
            oom = limited and await asyncio.to_thread(_was_killed_for_memory, self._host, container, noted)
            if limited:
                await self._call("delete", "--force", container.id)
            return Exit(code=code, oom=oom, message=_complaint(bundle / "log.json") if code else "")
        finally:
            running.ended.set()
            del self._running[container.id]
            shutil.rmtree(bundle, ignore_errors=True)
            if noted:
                self.places.forget_groups(container.id)

    def _delegated(self, container: Container) -> tuple[Container, tuple[Path, ...], str]:
        """An ordinary user's container as it can be limited, where its cgroups will be, and what is to be said of the rest."""
        found = settle(self._host.cgroups)
        container, unmet = fit(container, found, everywhere=True)
        if not is_limited(container):
            return container, (), unmet
        path = oci.cgroup_of(container).lstrip("/")
        groups = tuple(place / path for place in sorted(set(found.every)))
        self.places.note_groups(container.id, groups)
        return container, groups, unmet

    def _group_of(self, container: Container, noted: Sequence[Path]) -> str:
        """The `cgroupsPath` of a container in a user namespace: what is relative is relative to our own groups on v1."""
        if not noted:
            return ""
        if self._host.cgroups == "v2":
            return f"/{noted[0].relative_to(settle('v2').mount)}"
        return oci.cgroup_of(container).lstrip("/")

    async def exec(
        self,
        id: str,
        process: Process,
        *,
        output: OnOutput,
        stdin: Stdin | None = None,
        resized: Callable[[Resize], None] | None = None,
        signalled: Callable[[Signal], None] | None = None,
    ) -> Exit:
        """One more process in a running container, with that container's capabilities.

        Cancelling kills it. `resized` is given a function that sets the size of its terminal, `signalled` one that signals it.
        """
        running = await self._wait_started(id)
        held = oci.held_by(running.container, self._host)
        own = running.bundle / f"exec-{new_id()[:12]}"
        own.mkdir(mode=0o700)
        (own / "process.json").write_text(json.dumps(oci.process(process, held)))
        argv = self._command("exec", "--process", str(own / "process.json"), "--pid-file", str(own / "pid"), log=own / "log.json")
        argv.append(id)
        child = _Running(container=replace(running.container, process=process), bundle=own)
        if signalled is not None:
            signalled(lambda number: self._send(child, number))
        try:
            code = await self._foreground(argv, child, process.terminal, output, stdin, None, resized=resized)
            return Exit(code=code, message=_complaint(own / "log.json") if code else "")
        finally:
            shutil.rmtree(own, ignore_errors=True)

    async def signal(self, id: str, signal: int) -> None:
        """Send a signal to a container's first process. SIGKILL cannot be refused, whatever that process is doing."""
        running = self._running.get(id)
        if running is None:
            raise NotFoundError(f"container {id} has stopped")
        await self._send(running, signal)

    async def _send(self, running: _Running, signal: int) -> None:
        if running.piped is None:
            raise NotFoundError("the process has not started")
        if signal == signals.SIGKILL:
            await self._kill(running)
        else:
            running.piped.send_signal(signal)  # the runtime in the foreground passes it on

    def resize(self, id: str, rows: int, columns: int) -> None:
        """Set the size of a container's terminal."""
        running = self._running.get(id)
        if running is not None:
            running.resize(rows, columns)

    async def close(self) -> None:
        """End in order: kill what runs still, and send the guard home."""
        for running in tuple(self._running.values()):
            if running.piped is not None:
                await self._kill_until_dead(running)
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            with suppress(BrokenPipeError):  # somebody has killed it
                guard.stdin.write(b"done\n")
                guard.stdin.close()
            await asyncio.to_thread(guard.wait)
        await asyncio.to_thread(self.places.close)

    def _watch(self) -> None:
        """Start the guard, once."""
        if self._guard is not None:
            return
        owner = self.places.owner
        state = owner / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        (owner / "runtime").write_text(self.binary)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "chantier-guard", self.binary, str(state)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env=self._env,
            start_new_session=True,
        )

    def _describe(self, container: Container, bundle: Path, group: str) -> None:
        described = oci.build(
            container,
            self._host,
            apparmor=self._apparmor,
            selinux=self._selinux,
            process_sandbox=self._process_sandbox,
            group=group,
        )
        # Values of secrets may stand in the environment: the bundle's reader is the runtime alone.
        fd = os.open(bundle / "config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(described).encode())

    def _command(self, *args: str, log: Path | None = None) -> list[str]:
        logged = ["--log", str(log), "--log-format", "json"] if log is not None else []
        return [self.binary, "--root", str(self.places.owner / "state"), *logged, *args]

    async def _foreground(
        self,
        argv: list[str],
        running: _Running,
        terminal: bool,
        output: OnOutput,
        stdin: Stdin | None,
        started: Callable[[], None] | None,
        *,
        resized: Callable[[Callable[[int, int], None]], None] | None = None,
    ) -> int:
        """Run one command of the runtime to its end and return its exit code; killed if we are cancelled."""
        helpers: list[asyncio.Task[None]] = []
        async with _on_terminal(terminal, output) as console:
            running.terminal = console
            try:
                slave = console.slave if console is not None else -1
                starting = Piped.start(argv, cwd=running.bundle, output=output, stdin=stdin, env=self._env, terminal=slave)
                running.piped = await _unbroken(starting)
            except OSError as err:
                raise UnsupportedError(f"failed to start {self.binary}: {err.strerror}") from err
            if console is not None:
                console.close_slave()
                if stdin is not None:
                    helpers.append(asyncio.create_task(console.feed(stdin)))
                if resized is not None:
                    resized(running.resize)
            if started is not None:
                helpers.append(asyncio.create_task(_when_started(running, started)))
            try:
                code: int = await asyncio.shield(running.piped.done)
                if console is not None:
                    await console.drained
                return code
            except asyncio.CancelledError:
                await _unbroken(self._kill_until_dead(running))
                raise
            finally:
                for helper in helpers:
                    helper.cancel()

    async def _kill_until_dead(self, running: _Running) -> None:
        assert running.piped is not None
        done = running.piped.done
        attempts = 0
        while not done.done():
            await self._kill(running)
            attempts += 1
            if attempts >= _STUCK:
                # The runtime does not answer, or its files are gone: whatever came from it is its descendant still.
                for victim in (*descendants(running.piped.pid), running.piped.pid):
                    with suppress(ProcessLookupError):
                        os.kill(victim, signals.SIGKILL)
            await asyncio.wait((done,), timeout=_AGAIN_S)
        if attempts >= _STUCK and running.bundle.name == running.container.id:
            await self._call("delete", "--force", running.container.id)
            await asyncio.to_thread(end_cgroup, running.container.id)
            await asyncio.to_thread(self.places.end_noted, running.container.id)

    async def _kill(self, running: _Running) -> None:
        """One attempt. Killing the first process of a pid namespace kills all of them (pid_namespaces(7))."""
        assert running.piped is not None
        pid = _first_process(running.bundle / "pid", running.piped.pid)
        if pid:
            for victim in descendants(running.piped.pid) if not self._process_sandbox else (pid,):
                with suppress(ProcessLookupError):
                    os.kill(victim, signals.SIGKILL)
        elif running.bundle.name == running.container.id:
            await self._call("kill", running.container.id, "KILL")

    async def _call(self, *args: str) -> None:
        """A short command of the runtime whose failure means that there was nothing to do."""
        process = await asyncio.create_subprocess_exec(
            *self._command(*args),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=self._env,
            start_new_session=True,
        )
        await process.wait()

    async def _wait_started(self, id: str) -> _Running:
        running = self._running.get(id)
        while running is not None and not running.ended.is_set():
            if _has_started(running):
                return running
            await asyncio.sleep(_START_POLL_S)
        raise NotFoundError(f"container {id} has stopped")


async def _when_started(running: _Running, started: Callable[[], None]) -> None:
    while not _has_started(running):
        await asyncio.sleep(_START_POLL_S)
    started()


def _has_started(running: _Running) -> bool:
    try:
        return (running.bundle / "pid").stat().st_size > 0  # written when the process was told to go
    except FileNotFoundError:
        return False


async def _unbroken(work: Awaitable[T]) -> T:
    """Await something to its end even if we are cancelled meanwhile; the cancellation is raised after it."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            cancelled = True
    result = task.result()
    if cancelled:
        if isinstance(result, Piped):  # it has started, and nobody else will ever know of it
            result.send_signal(signals.SIGKILL)
            await result.done
        raise asyncio.CancelledError
    return result


@asynccontextmanager
async def _on_terminal(wanted: bool, output: OnOutput) -> AsyncIterator[Terminal | None]:
    if not wanted:
        yield None
        return
    terminal = Terminal(output)
    try:
        yield terminal
    finally:
        terminal.close()


def _first_process(pid_file: Path, parent: int) -> int:
    """The container's first process, 0 if there is none yet or it is no child of the runtime's any more."""
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
        return pid if parent_of(pid) == parent else 0
    except (OSError, ValueError):
        return 0


def _complaint(log: Path) -> str:
    """The last error the runtime wrote of its own doing; "" if the container's process ended by itself."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        with suppress(ValueError):
            entry = json.loads(line)
            if entry.get("level") in ("error", "fatal"):
                return str(entry.get("msg", ""))
    return ""


def _was_killed_for_memory(host: Host, container: Container, delegated: Sequence[Path]) -> bool:
    """Whether the kernel killed something in the container's memory cgroup (cgroup-v2.rst memory.events, v1 memory.oom_control)."""
    base = Path("/sys/fs/cgroup") if host.cgroups == "v2" else Path("/sys/fs/cgroup/memory")
    name = "memory.events" if host.cgroups == "v2" else "memory.oom_control"
    for group in delegated or (base / oci.cgroup_of(container).lstrip("/"),):
        with suppress(OSError):  # another controller's, a systemd-style path, or no memory controller
            text = (group / name).read_text(encoding="ascii")
            counts = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
            return int(counts.get("oom_kill", 0)) > 0
    return False


def check_id(id: str) -> str:
    """A container id that is safe as a name of a directory and acceptable to the runtimes. Raises StoreError."""
    if not id or id[0] in "-._" or not all(c.isascii() and (c.isalnum() or c in "-_.+") for c in id):
        raise StoreError(f"invalid container id {id!r}")
    return id


__all__ = ["Runc", "check_id"]
