# SPDX-License-Identifier: Apache-2.0
"""Whether two programs say the same: everything but places and the text they were read from."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from chantier.dockerfile import Program, parse
from chantier.dockerfile.printer import to_text

_PLACES = {"start", "end", "line", "code", "data", "filename", "empty_continuations"}


def said(value: Any) -> Any:
    """A value without its places."""
    if is_dataclass(value) and not isinstance(value, type):
        return (type(value).__name__, {f.name: said(getattr(value, f.name)) for f in fields(value) if f.name not in _PLACES})
    if isinstance(value, tuple):
        return tuple(map(said, value))
    return value


def check_round_trip(program: Program) -> None:
    text = to_text(program)
    again = parse(text)
    assert said(again) == said(program), f"printed as {text!r}"
    assert to_text(again) == text, "printing it again gives another text"


__all__ = ["check_round_trip", "said"]
