# SPDX-License-Identifier: Apache-2.0
"""The platforms of a node as `ls` shows them: fixed ones first, families folded (builders.md 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

from chantier.spec import Platform

_LIMIT = 4
_MAJOR = ("linux/amd64", "linux/arm64", "linux/arm", "linux/ppc64le", "linux/s390x", "linux/riscv64", "linux/mips64")


def named(fixed: Sequence[Platform], able: Sequence[Platform]) -> list[str]:
    """All of them, fixed ones first and with a star."""
    first = [str(p.normalise()) for p in fixed]
    rest = [text for p in able if (text := str(p.normalise())) not in first]
    return [f"{p}*" for p in dict.fromkeys(first)] + list(dict.fromkeys(rest))


def folded(fixed: Sequence[Platform], able: Sequence[Platform]) -> str:
    """At most four groups: `linux/amd64 (+4), linux/arm64*, (3 more)`."""
    texts = named(fixed, able)
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault("/".join(text.rstrip("*").split("/")[:2]), []).append(text)
    majors = [name for name in _MAJOR if name in groups]
    others = sorted(name for name in groups if name not in _MAJOR)
    shown: list[str] = []
    hidden = 0
    for name in [*majors, *others]:
        members = groups[name]
        if len(shown) >= _LIMIT:
            hidden += len(members)
        elif len(members) == 1:
            shown.append(members[0])
        else:
            star = "*" if any(m.endswith("*") for m in members) else ""
            shown.append(f"{name}{star} (+{len(members)})")
    if hidden:
        shown.append(f"({hidden} more)")
    return ", ".join(shown)


__all__ = ["folded", "named"]
