# SPDX-License-Identifier: Apache-2.0
"""`chantier du`: what the cache of a builder holds."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chantier.errors import UsageError

from .args import Parser
from .builders import add_builder, add_timeout, run_async, seconds
from .usage import block, cells, fields, filters_of, total

if TYPE_CHECKING:
    from chantier.client.worker import Usage

_EXAMPLE = """chantier du
chantier du --verbose --filter type=exec.cachemount
chantier du --format json"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier du", "Show what a builder's cache holds.", _EXAMPLE)
    parser.add_argument("--filter", action="append", default=[], metavar="NAME=VALUE", help="only these records")
    parser.add_argument("--format", default="", help="table, pretty, json, or a template")
    parser.add_argument("--verbose", action="store_true", help="the same as --format=pretty")
    add_builder(parser)
    add_timeout(parser)
    given = parser.parse(args)
    if given.verbose and given.format:
        raise UsageError("--format and --verbose cannot be used together")
    filters, _ = filters_of(given.filter)
    records = [
        r for found in run_async(over_nodes(given.builder, lambda c: c.usage(filters), seconds(given.timeout))) for r in found
    ]
    form = "pretty" if given.verbose else given.format or "table"
    if form == "pretty":
        sys.stdout.write("".join(block(r) + "\n" for r in records))
    elif form == "table":
        sys.stdout.write(_table(records))
    else:
        from .rows import template

        sys.stdout.write(template(form, [fields(r) for r in records]))
        return 0
    if not given.filter:
        sys.stdout.write(total(records))
    return 0


def _table(records: Sequence[Usage]) -> str:
    from .rows import table

    return table(("ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"), [cells(r) for r in records]) if records else ""


async def over_nodes(name: str | None, ask: Any, timeout_s: float) -> list[Any]:
    """`ask` of a client of each node that runs; nodes that do not are booted first."""
    from chantier.driver.embedded import Embedded
    from chantier.progress import Silent

    from .builders import find

    builder = find(name)
    try:
        if isinstance(builder, Embedded):
            return [await ask(await builder.client())]

        async def one(driver: Any) -> Any:
            async with await builder.reach(driver, Silent()) as client:
                return await ask(client)

        async with asyncio.timeout(None if timeout_s <= 0 else 600):
            return list(await asyncio.gather(*(one(d) for d in builder.drivers)))
    finally:
        await builder.aclose()


__all__ = ["over_nodes", "run"]
