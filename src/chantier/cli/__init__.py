# SPDX-License-Identifier: Apache-2.0
"""The command `chantier`: one file a command, no logic beyond arguments, one call, one print.

Results go to standard output, talk to standard error. `main` answers for exit codes: 0, the error's own (1 for most), 130
when interrupted. Modules of a command are imported only when it is asked for, so that the command answers fast.
"""

from __future__ import annotations

from .main import main

__all__ = ["main"]
