# SPDX-License-Identifier: Apache-2.0
"""Asking an engine to build: requests as values, checked and completed on the user's machine.

`BuildRequest` is what the flags of `build` say; `prepare` turns it into the `SolveCall` that any engine understands and the
`Offer` that a session serves. Nothing here knows whether the engine is in this process or behind a socket: that is the
driver's business. Three names to know: `BuildRequest`, `BuildResult`, `prepare`.
"""

from __future__ import annotations

from .call import CacheSpec, Offer, Prepared, SolveCall, prepare
from .context import Context
from .output import Output, parse_output
from .request import BuildRequest, BuildResult, Secret, Ssh

__all__ = [
    "BuildRequest",
    "BuildResult",
    "CacheSpec",
    "Context",
    "Offer",
    "Output",
    "Prepared",
    "Secret",
    "SolveCall",
    "Ssh",
    "parse_output",
    "prepare",
]
