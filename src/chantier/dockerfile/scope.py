# SPDX-License-Identifier: Apache-2.0
"""What stays the same during one conversion (`Scope`), and what a stage has become so far (`Built`)."""

from __future__ import annotations

from collections.abc import Mapping

from chantier.errors import SourceRange
from chantier.llb import Location, Proxy, SourceMap, State
from chantier.spec import Platform
from chantier.spec.patterns import Patterns
from chantier.values import dataclass, field, replace

from .config import Image, rfc3339
from .instructions import ArgPair, Instruction
from .lint import Linter
from .options import Options
from .shell import Lex

Ranges = tuple[SourceRange, ...]

# Arguments for the frontend itself: they never enter a step's environment.
SBOM_SCAN_CONTEXT = "BUILDKIT_SBOM_SCAN_CONTEXT"
SBOM_SCAN_STAGE = "BUILDKIT_SBOM_SCAN_STAGE"
NON_ENV_ARGS = frozenset((SBOM_SCAN_CONTEXT, SBOM_SCAN_STAGE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Platforms:
    """`implicit`: the caller named no platform, so a base image may decide it."""

    target: Platform
    build: tuple[Platform, ...]
    implicit: bool

    @classmethod
    def of(cls, target: Platform | None, build: tuple[Platform, ...]) -> Platforms:
        return cls(target=target or build[0], build=build, implicit=target is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    options: Options
    platforms: Platforms
    global_args: Mapping[str, str]
    epoch: int | None
    lex: Lex
    lint: Linter
    caps: frozenset[str]
    source_map: SourceMap | None
    context: State  # decided at the end, when the used paths are known
    proxy: Proxy | None
    ignore: Patterns | None = None

    @property
    def created(self) -> str:
        """The time of history entries made here; "" where the exporter fills it in."""
        return rfc3339(self.epoch) if self.epoch is not None else ""

    def locations(self, ranges: Ranges) -> tuple[Location, ...]:
        return (self.source_map.at(*ranges),) if self.source_map is not None else ()

    def supports(self, cap: str) -> bool:
        return cap in self.caps


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A stage after some of its instructions."""

    state: State
    image: Image
    platform: Platform
    args: tuple[ArgPair, ...] = ()  # in scope, in order, with their values
    workdir_set: bool = False  # by this Dockerfile, not by a base image
    index: int = 0  # how many numbered steps have been shown
    seen: Mapping[str, Ranges] = field(default_factory=dict)  # where CMD, ENTRYPOINT and HEALTHCHECK were last given

    @property
    def env(self) -> dict[str, str]:
        return dict(self.state.env_vars)

    def commit(self, created_by: str, scope: Scope, *, layer: bool = False) -> Built:
        return replace(self, image=self.image.with_history(created_by, layer=layer, epoch=scope.created))

    def configured(self, **changes: object) -> Built:
        """The same with fields of the image's `config` changed."""
        return replace(self, image=replace(self.image, config=replace(self.image.config, **changes)))  # type: ignore[arg-type]


def location_of(instruction: Instruction) -> Ranges:
    return instruction.ranges


__all__ = ["NON_ENV_ARGS", "SBOM_SCAN_CONTEXT", "SBOM_SCAN_STAGE", "Built", "Platforms", "Ranges", "Scope", "location_of"]
