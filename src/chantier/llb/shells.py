# SPDX-License-Identifier: Apache-2.0
"""Where a shell may be found in the tree of a step, for whoever looks into one that failed."""

from __future__ import annotations

import os
from collections.abc import Sequence

_NAMES = ("bash", "sh", "ash", "dash", "zsh")
_PLACES = ("/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh", "/busybox/sh")


def shells_of(args: Sequence[str]) -> tuple[str, ...]:
    """Paths to try in order: the shell that the step's own words name, then those that images have."""
    first = args[0] if args else ""
    own = (first,) if os.path.basename(first) in _NAMES and first.startswith("/") else ()
    return (*own, *_PLACES)


NO_SHELL = "the failed step's image has no shell"
NO_SHELL_HINT = "build up to the step with --target, from an image with one"

__all__ = ["NO_SHELL", "NO_SHELL_HINT", "shells_of"]
