# SPDX-License-Identifier: Apache-2.0
"""Sizes and times as docker's tools write them (builders.md 0.8)."""

from __future__ import annotations

_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def human_size(size: float) -> str:
    """Decimal units, four digits: `8.192kB`."""
    return _size(size, 1000.0, _DECIMAL)


def bytes_size(size: float) -> str:
    """Binary units, four digits: `9.313GiB`."""
    return _size(size, 1024.0, _BINARY)


def _size(size: float, base: float, units: tuple[str, ...]) -> str:
    step = 0
    while size >= base and step < len(units) - 1:
        size /= base
        step += 1
    return f"{size:.4g}{units[step]}"


def human_duration(seconds: float) -> str:
    """`About a minute`, `3 weeks`."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = hours // 24
    if hours < 24 * 7 * 2:
        return f"{days} days"
    if hours < 24 * 30 * 2:
        return f"{days // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{days // 30} months"
    return f"{days // 365} years"


def go_duration(ns: int) -> str:
    """As Go prints a time.Duration of whole seconds: `48h0m0s`."""
    seconds, rest = divmod(ns, 1_000_000_000)
    if not seconds and rest:
        for unit, size in (("ms", 1_000_000), ("µs", 1000), ("ns", 1)):
            if rest >= size:
                return f"{rest / size:g}{unit}"
    fraction = f"{rest / 1e9:.9f}".rstrip("0")[1:].rstrip(".") if rest else ""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}{fraction}s"
    if minutes:
        return f"{minutes}m{seconds}{fraction}s"
    return f"{seconds}{fraction}s"


__all__ = ["bytes_size", "go_duration", "human_duration", "human_size"]
