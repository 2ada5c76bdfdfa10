# SPDX-License-Identifier: Apache-2.0
"""Containers by the kernel alone: implements `Runtime` without an OCI runtime."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from chantier.errors import NotFoundError, UnsupportedError, UsageError
from chantier.kernel import IdRange, parse_id_map
from chantier.kernel.compiled import caches
from chantier.runtime import delegation, oci
from chantier.runtime.host import Host, this_host
from chantier.runtime.output import Stdin
from chantier.runtime.places import Places
from chantier.runtime.types import Container, Exit, OnOutput, Process, Resize, Signal
from chantier.runtime.users import home_of
from chantier.values import dataclass, field

from .built import Helper, find_helper
from .groups import Groups, Hierarchy
from .held import engine_name
from .hooked import Hooked
from .plan import exec_plan, run_plan
from .sandbox import Sandbox
from .server import Server

_TERMINAL_GROUP = 5


@dataclass(kw_only=True, eq=False)
class _Running:
    container: Container
    sandbox: Sandbox
    spec: dict[str, Any] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)


class Native:
    """Implements `Runtime`. `root` is the executor directory; the compiled helper is kept beside it.

    `helper` c or python insists on one; auto compiles where it can. Other arguments are those of `Runc`.
    """

    name = "native"

    def __init__(
        self,
        root: Path,
        *,
        host: Host | None = None,
        apparmor: str = "",
        selinux: str = "",
        no_pivot: bool = False,
        process_sandbox: bool = True,
        helper: str = "auto",
        cgroups: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self.places = Places(root)
        self._host = host or this_host()
        self._apparmor = apparmor
        self._selinux = selinux
        self._no_pivot = no_pivot
        self._process_sandbox = process_sandbox
        self._helper = helper
        self._cgroups = cgroups
        self._running: dict[str, _Running] = {}
        self._opening: asyncio.Future[tuple[Server, Hierarchy]] | None = None
        self._lost_ids: tuple[int, ...] = ()

    def find(self) -> Helper:
        """The helper that is used here, compiled if that has to be done yet. UnsupportedError if there can be none."""
        return find_helper((*caches(), self.places.root.parent / "native"), self._helper)

    async def run(
        self,
        container: Container,
        *,
        output: OnOutput,
        stdin: Stdin | None = None,
        started: Callable[[], None] | None = None,
    ) -> Exit:
        """Run to the end. Cancelling the awaiting task kills the whole process tree, reaps it, and then raises CancelledError."""
        sandbox = Sandbox(output, terminal=container.process.terminal, started=started)
        running = _Running(container=container, sandbox=sandbox)
        self._running[container.id] = running
        try:
            server, hierarchy = await self._ready()
            _check_ids(container.process)
            if self._host.user_namespace and delegation.is_limited(container):
                hierarchy, found = await asyncio.to_thread(self._delegated)
                container, unmet = delegation.fit(container, found)
                if unmet:
                    output(2, unmet.encode())
            running.spec = self._describe(container)
            hooked = Hooked(container, self._bundle(running)) if container.hooks else None
            running.groups = hierarchy.inherited(running.spec) or await self._own_groups(hierarchy, running)
            plan = run_plan(
                running.spec,
                running.groups,
                machine=self._host.machine,
                unprivileged=self._host.user_namespace,
                ids=self._lost_ids,
                no_pivot=self._no_pivot,
                home=_home(container.rootfs, container.process),
                nodes={device.path: device.host_path or device.path for device in container.devices},
                bundle=hooked.bundle if hooked is not None else None,
            )
            paused = hooked.create if hooked is not None else None
            await _unbroken(sandbox.start(server, plan, stdin=stdin, paused=paused), sandbox)
            async with hooked.watching(sandbox) if hooked is not None else nullcontext():
                await self._until_done(sandbox)
            return _exit_of(sandbox, output)
        except (UsageError, UnsupportedError) as err:
            return _refused(str(err), output)
        finally:
            del self._running[container.id]
            await sandbox.end_pause()
            sandbox.close()
            if running.groups.own or container.hooks:
                await asyncio.to_thread(self._clean_up, running)

    def _delegated(self) -> tuple[Hierarchy, delegation.Delegation]:
        """The cgroups of an ordinary user."""
        found = delegation.settle(self._host.cgroups)
        return Hierarchy(found.layout, "", self._cgroups, found), found

    def _place(self, running: _Running) -> Path:
        """The container's directory."""
        with suppress(FileExistsError):
            return self.places.new(running.container.id)
        return self.places.owner / running.container.id

    def _bundle(self, running: _Running) -> Path:
        """The container's directory as hooks expect it: they look there for its root. What it holds may be secret."""
        bundle = self._place(running)
        fd = os.open(bundle / "config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(running.spec).encode(errors="surrogateescape"))
        return bundle

    async def _own_groups(self, hierarchy: Hierarchy, running: _Running) -> Groups:
        # What `recover` looks for if we are killed.
        if hierarchy.delegated is None:
            self._place(running)
        else:
            self.places.note_groups(running.container.id, hierarchy.paths_of(running.spec))
        making = asyncio.ensure_future(asyncio.to_thread(hierarchy.make, running.spec))
        cancelled = await _ended(making)
        running.groups = making.result()  # known even if we are cancelled: they have to be removed
        if cancelled:
            raise asyncio.CancelledError
        return running.groups

    def _clean_up(self, running: _Running) -> None:
        running.groups.remove()  # which the monitor has done, unless it was killed
        self.places.forget_groups(running.container.id)
        shutil.rmtree(self.places.owner / running.container.id, ignore_errors=True)  # `close` takes what stays

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
        running = self._running.get(id)
        if running is not None:
            await running.sandbox.begun.wait()
        if running is None or not running.sandbox.pid or running.sandbox.done.done():
            raise NotFoundError(f"container {id} has stopped")
        server, _ = await self._ready()
        try:
            _check_ids(process)
        except UnsupportedError as err:
            return _refused(str(err), output)
        described = oci.process(process, oci.held_by(running.container, self._host))
        if self._apparmor and not running.container.insecure:
            described["apparmorProfile"] = self._apparmor
        plan = exec_plan(
            described,
            running.spec,
            running.sandbox.pid,
            running.groups,
            machine=self._host.machine,
            unprivileged=self._host.user_namespace,
            home=_home(running.container.rootfs, process),
        )
        sandbox = Sandbox(output, terminal=process.terminal)

        async def send(number: int) -> None:
            sandbox.signal(number)

        if signalled is not None:
            signalled(send)
        try:
            alive = running.sandbox.pidfd
            await _unbroken(sandbox.start(server, plan, stdin=stdin, alive=alive, resized=resized), sandbox)
            await self._until_done(sandbox)
        finally:
            sandbox.close()
        if sandbox.complaint == "container has stopped":
            raise NotFoundError(f"container {id} has stopped")
        return _exit_of(sandbox, output)

    async def signal(self, id: str, signal: int) -> None:
        """Send a signal to a container's step. SIGKILL cannot be refused, whatever it is doing."""
        running = self._running.get(id)
        if running is None:
            raise NotFoundError(f"container {id} has stopped")
        running.sandbox.signal(signal)

    def resize(self, id: str, rows: int, columns: int) -> None:
        """Set the size of a container's terminal."""
        running = self._running.get(id)
        if running is not None and running.sandbox.terminal is not None:
            running.sandbox.terminal.resize(rows, columns)

    async def close(self) -> None:
        """End in order: kill what runs still, and send the helper home."""
        for running in tuple(self._running.values()):
            running.sandbox.kill()
            await asyncio.wait((running.sandbox.closed,))
        opening, self._opening = self._opening, None
        if opening is not None:
            await asyncio.wait((opening,))
            for part in opening.result() if opening.exception() is None else ():
                await asyncio.to_thread(part.close)
        await asyncio.to_thread(self.places.close)

    def _describe(self, container: Container) -> dict[str, Any]:
        return oci.build(
            container,
            self._host,
            apparmor=self._apparmor,
            selinux=self._selinux,
            process_sandbox=self._process_sandbox,
            group=oci.cgroup_of(container) if delegation.is_limited(container) else "",
        )

    async def _ready(self) -> tuple[Server, Hierarchy]:
        """The helper's server and the cgroups, made at first use: to the end, even if who asked first is cancelled."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        return await asyncio.shield(self._opening)

    def _open(self) -> tuple[Server, Hierarchy]:
        helper = self.find()
        name = engine_name()
        hierarchy = Hierarchy("none" if self._host.user_namespace else self._host.cgroups, name, self._cgroups)
        hierarchy.open()
        if hierarchy.shared:
            self.places.new(name)  # what `recover` looks for if we are killed
        self._lost_ids = () if _is_mapped("gid", _TERMINAL_GROUP) else (_TERMINAL_GROUP,)
        return Server(helper, hierarchy), hierarchy

    async def _until_done(self, sandbox: Sandbox) -> None:
        try:
            await asyncio.shield(sandbox.done)
        except asyncio.CancelledError:
            sandbox.kill()
            while not sandbox.done.done():
                with suppress(asyncio.CancelledError):  # a second one must not hurry past the first
                    await asyncio.wait((sandbox.done,))
            raise


async def _ended(task: asyncio.Future[Any]) -> bool:
    """Wait for the end of something that leaves what has to be undone; whether we were cancelled meanwhile."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


async def _unbroken(starting: Any, sandbox: Sandbox) -> None:
    """Await the start to its end even if we are cancelled meanwhile; then what was started is killed first."""
    task = asyncio.ensure_future(starting)
    cancelled = await _ended(task)
    task.result()
    if cancelled:
        sandbox.kill()
        while not sandbox.done.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((sandbox.done,))
        raise asyncio.CancelledError


def _exit_of(sandbox: Sandbox, output: OnOutput) -> Exit:
    if sandbox.complaint:
        return _refused(f"unable to start container process: {sandbox.complaint}", output)
    if sandbox.code < 0:
        return _refused("the sandbox helper was killed", output, code=255)
    return Exit(code=sandbox.code, oom=sandbox.oom)


def _refused(message: str, output: OnOutput, *, code: int = 1) -> Exit:
    output(2, f"native run failed: {message}\n".encode(errors="surrogateescape"))
    return Exit(code=code, message=message)


def _home(rootfs: Path, process: Process) -> str:
    """What HOME is where the environment does not say: the runtimes look it up in the container."""
    if any(entry.startswith("HOME=") for entry in process.env):
        return ""
    return home_of(rootfs, process.uid)


def _is_mapped(kind: str, id: int) -> bool:
    return any(part.inside <= id < part.inside + part.size for part in _ids(kind))


@cache
def _ids(kind: str) -> tuple[IdRange, ...]:
    """The `uid` or `gid` map of our user namespace."""
    try:
        return parse_id_map(Path(f"/proc/self/{kind}_map").read_text(encoding="ascii"))
    except OSError:  # a kernel without user namespaces
        return (IdRange(inside=0, outside=0, size=2**32 - 1),)


def _check_ids(process: Process) -> None:
    """Said before the kernel says EINVAL, or takes 32 bits of a number. Raises UnsupportedError."""
    for id in process.groups:
        if not 0 <= id < 2**32 - 1:
            raise UnsupportedError(f"cannot run with group {id}: there is no such id")
    for kind, id in (("uid", process.uid), ("gid", process.gid)):
        if not _is_mapped(kind, id):
            count = sum(part.size for part in _ids(kind))
            raise UnsupportedError(
                f"cannot run as {kind} {id}: this user namespace has {count} {kind}{'' if count == 1 else 's'}"
                " (newuidmap and lines in /etc/subuid and /etc/subgid give more)"
            )


__all__ = ["Native"]
