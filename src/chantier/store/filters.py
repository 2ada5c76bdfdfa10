# SPDX-License-Identifier: Apache-2.0
"""Filters of `du` and `prune`, in the syntax of containerd/filters: `type==exec.cachemount,description~=apt`.

A comma means "and"; of a list of filters any may match. A selector is FIELD (it is set), FIELD==VALUE, FIELD!=VALUE or
FIELD~=REGEX; values may be quoted with ", / or |. Fields: id, parents, description, type, and the flags inuse, mutable,
immutable, shared, private.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from chantier.errors import UsageError

from .types import UsageRecord

_SELECTOR = re.compile(
    r"""\s*(?P<field>[A-Za-z_][\w.-]*)\s*
    (?:(?P<op>==|!=|~=)\s*(?P<value>"(?:[^"\\]|\\.)*"|/[^/]*/|\|[^|]*\||[^,]*))?\s*""",
    re.VERBOSE,
)
_FIELDS: dict[str, Callable[[UsageRecord], str | bool]] = {
    "id": lambda record: record.id,
    "parents": lambda record: ";".join(record.parents),
    "description": lambda record: record.description,
    "type": lambda record: record.record_type,
    "inuse": lambda record: record.in_use,
    "mutable": lambda record: record.mutable,
    "immutable": lambda record: not record.mutable,
    "shared": lambda record: record.shared,
    "private": lambda record: not record.shared,
}
Filter = Callable[[UsageRecord], bool]


def compile_filters(filters: Sequence[str]) -> Filter:
    """A test for records: true if any filter matches, or there are none. Raises UsageError."""
    tests = [_compile_filter(text) for text in filters if text.strip()]
    return lambda record: not tests or any(test(record) for test in tests)


def _compile_filter(text: str) -> Filter:
    selectors: list[Filter] = []
    place = 0
    while True:
        match = _SELECTOR.match(text, place)
        if match is None or (match.end() < len(text) and text[match.end()] != ","):
            rest = text[match.end() if match else place :]
            raise UsageError(f"failed to parse filter {text!r}: unexpected {rest!r}")
        selectors.append(_selector(text, match["field"], match["op"], match["value"]))
        if match.end() == len(text):
            break
        place = match.end() + 1
    return lambda record: all(selector(record) for selector in selectors)


def _selector(text: str, field: str, op: str | None, raw: str | None) -> Filter:
    get = _FIELDS.get(field.lower())
    if get is None:
        raise UsageError(f"failed to parse filter {text!r}: unknown field {field!r}", hint="known: " + ", ".join(_FIELDS))
    value = _unquoted(text, raw or "")
    if op is None:
        return lambda record: bool(get(record))
    if op == "~=":
        try:
            pattern = re.compile(value)
        except re.error as err:
            raise UsageError(f"failed to parse filter {text!r}: {err}") from err
        return lambda record: pattern.search(_text(get(record))) is not None
    if op == "!=":
        return lambda record: _text(get(record)) != value
    return lambda record: _text(get(record)) == value


def _text(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _unquoted(text: str, raw: str) -> str:
    raw = raw.strip()
    if raw[:1] in ("/", "|") and len(raw) > 1 and raw[-1] == raw[0]:
        return raw[1:-1]
    if not raw.startswith('"'):
        return raw
    try:
        return str(json.loads(raw))
    except ValueError as err:
        raise UsageError(f"failed to parse filter {text!r}: bad quoted value {raw}") from err


__all__ = ["Filter", "compile_filters"]
