# SPDX-License-Identifier: Apache-2.0
"""WWW-Authenticate, parsed (RFC 9110 section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from chantier.values import dataclass

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAM = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))')
_SCHEME = re.compile(_WORD)
_GAP = re.compile(r"[\s,]+")
_TOKEN68 = re.compile(r"[0-9A-Za-z._~+/-]+=*(?=\s*(?:,|\Z))")
_RANK = {"bearer": 0, "basic": 1}


@dataclass(frozen=True, slots=True)
class Challenge:
    scheme: str  # lower case
    params: Mapping[str, str]


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """All challenges of all header lines, bearer before basic. What makes no sense is skipped."""
    found: list[Challenge] = []
    for header in headers:
        found.extend(_one_line(header))
    return sorted(found, key=lambda c: _RANK.get(c.scheme, 2))


def _one_line(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    params: dict[str, str] = {}
    at = 0
    while at < len(text):
        if gap := _GAP.match(text, at):
            at = gap.end()
        elif found and (param := _PARAM.match(text, at)):
            quoted = param[2]
            params[param[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else param[3]
            at = param.end()
        elif scheme := _SCHEME.match(text, at):
            params = {}
            found.append(Challenge(scheme[0].lower(), params))
            at = scheme.end()
            rest = _GAP.match(text, at)
            if rest and "," not in rest[0] and (token := _TOKEN68.match(text, rest.end())):
                at = token.end()
        else:
            at += 1
    return found
