# SPDX-License-Identifier: Apache-2.0
"""The hard limit of the state directory (`[chantier] maxBytes`): everything below the root counts, the database too.

Before a build, before each of its steps and exports, and every second while anything runs, what is over the limit is pruned:
the least recently used first, never what a running build holds. A step is not begun while the root is over its limit and
nothing more can go: so the limit is exceeded by what one step writes, and by no more.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from chantier.cache import Cache
from chantier.errors import ChantierError, DiskFullError
from chantier.op.worker import threaded
from chantier.store import Policy, Root, Weight, weigh
from chantier.store.gc import size_text

_EVERY_S = 1.0
_log = logging.getLogger(__name__)


class Ceiling:
    """Of one engine. `limit` 0 is no limit; it may be changed while builds run."""

    def __init__(self, root: Root, cache: Cache, limit: int = 0) -> None:
        self.limit = limit
        self._root = root
        self._cache = cache
        self._lock = threading.Lock()
        self._users = 0
        self._watch: asyncio.Task[None] | None = None

    def weigh(self) -> Weight:
        return weigh(self._root.path, self._root.db)

    def make_room(self) -> int:
        """Prune until the root is within its limit; gives the bytes it is still over. Sync; may take a while."""
        if self.limit <= 0:
            return 0
        with self._lock:
            over = self.weigh().total - self.limit
            if over <= 0:
                return 0
            self._cache.blobs.collect(grace_ns=0)  # held ones stay
            over = self.weigh().total - self.limit
            while over > 0:
                records = sum(record.size for record in self._cache.usage())
                # At least one page less than now, so that each round takes something.
                keep = max(records - over, 1)
                removed = self._cache.prune(Policy(all=True, max_used_space=keep), grace_ns=0)
                if not removed:
                    break
                _log.debug("removed %d records to stay below %s", len(removed), size_text(self.limit))
                over = self.weigh().total - self.limit
            return max(over, 0)

    async def enter_step(self, what: str) -> None:
        """Before something is begun that writes. Raises DiskFullError if there is no room and none can be made."""
        if self.limit <= 0:
            return
        over = await threaded(lambda _: self.make_room())
        if over > 0:
            raise DiskFullError(
                f"cannot run {what}: the cache is {size_text(over)} over its limit of {size_text(self.limit)}, "
                "and the rest of it is in use",
                hint="raise [chantier] maxBytes, or run fewer builds at once",
            )

    @asynccontextmanager
    async def build(self) -> AsyncIterator[None]:
        """Around each build: room is made before it, and looked after until the last one ends."""
        if self.limit > 0:
            await threaded(lambda _: self.make_room())
        self._users += 1
        if self._watch is None:
            self._watch = asyncio.create_task(self._look_after())
        try:
            yield
        finally:
            self._users -= 1
            if not self._users and self._watch is not None:
                self._watch.cancel()
                with suppress(asyncio.CancelledError):
                    await self._watch
                self._watch = None
            if self.limit > 0:
                await threaded(lambda _: self.make_room())

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            if self.limit > 0:
                try:
                    await threaded(lambda _: self.make_room())
                except ChantierError as err:  # the next round, or the next step, will tell
                    _log.debug("failed to keep the cache below its limit: %s", err)


__all__ = ["Ceiling"]
