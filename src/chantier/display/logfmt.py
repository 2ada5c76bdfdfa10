# SPDX-License-Identifier: Apache-2.0
"""Log lines as BuildKit writes them: logrus' text form (`time="…" level=debug msg="do request" host=…`) and its JSON form.

Structured values stand in the attribute `fields` of a record, a dict whose keys may have dots.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
_LEVELS = {"CRITICAL": "fatal", "ERROR": "error", "WARNING": "warning", "INFO": "info", "DEBUG": "debug"}
TRACE = 5
"""BuildKit's level below debug."""

_NUMBERS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}


class TextFormatter(logging.Formatter):
    """`key=value` pairs: time, level, msg, then the fields by name; a value is quoted only where it must be."""

    def format(self, record: logging.LogRecord) -> str:
        head = f'time="{_time(record)}" level={_level(record)} msg={_value(record.getMessage())}'
        return head + "".join(f" {key}={_value(value)}" for key, value in sorted(_fields(record).items()))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, keys sorted; a field named as one of time, level and msg becomes `fields.NAME`."""

    def format(self, record: logging.LogRecord) -> str:
        own = {"level": _level(record), "msg": record.getMessage(), "time": _time(record)}
        fields = {f"fields.{key}" if key in own else key: _json(value) for key, value in _fields(record).items()}
        return json.dumps(own | fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def install(level: str = "info", form: str = "text", stream: TextIO | None = None) -> logging.Handler:
    """Send the log of `chantier` to `stream` (stderr), and nowhere else. Called again it replaces what it installed."""
    root = logging.getLogger("chantier")
    for old in [h for h in root.handlers if getattr(h, "chantier", False)]:
        root.removeHandler(old)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.chantier = True  # type: ignore[attr-defined]  # marks it as ours
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root.addHandler(handler)
    root.setLevel(_NUMBERS[level or "info"])
    root.propagate = False
    return handler


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", None) or {}
    found = dict(fields)
    if record.exc_info and record.exc_info[1] is not None:
        found.setdefault("error", str(record.exc_info[1]) or type(record.exc_info[1]).__name__)
    return found


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _level(record: logging.LogRecord) -> str:
    return "trace" if record.levelno <= TRACE else _LEVELS.get(record.levelname, record.levelname.lower())


def _value(value: object) -> str:
    text = _text(value)
    if text and _PLAIN.issuperset(text):
        return text
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else _hex(c)) for c in text) + '"'


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + " ".join(_text(v) for v in value) + "]"
    return str(value)


def _hex(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [_json(v) for v in value] if isinstance(value, list | tuple) else str(value)


__all__ = ["TRACE", "JsonFormatter", "TextFormatter", "install"]
