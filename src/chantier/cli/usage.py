# SPDX-License-Identifier: Apache-2.0
"""What `du` and `prune` share: filters of the cache, records as rows and as blocks (builders.md 4.6, 4.7)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from chantier.display.human import human_duration, human_size
from chantier.errors import UsageError

from .builders import seconds

if TYPE_CHECKING:
    from chantier.client.worker import Usage


def filters_of(values: Sequence[str]) -> tuple[list[str], int]:
    """`name=value` flags to the daemon's one filter, and how long to keep what is unused (ns). Raises UsageError."""
    named: dict[str, list[str]] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise UsageError("bad format of filter (expected name=value)")
        named.setdefault(name.strip(), []).append(text)
    if "until" in named and "unused-for" in named:
        raise UsageError('conflicting filters "until" and "unused-for"')
    keep = 0
    parts = []
    for name, texts in named.items():
        if len(set(texts)) > 1:
            raise UsageError(f'"{name}" filter expects only one value')
        text = texts[0]
        if name in ("until", "unused-for"):
            try:
                keep = int(seconds(text) * 1e9)
            except UsageError as err:
                raise UsageError(f"\"{name}\" filter expects a duration (e.g., '24h'): {err}") from err
        elif name == "id":
            parts.append(f"id~={text}")
        elif name.endswith(("!", "~")):
            parts.append(f"{name}={text}")
        else:
            parts.append(f"{name}=={text}" if text else name)
    return ([",".join(parts)] if parts else []), keep


def ago(at: int | None) -> str:
    return f"{human_duration(max(0.0, time.time() - at / 1e9))} ago" if at else ""


def stamp(at: int | None) -> str:
    """As Go prints a time in UTC."""
    if not at:
        return ""
    seconds_, ns = divmod(at, 1_000_000_000)
    fraction = f".{ns:09d}".rstrip("0").rstrip(".") if ns else ""
    return f"{datetime.fromtimestamp(seconds_, UTC):%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"


def fields(record: Usage) -> dict[str, Any]:
    """A row for templates and JSON."""
    return {
        "ID": record.id,
        "Parents": list(record.parents) or None,
        "CreatedAt": stamp(record.created_at),
        "Mutable": record.mutable,
        "Reclaimable": not record.in_use,
        "Shared": record.shared,
        "Size": human_size(record.size),
        "Description": record.description,
        "UsageCount": record.usage_count,
        "LastUsedAt": ago(record.last_used_at),
        "Type": record.record_type,
    }


def cells(record: Usage) -> list[str]:
    return [
        record.id + ("*" if record.mutable else ""),
        str(not record.in_use).lower(),
        human_size(record.size) + ("*" if record.shared else ""),
        ago(record.last_used_at),
    ]


def block(record: Usage, *, tabs: bool = False) -> str:
    """All that is known of a record, a line each."""
    lines = [("ID", record.id)]
    if record.parents:
        lines.append(("Parent" if tabs else "Parents", ", ".join(record.parents) if tabs else ""))
    lines += [
        ("Created at", stamp(record.created_at)),
        ("Mutable", str(record.mutable).lower()),
        ("Reclaimable", str(not record.in_use).lower()),
        ("Shared", str(record.shared).lower()),
        ("Size", human_size(record.size)),
    ]
    if record.description:
        lines.append(("Description", record.description))
    lines.append(("Usage count", str(record.usage_count)))
    if record.last_used_at:
        lines.append(("Last used", ago(record.last_used_at)))
    if record.record_type:
        lines.append(("Type", record.record_type))
    if tabs:
        return "".join(f"{name}:\t{value}\n" for name, value in lines)
    out = ""
    for name, value in lines:
        out += f"{name + ':':14}{value}".rstrip() + "\n"
        if name == "Parents":
            out += "".join(f" - {parent}\n" for parent in record.parents)
    return out


def _sum(records: Sequence[Usage]) -> str:
    return human_size(sum(r.size for r in records if r.size > 0))


def total(records: Sequence[Usage]) -> str:
    """The sums at the end of `du`."""
    lines = []
    shared = [r for r in records if r.shared]
    if sum(r.size for r in shared) > 0:
        lines += [("Shared", _sum(shared)), ("Private", _sum([r for r in records if not r.shared]))]
    lines += [("Reclaimable", _sum([r for r in records if not r.in_use])), ("Total", _sum(records))]
    return "".join(f"{name}:\t{value}\n" for name, value in lines)


__all__ = ["ago", "block", "cells", "fields", "filters_of", "stamp", "total"]
