# SPDX-License-Identifier: Apache-2.0
"""What became of the attacks that attack.c makes."""

from __future__ import annotations

from typing import Any

_OUTCOMES: dict[tuple[str, str], dict[str, str]] = {}


def outcomes(sh: Any, kind: str, command: str, whats: list[str], **process: Any) -> dict[str, str]:
    """What became of each attack; one container tries them all, once for each runtime and user."""
    key = kind, f"{command} {whats[0]} {process}"
    if key not in _OUTCOMES:
        ran = sh("; ".join(f"echo {what} $({command.format(what)} 2>&1)" for what in whats), process=process)
        _OUTCOMES[key] = dict(line.partition(" ")[::2] for line in ran.out.splitlines())
    return _OUTCOMES[key]


def refused(outcome: str) -> bool:
    """An error, or death by the filter: then there is no word."""
    return outcome.startswith("refused ") or not outcome
