# SPDX-License-Identifier: Apache-2.0
"""Work that many may wait for and that is done once: it ends early only when the last of them has gone.

A flight starts with its first waiter and remembers how it ended. A waiter that leaves (because it was cancelled) takes
itself out; the last one cancels the task. Nobody awaits a flight's task itself, only a future of its own: so a
cancellation never runs down a chain of tasks on one stack, however deep the graph. An end by cancellation is not
remembered: the next waiter starts the work again, once the cancelled task is really over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Protocol

from chantier.errors import CancelledError_


class Owner(Protocol):
    """What a flight is of."""

    @property
    def digest(self) -> str: ...
    @property
    def name(self) -> str: ...
    def left(self, task: asyncio.Task[None], /) -> None:
        """A task was cancelled because its last waiter left; it is not over yet."""


class Waiter:
    """One that waits for several flights: until all have landed, or one has failed."""

    __slots__ = ("future", "pending", "trace")

    def __init__(self) -> None:
        self.trace: TracebackType | None = None
        self.future: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.pending: dict[Flight, None] = {}

    def landed(self, flight: Flight, error: BaseException | None) -> None:
        self.pending.pop(flight, None)
        if not self.future.done() and (error is not None or not self.pending):
            self.trace = flight.trace
            self.future.set_result(error)

    def fail(self, error: BaseException) -> None:
        """End the wait from outside."""
        if not self.future.done():
            self.future.set_result(error)


class Flight:
    """One piece of shared work of a vertex: `what` says which, for people who look at a stall."""

    __slots__ = (
        "_inherited",
        "_leaving",
        "_make",
        "_tasks",
        "_waiters",
        "error",
        "finished",
        "owner",
        "since",
        "trace",
        "waiting",
        "what",
    )

    def __init__(self, owner: Owner, what: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.owner = owner
        self.what = what
        self.finished = False
        self.error: BaseException | None = None
        self.trace: TracebackType | None = None  # where `error` was first raised
        self.waiting: Waiter | None = None  # what this flight itself waits for just now
        self.since = 0.0
        self._make = make
        self._tasks: tuple[asyncio.Task[None], ...] = ()  # the last one flies; those before it were given up and may not be over
        self._waiters: dict[Waiter, None] = {}
        self._leaving = False
        self._inherited: TracebackType | None = None

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        """Tasks that are not over."""
        return tuple(task for task in self._tasks if not task.done())

    def enter(self, waiter: Waiter) -> None:
        """Wait for this flight, and start it unless it flies. Only for one that has not finished."""
        self._waiters[waiter] = None
        waiter.pending[self] = None
        if not self._tasks or self._leaving:
            prior = self.tasks
            self._leaving = False
            self._inherited = None
            self.since = time.monotonic()
            self._tasks = (*prior, asyncio.get_running_loop().create_task(self._fly(prior)))

    def leave(self, waiter: Waiter) -> None:
        """Wait no more; the last one to leave cancels the work."""
        if self._waiters.pop(waiter, waiter) is None and not self._waiters:
            self.cancel()

    def cancel(self) -> None:
        """End the work early. Its owner keeps count of the task until it is over."""
        if self._tasks and not self.finished and not self._leaving:
            self._leaving = True
            task = self._tasks[-1]
            task.cancel()
            self.owner.left(task)

    async def _fly(self, prior: tuple[asyncio.Task[None], ...]) -> None:
        me = asyncio.current_task()
        error: BaseException | None = None
        try:
            if prior:
                await asyncio.wait(prior)
            if not self.finished:  # a task before may have ended well in spite of being cancelled
                await self._make()
        except asyncio.CancelledError:
            error = CancelledError_()
        except Exception as err:  # handed to whoever waits
            error = err
        if self._tasks[-1] is not me:  # given up and started anew meanwhile
            self.finished = self.finished or error is None
            return
        self.waiting = None
        self._tasks = ()
        if error is None:
            self.finished = True
        else:
            self.trace = self._inherited or error.__traceback__
            if not self._leaving and not isinstance(error, CancelledError_):
                self.finished = True
                self.error = error
        self._leaving = False
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            waiter.landed(self, error)

    def inherit(self, trace: TracebackType | None) -> None:
        """The error that this flight is about to raise began there; a deep graph must not pile up a trace of all its levels."""
        self._inherited = trace


async def gather(flights: Iterable[Flight], by: Flight | None = None) -> None:
    """Wait for all of these to land; raise the first error as soon as it is there, and leave the others.

    `by` is the flight that waits, for the record.
    """
    waiter: Waiter | None = None
    for flight in flights:
        if not flight.finished:
            waiter = waiter or Waiter()
            flight.enter(waiter)
        elif flight.error is not None:
            if waiter is not None:
                _leave(waiter)
            if by is not None:
                by.inherit(flight.trace)
            raise flight.error.with_traceback(flight.trace)
    if waiter is not None:
        await wait(waiter, by)


async def wait(waiter: Waiter, by: Flight | None = None) -> None:
    """Wait until what was entered with this waiter has landed."""
    if by is not None:
        by.waiting = waiter
    try:
        error = await waiter.future
    finally:
        if by is not None:
            by.waiting = None
        _leave(waiter)
    if error is not None:
        if by is not None:
            by.inherit(waiter.trace)
        raise error.with_traceback(waiter.trace)


def _leave(waiter: Waiter) -> None:
    for flight in list(waiter.pending):
        flight.leave(waiter)


async def settle(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Wait until all these tasks are over, whatever happens; a cancellation is kept for afterwards."""
    pending = [task for task in tasks if not task.done()]
    cancelled = False
    while pending:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError:
            cancelled = True
        pending = [task for task in pending if not task.done()]
    if cancelled:
        raise asyncio.CancelledError


__all__ = ["Flight", "Waiter", "gather", "settle", "wait"]
