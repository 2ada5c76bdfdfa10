# SPDX-License-Identifier: Apache-2.0
"""Numbers for people, as docker's go-units prints them."""

from __future__ import annotations

_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB")


def progress_size(count: int) -> str:
    """Bytes in a progress line: whole below 1000, else two decimals in powers of 1000 (`1.98MB`)."""
    if count < 1000:
        return f"{count}B"
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_DECIMAL) - 1:
        value /= 1000
        unit += 1
    return f"{value:.2f}{_DECIMAL[unit]}"


def seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.1f}s"


def log_time(nanoseconds: int) -> str:
    """Seconds since a step started: three decimals below ten, two below a hundred, then one."""
    value = nanoseconds / 1e9
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"
