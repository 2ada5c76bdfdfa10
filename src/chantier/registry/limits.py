# SPDX-License-Identifier: Apache-2.0
"""How many requests may be under way to one registry at a time (semantics.md 7.5).

Four blobs and one place more that only metadata (manifests, configs) may take, so that a build that wants to know never
waits behind one that downloads. The registry is that of the reference, also where a mirror serves it. Places go round
the builds that wait, not to whoever asks most often.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from .retry import check
from .types import Cancelled, never

_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one registry. `blobs` at a time, and `metadata` places beside them."""

    blobs: int = 4
    metadata: int = 1

    @property
    def total(self) -> int:
        return self.blobs + self.metadata


LimitsFor = Callable[[str], Limits]


@dataclass(eq=False)
class _Waiter:
    metadata: bool
    owner: str
    admitted: bool = False


@dataclass
class _Domain:
    blobs: int = 0
    total: int = 0
    waiting: dict[str, deque[_Waiter]] = field(default_factory=dict)  # by owner, in the order of their turns


class Limiter:
    """Process-wide and thread-safe. `everywhere` bounds all registries together; 0 does not."""

    def __init__(self, limits: Limits | LimitsFor | None = None, *, everywhere: int = 0) -> None:
        self._condition = threading.Condition()
        self._domains: dict[str, _Domain] = {}
        self.configure(limits or Limits(), everywhere=everywhere)

    def configure(self, limits: Limits | LimitsFor, *, everywhere: int = 0) -> None:
        """New limits, from now on; what is under way goes on."""
        with self._condition:
            self._limits: LimitsFor = (lambda _: limits) if isinstance(limits, Limits) else limits
            self._everywhere = everywhere
            for name in self._domains:
                self._admit(name)
            self._condition.notify_all()

    @contextmanager
    def place(self, domain: str, *, metadata: bool = False, owner: str = "", cancelled: Cancelled = never) -> Iterator[None]:
        """Hold one place at `domain` for the block. Raises CancelledError_ while waiting."""
        waiter = _Waiter(metadata, owner)
        with self._condition:
            state = self._domains.setdefault(domain, _Domain())
            state.waiting.setdefault(owner, deque()).append(waiter)
            self._admit(domain)
            try:
                while not waiter.admitted:
                    check(cancelled)
                    self._condition.wait(None if cancelled is never else _POLL_S)
            except BaseException:
                self._leave(domain, waiter)
                raise
        try:
            yield
        finally:
            with self._condition:
                self._leave(domain, waiter)

    def status(self) -> Mapping[str, tuple[int, int, int]]:
        """By registry: blobs under way, metadata under way, requests waiting."""
        with self._condition:
            return {
                name: (d.blobs, d.total - d.blobs, sum(len(q) for q in d.waiting.values())) for name, d in self._domains.items()
            }

    def _leave(self, domain: str, waiter: _Waiter) -> None:
        state = self._domains[domain]
        if waiter.admitted:
            state.total -= 1
            state.blobs -= 0 if waiter.metadata else 1
        elif waiter.owner in state.waiting:
            state.waiting[waiter.owner].remove(waiter)
        for name in [domain] if not self._everywhere else list(self._domains):
            self._admit(name)
        if not state.total and not any(state.waiting.values()):
            del self._domains[domain]
        self._condition.notify_all()

    def _admit(self, domain: str) -> None:
        """Let in whoever fits, one of each owner in turn."""
        state = self._domains[domain]
        progress = True
        while progress:
            progress = False
            for owner in list(state.waiting):
                queue = state.waiting[owner]
                fit = next((w for w in queue if self._fits(domain, state, metadata=w.metadata)), None)
                if fit is not None:
                    queue.remove(fit)
                    fit.admitted = progress = True
                    state.total += 1
                    state.blobs += 0 if fit.metadata else 1
                    del state.waiting[owner]  # to the end of the round
                    state.waiting[owner] = queue
                if not queue:
                    del state.waiting[owner]
        self._condition.notify_all()

    def _fits(self, domain: str, state: _Domain, *, metadata: bool) -> bool:
        limits = self._limits(domain)
        if state.total >= limits.total or (not metadata and state.blobs >= limits.blobs):
            return False
        return not self._everywhere or sum(d.total for d in self._domains.values()) < self._everywhere


def is_metadata(media_type: str) -> bool:
    """Manifests, indexes and configs; upstream's rule is the suffix."""
    return media_type.endswith("+json")
