# SPDX-License-Identifier: Apache-2.0
"""What drivers run as `buildctl` beside a daemon: `dial-stdio`, `debug workers`, `debug info`. Installed by the builder image."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from chantier.errors import UsageError

from .args import Parser
from .rows import table

_DEFAULT = "unix:///run/buildkit/buildkitd.sock"
_EXAMPLE = """buildctl --addr unix:///run/buildkit/buildkitd.sock dial-stdio
buildctl debug workers"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("buildctl", "Reach the daemon of this machine.", _EXAMPLE)
    parser.add_argument("words", nargs="+", metavar="COMMAND", help="dial-stdio, debug workers, or debug info")
    parser.add_argument("--addr", default=os.environ.get("BUILDKIT_HOST") or _DEFAULT, help="address of the daemon")
    parser.add_argument("--timeout", type=float, default=5, help="seconds to wait for the connection")
    given = parser.parse(args)
    words = tuple(given.words)
    if words == ("dial-stdio",):
        asyncio.run(_dial(given.addr, given.timeout))
    elif words == ("debug", "workers"):
        asyncio.run(_workers(given.addr, given.timeout))
    elif words == ("debug", "info"):
        asyncio.run(_info(given.addr, given.timeout))
    else:
        raise UsageError(f"unknown command: {' '.join(words)}", hint="commands are dial-stdio, debug workers and debug info")
    return 0


async def _dial(address: str, timeout_s: float) -> None:
    from chantier.driver.dial import stream_to
    from chantier.errors import ChantierError

    from .dial_stdio import relay

    if not address.startswith("unix://"):
        raise UsageError("dial-stdio connects to unix:// addresses only")
    try:
        async with asyncio.timeout(timeout_s):
            stream = await stream_to(address)
    except TimeoutError as err:
        raise ChantierError(f"failed to connect to {address}: no answer in {timeout_s:g} s") from err
    await relay(stream)


async def _workers(address: str, timeout_s: float) -> None:
    from chantier.client.client import Client
    from chantier.driver.dial import channel_to

    async with Client(channel_to(address)) as client:
        workers = await client.workers(timeout_s=timeout_s)
    rows = [[w.id, ",".join(str(p) for p in w.platforms)] for w in workers]
    sys.stdout.write(table(("ID", "PLATFORMS"), rows))


async def _info(address: str, timeout_s: float) -> None:
    from chantier.client.client import Client
    from chantier.driver.dial import channel_to

    async with Client(channel_to(address)) as client:
        version = await client.version(timeout_s=timeout_s)
    sys.stdout.write(f"BuildKit: {version.package} {version.version} {version.revision}\n" if version else "BuildKit: unknown\n")
