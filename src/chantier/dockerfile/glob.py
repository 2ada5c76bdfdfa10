# SPDX-License-Identifier: Apache-2.0
"""The patterns of `${name#p}`, `${name%p}` and `${name/p/r}`: `*`, `?` and escapes, nothing else."""

from __future__ import annotations

import re
from typing import Final

from chantier.spec.machine import Item, Machine, Many, One

_EOF_RUNE: Final = "\ufffd"  # how the end of the text prints where a character was expected


class BadPattern(Exception):
    """The text says why, as stock frontends do."""


def strip_prefix(pattern: str, value: str, *, longest: bool) -> str:
    """The value without the shortest or longest start that the pattern matches."""
    ends = Machine(_items(pattern)).ends(value)
    return value if ends is None else value[ends[longest] :]


def strip_suffix(pattern: str, value: str, *, longest: bool) -> str:
    """The value without the shortest or longest end that the pattern matches."""
    ends = Machine(reversed(_items(pattern))).ends(value[::-1])
    return value if ends is None else value[: len(value) - ends[longest]]


def replace_first(pattern: str, replacement: str, value: str) -> str:
    """Put the replacement, as it is, for the first match; a match is as long as it can be."""
    items = _items(pattern)
    begins = Machine(reversed(items)).begins(value)
    if not begins:
        return value
    ends = Machine(items).ends(value, begins[0])
    return value[: begins[0]] + replacement + value[ends[1] if ends else begins[0] :]


def replace_all(pattern: str, template: str, value: str) -> str:
    """Put the filled template for every match; no empty match counts right after another one."""
    items = _items(pattern)
    forward = Machine(items)
    out: list[str] = []
    last = at = 0
    for start in Machine(reversed(items)).begins(value):
        if start < at:
            continue
        ends = forward.ends(value, start)
        end = ends[1] if ends else start
        out.append(value[last:start])
        if end > last or start == 0:
            out.append(_fill(template, value[start:end]))
        last = end
        at = max(start + 1, end)
    out.append(value[last:])
    return "".join(out)


def _any(char: str) -> bool:
    return char != "\n"


def _items(pattern: str) -> list[Item]:
    items: list[Item] = []
    i, n = 0, len(pattern)
    while i < n:
        char = pattern[i]
        i += 1
        if char == "*":
            items.append(Many(_any))
            continue
        if char == "?":
            items.append(One(_any))
            continue
        if char == "\\":
            following = pattern[i : i + 1]
            if following and following in "}/":
                continue  # escaped for the sake of the ${} around it
            i += 1
            if not following or following not in "*?\\":
                shown = following or _EOF_RUNE
                raise BadPattern(f"invalid pattern ({pattern}) in substitution: invalid escape '\\{shown}'")
            char = following
        items.append(One(char.__eq__))
    return items


_GROUP: Final = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))")


def _fill(template: str, whole: str) -> str:
    """Go's regexp.Expand: `$0` is the match, any other group is empty, `$$` is a dollar."""

    def one(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name = found[1] or found[2]
        return whole if name.isdecimal() and name.isascii() and int(name) == 0 else ""

    return _GROUP.sub(one, template)


__all__ = ["BadPattern", "replace_all", "replace_first", "strip_prefix", "strip_suffix"]
