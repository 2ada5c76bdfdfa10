# SPDX-License-Identifier: Apache-2.0
"""RUN: a process in a container whose root and mounts are results, and whose outputs become results (`pb.ExecOp`)."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from chantier.errors import ChantierError, NotFoundError, StepError, UnsupportedError, UsageError
from chantier.kernel import makedirs_in_root, open_in_root, resolve_in_root
from chantier.kernel.trace import point
from chantier.llb.definition import LoadedVertex, platform_of
from chantier.pb import ops_pb2 as pb
from chantier.runtime import (
    DEFAULT_HOSTNAME,
    Bind,
    Container,
    Dns,
    Exit,
    Files,
    Places,
    Process,
    Resources,
    Rlimit,
    Runtime,
    Stubs,
    User,
    record,
    resolve_user,
)
from chantier.runtime.cdi import Edits
from chantier.solver.types import CacheMap
from chantier.spec import new_id
from chantier.values import dataclass

from .agent import agent_socket
from .emulate import runs_here
from .kept import keepers
from .mounts import Given, Stage, input_of, release_caches, stage, take_caches
from .run_env import NO_EDITS, environment_of, secret_of
from .run_key import cache_map_of
from .trust import network_of, step_bundle
from .worker import Worker, ask, threaded

if TYPE_CHECKING:
    from chantier.cache import MutableRef, Ref
    from chantier.session.types import Session
    from chantier.solver import Job
    from chantier.solver.types import JobContext

    from .failed import FailedStep

_NO_PROGRAM = re.compile(r'exec(: "| /).*no such file or directory')  # what runtimes say of a program, or its interpreter


class RunOp:
    """Implements `solver.types.Op`."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        self._worker = worker
        self._whole = vertex.op
        self._op = vertex.op.exec
        self._inputs = len(vertex.inputs)
        self._platform = platform_of(vertex.op)
        self._limits = vertex.metadata.linux_resources
        self._args = tuple(self._op.meta.args)

    def acquire(self) -> AbstractAsyncContextManager[None]:
        """A step holds one of the engine's parallel places."""
        return self._worker.slot()

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        """One map: the operation itself, and the contents of what is mounted without being an output."""
        return cache_map_of(self._op, self._inputs, self._platform, self._worker), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        """Run the process; its outputs in order. Raises StepError if it ends with a code that is not a valid one."""
        runtime = self._runtime()
        async with AsyncExitStack() as stack:
            place = await stack.enter_async_context(self._place())
            given = await self._given(job, inputs, place, stack)
            edits = await self._worker.threaded(lambda _: self._edits()) if self._op.cdiDevices else NO_EDITS
            environment = await environment_of(self._op, self._worker, job, os=self._platform.os, edits=edits)
            network = await stack.enter_async_context(self._network())
            ready = await self._worker.threaded(
                lambda cancelled: self._set_up(job, inputs, given, place, network, cancelled, edits), _Ready.close
            )
            try:
                container = self._container(ready, environment, network, edits)
                ended = await runtime.run(container, output=lambda stream, data: job.step.log(data, stream))
            except BaseException:
                await self._worker.threaded(lambda _cancelled: ready.close())
                raise
            keep = keepers(job)
            results = await self._worker.threaded(lambda _cancelled: self._finish(ready, ended, inputs, keep), _release_all)
        return [results.get(number) for number in range(max(results, default=-1) + 1)]

    def _runtime(self) -> Runtime:
        if self._worker.runtime is None:
            raise UnsupportedError(
                self._failed(self._worker.no_runtime or "no runtime works on this machine"),
                hint="`chantier doctor` says what is missing for one, and for the native sandbox, which needs no program",
            )
        if not runs_here(self._platform, self._worker.platform):
            raise UnsupportedError(
                self._failed(f"no emulator for {self._platform} is registered on this {self._worker.platform} machine"),
                hint="register one with binfmt_misc (the package qemu-user-static does), or build natively",
            )
        return self._worker.runtime

    def _edits(self) -> Edits:
        """What the step's devices add. Raises NotFoundError for one that is not there, ConfigError for what cannot be done."""
        wanted = [(device.name, device.optional) for device in self._op.cdiDevices]
        if self._worker.devices is None:
            missing = next((name for name, optional in wanted if not optional), None)
            if missing is not None:
                raise NotFoundError(
                    f'required device "{missing}" is not registered', hint="devices are switched off: `disabled` in [cdi]"
                )
            return NO_EDITS
        return self._worker.devices.edits(wanted)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[Path]:
        """A directory of the step's own for mounts, sockets and files."""
        place = _places(self._worker).new(new_id())
        try:
            yield place
        finally:
            _remove(place)

    async def _given(self, job: JobContext, inputs: Sequence[Ref | None], place: Path, stack: AsyncExitStack) -> Given:
        """Secrets, agents and cache mounts: what has to be asked or waited for."""
        secrets: dict[int, bytes] = {}
        sockets: dict[int, Path] = {}
        for index, mount in enumerate(self._op.mounts):
            if mount.mountType == pb.SECRET:
                value = await secret_of(job, mount.secretOpt.ID, optional=mount.secretOpt.optional)
                if value is not None:
                    secrets[index] = value
            elif mount.mountType == pb.SSH:
                session = await _session_with_agent(job, mount.SSHOpt)
                if session is not None:
                    option = mount.SSHOpt
                    path = place / f"agent-{index}"
                    serving = agent_socket(session, option.ID, path, uid=option.uid, gid=option.gid, mode=option.mode & 0o777)
                    sockets[index] = await stack.enter_async_context(serving)
        caches = await self._caches(inputs)
        if caches:
            stack.push_async_callback(self._worker.threaded, lambda _cancelled: release_caches(caches))
        return Given(secrets=secrets, sockets=sockets, caches=caches)

    async def _caches(self, inputs: Sequence[Ref | None]) -> dict[int, MutableRef]:
        mounts = self._op.mounts
        kinds = {mount.cacheOpt.sharing for mount in mounts if mount.mountType == pb.CACHE}
        if not kinds:
            return {}
        # Waiting for a lock must not hold a thread that the lock's owner may need to finish.
        pool = None if pb.LOCKED in kinds else self._worker.threads
        take = partial(take_caches, self._worker.cache, mounts, inputs)
        return await threaded(take, pool, release_caches)

    @asynccontextmanager
    async def _network(self) -> AsyncIterator[str]:
        """What `Container.network` takes."""
        mode = self._op.network
        if mode == pb.NONE:
            yield "none"
        elif mode == pb.HOST or (mode == pb.UNSET and self._worker.networks is None):
            yield "host"
        elif mode == pb.UNSET and self._worker.networks is not None:
            async with self._worker.networks.acquire(self._op.meta.hostname) as network:
                yield network
        else:
            raise UsageError(f"unknown network mode {mode}")

    def _set_up(
        self,
        job: JobContext,
        inputs: Sequence[Ref | None],
        given: Given,
        place: Path,
        network: str,
        cancelled: Callable[[], bool],
        edits: Edits = NO_EDITS,
    ) -> _Ready:
        """In a thread: mounts, files, user, working directory."""
        meta = self._op.meta
        cwd = meta.cwd or "/"
        staged = stage(
            self._worker.cache,
            self._op.mounts,
            inputs,
            given,
            place=place,
            cwd=cwd,
            label=" ".join(self._args),
            step=job.step,
            sessions=job.sessions,
            cancelled=cancelled,
        )
        try:
            files = _files(self._worker).binds(
                own=place,
                hostname=meta.hostname or DEFAULT_HOSTNAME,
                extra=[(host.IP, host.Host) for host in meta.extraHosts],
                network=network,
            )
            binds = (*files, *staged.binds, *edits.binds)
            stubs = record(staged.rootfs, [bind.target for bind in binds], recursive=meta.removeMountStubsRecursive)
            try:
                user = resolve_user(staged.rootfs, meta.user)
            except ChantierError as err:
                raise StepError(self._failed(err.brief), argv=self._args, hint=err.hint) from err
            make_directory(staged.rootfs, cwd, user)
            trust = network_of(self._worker, job.sessions)
            if trust.inject_ca:
                binds = (*binds, step_bundle(trust, staged.rootfs, _places(self._worker).owner))
            return _Ready(stage=staged, binds=binds, stubs=stubs, user=user)
        except BaseException:
            staged.close()
            raise

    def _container(self, ready: _Ready, environment: tuple[str, ...], network: str, edits: Edits = NO_EDITS) -> Container:
        meta, limits = self._op.meta, self._limits
        return Container(
            id=new_id(),
            rootfs=ready.stage.rootfs,
            process=Process(
                args=self._args,
                env=environment,
                cwd=meta.cwd or "/",
                uid=ready.user.uid,
                gid=ready.user.gid,
                groups=(*ready.user.groups, *edits.groups),
                rlimits=tuple(Rlimit(name=u.Name.upper(), soft=u.Soft, hard=u.Hard) for u in meta.ulimit),
            ),
            binds=ready.binds,
            hostname=meta.hostname or DEFAULT_HOSTNAME,
            network=network,
            readonly=ready.stage.readonly,
            insecure=self._op.security == pb.INSECURE,
            devices=edits.devices,
            hooks=edits.hooks,
            cgroup_parent=meta.cgroupParent or self._worker.config.worker_oci.default_cgroup_parent,
            resources=Resources(
                memory=limits.memory,
                memory_swap=limits.memorySwap,
                cpu_shares=limits.cpuShares,
                cpu_period=limits.cpuPeriod,
                cpu_quota=limits.cpuQuota,
                cpuset_cpus=limits.cpusetCpus,
                cpuset_mems=limits.cpusetMems,
            ),
        )

    def _finish(self, ready: _Ready, ended: Exit, inputs: Sequence[Ref | None], keep: Sequence[Job]) -> dict[int, Ref]:
        """In a thread: clean the root, unmount, and commit; or say how the process failed, for the jobs `keep` with its state."""
        try:
            ready.stubs.remove()
            if ended.oom or ended.code not in (tuple(self._op.meta.validExitCodes) or (0,)):
                err = self._exit_error(ended)
                if keep:
                    err.failed = self._kept(ready, inputs, keep)
                raise err
            ready.stage.unmount()
            point("step.ran")
            return ready.stage.commit()
        finally:
            ready.close()

    def _kept(self, ready: _Ready, inputs: Sequence[Ref | None], keep: Sequence[Job]) -> FailedStep:
        from .failed import FailedStep

        ready.stage.unmount()
        mounts = self._op.mounts
        left = ready.stage.commit_all(mounts, inputs)
        given = [ref.clone() if (ref := input_of(mount, inputs)) is not None else None for mount in mounts]
        failed = FailedStep(self._worker, self._whole, given, left)
        failed.keep_for(keep)
        return failed

    def _exit_error(self, ended: Exit) -> StepError:
        cause = "cannot allocate memory" if ended.oom else f"exit code: {ended.code}"
        return StepError(self._failed(cause), argv=self._args, exit_status=ended.code, hint=_hint(ended))

    def _failed(self, cause: str) -> str:
        return f"process {go_quote(' '.join(self._args))} did not complete successfully: {cause}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    stage: Stage
    binds: tuple[Bind, ...]
    stubs: Stubs
    user: User

    def close(self) -> None:
        self.stage.close()


