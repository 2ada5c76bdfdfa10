# SPDX-License-Identifier: Apache-2.0
"""One container, or one more process in it, as the engine sees it: its output, its input, and what its monitor says."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from chantier.errors import ChantierError
from chantier.runtime.output import Stdin, Terminal
from chantier.runtime.types import OnOutput

from .server import Server

_PIECE = 1 << 16
_PACKET = 4096


class Sandbox:
    """`done` is set when nothing of it runs any more and all its output has been handed on."""

    def __init__(self, output: OnOutput, *, terminal: bool, started: Callable[[], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._output = output
        self._wants_terminal = terminal
        self._started = started
        self._open: set[int] = set()  # streams that are being read
        self._control: socket.socket | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._paused: Callable[[int], Awaitable[None]] | None = None
        self._pausing: asyncio.Task[None] | None = None
        self._resized: Callable[[Callable[[int, int], None]], None] | None = None
        self._stdin: Stdin | None = None
        self.terminal: Terminal | None = None
        self.pid = 0  # of the container's first process, once the step runs
        self.pidfd = -1
        self.begun = asyncio.Event()  # it runs, or will never
        self.complaint = ""
        self.code = -1
        self.oom = False
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.closed: asyncio.Future[None] = self._loop.create_future()

    async def start(
        self,
        server: Server,
        plan: bytes,
        *,
        stdin: Stdin | None = None,
        alive: int = -1,
        resized: Callable[[Callable[[int, int], None]], None] | None = None,
        paused: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """Have the plan carried out. Once this has been awaited to its end, `done` will be set whatever happens.

        `paused` is awaited with the first process's PID where the plan pauses; if it raises, the container is killed.
        """
        self._stdin, self._resized, self._paused = stdin, resized, paused
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given = [theirs.detach()]
        kept: dict[int, int] = {}
        try:
            streams = self._streams(given, kept)
            given.append(_in_memory(plan))
            fds = [*streams, given[0], given[-1]]
            await server.ask([*fds, alive] if alive >= 0 else fds)
        except BaseException:
            for fd in kept.values():
                os.close(fd)
            ours.close()
            raise
        finally:
            for fd in given:
                os.close(fd)
        ours.setblocking(False)
        self._control = ours
        self._loop.add_reader(ours.fileno(), self._told)
        for stream, fd in kept.items():
            if stream == 0:
                assert stdin is not None
                self._feeding = asyncio.create_task(feed(stdin, fd))
            else:
                self._open.add(fd)
                self._loop.add_reader(fd, self._readable, stream, fd)

    def _streams(self, given: list[int], kept: dict[int, int]) -> list[int]:
        """Descriptors 0, 1 and 2 of the step; our ends are put into `kept`, what is to be closed afterwards into `given`."""
        theirs: list[int] = []
        null = -1
        if self._wants_terminal or self._stdin is None:
            null = os.open(os.devnull, os.O_RDWR if self._wants_terminal else os.O_RDONLY)
            given.append(null)
        for stream in range(3):
            if self._wants_terminal or (stream == 0 and self._stdin is None):
                theirs.append(null)
                continue
            readable, writable = os.pipe2(os.O_CLOEXEC)
            kept[stream] = writable if stream == 0 else readable
            theirs.append(readable if stream == 0 else writable)
            given.append(theirs[-1])
            os.set_blocking(kept[stream], False)
        return theirs

    def kill(self) -> None:
        self._tell(b"K")

    def signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            self.kill()
        else:
            self._tell(b"S%d" % number)

    def _tell(self, packet: bytes) -> None:
        if self._control is not None:
            with suppress(OSError):  # it is ending
                self._control.send(packet)

    def _readable(self, stream: int, fd: int) -> None:
        try:
            data = os.read(fd, _PIECE)
        except BlockingIOError:
            return
        if data:
            self._output(stream, data)
            return
        self._loop.remove_reader(fd)
        self._open.discard(fd)
        os.close(fd)
        self._check_done()

    def _told(self) -> None:
        assert self._control is not None
        while True:
            try:
                packet, fds, _, _ = socket.recv_fds(self._control, _PACKET, 4)
            except BlockingIOError:
                return
            except ConnectionError:
                packet, fds = b"", []
            if not packet:
                self._ended()
                return
            kind, text = packet[:1], packet[1:].decode("utf-8", "replace")
            if kind == b"R":
                self.pid = int(text)
                self.pidfd = fds.pop() if fds else -1
                self.begun.set()
                if self._started is not None:
                    self._started()
            elif kind == b"H":
                self._pausing = asyncio.create_task(self._pause(int(text)))
            elif kind == b"T" and fds:
                self._take_terminal(fds.pop())
            elif kind == b"E":
                self.complaint = text
            elif kind == b"X":
                code, oom = text.split()
                self.code, self.oom = int(code), oom == "1"
            for fd in fds:
                os.close(fd)

    async def _pause(self, pid: int) -> None:
        assert self._paused is not None
        try:
            await self._paused(pid)
        except (ChantierError, OSError) as err:
            self.fail(str(err))
        else:
            self._tell(b"G")

    def fail(self, complaint: str) -> None:
        """Kill it, for a reason."""
        self.complaint = complaint
        self.kill()

    def _take_terminal(self, master: int) -> None:
        self.terminal = Terminal(self._output, master)
        self.terminal.drained.add_done_callback(lambda _: self._check_done())
        if self._stdin is not None:
            self._feeding = asyncio.create_task(self.terminal.feed(self._stdin))
        if self._resized is not None:
            self._resized(self.terminal.resize)

    def _ended(self) -> None:
        """The monitor is gone: in order, after it has said how it ended, or it was killed."""
        assert self._control is not None
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        self._control = None
        self.begun.set()
        if self.code < 0 and self.pidfd >= 0:
            with suppress(OSError):  # init dies with its monitor; this only makes sure, and waits for it
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
                select.select([self.pidfd], [], [], 5.0)
        self._check_done()

    def _check_done(self) -> None:
        drained = self.terminal is None or self.terminal.drained.done()
        if self._control is None and not self._open and drained and not self.done.done():
            self.done.set_result(None)

    async def end_pause(self) -> None:
        """Nothing of what `paused` does goes on after this."""
        if self._pausing is not None:
            self._pausing.cancel()
            await asyncio.wait((self._pausing,))

    def close(self) -> None:
        """After `done`, or when it was never started."""
        self.begun.set()
        if not self.closed.done():
            self.closed.set_result(None)
        if self._feeding is not None:
            self._feeding.cancel()
        if self.terminal is not None:
            self.terminal.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _in_memory(plan: bytes) -> int:
    """The plan as a descriptor: it may hold secrets, and must not lie on a disk."""
    fd = os.memfd_create("chantier-plan", os.MFD_CLOEXEC)
    view = memoryview(plan)
    while view:
        view = view[os.write(fd, view) :]
    return fd


async def feed(stdin: Stdin, fd: int) -> None:
    """Write to a pipe what `stdin` gives, until it gives b"" or the other side closes; then close it."""
    loop = asyncio.get_running_loop()
    try:
        while data := await stdin():
            while data:
                try:
                    data = data[os.write(fd, data) :]
                except BlockingIOError:
                    free = loop.create_future()
                    loop.add_writer(fd, free.set_result, None)
                    try:
                        await free
                    finally:
                        loop.remove_writer(fd)
    except BrokenPipeError:  # the step has closed its input, or has ended
        return
    finally:
        os.close(fd)


__all__ = ["Sandbox", "feed"]
