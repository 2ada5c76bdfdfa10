# SPDX-License-Identifier: Apache-2.0
"""What may be said of any operation besides what it does: its name, platform, cache rules, place in a source file.

All of it except `platform` and `filters` is metadata: it never enters the digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypedDict

from chantier.errors import SourceRange
from chantier.pb import ops_pb2 as pb
from chantier.progress import Group
from chantier.spec import Platform
from chantier.values import dataclass, field, replace

if TYPE_CHECKING:
    from .state import State

CUSTOM_NAME = "llb.customname"
_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Limits of a step's processes; 0 and "" leave a limit unset. Not part of the cache key."""

    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""

    def to_pb(self) -> pb.LinuxResources:
        return pb.LinuxResources(
            memory=self.memory,
            memorySwap=self.memory_swap,
            cpuShares=self.cpu_shares,
            cpuPeriod=self.cpu_period,
            cpuQuota=self.cpu_quota,
            cpusetCpus=self.cpuset_cpus,
            cpusetMems=self.cpuset_mems,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceMap:
    """A file that operations were made from; `state` or `definition` tells how an engine can read it again."""

    filename: str
    data: bytes = field(repr=False)
    language: str = "Dockerfile"
    state: State | None = None
    definition: pb.Definition | None = None

    def at(self, *ranges: SourceRange) -> Location:
        return Location(source=self, ranges=ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Lines of a source file."""

    source: SourceMap
    ranges: tuple[SourceRange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    platform: Platform | None = None
    filters: tuple[str, ...] = ()
    ignore_cache: bool = False
    description: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    export_cache: bool | None = None
    group: Group | None = None
    resources: Resources | None = None
    locations: tuple[Location, ...] = ()


class How(TypedDict, total=False):
    """Keywords every operation takes; `name` is what a person sees while it runs."""

    name: str
    description: Mapping[str, str]
    platform: Platform
    filters: tuple[str, ...]
    ignore_cache: bool
    export_cache: bool | None
    group: Group
    resources: Resources | None
    locations: tuple[Location, ...]


def constraints(how: How) -> Constraints:
    description = dict(how.get("description", {}))
    if "name" in how:
        description[CUSTOM_NAME] = how["name"]
    return Constraints(
        platform=how["platform"].normalise() if "platform" in how else None,
        filters=tuple(how.get("filters", ())),
        ignore_cache=how.get("ignore_cache", False),
        description=description,
        export_cache=how.get("export_cache"),
        group=how.get("group"),
        resources=how.get("resources"),
        locations=tuple(how.get("locations", ())),
    )


def merge_constraints(base: Constraints, own: Constraints) -> Constraints:
    """`own` over `base`; flags add up and descriptions are merged."""
    return replace(
        own,
        platform=own.platform or base.platform,
        filters=base.filters + own.filters,
        ignore_cache=base.ignore_cache or own.ignore_cache,
        description={**base.description, **own.description},
        export_cache=own.export_cache if own.export_cache is not None else base.export_cache,
        group=own.group or base.group,
        resources=own.resources or base.resources,
    )


def metadata(made: Constraints, caps: frozenset[str] | set[str]) -> pb.OpMetadata:
    out = pb.OpMetadata(ignore_cache=made.ignore_cache, description=dict(made.description), caps=dict.fromkeys(caps, True))
    if made.export_cache is not None:
        out.export_cache.Value = made.export_cache
    if made.group is not None:
        out.progress_group.CopyFrom(pb.ProgressGroup(id=made.group.id, name=made.group.name, weak=made.group.weak))
    if made.resources is not None:
        out.linux_resources.CopyFrom(made.resources.to_pb())
    return out


def merge_metadata(into: pb.OpMetadata, other: pb.OpMetadata) -> None:
    """Two ways to the same operation: what both say is kept, the later name wins."""
    into.ignore_cache = into.ignore_cache or other.ignore_cache
    for key, value in other.description.items():
        into.description[key] = value
    for cap in other.caps:
        into.caps[cap] = True
    if other.HasField("export_cache"):
        into.export_cache.CopyFrom(other.export_cache)
    if other.HasField("progress_group"):
        into.progress_group.CopyFrom(other.progress_group)
    if other.HasField("linux_resources"):
        into.linux_resources.CopyFrom(other.linux_resources)


__all__ = [
    "CUSTOM_NAME",
    "Constraints",
    "Group",
    "How",
    "Location",
    "Resources",
    "SourceMap",
    "constraints",
    "merge_constraints",
    "merge_metadata",
    "metadata",
]
