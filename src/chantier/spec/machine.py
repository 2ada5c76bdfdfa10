# SPDX-License-Identifier: Apache-2.0
"""A pattern matcher that cannot be made slow: all states at once, one bit each.

A backtracking regular expression with several stars takes a time that grows with a power of the text, and holds the
interpreter while it does. Patterns come from users, so those with many stars run here: length of text times length
of pattern over the word size, whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from chantier.values import dataclass

Accepts: TypeAlias = Callable[[str], bool]
"""Whether one character is taken."""


@dataclass(frozen=True, slots=True)
class One:
    """Takes exactly one character."""

    accepts: Accepts


@dataclass(frozen=True, slots=True)
class Many:
    """Takes any number of characters, also none."""

    accepts: Accepts


@dataclass(frozen=True, slots=True)
class Upto:
    """Takes nothing, or any number of characters and then one that `last` accepts: `(.*/)?`."""

    accepts: Accepts
    last: Accepts


Item: TypeAlias = One | Many | Upto


class Machine:
    """A compiled sequence of items. Bit i of a state means: everything before position i has matched."""

    __slots__ = ("_accept", "_keeps", "_loops", "_moves", "_skips", "_start", "_steps")

    def __init__(self, items: Iterable[Item]) -> None:
        steps: list[tuple[int, Accepts]] = []
        loops: list[tuple[int, Accepts]] = []
        at, self._skips = 0, 0
        for item in items:
            if isinstance(item, One):
                steps.append((1 << at, item.accepts))
                at += 1
            elif isinstance(item, Many):
                loops.append((1 << at, item.accepts))
            else:
                self._skips |= 1 << at  # to the inside, at + 1, or past it, at + 2
                loops.append((2 << at, item.accepts))
                steps.append((2 << at, item.last))
                at += 2
        self._steps, self._loops = steps, loops
        self._accept = 1 << at
        self._moves: dict[str, int] = {}
        self._keeps: dict[str, int] = {}
        self._start = self._closed(1)

    def _closed(self, state: int) -> int:
        while True:
            skipping = state & self._skips
            wider = state | skipping << 1 | skipping << 2
            if wider == state:
                return state
            state = wider

    def _step(self, state: int, char: str) -> int:
        moves = self._moves.get(char)
        if moves is None:
            moves = self._moves[char] = sum(bit for bit, accepts in self._steps if accepts(char))
            keeps = 0
            for bit, accepts in self._loops:
                if accepts(char):
                    keeps |= bit
            self._keeps[char] = keeps
        state = (state & moves) << 1 | state & self._keeps[char]
        return self._closed(state) if state & self._skips else state

    def covers(self, text: str) -> bool:
        """Whether the whole text matches."""
        state = self._start
        for char in text:
            state = self._step(state, char)
            if not state:
                return False
        return bool(state & self._accept)

    def ends(self, text: str, start: int = 0) -> tuple[int, int] | None:
        """Where the shortest and the longest match that begins at `start` end; None if none does."""
        state, at = self._start, start
        first = last = start if state & self._accept else -1
        while state and at < len(text):
            state = self._step(state, text[at])
            at += 1
            if state & self._accept:
                first, last = (at if first < 0 else first), at
        return None if first < 0 else (first, last)

    def begins(self, text: str) -> list[int]:
        """For a machine of the items in reverse: every place where a match of the items begins, ascending."""
        found = [len(text)] if self._start & self._accept else []
        state = self._start
        for at in range(len(text) - 1, -1, -1):
            state = self._step(state, text[at]) | self._start
            if state & self._accept:
                found.append(at)
        found.reverse()
        return found


__all__ = ["Item", "Machine", "Many", "One", "Upto"]
