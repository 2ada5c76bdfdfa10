# SPDX-License-Identifier: Apache-2.0
"""Runs a daemon in this process: flags, log, signals, and the exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from chantier.errors import ChantierError

from .flags import Settings, parse

_log = logging.getLogger(__name__)


def run(argv: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """Returns when the daemon has ended."""
    from chantier.display.logfmt import install
    from chantier.kernel.libc import limit_malloc_arenas

    if argv is None:
        from chantier.kernel import userns

        userns.execute_again()
    limit_malloc_arenas(2)  # a daemon has dozens of threads
    try:
        settings = parse(sys.argv[1:] if argv is None else argv, env)
    except ChantierError as err:
        return _report(err)
    install(settings.config.log_level, settings.config.log.format)
    for warning in settings.warnings:
        _log.warning("%s", warning)
    try:
        asyncio.run(_serve(settings))
    except ChantierError as err:
        return _report(err)
    except KeyboardInterrupt:
        return 130
    return 0


def _report(err: ChantierError) -> int:
    sys.stderr.write(f"chantierd: {err}\n")
    if err.detail:
        sys.stderr.write(f"{err.detail}\n")
    if err.hint:
        sys.stderr.write(f"hint: {err.hint}\n")
    return err.exit_code


async def _serve(settings: Settings) -> None:
    from .daemon import Daemon
    from .watch import watch_config, watch_stalls

    loop = asyncio.get_running_loop()
    daemon = Daemon(settings)
    hangup = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, daemon.stop)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    async with daemon:
        watchers = [asyncio.create_task(watch_config(daemon, hangup)), asyncio.create_task(watch_stalls(daemon))]
        try:
            await daemon.wait()
            await daemon.drain()
        finally:
            for task in watchers:
                task.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)


__all__ = ["run"]
