# SPDX-License-Identifier: Apache-2.0
"""Writes to the stores behind the builds' back: in order, many in one transaction, off the event loop.

A build that ends has flushed, so a process that dies later has lost nothing of it. A result is kept (`ResultStore.save`)
before the records that name it are written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from .keys import Change, KeyStore
from .types import Result, ResultStore


@dataclass(frozen=True, slots=True)
class _Save:
    """A handle of our own of a result to keep, and what to write once its id is known."""

    result: Result
    changes: Callable[[str], Sequence[Change]]


class Writer:
    def __init__(self, keys: KeyStore, results: ResultStore[Result], executor: Executor) -> None:
        self._keys = keys
        self._results = results
        self._executor = executor
        self._waiting: list[Change | _Save] = []
        self._task: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    def add(self, *changes: Change) -> None:
        self._add(changes)

    def save(self, result: Result | None, changes: Callable[[str], Sequence[Change]]) -> None:
        """Keep a result (of which the caller keeps its handle), then write `changes(id)`; an empty result has the id ""."""
        self._add(changes("") if result is None else (_Save(result.clone(), changes),))

    async def flush(self) -> None:
        """Wait until all that was added is written. Raises what kept it from being written, once."""
        while self._task is not None:
            await asyncio.wait([self._task])
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _add(self, items: Sequence[Change | _Save]) -> None:
        if items:
            self._waiting += items
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    await loop.run_in_executor(self._executor, self._write, batch)
                except Exception as err:  # a full or damaged disk: told to the build that waits for its keys
                    self._error = err
                finally:
                    for item in batch:
                        if isinstance(item, _Save):
                            item.result.release()
        finally:
            self._task = None

    def _write(self, batch: Sequence[Change | _Save]) -> None:
        changes: list[Change] = []
        error: Exception | None = None
        for item in batch:
            if not isinstance(item, _Save):
                changes.append(item)
                continue
            try:
                changes += item.changes(self._results.save(item.result))
            except Exception as err:  # the other results of the batch are worth keeping all the same
                error = err
        self._keys.apply(changes)
        if error is not None:
            raise error


__all__ = ["Writer"]
