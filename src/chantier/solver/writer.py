# SPDX-License-Identifier: Apache-2.0
"""Writes to the stores behind the builds' back: in order, many in one transaction, off the event loop.

A build that ends has flushed, so a process that dies later has lost nothing of it. A result is kept (`ResultStore.save`)
before the records that name it are written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from chantier.values import dataclass

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
        self._error: Exception | None = None  # of a batch nobody waited for
        self._added = 0
        self._written = 0
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []

    def add(self, *changes: Change) -> None:
        self._add(changes)

    def save(self, result: Result | None, changes: Callable[[str], Sequence[Change]]) -> None:
        """Keep a result (of which the caller keeps its handle), then write `changes(id)`; an empty result has the id ""."""
        self._add(changes("") if result is None else (_Save(result.clone(), changes),))

    async def flush(self) -> None:
        """Wait until all that was added so far is written. Raises what kept it from being written, once."""
        if self._written < self._added:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushes.append((self._added, future))
            await future
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _add(self, items: Sequence[Change | _Save]) -> None:
        if items:
            self._waiting += items
            self._added += len(items)
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                error: Exception | None = None
                try:
                    await loop.run_in_executor(self._executor, self._write, batch)
                except Exception as err:  # a full or damaged disk: told to the builds that wait for their keys
                    error = err
                finally:
                    for item in batch:
                        if isinstance(item, _Save):
                            item.result.release()
                self._written += len(batch)
                self._answer(error)
        finally:
            self._task = None

    def _answer(self, error: Exception | None) -> None:
        """Tell those whose part is written; those who wait for later parts hear of an error too."""
        waiting = [(target, future) for target, future in self._flushes if not future.done()]
        ready = [future for target, future in waiting if error is not None or target <= self._written]
        self._flushes = [(target, future) for target, future in waiting if future not in ready]
        for future in ready:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(None)
        if error is not None and not ready:
            self._error = error

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
