# SPDX-License-Identifier: Apache-2.0
"""A shell in a step that failed, on the terminal of this process; and the same state for programs, without one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from chantier.errors import ChantierError, UsageError
from chantier.values import dataclass

if TYPE_CHECKING:
    from chantier.client.failed import Failed

T = TypeVar("T")


async def interact(failed: Failed, args: Sequence[str] = (), *, stdin: int = 0, stdout: int = 1) -> int:
    """Run `args`, or the image's shell, in the failed step, joined to a terminal. Returns its exit code.

    Raises UsageError where `stdin` is no terminal, NotFoundError for an image without a shell.
    """
    if not os.isatty(stdin):
        raise UsageError("a shell needs a terminal on standard input")
    container = await failed.open()
    try:
        argv = tuple(args) or await container.shell()
        async with _raw(stdin) as keys:
            done = await container.run(
                argv,
                output=lambda _stream, data: _write(stdout, data),
                stdin=keys,
                terminal=True,
                env=[f"TERM={os.environ.get('TERM') or 'xterm'}"],
                resized=lambda resize: _follow_size(stdin, resize),
            )
        return done.code
    finally:
        await container.close()


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@asynccontextmanager
async def _raw(fd: int) -> AsyncIterator[Callable[[], Coroutine[Any, Any, bytes]]]:
    """The terminal without its own handling of keys, as a source of what is typed; as it was afterwards."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[bytes] = asyncio.Queue()

    def read() -> None:
        with suppress(BlockingIOError):
            typed.put_nowait(os.read(fd, 4096))

    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    loop.add_reader(fd, read)
    try:
        yield typed.get
    finally:
        loop.remove_reader(fd)
        with suppress(ValueError, RuntimeError):  # it was never followed
            loop.remove_signal_handler(signal.SIGWINCH)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _follow_size(fd: int, resize: Callable[[int, int], None]) -> None:
    def tell() -> None:
        size = os.get_terminal_size(fd)
        if size.lines:
            resize(size.lines, size.columns)

    tell()
    with suppress(ValueError, RuntimeError):  # not the main thread: the size stays as it is
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, tell)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a process in a failed step ended, and what it wrote."""

    code: int
    out: bytes
    err: bytes


class FailedStep:
    """The step that a build failed in, for code that blocks: what `on_error` of `build` is called with.

    Usable until that call returns. What is written in the step's state is thrown away.
    """

    def __init__(self, failed: Failed, loop: asyncio.AbstractEventLoop) -> None:
        self._failed = failed
        self._loop = loop

    @property
    def error(self) -> ChantierError:
        return self._failed.error

    @property
    def argv(self) -> tuple[str, ...]:
        return self._failed.step.argv

    def run(self, args: Sequence[str], *, input: bytes = b"") -> Ran:
        """Run a process as the step ran: its tree, mounts, secrets, user, environment and directory."""
        return self._wait(self._run(tuple(args), input))

    def shell(self, args: Sequence[str] = ()) -> int:
        """Open a shell (or `args`) on the terminal of this process. Raises UsageError where there is none."""
        sys.stdout.flush()
        return self._wait(interact(self._failed, args))

    async def _run(self, args: tuple[str, ...], given: bytes) -> Ran:
        pieces = [given, b""]
        wrote: tuple[list[bytes], list[bytes]] = ([], [])

        async def stdin() -> bytes:
            return pieces.pop(0) if pieces else b""

        container = await self._failed.open()
        try:
            done = await container.run(args, output=lambda stream, data: wrote[stream - 1].append(data), stdin=stdin)
        finally:
            await container.close()
        return Ran(code=done.code, out=b"".join(wrote[0]), err=b"".join(wrote[1]))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def calling(on_error: Callable[[Any], Any]) -> Callable[[Failed], Coroutine[Any, Any, None]]:
    """`on_error` as the engine calls it: a coroutine function with the Failed, any other in a thread with a FailedStep."""

    async def call(failed: Failed) -> None:
        if asyncio.iscoroutinefunction(on_error):
            await on_error(failed)
        else:
            await asyncio.to_thread(on_error, FailedStep(failed, asyncio.get_running_loop()))

    return call


__all__ = ["FailedStep", "Ran", "calling", "interact"]
