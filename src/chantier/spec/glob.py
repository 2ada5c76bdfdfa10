# SPDX-License-Identifier: Apache-2.0
"""Shell wildcards in source paths, as Go's path.Match reads them (COPY sources, LLB `allowWildcard`, followpaths).

`*` and `?` stop at `/`; `[^a-z]` negates with `^` only; `\\c` is the character c. Unlike `patterns`, a wildcard matches
one whole path and says nothing about what lies below.
"""

from __future__ import annotations

import posixpath
import re
from functools import lru_cache

from chantier.errors import ChantierError

from .patterns import check_syntax, clean


def has_wildcards(text: str) -> bool:
    """Whether a path or one component of it has an unescaped `*`, `?` or `[`."""
    i = 0
    while i < len(text):
        if text[i] in "*?[":
            return True
        i += 2 if text[i] == "\\" else 1
    return False


def split_wildcards(path: str) -> tuple[str, str]:
    """The directories before the first component with a wildcard, and the rest ("" if there is none)."""
    parts = clean(path).split("/")
    for i, part in enumerate(parts):
        if has_wildcards(part):
            head = "/".join(parts[:i])
            return head or ("/" if path.startswith("/") else ""), "/".join(parts[i:])
    return clean(path), ""


def glob_match(pattern: str, path: str) -> bool:
    """Whether the whole path matches. Raises ChantierError `syntax error in pattern`."""
    return compile_glob(pattern).match(path) is not None


@lru_cache(maxsize=256)
def compile_glob(pattern: str) -> re.Pattern[str]:
    """Raises ChantierError `syntax error in pattern`."""
    check_syntax(pattern)
    out = []
    i = 0
    while i < len(pattern):
        char = pattern[i]
        i += 1
        if char == "*":
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[":
            i = _class(pattern, i, out)
        elif char == "\\":
            out.append(re.escape(pattern[i]))
            i += 1
        else:
            out.append(re.escape(char))
    try:
        return re.compile("(?s:" + "".join(out) + r")\Z")
    except re.error as err:
        raise ChantierError("syntax error in pattern") from err


def _class(pattern: str, i: int, out: list[str]) -> int:
    negated = pattern[i] == "^"
    if negated:
        i += 1
    ranges = []
    first = True
    while first or pattern[i] != "]":
        first = False
        low, i = _class_char(pattern, i)
        high = low
        if pattern[i] == "-":
            high, i = _class_char(pattern, i + 1)
        if low <= high:  # Go takes a range that runs backwards as one that matches nothing
            ranges.append(f"{re.escape(low)}-{re.escape(high)}")
    if not ranges:
        out.append("[^/]" if negated else r"(?!)")
    else:
        out.append(("[^" if negated else "[") + "".join(ranges) + "]")
    return i + 1


def _class_char(pattern: str, i: int) -> tuple[str, int]:
    if pattern[i] == "\\":
        i += 1
    return pattern[i], i + 1


def base_name(path: str) -> str:
    """Go's path.Base: of `/` it is `/`, of `` it is `.`, a trailing slash does not count."""
    if not path:
        return "."
    stripped = path.rstrip("/")
    return posixpath.basename(stripped) if stripped else "/"


__all__ = ["base_name", "compile_glob", "glob_match", "has_wildcards", "split_wildcards"]
