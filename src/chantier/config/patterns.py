# SPDX-License-Identifier: Apache-2.0
"""Names of registry tables that stand for many hosts: `*` for all, `*.corp.example` for all below a domain.

BuildKit takes such a table for a registry of that very name, which no reference can have: it has no effect there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_BELOW = re.compile(r"\*(\.[^*:/\s]+)(:\d+)?\Z")


def is_pattern(name: str) -> bool:
    return "*" in name


def pattern_error(name: str) -> str:
    """What is wrong with a name that has a star; "" if nothing is."""
    if not is_pattern(name) or name == "*" or _BELOW.match(name):
        return ""
    return 'a star stands for any host ("*") or for all below a domain ("*.corp.example"), and nowhere else'


def matching(host: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names that mean `host` (HOST[:PORT]), the most specific first: its own, the longest domain, `*`.

    A pattern without a port means every port.
    """
    found = [(rank, name) for name in names if (rank := _rank(host, name)) is not None]
    return tuple(name for _, name in sorted(found, reverse=True))


def _rank(host: str, name: str) -> tuple[int, int, bool] | None:
    if name == host:
        return 2, 0, False
    if name == "*":
        return 0, 0, False
    match = _BELOW.match(name)
    if match is None:
        return None
    bare, _, port = host.lower().partition(":")
    if not bare.endswith(match[1].lower()) or bare == match[1].lower() or (match[2] and match[2] != f":{port}"):
        return None
    return 1, len(match[1]), bool(match[2])
