# SPDX-License-Identifier: Apache-2.0
"""Values back to TOML text: only what differs from the defaults, scalars before tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any

from .schema import Table, keys_of
from .values import Config

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def dump(config: Config) -> str:
    """Text that `parse` reads back to an equal config."""
    return write_toml(_plain(config))


def _plain(value: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    default = type(value)()
    for name, (target, key) in keys_of(type(value)).items():
        mine = getattr(value, target.name)
        if mine == getattr(default, target.name):
            continue
        if not isinstance(key.kind, Table):
            out[name] = key.kind.write(mine)
        elif key.kind.many:
            out[name] = [_plain(item) for item in mine]
        elif key.kind.named:
            out[name] = {k: _plain(item) for k, item in mine.items()}
        else:
            out[name] = _plain(mine)
    return out


def write_toml(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """A document of plain values (dicts, lists, scalars) as TOML."""
    out = "".join(f"{_key(k)} = {_inline(v)}\n" for k, v in table.items() if not _is_table(v))
    for name, value in table.items():
        here = (*path, name)
        header = ".".join(_key(p) for p in here)
        if isinstance(value, Mapping):
            body = write_toml(value, here)
            only_tables = bool(value) and all(_is_table(v) for v in value.values())
            out += body if only_tables else f"\n[{header}]\n{body}"
        elif _is_table(value):
            out += "".join(f"\n[[{header}]]\n{write_toml(item, here)}" for item in value)
    return out


def write_pair(name: str, value: Any) -> str:
    """`name = value` on one line, whatever the value."""
    return f"{_key(name)} = {_inline(value)}"


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value))


def _key(name: str) -> str:
    return name if _BARE.match(name) else _string(name)


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return "nan" if math.isnan(value) else "inf" if value == math.inf else "-inf" if value == -math.inf else repr(value)
    if isinstance(value, int):
        return repr(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, list):
        return "[" + ", ".join(_inline(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + " }"
    raise TypeError(f"no TOML form for {type(value).__name__}")


def _string(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " or c == "\x7f" else c) for c in text) + '"'
