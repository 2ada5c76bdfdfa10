# SPDX-License-Identifier: Apache-2.0
"""`chantier dial-stdio`: standard input and output become a connection to a builder's daemon."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from chantier.errors import UnsupportedError

from .args import Parser
from .builders import add_builder, run_async

_EXAMPLE = """chantier dial-stdio --builder box
ssh builder.example chantier dial-stdio"""
_PIECE = 1 << 16


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier dial-stdio", "Proxy standard input and output to a builder.", _EXAMPLE)
    parser.add_argument("--platform", default="", metavar="PLATFORM", help="the node that builds for this platform")
    parser.add_argument(
        "--progress", default="none", metavar="MODE", help="progress of the start: none, auto, plain, tty, rawjson"
    )
    add_builder(parser)
    given = parser.parse(args)
    from chantier.display import open_display
    from chantier.driver.select import find_builder

    builder = find_builder(given.builder, env=os.environ)
    if builder is None:
        raise UnsupportedError("the embedded engine has no connection to proxy", hint="use a builder, or run chantierd")
    display = open_display(given.progress, sys.stderr, heading=f"builder: {builder.group.name}", title=builder.title)
    try:
        run_async(_serve(builder, given.platform, display))
    finally:
        display.close()
    return 0


async def _serve(builder: Any, platform: str, display: Any) -> None:
    from chantier.progress import step

    try:
        driver = await builder.node_for(platform, display)
        with step(display, "Proxying to builder") as report:
            with report.action("Dialing builder"):
                await builder.boot(display, [driver])
                stream = await driver.stream(sticky=os.getcwd())
            await relay(stream)
    finally:
        await builder.aclose()


async def relay(stream: Any) -> None:
    """Until the other side ends, or standard output does; the end of standard input is only passed on."""
    loop = asyncio.get_running_loop()
    out = sys.stdout.buffer

    def there() -> None:
        # A thread that reads standard input cannot be stopped: as a daemon thread it keeps nobody waiting.
        try:
            while data := os.read(0, _PIECE):
                asyncio.run_coroutine_threadsafe(stream.write(data), loop).result()
            if hasattr(stream, "close_write"):
                asyncio.run_coroutine_threadsafe(stream.close_write(), loop).result()
        except (OSError, RuntimeError):
            return  # the connection is gone, and whoever reads from it knows

    threading.Thread(target=there, daemon=True).start()
    try:
        while data := await stream.read():
            out.write(data)
            out.flush()
    except BrokenPipeError:
        return
    finally:
        await stream.close()


__all__ = ["relay", "run"]
