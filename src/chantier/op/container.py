# SPDX-License-Identifier: Apache-2.0
"""A container that somebody else runs processes in (LLBBridge.NewContainer, frontend images): made as a RUN's is, never committed.

The first process is the container's; those after it run beside it and end with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.errors import CancelledError_, NotFoundError, UsageError
from chantier.llb.definition import LoadedVertex
from chantier.pb import ops_pb2 as pb
from chantier.progress import Silent, Step, Vertex
from chantier.runtime import Exit, Process, Rlimit, resolve_user
from chantier.spec import new_id
from chantier.values import dataclass, replace

from .mounts import target_of
from .run import RunOp, _Ready, make_directory
from .run_env import environment_of
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from chantier.cache import Ref

Stdin = Callable[[], "Awaitable[bytes]"]
Resized = Callable[[Callable[[int, int], None]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """`mounts` are those of an ExecOp whose inputs are `inputs`; one of them goes to `/`.

    The architecture of `platform` has to run here. Its system only decides on a PATH: processes are this machine's, whatever
    the tree is made for.
    """

    mounts: Sequence[pb.Mount]
    inputs: Sequence[Ref | None]
    network: int = 0
    platform: pb.Platform | None = None
    hostname: str = ""
    extra_hosts: Sequence[pb.HostIP] = ()


class HeldContainer:
    """Open it, start processes, close it: that kills what still runs and throws away what was written."""

    def __init__(self, worker: Worker, spec: ContainerSpec, sessions: Sequence[Any]) -> None:
        self._worker = worker
        self._spec = spec
        self._job = _Job(sessions)
        self._stack = AsyncExitStack()
        self._id = new_id()
        self._first: asyncio.Task[Exit] | None = None
        self._others: set[asyncio.Task[Exit]] = set()
        self._ready: _Ready
        self._network = ""

    @property
    def network(self) -> int:
        """The network mode that was asked for (pb.NetMode)."""
        return self._spec.network

    async def open(self) -> None:
        """Raises what a RUN with these mounts would."""
        spec = self._spec
        if not any(mount.dest == "/" for mount in spec.mounts):
            raise UsageError("a container needs a mount at /")
        meta = pb.Meta(cwd="/", hostname=spec.hostname, extraHosts=spec.extra_hosts)
        self._run = self._op(pb.ExecOp(meta=meta, mounts=spec.mounts, network=spec.network))  # type: ignore[arg-type]  # an enum's number
        self._runtime = self._run._runtime()
        try:
            place = await self._stack.enter_async_context(self._run._place())
            given = await self._run._given(self._job, spec.inputs, place, self._stack)
            self._network = await self._stack.enter_async_context(self._run._network())
            self._ready = await self._worker.threaded(
                lambda cancelled: self._run._set_up(self._job, spec.inputs, given, place, self._network, cancelled), _Ready.close
            )
            self._stack.push_async_callback(self._worker.threaded, lambda _cancelled: self._ready.close())
        except BaseException:
            await self._stack.aclose()
            raise

    def _op(self, exec: pb.ExecOp) -> RunOp:
        op = pb.Op(exec=exec)
        if self._spec.platform is not None and self._spec.platform.Architecture:
            op.platform.CopyFrom(self._spec.platform)
            op.platform.OS = self._worker.platform.os
        return RunOp(LoadedVertex(digest="", op=op, inputs=(), metadata=pb.OpMetadata(), original=""), self._worker)

    async def close(self) -> bool:
        """Whether nothing ran any more."""
        running = [task for task in (*self._others, *([self._first] if self._first else [])) if not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._stack.aclose()
        return not running

    async def run(
        self,
        meta: pb.Meta,
        *,
        output: Callable[[int, bytes], None],
        stdin: Stdin | None = None,
        terminal: bool = False,
        insecure: bool = False,
        secrets: Sequence[pb.SecretEnv] = (),
        started: Callable[[], None] = lambda: None,
        resized: Resized | None = None,
        signals: Callable[[Callable[[int], Awaitable[None]]], None] | None = None,
    ) -> Exit:
        """Run a process to its end; `resized` and `signals` are given what sets its terminal's size and signals it."""
        if not meta.args:
            raise UsageError("a process needs arguments")
        exec = pb.ExecOp(meta=meta, secretenv=secrets)
        system = self._spec.platform.OS if self._spec.platform is not None else ""
        environment = await environment_of(exec, self._worker, self._job, os=system)
        process = await self._worker.threaded(lambda _cancelled: self._process(meta, environment, terminal))
        if self._first is None:

            def has_started() -> None:
                # Before that there is nobody to signal and no terminal to resize.
                started()
                if signals is not None:
                    signals(lambda number: self._runtime.signal(self._id, number))
                if resized is not None:
                    resized(lambda rows, columns: self._runtime.resize(self._id, rows, columns))

            container = replace(
                self._run._container(self._ready, environment, self._network),
                id=self._id,
                process=process,
                insecure=insecure,
            )
            work = self._runtime.run(container, output=output, stdin=stdin, started=has_started)
            task = self._first = asyncio.create_task(work)
        else:
            task = asyncio.create_task(self._beside(process, output, stdin, started, resized, signals))
            self._others.add(task)
            task.add_done_callback(self._others.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as err:
            if task.cancelled():
                # The container was closed under it: not the caller that was cancelled.
                raise CancelledError_() from err
            task.cancel()
            await asyncio.wait((task,))
            raise

    async def _beside(
        self,
        process: Process,
        output: Callable[[int, bytes], None],
        stdin: Stdin | None,
        started: Callable[[], None],
        resized: Resized | None,
        signals: Any,
    ) -> Exit:
        if self._first is None or self._first.done():
            raise NotFoundError(f"container {self._id} has stopped")
        started()
        return await self._runtime.exec(self._id, process, output=output, stdin=stdin, resized=resized, signalled=signals)

    def _process(self, meta: pb.Meta, environment: tuple[str, ...], terminal: bool) -> Process:
        rootfs = self._ready.stage.rootfs
        user = resolve_user(rootfs, meta.user)
        make_directory(rootfs, meta.cwd or "/", user)
        if terminal and not any(entry.startswith("TERM=") for entry in environment):
            environment = (*environment, "TERM=xterm")
        return Process(
            args=tuple(meta.args),
            env=environment,
            cwd=meta.cwd or "/",
            uid=user.uid,
            gid=user.gid,
            groups=user.groups,
            terminal=terminal,
            rlimits=tuple(Rlimit(name=u.Name.upper(), soft=u.Soft, hard=u.Hard) for u in meta.ulimit),
        )

    def path_of(self, index: int) -> Path:
        """Where the tree of a mount lies on this machine. Raises NotFoundError."""
        if not 0 <= index < len(self._spec.mounts):
            raise NotFoundError(f"invalid mount index {index}")
        mount = self._spec.mounts[index]
        if mount.dest == "/":
            return self._ready.stage.rootfs
        target = target_of(mount, "/")
        for bind in self._ready.stage.binds:
            if bind.target == target and bind.mount.source:
                return Path(bind.mount.source)
        raise NotFoundError(f"mount {mount.dest} of the container cannot be read")


class _Job:
    """What asks when there is no vertex: a container of a client's."""

    def __init__(self, sessions: Sequence[Any]) -> None:
        self.sessions = tuple(sessions)
        self.jobs = ()
        self.step = Step(Silent(), Vertex(digest="", name="container"))


__all__ = ["ContainerSpec", "HeldContainer"]
