# SPDX-License-Identifier: Apache-2.0
"""The words the language knows, and the nearest one to a word it does not know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from chantier.errors import DockerfileError

INSTRUCTIONS: Final = (
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
)

_PLAIN_SIGNALS: Final = (
    "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT STOP SYS TERM TRAP "
    "TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX"
)
SIGNALS: Final = frozenset(
    [*_PLAIN_SIGNALS.split(), *(f"RTMIN+{n}" for n in range(1, 16)), *(f"RTMAX-{n}" for n in range(1, 15))]
)
"""Signal names without SIG, as Linux knows them."""

_NEAR: Final = 3  # a distance below this is a likely typing error


def check_signal(text: str) -> None:
    """Raise unless the text names a signal: `SIGTERM`, `term` or `15`."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    if digits.isascii() and digits.isdigit():
        if int(digits) != 0:
            return
    elif text.upper().removeprefix("SIG") in SIGNALS:
        return
    raise DockerfileError(f"invalid signal: {text}")


def nearest(word: str, options: Iterable[str], *, ignore_case: bool = False) -> str:
    """The option within two edits of the word, the first of the nearest; "" if none is, or if the word is an option."""
    wanted = word.lower() if ignore_case else word
    best, bound = "", _NEAR
    for option in options:
        candidate = option.lower() if ignore_case else option
        if candidate == wanted:
            return ""
        distance = edit_distance(wanted, candidate, bound)
        if distance < bound:
            best, bound = _cased(candidate, word) if ignore_case else candidate, distance
    return best


def hint(word: str, options: Iterable[str], *, ignore_case: bool = False) -> str:
    """` (did you mean X?)`, or "" where there is nothing near."""
    found = nearest(word, options, ignore_case=ignore_case)
    return f" (did you mean {found}?)" if found else ""


def _cased(lower: str, like: str) -> str:
    return lower.upper() if like != like.lower() and like == like.upper() else lower


def edit_distance(a: str, b: str, bound: int) -> int:
    """Levenshtein distance of two words; anything at or above `bound` may be given as `bound`."""
    if abs(len(a) - len(b)) >= bound:
        return bound
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        left, diagonal = i, row[0]
        row[0] = i
        for j, y in enumerate(b, 1):
            left = min(left + 1, row[j] + 1, diagonal + (x != y))
            diagonal, row[j] = row[j], left
        if min(row) >= bound:
            return bound
    return row[-1]


__all__ = ["INSTRUCTIONS", "SIGNALS", "check_signal", "edit_distance", "hint", "nearest"]
