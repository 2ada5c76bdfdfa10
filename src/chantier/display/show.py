# SPDX-License-Identifier: Apache-2.0
"""The thread that draws: events come from anywhere, one printer sees them in order."""

from __future__ import annotations

import os
import queue
import threading
from typing import Protocol, TextIO

from chantier.errors import UsageError
from chantier.progress import Event, Warning

from .model import Model

MODES = ("auto", "tty", "plain", "quiet", "none", "rawjson")


class Printer(Protocol):
    model: Model

    def update(self, event: Event) -> None: ...
    def draw(self, *, final: bool = False) -> None: ...
    def close(self) -> None: ...


class Display:
    """A Reporter. Made by `open_display`; `close` draws what is left and waits for it."""

    def __init__(self, printer: Printer | None, *, interval_s: float = 0.1) -> None:
        self._printer = printer
        self._model = printer.model if printer is not None else Model()
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._interval_s = interval_s
        self._thread = threading.Thread(target=self._work, name="chantier-display", daemon=True)
        self._thread.start()

    def emit(self, event: Event, /) -> None:
        self._queue.put(event)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    @property
    def warnings(self) -> list[Warning]:
        """All that were reported; complete once the display is closed."""
        return self._model.warnings

    def _work(self) -> None:
        import time

        last = 0.0
        dirty = False
        while True:
            wait = max(0.0, self._interval_s - (time.monotonic() - last)) if dirty else 0.15
            try:
                event = self._queue.get(timeout=wait)
            except queue.Empty:
                if self._printer is not None:
                    self._printer.draw()
                last, dirty = time.monotonic(), False
                continue
            if event is None:
                break
            if self._printer is not None:
                self._printer.update(event)
            else:
                self._model.update(event)
            dirty = True
            if time.monotonic() - last >= self._interval_s and self._printer is not None:
                self._printer.draw()
                last, dirty = time.monotonic(), False
        if self._printer is not None:
            self._printer.close()


def open_display(mode: str, out: TextIO, *, heading: str = "", title: str = "", explain: bool = False) -> Display:
    """A display of one of MODES. `auto` is tty on a terminal, else plain; BUILDKIT_PROGRESS replaces only `auto`.

    Raises UsageError for a mode that does not exist, and for tty where there is no terminal.
    """
    if mode == "auto":
        mode = os.environ.get("BUILDKIT_PROGRESS") or "auto"
    if mode == "auto":
        mode = "tty" if out.isatty() else "plain"
    interval_s = float(os.environ.get("TTY_DISPLAY_RATE") or 100) / 1000
    if mode == "tty":
        from .tty import Tty

        if not out.isatty():
            raise UsageError("failed to get console: provided file is not a console", hint="use --progress=plain")
        return Display(Tty(out, title=title, explain=explain), interval_s=interval_s)
    if mode == "plain":
        from .plain import Plain

        return Display(Plain(out, heading=heading, explain=explain), interval_s=interval_s)
    if mode == "rawjson":
        from .rawjson import RawJson

        return Display(RawJson(out), interval_s=interval_s)
    if mode in ("quiet", "none"):
        return Display(None, interval_s=interval_s)
    raise UsageError(f"invalid progress mode {mode}", hint="modes are " + ", ".join(MODES))
