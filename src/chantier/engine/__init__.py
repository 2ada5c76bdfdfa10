# SPDX-License-Identifier: Apache-2.0
"""The composition root: the library without a daemon. It wires the rooms together and owns what lives as long as a process.

`Engine(root, config)` opens the state under a root (other processes may use it too), `solve` runs one build: a frontend or
a graph, its exporters. It never draws, never reads the environment, never imports a door.

Three names to know: `Engine`, `SolveRequest`, `SolveResult`.
"""

from __future__ import annotations

from .engine import Engine
from .request import CacheOptions, SolveRequest, SolveResult

__all__ = ["CacheOptions", "Engine", "SolveRequest", "SolveResult"]
