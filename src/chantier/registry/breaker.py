# SPDX-License-Identifier: Apache-2.0
"""Circuit breakers: a host that cost us its time limit is passed over for a while, as long as another host can serve.

    closed   asked like any other
    open     passed over until a point in time; the time doubles with each failure in a row, up to ten minutes
    probing  the time is over: one request tries the host, others pass it over until that one has its answer

A host that cannot be reached, or that is silent for its whole limit, opens its breaker at once; broken answers and 5xx do
after five in a row; 429 with a time to wait does for that time. The last host that is left is asked whatever its state.

What is known of hosts is shared by all builds of a process and, by a `Memory`, with other processes of the same state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from chantier.errors import ChantierError, RateLimitedError, RegistryError
from chantier.values import dataclass, replace

from .hosts import Host

_AT_ONCE = frozenset(["connect-timeout", "timeout", "unreachable", "refused", "dns", "again"])
_SOFT = 5
_LONGEST_S = 600.0
_MOST_WAIT_S = 3600.0  # a rate limit that lasts longer is tried again after this
_PROBE_S = 60.0
_ALIVE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """What is known of one host. Times are seconds since the epoch, 0: never."""

    authority: str
    failures: int = 0  # in a row
    openings: int = 0  # in a row
    open_until: float = 0.0
    error: str = ""  # the last one
    failed_at: float = 0.0
    answered_at: float = 0.0
    probing_until: float = 0.0

    def name(self, now: float) -> str:
        if not self.open_until:
            return "closed"
        return "open" if now < self.open_until else "probing"


class Memory(Protocol):
    """Where states outlive a process. Called when a breaker opens or closes; must not raise."""

    def load(self) -> Iterable[HostState]: ...
    def save(self, state: HostState) -> None: ...


class Breakers:
    """Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._states: dict[str, HostState] = {}
        self._memory: Memory | None = None

    def remember_in(self, memory: Memory) -> None:
        """Take over what others learnt, and tell them from now on."""
        known = {state.authority: state for state in memory.load()}
        with self._mutex:
            self._memory = memory
            self._states = {**known, **self._states}

    def choose(self, hosts: Sequence[Host]) -> tuple[list[Host], list[tuple[Host, str]]]:
        """Who is to be asked, and who is passed over and why. If that leaves nobody, all are asked."""
        asked, passed = [], []
        for host in hosts:
            why = self.why_not(host)
            if why:
                passed.append((host, why))
            else:
                asked.append(host)
        if not asked:
            return list(hosts), []
        for host in asked[:-1] if len(asked) > 1 else []:
            self._take_probe(host)
        return asked, passed

    def why_not(self, host: Host) -> str:
        """Why a host would be passed over now; "" if it would not."""
        if not host.breaker:
            return ""
        now = self._clock()
        with self._mutex:
            state = self._states.get(host.authority)
            if state is None or not state.open_until:
                return ""
            if now < state.open_until:
                return f"circuit breaker open for {state.open_until - now:.0f} s more: {state.error}"
            return f"circuit breaker is probing: {state.error}" if now < state.probing_until else ""

    def _take_probe(self, host: Host) -> None:
        """Whoever asks a host whose time is over asks for all."""
        now = self._clock()
        with self._mutex:
            state = self._states.get(host.authority)
            if state is not None and state.open_until and now >= state.open_until:
                self._states[host.authority] = replace(state, probing_until=now + _PROBE_S)

    def answered(self, host: Host) -> None:
        """It gave an answer that shows it is well: any but 5xx and 429."""
        now = self._clock()
        with self._mutex:
            before = self._states.get(host.authority)
            after = HostState(authority=host.authority, answered_at=now)
            self._states[host.authority] = after
            memory = self._memory if before is not None and before.open_until else None
        if memory is not None:
            memory.save(after)

    def failed(self, host: Host, err: ChantierError) -> None:
        kind = getattr(err, "kind", "")
        status = getattr(err, "status", None) or 0
        if kind in _AT_ONCE:
            self._open(host, err, at_once=True)
        elif isinstance(err, RateLimitedError):
            if err.retry_after_s is not None:
                self._open(host, err, at_once=True, seconds=min(err.retry_after_s, _MOST_WAIT_S))
        elif kind in ("eof", "reset") or status >= 500:
            self._open(host, err, at_once=False)

    def _open(self, host: Host, err: ChantierError, *, at_once: bool, seconds: float | None = None) -> None:
        now = self._clock()
        with self._mutex:
            before = self._states.get(host.authority) or HostState(authority=host.authority)
            after = replace(before, failures=before.failures + 1, error=err.brief, failed_at=now)
            # Requests that were under way when it opened say nothing new.
            opens = now >= before.open_until and (at_once or after.failures >= _SOFT or before.open_until)
            if opens:
                cooldown = min(host.cooldown_s * 2.0**before.openings, max(_LONGEST_S, host.cooldown_s))
                until = now + (cooldown if seconds is None else seconds)
                after = replace(after, openings=before.openings + (seconds is None), open_until=until, probing_until=0.0)
            self._states[host.authority] = after
            memory = self._memory if opens else None
        if memory is not None:
            memory.save(after)

    def alive(self, authority: str) -> bool:
        """Whether it gave a good answer within the last minute: then its troubles pass, and are worth waiting out."""
        with self._mutex:
            state = self._states.get(authority)
            return state is not None and self._clock() - state.answered_at < _ALIVE_S

    def states(self) -> tuple[HostState, ...]:
        with self._mutex:
            return tuple(self._states[name] for name in sorted(self._states))

    def state(self, authority: str) -> HostState:
        with self._mutex:
            return self._states.get(authority) or HostState(authority=authority)

    def reset(self) -> None:
        """Forget all failures: the config has changed, and with it perhaps their cause."""
        with self._mutex:
            opened = [state.authority for state in self._states.values() if state.open_until]
            self._states.clear()
            memory = self._memory
        for authority in opened if memory is not None else ():
            assert memory is not None
            memory.save(HostState(authority=authority))


def passed_over(name: str, why: str, authority: str) -> RegistryError:
    """How a host that was not asked stands in the list of what was tried."""
    return RegistryError(f"{name} was not asked: {why}", host=authority, transient=True)
