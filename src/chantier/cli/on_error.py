# SPDX-License-Identifier: Apache-2.0
"""`chantier build --on-error=shell`: a shell in the step that failed, before the build ends."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from chantier.display import Display, print_error
from chantier.errors import ChantierError, UsageError


def on_failure(mode: str, display: Callable[[], Display], *, debug: bool) -> Callable[[Any], Awaitable[None]] | None:
    """What a build is to do when a step failed. Raises UsageError for what cannot be done here."""
    if not mode:
        return None
    if mode != "shell":
        raise UsageError(f"invalid value {mode!r} for --on-error", hint="the one thing to do is shell")
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        raise UsageError("--on-error=shell needs a terminal on standard input and output")

    async def shell(failed: Any) -> None:
        from chantier.driver.shell import interact

        display().close()
        print_error(failed.error, sys.stderr, debug=debug)
        sys.stderr.write("\nOpening a shell in the failed step; leave it with `exit`. What is written there is thrown away.\n")
        sys.stderr.flush()
        try:
            await interact(failed)
        except ChantierError as err:
            print_error(err, sys.stderr, prefix="no shell: ", debug=debug)

    return shell


__all__ = ["on_failure"]
