# SPDX-License-Identifier: Apache-2.0
"""Symbolic file modes as chmod(1) writes them: `u=rwX,go=rX`.

    mode   := clause (',' clause)*
    clause := who* (op perm*)+        who: u g o a        op: + - =        perm: r w x X s t u g o

A clause without `who` means everybody; the umask plays no part. `X` is `x` for directories and for files that anybody may
already execute; `u`, `g`, `o` as perm copy the bits that class has. `=` also clears the set-id bits of the classes named.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from chantier.errors import UsageError

Change = Callable[[int], int]
"""st_mode -> the new permission bits (twelve of them)."""

_WHO = {
    "u": stat.S_IRWXU | stat.S_ISUID,
    "g": stat.S_IRWXG | stat.S_ISGID,
    "o": stat.S_IRWXO,
    "a": stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO | stat.S_ISUID | stat.S_ISGID,
}
_PERM = {"r": 0o444, "w": 0o222, "x": 0o111, "s": stat.S_ISUID | stat.S_ISGID, "t": stat.S_ISVTX}
_SHIFT = {"u": 6, "g": 3, "o": 0}


def parse_mode(text: str) -> Change:
    """Compile a symbolic (or octal) mode. Raises UsageError `invalid syntax`."""
    if text[:1].isdigit():
        return _octal(text)
    steps = [step for clause in text.split(",") for step in _clause(clause)]

    def change(mode: int) -> int:
        original = mode
        for who, op, perms in steps:
            mode = _apply(mode, original, who, op, perms)
        return mode & 0o7777

    return change


def _octal(text: str) -> Change:
    try:
        bits = int(text, 8)
    except ValueError:
        raise UsageError("invalid syntax") from None
    if bits > 0o7777 or not text.isascii() or not text.isdigit():
        raise UsageError("invalid syntax")
    return lambda _mode: bits


def _clause(clause: str) -> list[tuple[int, str, str]]:
    at = 0
    who = 0
    while at < len(clause) and clause[at] in _WHO:
        who |= _WHO[clause[at]]
        at += 1
    steps = []
    while at < len(clause) and clause[at] in "+-=":
        op = clause[at]
        at += 1
        start = at
        while at < len(clause) and clause[at] in "rwxXstugo":
            at += 1
        steps.append((who, op, clause[start:at]))
    if at < len(clause) or not steps:
        raise UsageError("invalid syntax")
    return steps


def _apply(mode: int, original: int, who: int, op: str, perms: str) -> int:
    bits = 0
    for perm in perms:
        if perm == "X":
            bits |= 0o111 if stat.S_ISDIR(original) or original & 0o111 else 0
        elif perm in _SHIFT:
            bits |= ((mode >> _SHIFT[perm]) & 7) * 0o111
        else:
            bits |= _PERM[perm]
    reach = who or _WHO["a"]
    # The sticky bit belongs to no class: any `who` but a lone `o` may change it.
    if reach & ~stat.S_IRWXO:
        reach |= stat.S_ISVTX
    if op == "+":
        return mode | (bits & reach)
    if op == "-":
        return mode & ~(bits & reach)
    return (mode & ~(who or _WHO["a"])) | (bits & reach)


__all__ = ["Change", "parse_mode"]
