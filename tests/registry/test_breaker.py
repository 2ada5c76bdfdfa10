# SPDX-License-Identifier: Apache-2.0
"""Circuit breakers, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from chantier.errors import ChantierError, RateLimitedError, RegistryError
from chantier.registry import Breakers, Host, HostState
from chantier.registry.failures import TransportError

MIRROR, ORIGIN = Host(authority="m.test", cooldown_s=30), Host(authority="o.test")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def trouble(kind: str) -> ChantierError:
    if kind.isdecimal():
        return RegistryError(kind, status=int(kind))
    return TransportError(f"dial tcp m.test: {kind}", kind=kind, host="m.test")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breakers(clock: Clock) -> Breakers:
    return Breakers(clock=clock)


def asked(breakers: Breakers) -> list[str]:
    return [h.authority for h in breakers.choose([MIRROR, ORIGIN])[0]]


@pytest.mark.parametrize("kind", ["connect-timeout", "timeout", "unreachable", "refused", "dns"])
def test_what_costs_time_opens_at_once(breakers: Breakers, kind: str) -> None:
    breakers.failed(MIRROR, trouble(kind))
    asked_now, passed = breakers.choose([MIRROR, ORIGIN])
    assert asked_now == [ORIGIN]
    assert passed == [(MIRROR, f"circuit breaker open for 30 s more: dial tcp m.test: {kind}")]


@pytest.mark.parametrize("kind", ["eof", "reset", "500", "503"])
def test_broken_answers_open_after_five(breakers: Breakers, kind: str) -> None:
    for _ in range(4):
        breakers.failed(MIRROR, trouble(kind))
    assert asked(breakers) == ["m.test", "o.test"]
    breakers.failed(MIRROR, trouble(kind))
    assert asked(breakers) == ["o.test"]


@pytest.mark.parametrize("kind", ["tls-verify", "401", "404", "403"])
def test_an_answer_is_no_failure(breakers: Breakers, kind: str) -> None:
    for _ in range(10):
        breakers.failed(MIRROR, trouble(kind))
    assert asked(breakers) == ["m.test", "o.test"]


def test_an_answer_in_between_counts(breakers: Breakers) -> None:
    for _ in range(4):
        breakers.failed(MIRROR, trouble("500"))
    breakers.answered(MIRROR)
    breakers.failed(MIRROR, trouble("500"))
    assert asked(breakers) == ["m.test", "o.test"]


def test_one_probe_then_closed_or_longer(breakers: Breakers, clock: Clock) -> None:
    breakers.failed(MIRROR, trouble("connect-timeout"))
    clock.now += 31
    assert asked(breakers) == ["m.test", "o.test"]  # the probe
    assert breakers.choose([MIRROR, ORIGIN])[1] == [(MIRROR, "circuit breaker is probing: dial tcp m.test: connect-timeout")]
    breakers.failed(MIRROR, trouble("connect-timeout"))
    assert breakers.state("m.test").open_until == clock.now + 60
    clock.now += 61
    assert asked(breakers) == ["m.test", "o.test"]
    breakers.answered(MIRROR)
    assert asked(breakers) == ["m.test", "o.test"]
    assert breakers.state("m.test").name(clock.now) == "closed"
    breakers.failed(MIRROR, trouble("refused"))
    assert breakers.state("m.test").open_until == clock.now + 30  # from the beginning again


def test_the_time_is_bounded(breakers: Breakers, clock: Clock) -> None:
    for _ in range(12):
        breakers.failed(MIRROR, trouble("refused"))
        clock.now = breakers.state("m.test").open_until + 1
    breakers.failed(MIRROR, trouble("refused"))
    assert breakers.state("m.test").open_until - clock.now == 600


def test_a_probe_that_is_never_heard_of(breakers: Breakers, clock: Clock) -> None:
    breakers.failed(MIRROR, trouble("refused"))
    clock.now += 31
    assert "m.test" in asked(breakers)
    assert "m.test" not in asked(breakers)
    clock.now += 61  # its build was cancelled
    assert "m.test" in asked(breakers)


def test_the_last_host_is_always_asked(breakers: Breakers) -> None:
    for host in (MIRROR, ORIGIN):
        breakers.failed(host, trouble("refused"))
    assert asked(breakers) == ["m.test", "o.test"]
    assert breakers.choose([ORIGIN])[0] == [ORIGIN]


def test_requests_that_were_under_way_say_nothing_new(breakers: Breakers, clock: Clock) -> None:
    for _ in range(5):
        breakers.failed(MIRROR, trouble("connect-timeout"))
    assert breakers.state("m.test").open_until == clock.now + 30
    assert breakers.state("m.test").failures == 5


def test_a_rate_limit_opens_for_as_long_as_it_says(breakers: Breakers, clock: Clock) -> None:
    breakers.failed(MIRROR, RateLimitedError("429", retry_after_s=120))
    assert breakers.state("m.test").open_until == clock.now + 120
    breakers.failed(ORIGIN, RateLimitedError("429"))
    assert asked(breakers) == ["o.test"]
    clock.now += 121
    breakers.failed(MIRROR, RateLimitedError("429", retry_after_s=86400))
    assert breakers.state("m.test").open_until == clock.now + 3600


def test_a_host_without_breaker(breakers: Breakers) -> None:
    without = Host(authority="m.test", breaker=False)
    breakers.failed(without, trouble("refused"))
    assert breakers.choose([without, ORIGIN])[0] == [without, ORIGIN]


def test_alive_is_of_the_last_minute(breakers: Breakers, clock: Clock) -> None:
    assert not breakers.alive("m.test")
    breakers.answered(MIRROR)
    breakers.failed(MIRROR, trouble("500"))
    assert breakers.alive("m.test")
    clock.now += 61
    assert not breakers.alive("m.test")


class Memory:
    def __init__(self) -> None:
        self.states: dict[str, HostState] = {}

    def load(self) -> Iterable[HostState]:
        return list(self.states.values())

    def save(self, state: HostState) -> None:
        self.states[state.authority] = state


def test_other_processes_learn_of_it(breakers: Breakers, clock: Clock) -> None:
    memory = Memory()
    breakers.remember_in(memory)
    breakers.failed(MIRROR, trouble("connect-timeout"))
    other = Breakers(clock=clock)
    other.remember_in(memory)
    assert asked(other) == ["o.test"]
    clock.now += 31
    assert asked(other) == ["m.test", "o.test"]
    other.answered(MIRROR)
    assert memory.states["m.test"].open_until == 0
    breakers.reset()
    assert memory.states["m.test"].open_until == 0
    assert asked(breakers) == ["m.test", "o.test"]
