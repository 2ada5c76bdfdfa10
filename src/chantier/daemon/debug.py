# SPDX-License-Identifier: Apache-2.0
"""What goes on inside, over plain HTTP on an address of its own (`--debugaddr`): for whoever may look at the whole process.

/debug/vars             the command line, and what `chantier daemon status` shows, as JSON
/debug/pprof/goroutine  the stacks of all threads and tasks, as text (where stock tools look for stacks)
/metrics                counts for Prometheus (text exposition format 0.0.4)
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import resource
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from chantier.errors import ConfigError

from .extras import report

if TYPE_CHECKING:
    from .daemon import Daemon

_log = logging.getLogger(__name__)
_SILENT_S = 10.0
_LARGEST_REQUEST = 16 << 10
_TEXT = "text/plain; charset=utf-8"


class DebugServer:
    """An async context manager; it answers one request a connection."""

    def __init__(self, daemon: Daemon, address: str) -> None:
        self._address = address
        self._pages: dict[str, Callable[[], tuple[str, str]]] = {
            "/debug/vars": lambda: ("application/json", json.dumps({"cmdline": sys.argv, "status": report(daemon)}, default=str)),
            "/debug/pprof/goroutine": lambda: (_TEXT, stacks()),
            "/metrics": lambda: ("text/plain; version=0.0.4; charset=utf-8", metrics(daemon)),
        }

    async def __aenter__(self) -> DebugServer:
        """Raises ConfigError for an address that cannot be listened on."""
        address = self._address
        try:
            if address.startswith(("unix://", "/")):
                self._server = await self._on_socket(Path(address.removeprefix("unix://")))
            else:
                host, _, port = address.removeprefix("tcp://").rpartition(":")
                self._server = await asyncio.start_server(
                    self._serve, host.strip("[]") or None, int(port), limit=_LARGEST_REQUEST
                )
        except (OSError, ValueError) as err:
            raise ConfigError(f"cannot serve debug endpoints on {address}: {err}", hint="want unix://PATH or HOST:PORT") from err
        _log.info("debug handlers listening at %s", address)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()
        if self._address.startswith(("unix://", "/")):
            Path(self._address.removeprefix("unix://")).unlink(missing_ok=True)

    async def _on_socket(self, path: Path) -> asyncio.Server:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        before = os.umask(0o177)  # made for its owner alone
        try:
            return await asyncio.start_unix_server(self._serve, path, limit=_LARGEST_REQUEST)
        finally:
            os.umask(before)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SILENT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as err:
            _log.debug("a request to the debug endpoints came to nothing: %s", err)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        page = self._pages.get(urlsplit(rest.partition(" ")[0]).path)
        status = "200 OK" if page is not None else "404 Not Found"
        kind, text = _TEXT, "there are " + ", ".join(self._pages) + "\n"
        if page is not None and method not in ("GET", "HEAD"):
            status, text = "405 Method Not Allowed", "only GET\n"
        elif page is not None:
            kind, text = page()
        body = text.encode()
        headers = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return headers.encode() + (b"" if method == "HEAD" else body)


def stacks() -> str:
    """Of every thread, and of every task of the running loop."""
    out = io.StringIO()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        out.write(f"thread {names.get(ident, ident)}:\n")
        traceback.print_stack(frame, file=out)
        out.write("\n")
    for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name()):
        task.print_stack(file=out)
        out.write("\n")
    return out.getvalue()


def metrics(daemon: Daemon) -> str:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    lines: list[str] = []

    def say(name: str, kind: str, about: str, value: float) -> None:
        lines.extend(
            (f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name} {value:g}" if value < 1e6 else f"{name} {value:.2f}")
        )

    say("process_cpu_seconds_total", "counter", "CPU time of the daemon itself.", usage.ru_utime + usage.ru_stime)
    say("process_resident_memory_bytes", "gauge", "Resident memory of the daemon itself.", pages * resource.getpagesize())
    say("process_open_fds", "gauge", "Open file descriptors.", len(os.listdir("/proc/self/fd")))
    say("process_threads", "gauge", "Threads.", threading.active_count())
    say("process_start_time_seconds", "gauge", "When the daemon started.", daemon.started_at)
    say("chantier_connections", "gauge", "Connections of clients.", daemon.connections)
    say("chantier_sessions", "gauge", "Sessions of clients.", len(list(daemon.sessions)))
    say("chantier_builds_running", "gauge", "Builds that run.", len(daemon.builds))
    if daemon.is_open:
        slots = daemon.opened_engine.worker.slots
        say("chantier_steps_running", "gauge", "Steps that run.", len(slots.running))
        say("chantier_steps_waiting", "gauge", "Steps that wait for a place to run.", len(slots.waiting))
        disk = daemon.opened_engine.disk()
        say("chantier_disk_free_bytes", "gauge", "Free room on the file system of the state.", disk.free)
    return "\n".join(lines) + "\n"


__all__ = ["DebugServer", "metrics", "stacks"]
