# SPDX-License-Identifier: Apache-2.0
"""Which pod of several: a ring with one point for each, so that one context meets the same pod and its cache again."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Sequence


def sticky(pods: Sequence[str], key: str) -> str:
    """The pod whose point comes next after that of the key; points as upstream has them, so both tools pick the same."""
    ring = sorted((_point(f"{pod}-0"), pod) for pod in pods)
    at = _point(key)
    return next((pod for point, pod in ring if point > at), ring[0][1])


def _point(text: str) -> tuple[int, int]:
    first, second = struct.unpack("<qq", hashlib.md5(text.encode(), usedforsecurity=False).digest())
    return first, second


def pick(pods: Sequence[str], key: str, mode: str) -> str:
    return random.choice(list(pods)) if mode == "random" else sticky(pods, key)


__all__ = ["pick", "sticky"]
