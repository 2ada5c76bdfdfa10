# SPDX-License-Identifier: Apache-2.0
"""A step that failed on a daemon, looked into over the gateway (protocol.md 1.5.2, 4.8).

The error of a failed step names what the step's mounts held (`errdefs.Solve`). A container with those mounts is the state
that the step left. The daemon keeps it until the build's client returns: until then, that is, the build is held open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from chantier.errors import ChantierError, NotFoundError
from chantier.llb.shells import NO_SHELL, NO_SHELL_HINT, shells_of
from chantier.pb import gateway_pb2 as pb
from chantier.pb import ops_pb2
from chantier.spec import new_id
from chantier.values import dataclass, field
from chantier.wire import Detail, GrpcError, Stub, error_of
from chantier.wire.status import UNIMPLEMENTED

_UNKNOWN_EXIT = 255


class Ended(Protocol):
    """How a process ended."""

    @property
    def code(self) -> int: ...


class Container(Protocol):
    """Processes in the state of a failed step: its user, environment and directory are those of the step."""

    async def shell(self) -> tuple[str, ...]:
        """Raises NotFoundError where the image has none."""

    async def run(
        self,
        args: Sequence[str],
        *,
        output: Callable[[int, bytes], None],
        stdin: Callable[[], Awaitable[bytes]] | None = None,
        terminal: bool = False,
        env: Sequence[str] = (),
        resized: Callable[[Callable[[int, int], None]], None] | None = None,
    ) -> Ended:
        """`stdin` gives b"" at its end. `resized` is called with what takes (rows, columns)."""

    async def close(self) -> None: ...


class Step(Protocol):
    @property
    def argv(self) -> tuple[str, ...]: ...


class Failed(Protocol):
    """What `Prepared.on_failure` is called with, whichever engine the build ran on."""

    @property
    def error(self) -> ChantierError: ...
    @property
    def step(self) -> Step: ...

    async def open(self) -> Container:
        """The caller closes it. What is written in it is thrown away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteStep:
    """`trees` are the daemon's ids of what the mounts held, in the order of `op.exec.mounts`; "" where there was no tree."""

    op: ops_pb2.Op
    trees: tuple[str, ...]

    @property
    def argv(self) -> tuple[str, ...]:
        return tuple(self.op.exec.meta.args)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFailed:
    error: ChantierError
    step: RemoteStep
    bridge: Stub = field(repr=False)

    async def open(self) -> RemoteContainer:
        made = RemoteContainer(self.bridge, self.step)
        try:
            await made.open()
        except GrpcError as err:
            raise error_of(err) from err
        return made


def failed_step(err: GrpcError, bridge: Stub) -> RemoteFailed | None:
    """None for an error that is not of a step whose state the daemon keeps."""
    from google.protobuf import json_format

    for detail in err.details:
        value = detail.json() if detail.name == "errdefs.Solve" else None
        if not isinstance(value, dict) or "exec" not in (value.get("op") or {}):
            continue
        try:
            op = json_format.ParseDict(value["op"], ops_pb2.Op(), ignore_unknown_fields=True)
        except json_format.ParseError:  # of a newer daemon: as if it had not been said
            continue
        trees = tuple(str(id) for id in value.get("mountIDs") or ())
        if len(trees) == len(op.exec.mounts) and any(trees):
            return RemoteFailed(error=error_of(err), step=RemoteStep(op=op, trees=trees), bridge=bridge)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    code: int


