# SPDX-License-Identifier: Apache-2.0
"""A runtime without containers: programs are Python functions that see the container's rootfs."""

from __future__ import annotations

import asyncio
import inspect
import signal as signals
from collections.abc import Awaitable, Callable
from pathlib import Path

from chantier.errors import NotFoundError
from chantier.runtime.types import Container, Exit, OnOutput, Process, Resize, Signal
from chantier.values import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a program is given. `write` adds to its output; `path` finds a place of the rootfs, or of a mount on it."""

    container: Container
    process: Process
    output: OnOutput
    stdin: Callable[[], Awaitable[bytes]] | None = None

    def write(self, data: bytes | str, stream: int = 1) -> None:
        self.output(stream, data.encode() if isinstance(data, str) else data)

    def path(self, inside: str) -> Path:
        """The host's path of an absolute path inside; the innermost bind mount counts. Links are not followed."""
        for bind in sorted(self.container.binds, key=lambda bind: -len(bind.target)):
            if bind.mount.type == "bind" and (inside == bind.target or inside.startswith(bind.target + "/")):
                return Path(bind.mount.source + inside[len(bind.target) :])
        return self.container.rootfs / inside.lstrip("/")


Program = Callable[[Call], int | Awaitable[int | None] | None]


@dataclass(kw_only=True, eq=False)
class FakeRuntime:
    """Implements `Runtime`. A process is found in `programs` by its whole command line, or else by its first word.

    A program's result is the exit code, None is 0; an unknown one ends with 1 and the runtime's complaint, as a real one
    does. `seen` holds every container that was run, `running` those that run, `most` how many ran at once.
    """

    programs: dict[str, Program] = field(default_factory=dict)
    name: str = "fake"
    seen: list[Container] = field(default_factory=list)
    most: int = 0
    closed: bool = False
    _tasks: dict[str, tuple[Container, asyncio.Task[int]]] = field(default_factory=dict)
    _killed: dict[str, int] = field(default_factory=dict)

    @property
    def running(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    async def run(
        self,
        container: Container,
        *,
        output: OnOutput,
        stdin: Callable[[], Awaitable[bytes]] | None = None,
        started: Callable[[], None] | None = None,
    ) -> Exit:
        self.seen.append(container)
        program = self._find(container.process)
        if program is None:
            message = (
                f'unable to start container process: exec: "{container.process.args[0]}": executable file not found in $PATH'
            )
            output(2, f"runc run failed: {message}\n".encode())
            return Exit(code=1, message=message)
        call = Call(container=container, process=container.process, output=output, stdin=stdin)
        task = asyncio.create_task(_ended(program, call))
        self._tasks[container.id] = (container, task)
        self.most = max(self.most, len(self._tasks))
        if started is not None:
            started()
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            await _stop(task)
            raise
        finally:
            del self._tasks[container.id]
        killed = self._killed.pop(container.id, 0)
        return Exit(code=128 + killed if killed and task.cancelled() else task.result())

    async def exec(
        self,
        id: str,
        process: Process,
        *,
        output: OnOutput,
        stdin: Callable[[], Awaitable[bytes]] | None = None,
        resized: Callable[[Resize], None] | None = None,
        signalled: Callable[[Signal], None] | None = None,
    ) -> Exit:
        if id not in self._tasks:
            raise NotFoundError(f"container {id} has stopped")
        program = self._find(process)
        if program is None:
            return Exit(code=1, message=f'exec: "{process.args[0]}": executable file not found in $PATH')
        call = Call(container=self._tasks[id][0], process=process, output=output, stdin=stdin)
        return Exit(code=await _ended(program, call))

    async def signal(self, id: str, signal: int) -> None:
        if id not in self._tasks:
            raise NotFoundError(f"container {id} has stopped")
        self._killed[id] = signal
        if signal in (signals.SIGKILL, signals.SIGTERM):
            self._tasks[id][1].cancel()

    def resize(self, id: str, rows: int, columns: int) -> None:
        return None

    async def close(self) -> None:
        self.closed = True

    def _find(self, process: Process) -> Program | None:
        return self.programs.get(" ".join(process.args)) or self.programs.get(process.args[0])


async def _ended(program: Program, call: Call) -> int:
    answer = program(call)
    if inspect.isawaitable(answer):
        answer = await answer
    assert answer is None or isinstance(answer, int)
    return answer or 0


async def _stop(task: asyncio.Task[int]) -> None:
    task.cancel()
    await asyncio.wait((task,))


__all__ = ["Call", "FakeRuntime", "Program"]
