# SPDX-License-Identifier: Apache-2.0
"""What the sources of a build turned out to be.

A server may change what it serves while a build runs. Each source is asked once for a build, by whoever comes first: its
frontend, which wants to know what it is, or its operation. What was said then holds until the build ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class _Asks(Protocol):
    """The builds that an answer is for."""

    @property
    def jobs(self) -> Sequence[Any]: ...


def recall(asks: _Asks, key: str) -> Any | None:
    """What one of the builds was told; None if none of them asked yet."""
    for job in asks.jobs:
        if key in job.resolved:
            return job.resolved[key]
    return None


def remember(asks: _Asks, key: str, value: Any) -> None:
    for job in asks.jobs:
        job.resolved.setdefault(key, value)


__all__ = ["recall", "remember"]
