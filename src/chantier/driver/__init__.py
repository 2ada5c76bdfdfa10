# SPDX-License-Identifier: Apache-2.0
"""Finding or starting an engine, and asking it. `Embedded` holds an engine in this very process: no daemon, no socket.

Names to know: `Embedded`.
"""

from __future__ import annotations

is_command = False
"""Whether this process is a command of ours, which may execute itself again where an engine needs to be root."""

__all__ = ["is_command"]
