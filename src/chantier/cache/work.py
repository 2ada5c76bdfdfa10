# SPDX-License-Identifier: Apache-2.0
"""What a piece of long work is given: where to report, whose credentials to use, when to stop. And work side by side."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from chantier.errors import CancelledError_
from chantier.progress import Step
from chantier.values import dataclass, replace

from .types import never

T = TypeVar("T")
_REPORT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Work:
    step: Step | None = None
    sessions: Sequence[Any] = ()
    cancelled: Callable[[], bool] = never

    def check(self) -> None:
        """Raises CancelledError_ if the work is to stop."""
        if self.cancelled():
            raise CancelledError_


def side_by_side(work: Work, calls: Sequence[Callable[[Work], T]], *, workers: int) -> list[T]:
    """Run all calls in threads and give their results in order. The first failure cancels the others, is raised once all ended."""
    if len(calls) == 1:
        return [calls[0](work)]
    failed = threading.Event()
    inner = replace(work, cancelled=lambda: failed.is_set() or work.cancelled())
    first: list[BaseException] = []

    def run(call: Callable[[Work], T]) -> T:
        try:
            return call(inner)
        except BaseException as err:  # kept, so that what follows from it does not hide it
            if not failed.is_set():
                first.append(err)
                failed.set()
            raise

    with ThreadPoolExecutor(min(workers, len(calls)) or 1, "chantier-cache") as pool:
        futures: list[Future[T]] = [pool.submit(contextvars.copy_context().run, run, call) for call in calls]
    if first:
        raise first[0]
    return [future.result() for future in futures]


class Bytes:
    """Reports a transfer to a step: `sha256:… 3.1MB / 29MB`. Throttled; the ends are always reported."""

    def __init__(self, step: Step | None, id: str, total: int) -> None:
        self._step = step
        self._id = id
        self._total = total
        self._next = 0.0
        self._started = step.status(id, total=total) if step is not None else 0

    def at(self, offset: int) -> None:
        if self._step is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _REPORT_EVERY_S
        self._step.status(self._id, current=offset, total=self._total, started=self._started)

    def done(self) -> None:
        if self._step is not None:
            self._step.status(self._id, current=self._total, total=self._total, started=self._started, done=True)


__all__ = ["Bytes", "Work", "side_by_side"]
