# SPDX-License-Identifier: Apache-2.0
"""An engine that the library has started for one process of its user: `python -m chantier.daemon.inner LISTENING LIFE FLAG…`.

It serves the socket that it inherits as LISTENING, beside other processes on the same state directory, and ends when the pipe
LIFE does: when its user lets go of it, or has died.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from chantier.errors import ChantierError

from .daemon import Daemon
from .flags import Settings, parse

# Who asks and who owns the engine are one: nothing that a build is granted has to be allowed by somebody else.
_ALL = [f"--allow-insecure-entitlement={name}" for name in ("network.host", "security.insecure", "device")]


class Inner(Daemon):
    """A daemon that is not the only one on its root."""

    def _take_lock(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)


def main(argv: Sequence[str]) -> int:
    listening, life, flags = int(argv[0]), int(argv[1]), argv[2:]
    logging.getLogger("chantier").setLevel(logging.WARNING)
    try:
        settings = parse([*flags, "--addr", f"fd://{listening}", *_ALL])
        asyncio.run(_serve(settings, life))
    except ChantierError as err:
        sys.stderr.write(f"{err}\n" + (f"{err.hint}\n" if err.hint else ""))
        return err.exit_code
    return 0


async def _serve(settings: Settings, life: int) -> None:
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(name, lambda: None)  # the user's terminal speaks to the user's process
    async with Inner(settings) as daemon:
        loop.add_signal_handler(signal.SIGTERM, daemon.stop)
        loop.add_reader(life, _on_end, life, daemon)
        await daemon.wait()
        daemon.stop()  # a second time: whoever wanted the results is gone
        await daemon.builds.drained()


def _on_end(life: int, daemon: Daemon) -> None:
    if not os.read(life, 1):
        asyncio.get_running_loop().remove_reader(life)
        daemon.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
