# SPDX-License-Identifier: Apache-2.0
"""Slots: how many operations may run at once. First come, first served."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """At most `limit` holders at a time, 0 for any number. The order is that of asking; it may be resized while in use.

    Lowering the limit takes no slot away: new holders wait until enough have left.
    """

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._running: dict[object, str] = {}
        self._waiting: OrderedDict[asyncio.Future[None], str] = OrderedDict()

    @property
    def limit(self) -> int:
        return self._limit

    @property
    def running(self) -> tuple[str, ...]:
        """Who holds a slot, longest first."""
        return tuple(self._running.values())

    @property
    def waiting(self) -> tuple[str, ...]:
        """Who waits for one, next first."""
        return tuple(who for future, who in self._waiting.items() if not future.done())

    def resize(self, limit: int) -> None:
        self._limit = limit
        self._wake()

    @asynccontextmanager
    async def hold(self, who: str = "") -> AsyncIterator[None]:
        """Wait for a slot and keep it until the block ends."""
        token: object
        if not self._waiting and self._free():
            token = object()
            self._running[token] = who
        else:
            token = await self._queue(who)
        try:
            yield
        finally:
            del self._running[token]
            self._wake()

    async def _queue(self, who: str) -> object:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = who
        try:
            await future
        except asyncio.CancelledError:
            self._waiting.pop(future, None)
            if self._running.pop(future, None) is not None:  # it was given a slot in the same turn
                self._wake()
            raise
        return future

    def _free(self) -> bool:
        return self._limit <= 0 or len(self._running) < self._limit

    def _wake(self) -> None:
        while self._waiting and self._free():
            future, who = self._waiting.popitem(last=False)
            if not future.done():
                self._running[future] = who
                future.set_result(None)


__all__ = ["Slots"]