def _release_all(results: dict[int, Ref]) -> None:
    for result in results.values():
        result.release()


def _remove(place: Path) -> None:
    """A step's directory, which holds a few empty directories and small files in memory: no thread is worth it."""
    for entry in os.scandir(place):
        if entry.is_dir(follow_symlinks=False):
            with suppress(OSError):  # still mounted, after a failure to unmount: the next recover() takes it
                os.rmdir(entry.path)
        else:
            os.unlink(entry.path)
    with suppress(OSError):
        os.rmdir(place)


def make_directory(rootfs: Path, path: str, user: User) -> None:
    """Make a missing working directory and what is missing above it, 0755 and owned by the step's user."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):  # a file there: the runtime's own message says it best
            os.close(open_in_root(root, path, os.O_PATH | os.O_CLOEXEC))
            return
        done = ""
        for name in resolve_in_root(rootfs, path).split("/"):
            done = f"{done}/{name}" if done else name
            try:
                os.close(open_in_root(root, done, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
            except FileNotFoundError:
                fd = makedirs_in_root(root, done, 0o755)
                try:
                    os.fchown(fd, user.uid, user.gid)
                    os.fchmod(fd, 0o755)
                finally:
                    os.close(fd)
            except NotADirectoryError:
                return
    finally:
        os.close(root)


def _may_have_agents(session: Session) -> bool:
    """A client behind a wire says which services it has; one in this process has them all."""
    supports = getattr(session, "supports", None)
    return supports is None or bool(supports("/moby.sshforward.v1.SSH/CheckAgent"))


async def _session_with_agent(job: JobContext, option: pb.SSHOpt) -> Session | None:
    id = option.ID or "default"

    async def offered(session: Session) -> Session | None:
        return session if await session.has_agent(id) else None

    session = await ask(job, offered)
    if session is None and not option.optional:
        if not any(_may_have_agents(each) for each in job.sessions):
            raise NotFoundError(f'no SSH key "{id}" forwarded from the client', hint=f"give an agent with --ssh {id}")
        raise NotFoundError(f"unset ssh forward key {id}", hint=f"give an agent with --ssh {id}")
    return session


def _hint(ended: Exit) -> str | None:
    """What to do about the failures whose text alone does not tell."""
    if ended.oom:
        return "the step needs more memory than its limit, or than the machine has"
    if "exec format error" in ended.message:
        return "the program is for another platform: build with --platform, or register an emulator with binfmt_misc"
    if "executable file not found" in ended.message or _NO_PROGRAM.search(ended.message):
        return "the program, or the interpreter it names, is not in the image"
    if ended.code == 137:
        return "the process was killed; if nothing in the step did it, the machine ran out of memory"
    return None


def go_quote(text: str) -> str:
    """strconv.Quote: BuildKit writes the command with %q."""
    return '"' + "".join(_go_escape(char) for char in text) + '"'


_SHORT = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\", '"': '\\"'}


def _go_escape(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if char.isprintable():
        return char
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8 (surrogateescape)
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _places(worker: Worker) -> Places:
    return cast("Places", worker.kept("run.places", lambda: Places(worker.executor)))


def _files(worker: Worker) -> Files:
    def made() -> Files:
        dns = worker.config.dns
        return Files(
            where=_places(worker).owner,
            dns=Dns(nameservers=dns.nameservers, options=dns.options, search=dns.search_domains),
            otherwise=worker.networks.nameservers if worker.networks is not None else (),
        )

    return cast("Files", worker.kept("run.files", made))


__all__ = ["RunOp", "go_quote", "make_directory"]
