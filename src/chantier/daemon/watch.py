# SPDX-License-Identifier: Apache-2.0
"""What looks after a daemon while it runs: changed config files, and builds in which nothing happens."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from chantier.engine import render_status
from chantier.errors import ChantierError
from chantier.progress import now
from chantier.wire import GrpcError
from chantier.wire.status import DEADLINE_EXCEEDED

if TYPE_CHECKING:
    from .builds import Running
    from .daemon import Daemon

_log = logging.getLogger(__name__)
_State = tuple[int, int, int] | None  # time of modification, size, inode; None if it is not there
_LOOK_S = 2.0
_STILL_S = 0.2  # so long a file is as it was before it is read: editors cut it to nothing before they write
_STALL_LOOK_S = 1.0


async def watch_config(daemon: Daemon, hangup: asyncio.Event) -> None:
    """Load the file anew when it has changed and on SIGHUP. A file that cannot be used changes nothing."""
    file = daemon.settings.file
    seen = _state(file)
    while True:
        try:
            async with asyncio.timeout(_LOOK_S):
                await hangup.wait()
        except TimeoutError:
            pass
        current = await asyncio.to_thread(_state, file)
        if not hangup.is_set():
            if current == seen:
                continue
            current = await _still(file, current)
        hangup.clear()
        seen = current
        try:
            daemon.reload(await asyncio.to_thread(daemon.settings.again))
        except ChantierError as err:
            _log.error(
                "the config was not loaded, the old one stays in effect: %s", err, extra={"fields": {"detail": err.detail or ""}}
            )


async def _still(file: Path | None, state: _State) -> _State:
    """Its state, once it has ceased to change."""
    while True:
        await asyncio.sleep(_STILL_S)
        again = await asyncio.to_thread(_state, file)
        if again == state:
            return state
        state = again


def _state(file: Path | None) -> _State:
    if file is None:
        return None
    try:
        info = os.stat(file)
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino


async def watch_stalls(daemon: Daemon) -> None:
    """End builds, and say why, in which nothing has happened for longer than the config allows (off by default)."""
    while True:
        await asyncio.sleep(_STALL_LOOK_S)
        own = daemon.config.chantier
        if not own.step_stall_s and not own.build_stall_s:
            continue
        for build in daemon.builds.all():
            found = stalled(build, own.step_stall_s, own.build_stall_s)
            if found is not None and build.failure is None:
                dump = render_status(s for s in daemon.opened_engine.solver.dump() if build.ref in s.jobs)
                _log.error("build %s: %s\n%s", build.ref, found, dump)
                build.fail(GrpcError(DEADLINE_EXCEEDED, f"{found}\n{dump}"))


def stalled(build: Running, step_s: float, build_s: float) -> str | None:
    """What has been without progress for too long; None if all is well."""
    at = now()
    if build_s and at - build.progress.active_at > build_s * 1e9:
        return f"no progress for {build_s:g} s in the build"
    if not step_s:
        return None
    for seen in build.progress.seen.values():
        vertex = seen.vertex
        if vertex.started is not None and vertex.completed is None and at - seen.active_at > step_s * 1e9:
            return f"no progress for {step_s:g} s in the step {vertex.name}"
    return None


__all__ = ["stalled", "watch_config", "watch_stalls"]
