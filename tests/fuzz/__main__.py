# SPDX-License-Identifier: Apache-2.0
"""A small fuzzer for what reads bytes of strangers: mutation guided by lines that were not run before.

`python -m tests.fuzz [--seconds N] [--seed N] [TARGET...]` searches, says what it found, keeps it for `test_found.py`, which
gives everything ever found to its target again, and exits 1 if there was any.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import random
import signal
import sys
import time
import traceback
from types import CodeType, FrameType
from typing import Any

from .mutate import Mutator
from .targets import FOUND, Target, targets

_KEPT = 4000  # inputs that reached something new


class Hang(BaseException):
    """Not an Exception: no handler of ours may take it."""


class Lines:
    """Which lines of the target's files have been run. Only frames of those files are traced."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        self._parts = parts
        self._wanted: dict[CodeType, bool] = {}
        self._seen: set[tuple[CodeType, int]] = set()
        self.new = 0

    def __len__(self) -> int:
        return len(self._seen)

    def call(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        wanted = self._wanted.get(code)
        if wanted is None:
            wanted = self._wanted[code] = any(part in code.co_filename for part in self._parts)
        return self._line if wanted else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            key = (frame.f_code, frame.f_lineno)
            if key not in self._seen:
                self._seen.add(key)
                self.new += 1
        return self._line


def fuzz(target: Target, seconds: float, seed: int) -> int:
    """Returns how many different faults were found; each is kept as a file named by its digest."""
    chance = random.Random(seed)
    mutate = Mutator(chance, target.tokens)
    lines = Lines(target.files)
    corpus = [data for data in target.seeds() if len(data) <= 1 << 16]
    faults: dict[str, str] = {}
    runs, start, told = 0, time.monotonic(), 0.0
    waiting = list(corpus)
    while waiting or time.monotonic() - start < seconds:
        data = waiting.pop() if waiting else _changed(target, chance, mutate, chance.choice(corpus), chance.choice(corpus))
        runs += 1
        fault = _run(target, data, lines)
        if fault is not None:
            frames = [line.strip() for line in fault.splitlines() if line.strip().startswith("File ")]
            key = f"{frames[-1] if frames else ''} {fault.strip().splitlines()[-1].partition(':')[0]}"
            if key not in faults:
                faults[key] = fault
                _keep(target.name, data, fault)
        if lines.new:
            lines.new = 0
            corpus.append(data)
            if len(corpus) > _KEPT:
                corpus.pop(chance.randrange(len(corpus)))
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{target.name}: {runs} runs, {len(lines)} lines, {len(corpus)} inputs, {len(faults)} faults", flush=True)
    spent = time.monotonic() - start
    print(f"{target.name}: {runs} runs in {spent:.0f} s, {len(lines)} lines, {len(corpus)} inputs kept, {len(faults)} faults")
    return len(faults)


def _changed(target: Target, chance: random.Random, mutate: Mutator, data: bytes, other: bytes) -> bytes:
    if target.mutate is not None and chance.random() < 0.8:
        return target.mutate(chance, data)
    return mutate(data, other)


def _run(target: Target, data: bytes, lines: Lines) -> str | None:
    # Processor time: a busy machine is no fault of the target. Time on the clock too, for one that waits for ever.
    signal.setitimer(signal.ITIMER_PROF, target.seconds)
    signal.setitimer(signal.ITIMER_REAL, 12 * target.seconds)
    sys.settrace(lines.call)
    try:
        target.check(data)
    except Hang:
        sys.settrace(None)
        return traceback.format_exc(limit=-8) + f"no answer within {target.seconds} s"
    except Exception:  # whatever it is, no input may bring it about
        sys.settrace(None)
        return traceback.format_exc(limit=-8)
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _keep(name: str, data: bytes, fault: str) -> None:
    path = FOUND / name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(f"{name}: {path}\n{fault}", flush=True)


def _hang(_number: int, _frame: FrameType | None) -> None:
    raise Hang


def main() -> int:
    faulthandler.enable()
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", nargs="*", default=list(targets()), help=", ".join(targets()))
    parser.add_argument("--seconds", type=float, default=60, help="how long each target is fuzzed")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    signal.signal(signal.SIGPROF, _hang)
    signal.signal(signal.SIGALRM, _hang)
    count = 0
    for name in given.target:
        target = targets()[name]()
        seed = given.seed if given.seed is not None else random.randrange(1 << 32)
        print(f"{name}: seed {seed}", flush=True)
        try:
            count += fuzz(target, given.seconds, seed)
        finally:
            target.close()
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
