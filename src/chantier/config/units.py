# SPDX-License-Identifier: Apache-2.0
"""Sizes and durations as BuildKit's config writes them."""

from __future__ import annotations

import re

from chantier.values import dataclass

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?\Z", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION = re.compile(r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+\Z")
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """So many bytes, or so many percent of the disk. Both zero: not set."""

    bytes: int = 0
    percent: int = 0

    def __bool__(self) -> bool:
        return bool(self.bytes or self.percent)

    def of(self, disk_bytes: int) -> int:
        """In bytes. A percentage is rounded up to whole gigabytes, as BuildKit does; 2 GB if the disk's size is unknown (0)."""
        if self.bytes or not self.percent:
            return self.bytes
        if disk_bytes <= 0:
            return 2_000_000_000
        return (disk_bytes * self.percent // 100 // 2**30 + 1) * 1_000_000_000


def read_size(raw: object) -> Size:
    """`10GB` (1024-based, as docker's RAM sizes), `20%` or a number of bytes. Raises ValueError."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError(_got('a size such as 1000000, "10GB" or "20%"', raw))
    if not isinstance(raw, str):
        if raw < 0:
            raise ValueError(f"a size cannot be negative, got {raw}")
        return Size(bytes=int(raw))
    text = raw.strip()
    if not text:
        return Size()
    if text.endswith("%"):
        if not text[:-1].isdecimal() or int(text[:-1]) > 100:
            raise ValueError(f"want a whole percentage from 0% to 100%, got {raw!r}")
        return Size(percent=int(text[:-1]))
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f'want a size such as 1000000, "10GB" or "20%", got {raw!r}')
    return Size(bytes=int(float(match[1]) * 1024 ** _POWER[match[2].lower()]))


def write_size(size: Size) -> int | str:
    return f"{size.percent}%" if size.percent else size.bytes


def read_duration(raw: object) -> float:
    """`48h`, `1h30m`, `500ms` (Go's form) or a number of seconds; in seconds. Raises ValueError."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError(_got('a duration such as "48h" or a number of seconds', raw))
    if not isinstance(raw, str):
        if raw < 0:
            raise ValueError(f"a duration cannot be negative, got {raw}")
        return float(raw)
    text = raw.strip()
    if text.isdecimal():
        return float(text)
    if not text:
        return 0.0
    if not _DURATION.match(text) or text.startswith("-"):
        raise ValueError(f'want a duration such as "48h" or a number of seconds, got {raw!r}')
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))


def write_duration(seconds: float) -> int | str:
    if seconds == int(seconds):
        return int(seconds)
    short = f"{seconds:g}s"
    return short if read_duration(short) == seconds else f"{round(seconds * 1e9)}ns"


def _got(want: str, raw: object) -> str:
    return f"want {want}, got {name_of(raw)}"


def name_of(raw: object) -> str:
    """A TOML value as an error shows it: its text if short, else its type."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, int | float | str):
        return repr(raw) if len(repr(raw)) <= 60 else type(raw).__name__
    return {"dict": "a table", "list": "an array"}.get(type(raw).__name__, f"a {type(raw).__name__}")
