# SPDX-License-Identifier: Apache-2.0
"""Which garbage collection rules a worker's config means on a disk of a given size (semantics.md 4.9)."""

from __future__ import annotations

from chantier.values import dataclass, replace

from .units import Size
from .values import WorkerConfig

_GB = 1_000_000_000
_REPRODUCIBLE = "type==source.local,type==exec.cachemount,type==source.git.checkout"


@dataclass(frozen=True, slots=True, kw_only=True)
class GcRule:
    """One prune, in bytes and seconds; 0 means no such limit."""

    all: bool = False
    filters: tuple[str, ...] = ()
    keep_duration_s: float = 0.0
    reserved_bytes: int = 0
    max_used_bytes: int = 0
    min_free_bytes: int = 0


def gc_rules(worker: WorkerConfig, disk_bytes: int) -> tuple[GcRule, ...]:
    """The rules to run in order; none if `gc = false`. `disk_bytes` is the size of the disk under root, 0 if unknown."""
    if worker.gc is False:
        return ()
    if worker.gc_policies:
        return tuple(
            GcRule(
                all=p.all,
                filters=p.filters,
                keep_duration_s=p.keep_duration_s,
                reserved_bytes=(p.reserved_space or p.keep_bytes).of(disk_bytes),
                max_used_bytes=p.max_used_space.of(disk_bytes),
                min_free_bytes=p.min_free_space.of(disk_bytes),
            )
            for p in worker.gc_policies
        )
    reserved, most, free = _limits(worker, disk_bytes)
    limits = GcRule(reserved_bytes=reserved, max_used_bytes=most, min_free_bytes=free)
    return (
        GcRule(filters=(_REPRODUCIBLE,), keep_duration_s=48 * 3600.0, max_used_bytes=512_000_000),
        replace(limits, keep_duration_s=60 * 24 * 3600.0),
        limits,
        replace(limits, all=True),
    )


def _limits(worker: WorkerConfig, disk_bytes: int) -> tuple[int, int, int]:
    reserved, most, free = worker.reserved_space, worker.max_used_space, worker.min_free_space
    if not (reserved or most or free):
        reserved = worker.gc_keep_storage
    if reserved or most or free:
        return reserved.of(disk_bytes), most.of(disk_bytes), free.of(disk_bytes)
    if disk_bytes <= 0:
        return 2 * _GB, 2 * _GB, 0
    return (
        min(Size(percent=10).of(disk_bytes), 10 * _GB),
        min(Size(percent=80).of(disk_bytes), 100 * _GB),
        Size(percent=20).of(disk_bytes),
    )
