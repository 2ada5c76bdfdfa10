# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import pytest

from chantier.errors import CancelledError_
from chantier.registry import Limiter, Limits


class Queue:
    """Threads that wait for a place, in a known order."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.order: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.threads: list[threading.Thread] = []

    def wait(self, name: str, *, owner: str = "", metadata: bool = False, domain: str = "r") -> None:
        waiting = self.waiting(domain)
        self.gates[name] = threading.Event()

        def run() -> None:
            with self.limiter.place(domain, owner=owner, metadata=metadata):
                self.order.append(name)
                self.gates[name].wait(60)

        thread = threading.Thread(target=run)
        thread.start()
        self.threads.append(thread)
        self.until(lambda: name in self.order or self.waiting(domain) == waiting + 1)

    def waiting(self, domain: str) -> int:
        return self.limiter.status().get(domain, (0, 0, 0))[2]

    def let(self, name: str) -> None:
        """End `name`, and wait until somebody else has come in, if anybody waits."""
        waits = any(s[2] for s in self.limiter.status().values())
        known = len(self.order)
        self.gates[name].set()
        if waits:
            self.until(lambda: len(self.order) > known)

    def until(self, what: object) -> None:
        end = time.monotonic() + 60
        while not what():  # type: ignore[operator]
            assert time.monotonic() < end
            time.sleep(0.001)

    def end(self) -> None:
        for gate in self.gates.values():
            gate.set()
        for thread in self.threads:
            thread.join(60)


def test_a_place_is_kept_for_metadata() -> None:
    limiter = Limiter()
    queue = Queue(limiter)
    for n in range(6):
        queue.wait(f"b{n}")
    assert queue.order == ["b0", "b1", "b2", "b3"]
    queue.wait("m0", metadata=True)
    queue.wait("m1", metadata=True)
    assert queue.order == ["b0", "b1", "b2", "b3", "m0"]
    assert limiter.status() == {"r": (4, 1, 3)}
    queue.let("m0")
    assert queue.order[-1] == "m1"
    queue.let("b0")
    assert queue.order[-1] == "b4"
    queue.end()
    assert limiter.status() == {}


def test_builds_take_turns() -> None:
    queue = Queue(Limiter(Limits(blobs=1, metadata=0)))
    queue.wait("a0", owner="a")
    for n in range(1, 4):
        queue.wait(f"a{n}", owner="a")
    for n in range(2):
        queue.wait(f"b{n}", owner="b")
    for name in ("a0", "a1", "b0", "a2", "b1"):
        queue.let(name)
    assert queue.order == ["a0", "a1", "b0", "a2", "b1", "a3"]
    queue.end()


def test_registries_do_not_wait_for_each_other() -> None:
    queue = Queue(Limiter(lambda domain: Limits(blobs=1 if domain == "r" else 2, metadata=0)))
    queue.wait("a")
    queue.wait("b")
    queue.wait("c", domain="s")
    queue.wait("d", domain="s")
    assert queue.order == ["a", "c", "d"]
    queue.end()


def test_a_bound_for_all_together() -> None:
    queue = Queue(Limiter(Limits(), everywhere=2))
    for n, domain in enumerate("rst"):
        queue.wait(str(n), domain=domain)
    assert queue.order == ["0", "1"]
    queue.let("0")
    assert queue.order == ["0", "1", "2"]
    queue.end()


def test_new_limits_hold_at_once() -> None:
    limiter = Limiter(Limits(blobs=1, metadata=0))
    queue = Queue(limiter)
    for name in "abc":
        queue.wait(name)
    limiter.configure(Limits(blobs=3, metadata=0))
    queue.until(lambda: len(queue.order) == 3)
    queue.end()


def test_cancelled_while_waiting() -> None:
    limiter = Limiter(Limits(blobs=1, metadata=0))
    with limiter.place("r"):
        stop = threading.Event()
        threading.Timer(0.05, stop.set).start()
        with pytest.raises(CancelledError_), limiter.place("r", cancelled=stop.is_set):
            pytest.fail("there was no place")
        assert limiter.status() == {"r": (1, 0, 0)}
    assert limiter.status() == {}


def test_an_error_frees_the_place() -> None:
    limiter = Limiter(Limits(blobs=1, metadata=0))
    with pytest.raises(ZeroDivisionError), limiter.place("r"):
        raise ZeroDivisionError
    with ExitStack() as stack:
        stack.enter_context(limiter.place("r"))
