# SPDX-License-Identifier: Apache-2.0
"""Times as JSON documents write them (RFC 3339, as Go prints them), to and from nanoseconds since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(nanoseconds: int) -> str:
    """In UTC; trailing zeros of the fraction are dropped."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    return text.rjust(19, "0") + (f".{rest:09d}".rstrip("0") if rest else "") + "Z"


def parse_rfc3339(text: str) -> int:
    """Nanoseconds since the epoch, negative before it. Raises ValueError."""
    body, fraction = text, ""
    if "." in text:
        body, rest = text.split(".", 1)
        digits = len(rest) - len(rest.lstrip("0123456789"))
        fraction, zone = rest[:digits], rest[digits:]
        body += zone
    moment = datetime.fromisoformat(body.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(f"no time zone in {text!r}")
    whole = (moment - _EPOCH) // timedelta(seconds=1)
    return whole * 1_000_000_000 + int((fraction + "000000000")[:9])


__all__ = ["parse_rfc3339", "rfc3339"]
