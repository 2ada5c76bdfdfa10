# SPDX-License-Identifier: Apache-2.0
"""A TOML document as go-toml writes one: sorted keys, 'strings', tables after scalars (builders.md 3.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def write(document: Mapping[str, Any]) -> str:
    lines: list[str] = []
    _table(document, (), lines)
    return "".join(line + "\n" for line in lines)


def _table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    for name in sorted(table):
        if not _is_table(table[name]):
            lines.append(f"{_key(name)} = {_value(table[name])}")
    for name in sorted(table):
        value = table[name]
        here = (*path, name)
        header = ".".join(_key(part) for part in here)
        if isinstance(value, Mapping):
            _header(f"[{header}]", lines)
            _table(value, here, lines)
        elif _is_table(value):
            for item in value:
                _header(f"[[{header}]]", lines)
                _table(item, here, lines)


def _header(text: str, lines: list[str]) -> None:
    if lines and not lines[-1].startswith("["):
        lines.append("")
    lines.append(text)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value))


def _key(name: str) -> str:
    return name if _BARE.match(name) else _string(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise TypeError(f"no TOML form for {type(value).__name__}")


def _string(text: str) -> str:
    if "'" not in text and all(c >= " " and c != "\x7f" for c in text):
        return f"'{text}'"
    return '"' + "".join(_ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " or c == "\x7f" else c) for c in text) + '"'


__all__ = ["write"]
