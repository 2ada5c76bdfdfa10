# SPDX-License-Identifier: Apache-2.0
"""Being root of a user namespace: `enter.py` makes one and runs a command in it.

It is a program of its own, since only a process without threads can make a user namespace, and the library's is not one:
`chantier build` and the library start an engine through it, `chantierd` starts itself again.

What it promises: no password is asked for and nothing is prepared; what cannot work is said before anything starts. What it
refuses: to run the command in a namespace that could not be made as planned.

Names to know: `command`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ENTER = Path(__file__).with_name("enter.py")


def command(argv: Sequence[str]) -> list[str]:
    """`argv` as a command that runs it as root of a new user and mount namespace."""
    return [sys.executable, "-I", "-S", "-B", str(ENTER), *argv]


__all__ = ["ENTER", "command"]
