# SPDX-License-Identifier: Apache-2.0
"""Errors and warnings for a person: the lines of the Dockerfile, the cause first, a hint (builders.md 0.3, 0.4, 5.15)."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import TextIO

from chantier.errors import ChantierError, ConfigError, Source
from chantier.progress import Warning

_MISTAKES = 12
"""How many other mistakes of one file are shown."""


def excerpt(source: Source) -> str:
    """The marked lines with what stands around them; "" if the source has no such lines."""
    lines = source.data.decode(errors="replace").split("\n")
    if not source.ranges:
        return ""
    start = max(1, min(r.start for r in source.ranges))
    end = min(len(lines), max(max(r.end, r.start) for r in source.ranges))
    if start > len(lines):
        return ""
    first_marked = start
    pad = 4 if start == end else 2
    used = 0
    while used < pad:
        if start > 1:
            start -= 1
            used += 1
        if end != len(lines):
            end += 1
            used += 1
        used += 1
    out = [f"{source.filename}:{first_marked}", "-" * 20]
    for number in range(start, end + 1):
        marked = any(r.start <= number <= max(r.end, r.start) for r in source.ranges)
        out.append(f" {number:3d} | {'>>>' if marked else '   '} {lines[number - 1].rstrip(chr(13))}")
    out.append("-" * 20)
    return "\n".join(out) + "\n"


def print_error(err: BaseException, out: TextIO, *, prefix: str = "", debug: bool = False) -> None:
    """Excerpts, then `ERROR: …`, then the hint. A stack only in debug, or for an error nobody meant to raise."""
    if isinstance(err, ChantierError):
        for source in err.sources:
            out.write(excerpt(source))
    known = isinstance(err, ChantierError)
    if debug or not known:
        out.write("".join(traceback.format_exception(err)))
    text = str(err) if known else f"internal error: {type(err).__name__}: {err}"
    out.write(f"ERROR: {prefix}{text}\n")
    if isinstance(err, ChantierError):
        if err.detail and debug:
            out.write(err.detail.rstrip("\n") + "\n")
        elif err.detail and isinstance(err, ConfigError):  # the other mistakes of the file
            lines = err.detail.rstrip("\n").split("\n")
            out.write("".join(f"       {line}\n" for line in lines[:_MISTAKES]))
            if len(lines) > _MISTAKES:
                out.write(f"       and {len(lines) - _MISTAKES} more\n")
        if err.hint:
            out.write(f"hint: {err.hint}\n")
    out.flush()


def print_warnings(warnings: Sequence[Warning], out: TextIO, *, debug: bool = False) -> None:
    unique: dict[tuple[bytes, str], Warning] = {}
    for warning in warnings:
        unique.setdefault((warning.short, warning.url), warning)
    if not unique:
        return
    count = len(unique)
    noun = "1 warning found" if count == 1 else f"{count} warnings found"
    colour = ("\x1b[33m", "\x1b[0m") if out.isatty() else ("", "")
    more = "" if debug else " (use --debug to expand)"
    out.write(f"\n {colour[0]}{noun}{more}:{colour[1]}\n")
    for warning in unique.values():
        out.write(f" - {warning.short.decode(errors='replace')}\n")
        if debug:
            for line in warning.detail:
                out.write(line.decode(errors="replace") + "\n")
            if warning.url:
                out.write(f"More info: {warning.url}\n")
            if warning.source is not None:
                out.write(excerpt(warning.source))
            out.write("\n")
    out.flush()
