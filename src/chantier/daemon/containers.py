# SPDX-License-Identifier: Apache-2.0
"""NewContainer, ExecProcess and their kin (protocol.md 1.5.2): one stream carries all processes of a client."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from chantier.errors import ChantierError, NotFoundError, StepError
from chantier.pb import gateway_pb2 as pb
from chantier.wire import GrpcError, ServerCall, status_of
from chantier.wire.status import ALREADY_EXISTS, INVALID_ARGUMENT, NOT_FOUND, OUT_OF_RANGE

from .errors import build_status
from .history import status_message

if TYPE_CHECKING:
    from .gateway import Gateway

_log = logging.getLogger(__name__)
_UNKNOWN_EXIT = 255
_CHUNK = 32 << 10


class Processes:
    """What runs on one ExecProcess stream."""

    def __init__(self, gateway: Gateway, call: ServerCall) -> None:
        self._gateway = gateway
        self._call = call
        self._running: dict[str, _Process] = {}
        self._outgoing: asyncio.Queue[pb.ExecMessage] = asyncio.Queue()

    async def serve(self) -> None:
        """Until the client has ended the stream and all processes are done, or it is gone."""
        sender = asyncio.create_task(self._send())
        try:
            async for message in self._call:
                self._take(message)
            tasks = [process.task for process in self._running.values()]
            for process in self._running.values():
                process.close_input()
            if tasks:
                await asyncio.wait(tasks)
            await self._outgoing.join()
        finally:
            tasks = [process.task for process in self._running.values()]
            for task in tasks:
                task.cancel()
            sender.cancel()
            await asyncio.gather(*tasks, sender, return_exceptions=True)

    async def _send(self) -> None:
        while True:
            message = await self._outgoing.get()
            try:
                await self._call.send(message)
            finally:
                self._outgoing.task_done()

    def _take(self, message: pb.ExecMessage) -> None:
        id = message.ProcessID
        if not id:
            raise GrpcError(INVALID_ARGUMENT, "ProcessID is required")
        kind = message.WhichOneof("Input")
        if kind == "Init":
            if id in self._running:
                raise GrpcError(ALREADY_EXISTS, f"process {id} already exists")
            process = _Process(id, message.Init, self._gateway, self._outgoing.put_nowait)
            self._running[id] = process
            process.task.add_done_callback(lambda _: self._running.pop(id, None))
            return
        found = self._running.get(id)
        if found is None:
            if kind in ("File", "Resize", "Signal", "Exit", "Done"):
                return  # it has just ended: what the client sent meanwhile is late, not wrong
            raise GrpcError(NOT_FOUND, f"process {id} not found")
        if kind == "File":
            found.feed(message.File)
        elif kind == "Resize":
            found.resize(message.Resize.Rows, message.Resize.Cols)
        elif kind == "Signal":
            found.signal(message.Signal.Name)


class _Process:
    def __init__(self, id: str, init: pb.InitMessage, gateway: Gateway, send: Callable[[pb.ExecMessage], None]) -> None:
        self.id = id
        self._init = init
        self._gateway = gateway
        self._send = send
        self._fds = frozenset(init.Fds)
        self._input: asyncio.Queue[bytes] = asyncio.Queue()
        self._resize: Callable[[int, int], None] | None = None
        self._size: tuple[int, int] | None = None
        self._signal: Callable[[int], Awaitable[None]] | None = None
        self._signals: list[int] = []
        self._background: set[asyncio.Task[None]] = set()
        # A container that is not there fails the stream, before anything of the process is told.
        containers = gateway.bridge.containers
        try:
            self._container = containers.get(init.ContainerID)
        except NotFoundError as err:
            raise status_of(err) from err
        self._was_started = False
        self.task: asyncio.Task[None] = asyncio.create_task(gateway.bridge.within(self._run()))

    # -- what the client sends

    def feed(self, message: pb.FdMessage) -> None:
        if message.Fd not in self._fds:
            raise GrpcError(OUT_OF_RANGE, f"file descriptor {message.Fd} of process {self.id} is not open")
        if message.Data:
            self._input.put_nowait(message.Data)
        if message.EOF:
            self._input.put_nowait(b"")

    def close_input(self) -> None:
        self._input.put_nowait(b"")

    def resize(self, rows: int, columns: int) -> None:
        self._size = (rows, columns)
        if self._resize is not None:
            self._resize(rows, columns)

    def signal(self, name: str) -> None:
        number = getattr(signal, f"SIG{name.removeprefix('SIG')}", None)
        if not isinstance(number, signal.Signals):
            raise GrpcError(INVALID_ARGUMENT, f"unknown signal {name}")
        if self._signal is None:
            self._signals.append(number)
            return
        self._deliver(number)

    def _deliver(self, number: int) -> None:
        assert self._signal is not None
        task = asyncio.ensure_future(_quietly(self._signal(number)))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- running it

    async def _run(self) -> None:
        init = self._init
        code, status = 0, None
        try:
            self._gateway.bridge.containers.check(
                self._container.network, init.Security
            )  # clients wait for the process, not for the stream
            ended = await self._container.run(
                init.Meta,
                output=self._output,
                stdin=self._input.get if 0 in self._fds else None,
                terminal=init.Tty,
                insecure=init.Security == 1,
                secrets=list(init.secretenv),
                started=self._started,
                resized=self._can_resize,
                signals=self._can_signal,
            )
            code = ended.code
            if code:
                raise StepError(f"exit code: {code}", argv=tuple(init.Meta.args), exit_status=code)
        except ChantierError as err:
            code = err.exit_status if isinstance(err, StepError) else _UNKNOWN_EXIT
            status = status_message(build_status(err))
        if not self._was_started:
            self._started()
        self._send(pb.ExecMessage(ProcessID=self.id, Exit=pb.ExitMessage(Code=code, Error=status)))
        for fd in sorted(self._fds - {0}):
            self._send(pb.ExecMessage(ProcessID=self.id, File=pb.FdMessage(Fd=fd, EOF=True)))
        self._send(pb.ExecMessage(ProcessID=self.id, Done=pb.DoneMessage()))

    def _started(self) -> None:
        if not self._was_started:
            self._was_started = True
            self._send(pb.ExecMessage(ProcessID=self.id, Started=pb.StartedMessage()))

    def _output(self, stream: int, data: bytes) -> None:
        if not self._was_started:
            self._started()
        if stream not in self._fds:
            return
        for at in range(0, len(data), _CHUNK):
            piece = pb.FdMessage(Fd=stream, Data=data[at : at + _CHUNK])
            self._send(pb.ExecMessage(ProcessID=self.id, File=piece))

    def _can_resize(self, resize: Callable[[int, int], None]) -> None:
        self._resize = resize
        if self._size is not None:
            resize(*self._size)

    def _can_signal(self, deliver: Callable[[int], Awaitable[None]]) -> None:
        self._signal = deliver
        for number in self._signals:
            self._deliver(number)
        self._signals.clear()


async def _quietly(work: Awaitable[Any]) -> None:
    try:
        await work
    except NotFoundError:
        return  # it has ended before the signal came


__all__ = ["Processes"]
