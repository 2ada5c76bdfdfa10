# SPDX-License-Identifier: Apache-2.0
"""Events to text: a live tree on a terminal, plain lines for logs, JSON for programs, nothing when asked to be quiet.

A display is a `progress.Reporter` with a beginning and an end: `emit` queues an event and returns at once, a thread of the
display's own draws, `close` draws what is left. Formats are those of BuildKit's progressui, so tools that read the output
of docker buildx read ours (builders.md section 6). Nothing here knows where the events come from.

Names to know: `open_display`, `Display`, `print_error`.
"""

from __future__ import annotations

from .errors import excerpt, print_error, print_warnings
from .show import MODES, Display, open_display

__all__ = ["MODES", "Display", "excerpt", "open_display", "print_error", "print_warnings"]
