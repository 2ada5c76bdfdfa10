# SPDX-License-Identifier: Apache-2.0
"""Rows for people and for programs: tables, JSON lines, templates with fields of a row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from chantier.errors import UsageError

_FIELD = re.compile(r"\{\{-?\s*(json\s+)?\.(\w*)\s*-?\}\}")
_MIN_WIDTH = 10
_GAP = 3


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns at least ten wide and three apart; the last one is not padded."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(_MIN_WIDTH, *(len(line[i]) + _GAP for line in lines)) for i in range(len(header))]
    return "".join("".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines)


def template(form: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """`json`: one object a line; else a Go template of fields, `{{.Name}}` and `{{json .}}`. Raises UsageError."""
    if form == "json":
        return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    return "".join(_fill(form, row) + "\n" for row in rows)


def _fill(form: str, row: Mapping[str, Any]) -> str:
    def field(match: re.Match[str]) -> str:
        name = match[2]
        if name and name not in row:
            raise UsageError(f"template has no field .{name}", hint="fields are " + ", ".join(f".{k}" for k in row))
        value = row[name] if name else dict(row)
        if match[1] or not isinstance(value, str):
            return json.dumps(value, separators=(",", ":"))
        return value

    out = _FIELD.sub(field, form.replace("\\t", "\t").replace("\\n", "\n"))
    if "{{" in out:
        raise UsageError(f"unsupported template {form!r}", hint="{{.Field}}, {{json .Field}} and {{json .}} are understood")
    return out


def aligned(lines: Sequence[str], *, padding: int = 1) -> str:
    """`label:\\tvalue` lines with their values in one column; a line without a tab starts anew."""
    out: list[str] = []
    block: list[tuple[str, str]] = []

    def flush() -> None:
        width = max((len(label) for label, _ in block), default=0) + padding
        out.extend((label.ljust(width) + value).rstrip() for label, value in block)
        block.clear()

    for line in lines:
        label, tab, value = line.partition("\t")
        if tab:
            block.append((label, value))
            continue
        flush()
        out.append(line)
    flush()
    return "".join(line + "\n" for line in out)


__all__ = ["aligned", "table", "template"]
