# SPDX-License-Identifier: Apache-2.0
"""One input made of others: bits, bytes, tokens and pieces change, go, double or move."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

MAX_BYTES = 1 << 16
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1)


class Mutator:
    """`tokens` are pieces that mean something to the target."""

    def __init__(self, chance: random.Random, tokens: Sequence[bytes]) -> None:
        self._chance = chance
        self._tokens = tokens
        self._ways: tuple[Callable[[bytearray], None], ...] = (
            self._flip,
            self._replace,
            self._token,
            self._token,
            self._delete,
            self._double,
            self._move,
            self._number,
            self._overwrite_token,
        )

    def __call__(self, data: bytes, other: bytes) -> bytes:
        out = bytearray(data)
        if self._chance.random() < 0.2:
            out = self._spliced(data, other)
        for _ in range(1 << self._chance.randrange(5)):
            self._chance.choice(self._ways)(out)
        return bytes(out[:MAX_BYTES])

    def _at(self, out: bytearray) -> int:
        return self._chance.randrange(len(out) + 1)

    def _piece(self, out: bytearray) -> slice:
        start = self._at(out)
        length = min(len(out) - start, 1 << self._chance.randrange(10))
        return slice(start, start + self._chance.randrange(length + 1))

    def _spliced(self, data: bytes, other: bytes) -> bytearray:
        return bytearray(data[: self._chance.randrange(len(data) + 1)] + other[self._chance.randrange(len(other) + 1) :])

    def _flip(self, out: bytearray) -> None:
        if out:
            out[self._chance.randrange(len(out))] ^= 1 << self._chance.randrange(8)

    def _replace(self, out: bytearray) -> None:
        if out:
            out[self._chance.randrange(len(out))] = self._chance.randrange(256)

    def _token(self, out: bytearray) -> None:
        at = self._at(out)
        out[at:at] = self._chance.choice(self._tokens)

    def _overwrite_token(self, out: bytearray) -> None:
        token, at = self._chance.choice(self._tokens), self._at(out)
        out[at : at + len(token)] = token

    def _delete(self, out: bytearray) -> None:
        del out[self._piece(out)]

    def _double(self, out: bytearray) -> None:
        piece, at = bytes(out[self._piece(out)]), self._at(out)
        out[at:at] = piece * self._chance.choice((1, 1, 1, 2, 8, 64))

    def _move(self, out: bytearray) -> None:
        where = self._piece(out)
        piece = bytes(out[where])
        del out[where]
        at = self._at(out)
        out[at:at] = piece

    def _number(self, out: bytearray) -> None:
        size = self._chance.choice((1, 2, 4, 8))
        order = self._chance.choice(("little", "big"))
        at = self._at(out)
        out[at : at + size] = (self._chance.choice(_NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, order)


__all__ = ["MAX_BYTES", "Mutator"]
