# SPDX-License-Identifier: Apache-2.0
"""Writes to the key store behind the builds' back: in order, many in one transaction, off the event loop.

A build that ends has flushed, so a process that dies later has lost nothing of it.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from .keys import Change, KeyStore


class Writer:
    def __init__(self, keys: KeyStore, executor: Executor) -> None:
        self._keys = keys
        self._executor = executor
        self._waiting: list[Change] = []
        self._task: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    def add(self, *changes: Change) -> None:
        if not changes:
            return
        self._waiting += changes
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def flush(self) -> None:
        """Wait until all that was added is written. Raises what kept it from being written, once."""
        while self._task is not None:
            await asyncio.wait([self._task])
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    await loop.run_in_executor(self._executor, self._keys.apply, batch)
                except Exception as err:  # a full or damaged disk: told to the build that waits for its keys
                    self._error = err
        finally:
            self._task = None


__all__ = ["Writer"]