class RemoteContainer:
    """Implements Container."""

    def __init__(self, bridge: Stub, step: RemoteStep) -> None:
        self._bridge = bridge
        self._step = step
        self._id = new_id()
        self._ends: set[str] = set()  # how processes in it ended badly

    async def open(self) -> None:
        exec = self._step.op.exec
        mounts = []
        for mount, tree in zip(exec.mounts, self._step.trees, strict=True):
            made = ops_pb2.Mount()
            made.CopyFrom(mount)
            made.input, made.output, made.resultID = -1, -1, tree
            mounts.append(made)
        request = pb.NewContainerRequest(
            ContainerID=self._id,
            Mounts=mounts,
            Network=exec.network,
            hostname=exec.meta.hostname,
            extraHosts=exec.meta.extraHosts,
        )
        if self._step.op.HasField("platform"):
            request.platform.CopyFrom(self._step.op.platform)
        await self._bridge.unary("NewContainer", request)

    async def shell(self) -> tuple[str, ...]:
        root = next(i for i, mount in enumerate(self._step.op.exec.mounts) if mount.dest == "/")
        for place in shells_of(self._step.argv):
            try:
                await self._bridge.unary("StatFile", pb.StatFileRequest(Ref=self._step.trees[root], Path=place))
            except GrpcError as err:
                if err.code == UNIMPLEMENTED:
                    raise error_of(err) from err
                continue  # not there, or not to be reached
            return (place,)
        raise NotFoundError(NO_SHELL, hint=NO_SHELL_HINT)

    async def run(
        self,
        args: Sequence[str],
        *,
        output: Callable[[int, bytes], None],
        stdin: Callable[[], Awaitable[bytes]] | None = None,
        terminal: bool = False,
        env: Sequence[str] = (),
        resized: Callable[[Callable[[int, int], None]], None] | None = None,
    ) -> Exit:
        """Raises ChantierError for a process that could not be started."""
        exec = self._step.op.exec
        meta = ops_pb2.Meta()
        meta.CopyFrom(exec.meta)
        del meta.args[:]
        meta.args.extend(args)
        meta.env.extend(env)
        id = new_id()
        outputs = (1,) if terminal else (1, 2)
        init = pb.InitMessage(
            ContainerID=self._id,
            Meta=meta,
            Fds=(*((0,) if stdin is not None else ()), *outputs),
            Tty=terminal,
            Security=exec.security,
            secretenv=exec.secretenv,
        )
        try:
            async with self._bridge.stream("ExecProcess") as call:
                await call.send(pb.ExecMessage(ProcessID=id, Init=init))
                feeding = asyncio.create_task(_feed(call, id, stdin)) if stdin is not None else None
                try:
                    ended = await _follow(call, id, output, resized)
                finally:
                    if feeding is not None:
                        feeding.cancel()
                        await asyncio.gather(feeding, return_exceptions=True)
        except GrpcError as err:
            raise error_of(err) from err
        if ended.Code and ended.HasField("Error"):
            said = ended.Error
            self._ends.add(said.message)
            status = GrpcError(said.code, said.message, [Detail(d.type_url, d.value) for d in said.details])
            if ended.Code == _UNKNOWN_EXIT and not any(d.name == "gatewayapi.ExitMessage" for d in status.details):
                raise error_of(status) from status
        return Exit(code=ended.Code)

    async def close(self) -> None:
        try:
            await self._bridge.unary("ReleaseContainer", pb.ReleaseContainerRequest(ContainerID=self._id))
        except GrpcError as err:
            if err.message not in self._ends:  # old daemons say once more how a process ended
                raise error_of(err) from err


async def _feed(call: Any, id: str, stdin: Callable[[], Awaitable[bytes]]) -> None:
    while True:
        data = await stdin()
        await call.send(pb.ExecMessage(ProcessID=id, File=pb.FdMessage(Fd=0, Data=data, EOF=not data)))
        if not data:
            return


async def _follow(
    call: Any, id: str, output: Callable[[int, bytes], None], resized: Callable[[Callable[[int, int], None]], None] | None
) -> pb.ExitMessage:
    """Until the process is done. Its last output may come after its end."""

    def resize(rows: int, columns: int) -> None:
        call.send_nowait(pb.ExecMessage(ProcessID=id, Resize=pb.ResizeMessage(Rows=rows, Cols=columns)))

    if resized is not None:
        resized(resize)
    ended: pb.ExitMessage | None = None
    async for message in call:
        kind = message.WhichOneof("Input")
        if kind == "File" and message.File.Data:
            output(message.File.Fd, message.File.Data)
        elif kind == "Exit":
            ended = message.Exit
        elif kind == "Done":
            break
    if ended is None:
        raise ChantierError("the daemon ended the process without a word")
    return ended


__all__ = ["Container", "Ended", "Failed", "RemoteFailed", "failed_step"]
