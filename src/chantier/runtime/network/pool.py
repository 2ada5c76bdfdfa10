# SPDX-License-Identifier: Apache-2.0
"""Namespaces for steps: made when asked for, or taken from a few that are kept ready.

A namespace is used once: the sockets that one step leaves in TIME_WAIT would keep the next from listening on its ports. So the
pool holds fresh ones, is filled up again behind the steps' backs, and so is what a step gives back taken down.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager

from chantier.errors import ChantierError

from .leases import Lease, Leases, Provider

_log = logging.getLogger(__name__)
_THREADS = 8
CHECK_AFTER_S = 30.0
"""One that waited longer is checked before it is given away: a bridge or a rule may have been removed meanwhile."""


class Same:
    """A mode in which there is nothing to prepare: `host` or `none`."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.nameservers: tuple[str, ...] = ()

    @asynccontextmanager
    async def acquire(self, hostname: str) -> AsyncIterator[str]:
        yield self.mode

    def resize(self, size: int) -> None:
        """There is no pool."""

    async def close(self) -> None:
        """There is nothing."""


class Networks:
    """Implements `op.Networks` by a provider. `size` are kept ready. Any event loop; close it after the last step."""

    def __init__(
        self, mode: str, provider: Provider, leases: Leases, size: int = 0, *, nameservers: tuple[str, ...] = ()
    ) -> None:
        self.mode = mode
        self.nameservers = nameservers
        self._provider = provider
        self._leases = leases
        self._size = size
        self._lock = threading.Lock()
        self._ready: deque[tuple[Lease, float]] = deque()
        self._making = 0
        self._closed = False
        self._threads = ThreadPoolExecutor(_THREADS, "chantier-network")
        self._fill()

    @asynccontextmanager
    async def acquire(self, hostname: str) -> AsyncIterator[str]:
        """The path of a namespace; it is given back at the end. One with a hostname of its own is made for it."""
        making = self._threads.submit(self._make if hostname else self._take, hostname)
        try:
            lease = await asyncio.shield(asyncio.wrap_future(making))
        except asyncio.CancelledError:
            making.add_done_callback(self._drop_made)
            raise
        try:
            yield str(lease.path)
        finally:
            self._threads.submit(self._drop, lease)

    def resize(self, size: int) -> None:
        """Keep so many ready from now on."""
        with self._lock:
            self._size = size
            surplus = [self._ready.popleft()[0] for _ in range(len(self._ready) - size)]
        for lease in surplus:
            self._threads.submit(self._drop, lease)
        self._fill()

    async def close(self) -> None:
        """Give everything back; waits for what is being taken down."""
        with self._lock:
            self._closed = True
            ready = list(self._ready)
            self._ready.clear()
        for lease, _since in ready:
            self._threads.submit(self._drop, lease)
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._threads.shutdown(wait=True)
        try:
            self._provider.close()
        except (ChantierError, OSError) as err:
            _log.warning("the network %s was not taken down: %s", self.mode, err)
        self._leases.close()

    # In threads

    def _make(self, hostname: str = "") -> Lease:
        lease = self._leases.new()
        try:
            self._provider.attach(lease, hostname)
        except BaseException:
            self._leases.drop(lease)
            raise
        return lease

    def _take(self, hostname: str) -> Lease:
        while True:
            with self._lock:
                found = self._ready.popleft() if self._ready else None
            self._fill()
            if found is None:
                return self._make()
            lease, since = found
            if time.monotonic() - since < CHECK_AFTER_S or self._still_connected(lease):
                return lease
            self._drop(lease)

    def _still_connected(self, lease: Lease) -> bool:
        try:
            self._provider.check(lease)
            return True
        except (ChantierError, OSError) as err:
            _log.warning("a network that was kept ready is made anew: %s", err)
            return False

    def _drop(self, lease: Lease) -> None:
        try:
            self._leases.drop(lease)
        except Exception:  # nobody waits for this thread's result
            _log.exception("network namespace %s was not given back", lease.id[:12])

    def _drop_made(self, made: Future[Lease]) -> None:
        if not made.cancelled() and made.exception() is None:
            self._drop(made.result())

    def _fill(self) -> None:
        with self._lock:
            wanted = 0 if self._closed else self._size - len(self._ready) - self._making
            self._making += max(wanted, 0)
        for _ in range(wanted):
            self._threads.submit(self._prepare)

    def _prepare(self) -> None:
        lease = None
        try:
            lease = self._make()
        except (ChantierError, OSError) as err:
            _log.warning("no network could be kept ready: %s", err)  # a step that needs one will fail with it
        finally:
            with self._lock:
                self._making -= 1
                keep = lease is not None and not self._closed and len(self._ready) < self._size
                if keep and lease is not None:
                    self._ready.append((lease, time.monotonic()))
            if lease is not None and not keep:
                self._drop(lease)


__all__ = ["CHECK_AFTER_S", "Networks", "Same"]
