# SPDX-License-Identifier: Apache-2.0
"""A live tree on a terminal: redrawn in place, with timers, progress and the last lines of running steps (builders.md 6.4)."""

from __future__ import annotations

import os
import re
import shutil
from typing import TextIO

from chantier.progress import Event, Status, now

from .model import Model, Row
from .units import log_time, progress_size, seconds

_COLOURS = {"run": "34", "error": "31", "cancel": "33", "warning": "33"}
_NAMED = {"black": "30", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36", "white": "37"}
_ESCAPE = re.compile(rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")


class Tty:
    """Draws on a terminal. `title` stands at the right of the first line."""

    def __init__(self, out: TextIO, *, title: str = "", explain: bool = False) -> None:
        self.out = out
        self.model = Model()
        self.title = title
        self.explain = explain
        self._drawn = 0
        self._colours = colours(os.environ)
        self._log_lines = max(6, _integer(os.environ.get("BUILDKIT_TTY_LOG_LINES"), 6))

    def update(self, event: Event) -> None:
        self.model.update(event)

    def draw(self, *, final: bool = False) -> None:
        size = shutil.get_terminal_size((80, 10))
        lines = self._frame(size.columns, size.lines, final=final)
        out = ["\x1b[?25l"]
        if self._drawn:
            out.append(f"\x1b[{self._drawn}A")
        for line in lines:
            out.append(f"{line}\x1b[K\n")
        if len(lines) < self._drawn:
            out.append("\x1b[J")
        out.append("\x1b[?25h")
        self._drawn = len(lines)
        self.out.write("".join(out))
        self.out.flush()

    def close(self) -> None:
        self.draw(final=True)
        for row in self.model.rows.values():
            if row.error and not row.cancelled:
                self.out.write(f"------\n > {row.name}:\n")
                for line in row.lines:
                    self.out.write(f"{log_time(line.at)} {line.text.decode(errors='replace')}\n")
                self.out.write("------\n")
        self.out.flush()

    def _frame(self, width: int, height: int, *, final: bool) -> list[str]:
        shown = [r for r in self.model.rows.values() if r.intervals and not r.hidden]
        done = [r for r in shown if r.completed is not None]
        start = min((r.started or 0 for r in shown), default=now())
        end = max((r.completed or 0 for r in shown), default=start) if final else now()
        finished = " FINISHED" if final and len(done) == len(shown) else ""
        known = [r for r in self.model.rows.values() if not r.hidden]
        head = f"[+] Building {seconds(max(0, end - start))} ({len(done)}/{len(known)}){finished}"
        lines = [_right(head, self.title, width)]
        room = max(3, height - 2)
        for row in self._choose(shown, room, final=final):
            lines += self._row(row, width)
            if len(lines) >= room + 1 and not final:
                break
        if not final:
            for row in shown:
                if row.completed is None and row.lines and len(lines) + self._log_lines <= room:
                    position = next((i for i, line in enumerate(lines) if row.name[: width - 20] in line), len(lines) - 1)
                    lines[position + 1 : position + 1] = self._window(row, width)
        return lines

    def _choose(self, rows: list[Row], room: int, *, final: bool) -> list[Row]:
        if final or len(rows) <= room:
            return rows
        open_rows = [r for r in rows if r.completed is None]
        closed = [r for r in rows if r.completed is not None]
        keep = {r.digest for r in open_rows[-room:]} | {r.digest for r in closed[len(closed) - max(0, room - len(open_rows)) :]}
        return [r for r in rows if r.digest in keep]

    def _row(self, row: Row, width: int) -> list[str]:
        prefix, colour = "", ""
        if row.completed is not None:
            colour = "run"
            if row.cancelled:
                prefix, colour = "CANCELED ", "cancel"
            elif row.error:
                prefix, colour = "ERROR ", "error"
            elif row.cached:
                prefix = "CACHED "
        lines = [self._paint(_right(f" => {prefix}{row.name}", f" {seconds(row.elapsed())}", width), colour)]
        if self.explain and row.reason:
            lines.append(self._paint(_right(f" => => {row.reason}", "", width), colour))
        for status in row.statuses.values():
            if status.started is not None:
                lines.append(self._paint(self._status(status, width), colour if status.completed else ""))
        for warning in row.warnings:
            lines.append(self._paint(_right(f" => => WARN: {warning.short.decode(errors='replace')}", "", width), "warning"))
        return lines

    def _status(self, status: Status, width: int) -> str:
        text = f" => => {status.id}"
        if status.total:
            text += f" {progress_size(status.current)} / {progress_size(status.total)}"
        elif status.current:
            text += f" {progress_size(status.current)}"
        spent = (status.completed or now()) - (status.started or now())
        return _right(text, f" {seconds(max(0, spent))}", width)

    def _window(self, row: Row, width: int) -> list[str]:
        texts = [_clean(line.text) for line in list(row.lines)[-self._log_lines :]]
        return [f"\x1b[2m => => # {text[: max(0, width - 10)]}\x1b[0m" for text in texts]

    def _paint(self, text: str, kind: str) -> str:
        code = self._colours.get(kind, "")
        return f"\x1b[{code}m{text}\x1b[0m" if code else text


def colours(env: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """SGR codes by kind, from NO_COLOR and BUILDKIT_COLORS (`run=green:error=1,2,3`)."""
    if "NO_COLOR" in env:
        return {}
    chosen = dict(_COLOURS)
    for part in env.get("BUILDKIT_COLORS", "").split(":"):
        key, equals, value = part.partition("=")
        if not equals or key not in chosen:
            continue
        light = value.startswith("light-")
        name = value.removeprefix("light-")
        numbers = value.split(",")
        if name in _NAMED:
            chosen[key] = str(int(_NAMED[name]) + (60 if light else 0))
        elif len(numbers) == 3 and all(n.isdigit() for n in numbers):
            chosen[key] = "38;2;" + ";".join(numbers)
    return chosen


def _right(left: str, right: str, width: int) -> str:
    """`left`, cut if it must be, and `right` at the edge of `width` columns."""
    room = max(12, width - len(right))
    if len(left) > room:
        left = left[: room - 3] + "..."
    return left + " " * (room - len(left)) + right


def _clean(text: bytes) -> str:
    """One line as a terminal would show it: what a carriage return leaves, no escapes."""
    text = _ESCAPE.sub(b"", text).rstrip(b"\r").rsplit(b"\r", 1)[-1]
    return "".join(c if c.isprintable() else " " for c in text.decode(errors="replace"))


def _integer(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() else default
