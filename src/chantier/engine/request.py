# SPDX-License-Identifier: Apache-2.0
"""One build as it is asked of the engine (Control.Solve on the wire), and what is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chantier.pb import ops_pb2 as pb
from chantier.values import dataclass, field

if TYPE_CHECKING:
    from chantier.dockerfile.bridge import FrontendResult

    from .failed import FailedBuild
    from .policy import SourceCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    type: str
    attrs: Mapping[str, str]


FindExporters = Callable[["FrontendResult"], Awaitable[Sequence[tuple[str, Mapping[str, str]]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveRequest:
    """Either a frontend with its options, or a definition. `exporters` are (type, attributes), numbered as they stand."""

    ref: str
    frontend: str = ""
    attrs: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, pb.Definition] = field(default_factory=dict)
    definition: pb.Definition | None = None
    metadata: Mapping[str, bytes] = field(default_factory=dict)  # of the definition's result: `containerimage.config`
    exporters: tuple[tuple[str, Mapping[str, str]], ...] = ()
    cache_imports: tuple[CacheOptions, ...] = ()
    cache_exports: tuple[CacheOptions, ...] = ()
    entitlements: frozenset[str] = frozenset()
    internal: bool = False
    check_source: SourceCheck | None = None  # a policy that every source goes through before it is used
    find_exporters: FindExporters | None = None  # asked for more exporters once the result is there
    exported: Callable[[Mapping[str, str]], Awaitable[None]] | None = None  # told the whole answer before it is given
    on_failure: Callable[[FailedBuild], Awaitable[None]] | None = None  # called once a step has failed, before the build ends


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveResult:
    """`response` is the exporters' answer, `answers` that of each; `metadata` the frontend's (calls answer there).

    `provenance` has an SLSA v1 predicate for each result, by platform ("" where there is one alone). `documents` are what is
    kept with the build's record of the images it exported: each with its media type and annotations.
    """

    ref: str
    response: Mapping[str, str]
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    answers: tuple[Mapping[str, str], ...] = ()
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    documents: tuple[tuple[str, bytes, Mapping[str, str]], ...] = ()
