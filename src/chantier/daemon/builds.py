# SPDX-License-Identifier: Apache-2.0
"""The builds that run now, by the id that their client chose. Calls about a build may come before it (protocol.md 9.1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from chantier.errors import ChantierError
from chantier.progress import now
from chantier.values import dataclass, field
from chantier.wire import GrpcError
from chantier.wire.status import NOT_FOUND, UNKNOWN

from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from chantier.pb import control_pb2 as pb

    from .gateway import Gateway

T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Running:
    """One build between Control.Solve and its answer."""

    ref: str
    request: pb.SolveRequest
    progress: Progress
    client: str = ""  # who asked, for people
    started_at: int = field(default_factory=now)
    opened: asyncio.Future[Gateway] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[object] | None = None
    failure: ChantierError | None = None  # why it is being cancelled, if it is not the client's doing

    async def gateway(self) -> Gateway:
        """For calls about this build; waits until it can be driven."""
        return await asyncio.shield(self.opened)

    def fail(self, error: ChantierError) -> None:
        """End it with an error of ours, as if it had been cancelled."""
        if self.failure is None and self.task is not None and not self.ended.is_set():
            self.failure = error
            self.task.cancel()


_EARLY_S = 6.0  # so long a call that came before its Solve waits for it

LATE_S = 10.0
"""So long what a build told is kept that is in no history: stock clients ask for it beside Solve, and may be heard only when a
short build is over."""


class Builds:
    def __init__(self) -> None:
        self._running: dict[str, Running] = {}
        self._late: dict[str, Progress] = {}
        self._news: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._running)

    def all(self) -> list[Running]:
        return list(self._running.values())

    def get(self, ref: str) -> Running | None:
        return self._running.get(ref)

    def add(self, build: Running) -> None:
        if build.ref in self._running:
            raise GrpcError(UNKNOWN, f"job ID {build.ref} exists")
        self._running[build.ref] = build
        self._tell()

    def remove(self, build: Running) -> None:
        """It has ended. What it told is there until `forget`."""
        if self._running.get(build.ref) is build:
            del self._running[build.ref]
            self._late[build.ref] = build.progress
        build.ended.set()
        self._tell()

    def forget(self, build: Running) -> None:
        if self._late.get(build.ref) is build.progress:
            del self._late[build.ref]

    def _tell(self) -> None:
        news, self._news = self._news, []
        for waiter in news:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, ref: str) -> Running:
        """The build, once it is there. Raises NotFound `no such job REF`."""
        return await self._there(self.get, ref)

    def progress(self, ref: str) -> Progress | None:
        """Of a build that runs, or has ended just now."""
        running = self._running.get(ref)
        return self._late.get(ref) if running is None else running.progress

    async def wait_progress(self, ref: str) -> Progress:
        """The same, once it is there. Raises NotFound `no such job REF`."""
        return await self._there(self.progress, ref)

    async def _there(self, look: Callable[[str], T | None], ref: str) -> T:
        try:
            async with asyncio.timeout(_EARLY_S):
                while (found := look(ref)) is None:
                    await self._next()
        except TimeoutError:
            raise GrpcError(NOT_FOUND, f"no such job {ref}") from None
        return found

    async def drained(self) -> None:
        """Until none runs."""
        while self._running:
            await self._next()

    async def _next(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news.append(waiter)
        await waiter


__all__ = ["Builds", "Running"]
