# SPDX-License-Identifier: Apache-2.0
"""What the commands on builders share: the flag `--builder`, the builder it means, nodes asked at once."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from .args import Parser

if TYPE_CHECKING:
    from chantier.driver.builder import Builder
    from chantier.driver.embedded import Embedded

T = TypeVar("T")


def add_builder(parser: Parser) -> None:
    parser.add_argument(
        "--builder", default=None, metavar="NAME", help="the builder (default: $BUILDX_BUILDER, or the one in use)"
    )


def add_timeout(parser: Parser) -> None:
    parser.add_argument("--timeout", default="20s", metavar="TIME", help="how long a node may take to answer")


def seconds(text: str) -> float:
    """A Go duration, such as 1m30s. Raises UsageError."""
    import re

    from chantier.errors import UsageError

    units = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise UsageError(f'invalid duration "{text}"', hint="durations look like 24h or 1m30s")
    return sum(float(number) * units[unit] for number, unit in parts)


def find(name: str | None, *, check: bool = True) -> Builder | Embedded:
    """Raises NotFoundError, UsageError."""
    from chantier.driver.select import find_builder

    found = find_builder(name, env=os.environ, check=check)
    if found is not None:
        return found
    from chantier.driver.embedded import Embedded

    return Embedded(env=os.environ)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def confirm(question: str) -> bool:
    """Ask on standard output; anything but y is no."""
    sys.stdout.write(f"{question} Are you sure you want to continue? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip() in ("y", "Y")


__all__ = ["add_builder", "add_timeout", "confirm", "find", "run_async", "seconds"]
