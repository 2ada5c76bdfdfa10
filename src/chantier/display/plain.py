# SPDX-License-Identifier: Apache-2.0
"""Lines for logs: `#5 [2/2] RUN …`, `#5 0.049 output`, `#5 DONE 1.1s` (builders.md 6.3)."""

from __future__ import annotations

import os
from typing import TextIO

from chantier.progress import Event, Status, now

from .model import Line, Model, Row
from .units import log_time, progress_size, seconds

_SILENT_NS = 10_000_000_000
_HELD_NS = 5_000_000_000


class Plain:
    """Draws on a text stream. One vertex is current at a time; switching away from an open one says `#n ...`."""

    def __init__(self, out: TextIO, *, heading: str = "", explain: bool = False) -> None:
        self.out = out
        self.model = Model()
        self.explain = explain
        self._current: Row | None = None
        self._changed: dict[str, Row] = {}
        self._count = 0
        self._written = False
        self._open_line = False
        self._since = 0
        self._finished: set[str] = set()
        self._status_shown: dict[tuple[str, str], tuple[int, int]] = {}
        self._truncate = os.environ.get("PROGRESS_NO_TRUNC") == "0"
        if heading:
            self._write(f"#0 {heading}\n")

    def update(self, event: Event) -> None:
        row = self.model.update(event)
        if row is not None:
            if row.completed is None:  # it may begin again: a push after an export, a step whose cached result is of no use
                self._finished.discard(row.digest)
            self._changed[row.digest] = row

    def draw(self, *, final: bool = False) -> None:
        rows = [r for r in self._changed.values() if r.intervals and not r.hidden and r.digest not in self._finished]
        ended = sorted((r for r in rows if self._is_over(r, final=final)), key=lambda r: r.completed or 0)
        current = self._current
        if current is not None and current in ended:
            ended.remove(current)
            ended.insert(0, current)
        for row in ended:
            self._show(row)
            self._finish(row)
        live = [r for r in rows if r.digest not in self._finished]
        if self._current is not None and self._current in live:
            self._show(self._current)
        self._maybe_switch(live)
        self._changed = {r.digest: r for r in live if r is not self._current and _has_fresh(r)}
        self.out.flush()

    def close(self) -> None:
        self.draw(final=True)
        for row in list(self.model.rows.values()):
            if row.error and not row.cancelled:
                self._error_block(row)
        self.out.flush()

    def _is_over(self, row: Row, *, final: bool) -> bool:
        if row.completed is None:
            return False
        return final or all(s.completed is not None or s.started is None for s in row.statuses.values()) or bool(row.error)

    def _maybe_switch(self, live: list[Row]) -> None:
        others = [r for r in live if r is not self._current and _has_fresh(r)]
        if not others:
            return
        busiest = max(others, key=lambda r: r.events)
        if self._current is None:
            self._show(busiest)
            return
        share = busiest.events / max(1, busiest.events + self._current.events)
        silent = now() - self._current.last_event > _SILENT_NS
        if silent or now() - self._since > _HELD_NS / max(0.01, share):
            self._show(busiest)

    def _show(self, row: Row) -> None:
        """Make the row current and print all of it that is new."""
        if self._current is not row:
            self._end_line()
            if self._current is not None and self._current.digest not in self._finished:
                self._write(f"#{self._current.index} ...\n")
            if not row.index:
                self._count += 1
                row.index = self._count
            if self._written:
                self._write("\n")
            name = row.name
            if self._truncate and len(name) > 72:
                name = name[:72] + "..."
            self._write(f"#{row.index} {name}\n")
            self._current = row
            self._since = now()
        for status in list(row.fresh_statuses):
            self._status(row, row.statuses[status])
        row.fresh_statuses.clear()
        for line in row.fresh_lines:
            self._log(row, line)
        row.fresh_lines.clear()
        for warning in row.fresh_warnings:
            self._end_line()
            self._write(f"#{row.index} WARN: {warning.short.decode(errors='replace')}\n")
        row.fresh_warnings.clear()

    def _status(self, row: Row, status: Status) -> None:
        done = status.completed is not None
        key = (row.digest, status.id)
        printed_at, printed_current = self._status_shown.get(key, (0, -1))
        advanced = status.total and (status.current - printed_current) * 20 >= status.total
        if not done and printed_at and not advanced and now() - printed_at < _HELD_NS:
            row.fresh_statuses[status.id] = None
            return
        self._status_shown[key] = (now(), status.current)
        text = status.id
        if status.total:
            text += f" {progress_size(status.current)} / {progress_size(status.total)}"
        elif status.current:
            text += f" {progress_size(status.current)}"
        if status.started is not None:
            spent = (status.completed or now()) - status.started
            if spent > 10_000_000:
                text += f" {seconds(spent)}"
        self._end_line()
        self._write(f"#{row.index} {text}{' done' if done else ''}\n")

    def _log(self, row: Row, line: Line) -> None:
        text = line.text.decode(errors="replace")
        if not self._open_line:
            self._write(f"#{row.index} {log_time(line.at)} ")
        self._write(text + ("\n" if line.complete else ""))
        self._open_line = not line.complete

    def _finish(self, row: Row) -> None:
        self._end_line()
        if row.cancelled:
            self._write(f"#{row.index} CANCELED\n")
        elif row.error:
            self._write(f"#{row.index} ERROR: {row.error}\n")
        elif row.cached:
            self._write(f"#{row.index} CACHED\n")
        else:
            self._write(f"#{row.index} DONE {seconds(row.elapsed())}\n")
        if self.explain and row.reason:
            self._write(f"#{row.index} {'hit' if row.cached else 'ran'} because {row.reason}\n")
        self._finished.add(row.digest)
        self._current = None

    def _error_block(self, row: Row) -> None:
        self._end_line()
        self._write(f"------\n > {row.name}:\n")
        for line in list(row.lines)[-10:]:
            self._write(f"{log_time(line.at)} {line.text.decode(errors='replace')}\n")
        self._write("------\n")

    def _end_line(self) -> None:
        if self._open_line:
            self._open_line = False
            self._write("\n")

    def _write(self, text: str) -> None:
        self._written = True
        self.out.write(text)


def _has_fresh(row: Row) -> bool:
    return bool(row.fresh_lines or row.fresh_statuses or row.fresh_warnings or not row.index)
