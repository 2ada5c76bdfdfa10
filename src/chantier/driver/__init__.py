# SPDX-License-Identifier: Apache-2.0
"""Finding or starting an engine, and asking it. `Embedded` holds an engine in this very process: no daemon, no socket.

Names to know: `Embedded`.
"""

from __future__ import annotations

__all__: list[str] = []
