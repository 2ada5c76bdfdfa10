# SPDX-License-Identifier: Apache-2.0
"""A process of the runtime with its pipes: every byte of output is handed on as it comes, in order, none is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .types import OnOutput

Stdin = Callable[[], Awaitable[bytes]]


class Piped(asyncio.SubprocessProtocol):
    """One running process. `done` is set when it has ended, was reaped and both its pipes have been read to the end."""

    def __init__(self, output: OnOutput) -> None:
        self._output = output
        self._transport: asyncio.SubprocessTransport | None = None
        self._feeding: asyncio.Task[None] | None = None
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        cwd: Path,
        output: OnOutput,
        stdin: Stdin | None = None,
        env: dict[str, str] | None = None,
        terminal: int = -1,
    ) -> Piped:
        """Start `argv`, on pipes or on a terminal's descriptor. OSError if it cannot be."""
        loop = asyncio.get_running_loop()
        given = terminal >= 0
        if given:
            stdin = None
        # In a session of its own, so that Ctrl-C at a terminal reaches us alone: we decide how a step ends.
        transport, protocol = await loop.subprocess_exec(
            lambda: cls(output),
            *argv,
            stdin=terminal if given else asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=terminal if given else asyncio.subprocess.PIPE,
            stderr=terminal if given else asyncio.subprocess.PIPE,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
        if stdin is not None:
            protocol._feeding = asyncio.create_task(_feed(stdin, transport.get_pipe_transport(0)))
        return protocol

    @property
    def pid(self) -> int:
        assert self._transport is not None
        return self._transport.get_pid() or 0

    def send_signal(self, number: int) -> None:
        if self._transport is not None and not self.done.done():
            with suppress(ProcessLookupError):  # it has just ended
                self._transport.send_signal(number)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._output(fd, data)

    def connection_lost(self, exc: Exception | None) -> None:
        # asyncio calls this when the process was reaped and every pipe is closed.
        if self._feeding is not None:
            self._feeding.cancel()
        assert self._transport is not None
        code = self._transport.get_returncode()
        if not self.done.done():
            self.done.set_result(255 if code is None else code if code >= 0 else 128 - code)


async def _feed(stdin: Stdin, pipe: Any) -> None:
    """Write to the process what `stdin` gives, until it gives b"" or the process closes its end."""
    while data := await stdin():
        if pipe.is_closing():
            return
        pipe.write(data)
        while pipe.get_write_buffer_size() > 1 << 20 and not pipe.is_closing():
            await asyncio.sleep(0.005)
    pipe.write_eof()


class Terminal:
    """A pseudo terminal whose other side is given to a process; stdout and stderr are one stream here.

    `master` is that of a terminal that was opened elsewhere, in the container; it is closed with this.
    """

    def __init__(self, output: OnOutput, master: int | None = None) -> None:
        self._output = output
        self.master, self.slave = os.openpty() if master is None else (master, -1)
        os.set_blocking(self.master, False)
        self._loop = asyncio.get_running_loop()
        self.drained: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self.master, self._readable)

    def resize(self, rows: int, columns: int) -> None:
        import termios

        termios.tcsetwinsize(self.master, (rows, columns))

    async def feed(self, stdin: Stdin) -> None:
        while data := await stdin():
            while data:
                try:
                    data = data[os.write(self.master, data) :]
                except BlockingIOError:
                    await asyncio.sleep(0.005)

    def _readable(self) -> None:
        try:
            data = os.read(self.master, 1 << 16)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last holder of the other side is gone (pty(7))
            data = b""
        if data:
            self._output(1, data)
            return
        self._loop.remove_reader(self.master)
        if not self.drained.done():
            self.drained.set_result(None)

    def close_slave(self) -> None:
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def close(self) -> None:
        self.close_slave()
        self._loop.remove_reader(self.master)
        os.close(self.master)


__all__ = ["Piped", "Stdin", "Terminal"]
