# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from chantier.registry.ratelimit import clock, rate_limit, span

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "wait_s", "said"),
    [
        ({}, None, ""),
        ({"Retry-After": "30"}, 30, ""),
        ({"Retry-After": "Tue, 14 Nov 2023 22:14:20 GMT"}, 60, ""),
        ({"Retry-After": "soon"}, None, ""),
        ({"Retry-After": "Tue, 14 Nov 2022 22:14:20 GMT"}, 0, ""),
        ({"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"}, None, "100 per 6h, 0 left"),
        ({"X-Retry-After": "1700000090"}, 90, ""),
        (
            {"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1700000600"},
            600,
            "limit 5000, 0 left",
        ),
        ({"RateLimit-Limit": "10", "RateLimit-Remaining": "3", "RateLimit-Reset": "45"}, 45, "limit 10, 3 left"),
        ({"RateLimit": '"default";r=0;t=20', "RateLimit-Policy": '"default";q=100;w=3600'}, 20, "0 left"),
        ({"RateLimit": "limit=10, remaining=0, reset=5"}, 5, "limit 10, 0 left"),
    ],
)
def test_what_registries_say(headers: dict[str, str], wait_s: float | None, said: str) -> None:
    found = rate_limit(headers, NOW)
    assert found.wait_s(NOW) == wait_s
    assert str(found) == said


def test_for_people() -> None:
    assert [span(s) for s in (5, 60, 90, 3600, 21600, 5400, 90000)] == ["5s", "1m", "1m30s", "1h", "6h", "1h30m", "1d1h"]
    assert clock(NOW) == "2023-11-14 22:13:20 UTC"
