# SPDX-License-Identifier: Apache-2.0
"""containerd's filters on plain fields: `id==x`, `labels.key~=re`, `labels.a` (it is set); a comma is "and", a list "or"."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from chantier.errors import UsageError

_TERM = re.compile(
    r"""\s*(?P<field>[\w.-]+(?:\."[^"]*")?|[\w.-]*"[^"]*")\s*
    (?:(?P<op>==|!=|~=)\s*(?P<value>"(?:[^"\\]|\\.)*"|/[^/]*/|\|[^|]*\||[^,]*))?\s*(?:,|\Z)""",
    re.VERBOSE,
)


def matches(filters: Sequence[str], fields: Mapping[str, str]) -> bool:
    """Whether any of the filters holds; true if there are none. Raises UsageError."""
    texts = [text for text in filters if text.strip()]
    return not texts or any(_all(text, fields) for text in texts)


def _all(text: str, fields: Mapping[str, str]) -> bool:
    at, held = 0, True
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None:
            raise UsageError(f"failed to parse filter {text!r}: unexpected {text[at:]!r}")
        held &= _term(fields.get(match["field"].replace('"', "")), match["op"], match["value"])
        at = match.end()
    return held


def _term(have: str | None, op: str | None, raw: str | None) -> bool:
    value = (raw or "").strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in '"/|':
        value = value[1:-1]
    if op is None:
        return bool(have)
    if op == "==":
        return have == value
    if op == "!=":
        return have != value
    try:
        return re.search(value, have or "") is not None
    except re.error as err:
        raise UsageError(f"invalid regular expression {value!r}: {err}") from err


__all__ = ["matches"]
