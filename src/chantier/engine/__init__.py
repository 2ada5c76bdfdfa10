# SPDX-License-Identifier: Apache-2.0
"""The composition root: the library without a daemon. It wires the rooms together and owns what lives as long as a process.

`Engine(root, config)` opens the state under a root (other processes may use it too), `solve` runs one build: a frontend or
a graph, its exporters. It never draws, never reads the environment, never imports a door.

Three names to know: `Engine`, `SolveRequest`, `SolveResult`.
"""

from __future__ import annotations

from chantier.dockerfile import LANGUAGE_VERSION as DOCKERFILE_VERSION
from chantier.dockerfile.bridge import Attestation, CacheImport, FrontendResult, OciStore, Subject
from chantier.op.container import HeldContainer
from chantier.op.image_chain import AttestationChain
from chantier.solver import render as render_status
from chantier.store import Policy, UsageRecord

from .bridge import EngineBridge, EngineRef, KeptRef, ReadableRef
from .build import SERVED, Build
from .containers import ExistsError
from .engine import Engine
from .policy import SourceCheck, apply_rules, check_rules
from .request import CacheOptions, SolveRequest, SolveResult

__all__ = [
    "DOCKERFILE_VERSION",
    "SERVED",
    "Attestation",
    "AttestationChain",
    "Build",
    "CacheImport",
    "CacheOptions",
    "Engine",
    "EngineBridge",
    "EngineRef",
    "ExistsError",
    "FrontendResult",
    "HeldContainer",
    "KeptRef",
    "OciStore",
    "Policy",
    "ReadableRef",
    "SolveRequest",
    "SolveResult",
    "SourceCheck",
    "Subject",
    "UsageRecord",
    "apply_rules",
    "check_rules",
    "render_status",
]
