# SPDX-License-Identifier: Apache-2.0
"""When to try again, and how long to wait before."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from chantier.errors import CancelledError_
from chantier.values import dataclass

from .types import Cancelled, never

_TICK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Waits 1, 2, 4 s, each up to a quarter longer or shorter; what a server asks for by Retry-After is waited instead.

    A host that gave good answers within the last minute is `alive`: it gets more attempts, for its trouble will pass. One
    that never answered is given up soon, as BuildKit does.
    """

    attempts: int = 4
    attempts_alive: int = 10
    base_s: float = 1.0
    cap_s: float = 8.0
    jitter: float = 0.25
    patience_s: float = 60.0  # a server that asks for more than this is not waited for

    def delay_s(
        self,
        attempt: int,
        retry_after_s: float | None = None,
        *,
        alive: bool = False,
        spread: Callable[[], float] = random.random,
    ) -> float | None:
        """After failure number `attempt` (from 1): how long to wait, or None to give up."""
        if attempt >= (self.attempts_alive if alive else self.attempts):
            return None
        if retry_after_s is not None:
            return retry_after_s + spread() * self.jitter * self.base_s if retry_after_s <= self.patience_s else None
        plain: float = min(self.cap_s, self.base_s * 2.0 ** (attempt - 1))
        return plain * (1 + self.jitter * (2 * spread() - 1))


def wait(seconds: float, cancelled: Cancelled = never) -> None:
    """Sleep, but wake for a cancellation. Raises CancelledError_."""
    end = time.monotonic() + seconds
    while True:
        check(cancelled)
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, _TICK_S))


def check(cancelled: Cancelled) -> None:
    if cancelled():
        raise CancelledError_
