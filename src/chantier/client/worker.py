# SPDX-License-Identifier: Apache-2.0
"""What a daemon says of itself: its version, its workers, what its cache holds."""

from __future__ import annotations

from collections.abc import Mapping

from chantier.pb import control_pb2 as pb
from chantier.pb import ops_pb2, worker_pb2
from chantier.spec import Platform
from chantier.values import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    package: str = ""
    version: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GCRule:
    """One rule of a worker's GC policy; times in nanoseconds, sizes in bytes."""

    all: bool = False
    filters: tuple[str, ...] = ()
    keep_duration: int = 0
    reserved_space: int = 0
    max_used_space: int = 0
    min_free_space: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A CDI device."""

    name: str
    auto_allow: bool = False
    on_demand: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()
    gc: tuple[GCRule, ...] = ()
    version: Version | None = None
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One record of a cache. Times are nanoseconds since the epoch."""

    id: str
    mutable: bool = False
    in_use: bool = False
    size: int = 0
    parents: tuple[str, ...] = ()
    created_at: int | None = None
    last_used_at: int | None = None
    usage_count: int = 0
    description: str = ""
    record_type: str = ""
    shared: bool = False


def version_of(sent: worker_pb2.BuildkitVersion) -> Version:
    return Version(package=sent.package, version=sent.version, revision=sent.revision)


def worker_of(sent: worker_pb2.WorkerRecord) -> Worker:
    return Worker(
        id=sent.ID,
        labels=dict(sent.Labels),
        platforms=tuple(platform_of(p) for p in sent.platforms),
        gc=tuple(
            GCRule(
                all=rule.all,
                filters=tuple(rule.filters),
                keep_duration=rule.keepDuration,
                reserved_space=rule.reservedSpace,
                max_used_space=rule.maxUsedSpace,
                min_free_space=rule.minFreeSpace,
            )
            for rule in sent.GCPolicy
        ),
        version=version_of(sent.BuildkitVersion) if sent.HasField("BuildkitVersion") else None,
        devices=tuple(
            Device(name=d.Name, auto_allow=d.AutoAllow, on_demand=d.OnDemand, annotations=dict(d.Annotations))
            for d in sent.CDIDevices
        ),
    )


def platform_of(sent: ops_pb2.Platform) -> Platform:
    return Platform(
        os=sent.OS,
        architecture=sent.Architecture,
        variant=sent.Variant,
        os_version=sent.OSVersion,
        os_features=tuple(sent.OSFeatures),
    )


def usage_of(sent: pb.UsageRecord) -> Usage:
    parents = tuple(sent.Parents) or ((sent.Parent,) if sent.Parent else ())
    return Usage(
        id=sent.ID,
        mutable=sent.Mutable,
        in_use=sent.InUse,
        size=sent.Size,
        parents=parents,
        created_at=sent.CreatedAt.ToNanoseconds() if sent.HasField("CreatedAt") else None,
        last_used_at=sent.LastUsedAt.ToNanoseconds() if sent.HasField("LastUsedAt") else None,
        usage_count=sent.UsageCount,
        description=sent.Description,
        record_type=sent.RecordType,
        shared=sent.Shared,
    )


__all__ = ["Device", "GCRule", "Usage", "Version", "Worker", "platform_of", "usage_of", "version_of", "worker_of"]
