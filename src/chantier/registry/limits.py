# SPDX-License-Identifier: Apache-2.0
"""How many requests may be under way to one registry at a time (semantics.md 7.5).

Four blobs and one place more that only metadata (manifests, configs) may take, so that a build that wants to know never
waits behind one that downloads. Pulls and pushes share the four, or have numbers of their own. The registry is that of the
reference, also where a mirror serves it. Places go round the builds that wait, not to whoever asks most often.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from chantier.config import RegistryExtra
from chantier.values import dataclass, field

from .retry import check
from .types import Cancelled, never

_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one registry. `blobs` at a time, and `metadata` places beside them; `pulls` and `pushes` of the blobs (0: all)."""

    blobs: int = 4
    metadata: int = 1
    pulls: int = 0
    pushes: int = 0

    @property
    def total(self) -> int:
        return self.blobs + self.metadata

    @classmethod
    def of(cls, extra: RegistryExtra, default: int) -> Limits:
        """A direction that has a number of its own is not held up by the other one, unless maxConcurrency bounds both."""
        pulls, pushes = extra.max_pulls or 0, extra.max_pushes or 0
        both = (pulls or default) + (pushes or default) if pulls or pushes else default
        return cls(
            blobs=extra.max_concurrency or both,
            metadata=extra.max_metadata or 1,
            pulls=pulls or (default if pushes and not extra.max_concurrency else 0),
            pushes=pushes or (default if pulls and not extra.max_concurrency else 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What is under way with one registry now."""

    registry: str
    pulls: int
    pushes: int
    metadata: int
    waiting: int
    limits: Limits


LimitsFor = Callable[[str], Limits]


@dataclass(eq=False)
class _Waiter:
    metadata: bool
    owner: str
    pushing: bool = False
    admitted: bool = False


@dataclass
class _Domain:
    blobs: int = 0
    pushes: int = 0  # of the blobs
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
    def place(
        self, domain: str, *, metadata: bool = False, pushing: bool = False, owner: str = "", cancelled: Cancelled = never
    ) -> Iterator[None]:
        """Hold one place at `domain` for the block. Raises CancelledError_ while waiting."""
        waiter = _Waiter(metadata, owner, pushing)
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

    def traffic(self) -> tuple[Traffic, ...]:
        """The same with directions and limits, for people."""
        with self._condition:
            return tuple(
                Traffic(
                    registry=name,
                    pulls=d.blobs - d.pushes,
                    pushes=d.pushes,
                    metadata=d.total - d.blobs,
                    waiting=sum(len(q) for q in d.waiting.values()),
                    limits=self._limits(name),
                )
                for name, d in sorted(self._domains.items())
            )

    def _leave(self, domain: str, waiter: _Waiter) -> None:
        state = self._domains[domain]
        if waiter.admitted:
            state.total -= 1
            state.blobs -= not waiter.metadata
            state.pushes -= not waiter.metadata and waiter.pushing
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
                fit = next((w for w in queue if self._fits(domain, state, w)), None)
                if fit is not None:
                    queue.remove(fit)
                    fit.admitted = progress = True
                    state.total += 1
                    state.blobs += not fit.metadata
                    state.pushes += not fit.metadata and fit.pushing
                    del state.waiting[owner]  # to the end of the round
                    state.waiting[owner] = queue
                if not queue:
                    del state.waiting[owner]
        self._condition.notify_all()

    def _fits(self, domain: str, state: _Domain, waiter: _Waiter) -> bool:
        limits = self._limits(domain)
        if state.total >= limits.total:
            return False
        if not waiter.metadata:
            own, most = (state.pushes, limits.pushes) if waiter.pushing else (state.blobs - state.pushes, limits.pulls)
            if state.blobs >= limits.blobs or (most and own >= most):
                return False
        return not self._everywhere or sum(d.total for d in self._domains.values()) < self._everywhere


def is_metadata(media_type: str) -> bool:
    """Manifests, indexes and configs; upstream's rule is the suffix."""
    return media_type.endswith("+json")
