# SPDX-License-Identifier: Apache-2.0
"""`chantier stop`: a builder's engines stop; the next build starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .args import Parser
from .builders import add_builder, run_async


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier stop", "Stop a builder.", "chantier stop box")
    parser.add_argument("name", nargs="?", default=None, help="the builder (default: the one in use)")
    add_builder(parser)
    given = parser.parse(args)
    from chantier.driver.select import find_builder

    found = find_builder(given.name or given.builder, env=os.environ, check=False)
    if found is None:
        return 0  # the embedded engine runs only while something is built

    async def work() -> None:
        try:
            for driver in found.drivers:
                await driver.stop()
        finally:
            await found.aclose()

    run_async(work())
    return 0
