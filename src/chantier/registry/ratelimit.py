# SPDX-License-Identifier: Apache-2.0
"""What a registry says of its rate limits, in whichever of the headers in use.

Retry-After (RFC 9110, 10.2.3), X-Retry-After (epoch), RateLimit-Limit / -Remaining / -Reset (draft-ietf-httpapi-ratelimit
before version 8, with Docker Hub's `;w=SECONDS`), RateLimit: "policy";r=0;t=30 (later versions), X-RateLimit-* (epoch or
seconds).
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from chantier.values import dataclass

_WINDOW = re.compile(r";\s*w=(\d+)")
_FIELD = re.compile(r"(?:^|[;,]\s*|\s)(r|remaining|t|reset|q|limit)=(\d+)")
_AN_EPOCH = 1_000_000_000  # seconds to wait are fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """None: not said. `reset_at` is seconds since the epoch."""

    limit: int | None = None
    remaining: int | None = None
    window_s: int | None = None
    retry_after_s: float | None = None
    reset_at: float | None = None

    def wait_s(self, now: float) -> float | None:
        if self.retry_after_s is not None:
            return self.retry_after_s
        return None if self.reset_at is None else max(0.0, self.reset_at - now)

    def __str__(self) -> str:
        """`100 per 6h, 0 left`; "" if nothing is known."""
        words = []
        if self.limit is not None:
            words.append(f"{self.limit} per {span(self.window_s)}" if self.window_s else f"limit {self.limit}")
        if self.remaining is not None:
            words.append(f"{self.remaining} left")
        return ", ".join(words)


def rate_limit(headers: Mapping[str, str], now: float | None = None) -> RateLimit:
    now = time.time() if now is None else now
    found = {name.lower(): value for name, value in headers.items()}
    fields = {key: int(value) for key, value in _FIELD.findall(found.get("ratelimit", ""))}
    limit_text = found.get("ratelimit-limit") or found.get("x-ratelimit-limit", "")
    window = _WINDOW.search(limit_text) or _WINDOW.search(found.get("ratelimit-policy", ""))
    reset = _reset(found, fields, now)
    return RateLimit(
        limit=_number(limit_text, fields.get("q", fields.get("limit"))),
        remaining=_number(
            found.get("ratelimit-remaining") or found.get("x-ratelimit-remaining", ""), fields.get("r", fields.get("remaining"))
        ),
        window_s=int(window[1]) if window else None,
        retry_after_s=_retry_after(found.get("retry-after", ""), now),
        reset_at=reset,
    )


def _reset(found: Mapping[str, str], fields: Mapping[str, int], now: float) -> float | None:
    for name in ("x-retry-after", "x-ratelimit-reset", "ratelimit-reset"):
        number = _number(found.get(name, ""), None)
        if number is not None:
            return float(number) if number > _AN_EPOCH else now + number
    seconds = fields.get("t", fields.get("reset"))
    return None if seconds is None else now + seconds


def _retry_after(text: str, now: float) -> float | None:
    text = text.strip()
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except ValueError:  # neither a number nor a date
        return None


def _number(text: str, otherwise: int | None) -> int | None:
    head = text.partition(";")[0].partition(",")[0].strip()
    return int(head) if head.isdecimal() else otherwise


def span(seconds: float) -> str:
    """`45s`, `12m`, `6h`, `3d`: for people."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            whole, rest = divmod(round(seconds), size)
            small = {"d": 3600, "h": 60, "m": 1}[unit]
            tail = rest // small
            return f"{whole}{unit}" + (f"{tail}{ {'d': 'h', 'h': 'm', 'm': 's'}[unit] }" if tail else "")
    return f"{seconds:.0f}s"


def clock(at: float) -> str:
    """`2026-01-02 15:04:05 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
