# SPDX-License-Identifier: Apache-2.0
"""What may be deleted: a pure decision over records, a policy, the time and the disk. Nothing is deleted here.

The rules are BuildKit's (records in use stay; a record goes before its parents; without a limit all candidates go, with one
just enough of them, those least recently and least often used first), plus a reason for each.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from chantier.values import dataclass

from .filters import compile_filters
from .types import Disk, Eviction, Policy, UsageRecord

_GB = 10**9
_HOUR_NS = 3600 * 10**9
_UNKNOWN_DISK_LIMIT = 2 * _GB
_CACHE_FILTERS = ("type==source.local", "type==exec.cachemount", "type==source.git.checkout")


def disk_of(path: Path) -> Disk:
    """The file system `path` is on; `free` is what root may not reserve for itself."""
    stat = os.statvfs(path)
    return Disk(total=stat.f_blocks * stat.f_frsize, free=stat.f_bavail * stat.f_frsize)


def percent_of(disk: Disk, percent: int) -> int:
    """A percentage of a disk in bytes, rounded up to whole GB as BuildKit does. 2 GB if the disk's size is unknown."""
    if disk.total <= 0:
        return _UNKNOWN_DISK_LIMIT
    return (disk.total * percent // 100 // (1 << 30) + 1) * _GB


def default_policies(
    disk: Disk, *, reserved_space: int | None = None, max_used_space: int | None = None, min_free_space: int | None = None
) -> tuple[Policy, ...]:
    """The four rules used where none are configured. A limit that is None gets BuildKit's default."""
    reserved = min(percent_of(disk, 10), 10 * _GB) if reserved_space is None else reserved_space
    most = min(percent_of(disk, 80), 100 * _GB) if max_used_space is None else max_used_space
    free = percent_of(disk, 20) if min_free_space is None else min_free_space
    return (
        Policy(filters=_CACHE_FILTERS, keep_duration_ns=48 * _HOUR_NS, max_used_space=512 * 10**6),
        Policy(keep_duration_ns=60 * 24 * _HOUR_NS, reserved_space=reserved, max_used_space=most, min_free_space=free),
        Policy(reserved_space=reserved, max_used_space=most, min_free_space=free),
        Policy(all=True, reserved_space=reserved, max_used_space=most, min_free_space=free),
    )


@dataclass(frozen=True, slots=True)
class Target:
    """How far to go: down to `keep_bytes`, or all candidates if it is None; `done` means there is nothing to do."""

    keep_bytes: int | None
    cause: str
    done: bool = False


def target_of(total: int, policy: Policy, disk: Disk) -> Target:
    """What the limits of a policy ask for, given the bytes in use."""
    if not (policy.max_used_space or policy.reserved_space or policy.min_free_space):
        return Target(None, "no limit is set")
    keep = policy.max_used_space or None
    cause = f"usage {size_text(total)} is at or over the limit of {size_text(policy.max_used_space)}"
    excess = policy.min_free_space - disk.free
    if policy.min_free_space and excess > 0 and (keep is None or total - excess < keep):
        keep = max(total - excess, 0)
        cause = f"only {size_text(disk.free)} of the disk are free, want {size_text(policy.min_free_space)}"
    if keep is None and policy.min_free_space:
        return Target(None, "", done=True)  # only free space was asked for, and there is enough
    if keep is None or keep < policy.reserved_space:
        keep = policy.reserved_space
        cause = f"usage {size_text(total)} is over the reserved {size_text(policy.reserved_space)}"
    return Target(keep, cause, done=total < keep or total == 0)


def plan(records: Sequence[UsageRecord], policy: Policy, now: int, disk: Disk) -> list[Eviction]:
    """What one policy would delete now, in order. Children come before the parents they are made of. Raises UsageError."""
    matches = compile_filters(policy.filters)
    candidates = {record.id: record for record in records if _eligible(record, policy, now) and matches(record)}
    total = sum(record.size for record in records if matches(record) and _counts(record, policy))
    target = target_of(total, policy, disk)
    if target.done:
        return []
    evictions: list[Eviction] = []
    for record in _in_order(candidates, records):
        if target.keep_bytes is not None and total < max(target.keep_bytes, 1):
            break
        evictions.append(Eviction(id=record.id, reason=f"{_why(record, now)}; {target.cause}", size=record.size))
        total -= record.size
    return evictions


def why_kept(record: UsageRecord, policy: Policy, now: int, children: int = 0) -> str | None:
    """Why a policy leaves a record alone whatever the limits say; None if it is a candidate."""
    if record.in_use:
        return "in use"
    if children:
        return f"{children} other records are built on it"
    if not policy.all and record.record_type in ("internal", "frontend"):
        return f"{record.record_type} records go only with `all`"
    if not policy.all and record.shared:
        return "shared with an image"
    if policy.keep_duration_ns and record.last_used_at is not None and record.last_used_at > now - policy.keep_duration_ns:
        return f"used {age_text(now - record.last_used_at)} ago, kept for {age_text(policy.keep_duration_ns)}"
    if not compile_filters(policy.filters)(record):
        return "no filter matches it"
    return None


def _counts(record: UsageRecord, policy: Policy) -> bool:
    return policy.all or not record.shared


def _eligible(record: UsageRecord, policy: Policy, now: int) -> bool:
    if record.in_use:
        return False
    if not policy.all and (record.shared or record.record_type in ("internal", "frontend")):
        return False
    if policy.keep_duration_ns and record.last_used_at is not None:
        return record.last_used_at <= now - policy.keep_duration_ns
    return True


def _in_order(candidates: dict[str, UsageRecord], records: Iterable[UsageRecord]) -> Iterable[UsageRecord]:
    """Candidates by rank, each only once nothing is built on it any more."""
    children: dict[str, int] = {}
    for record in records:
        for parent in record.parents:
            children[parent] = children.get(parent, 0) + 1
    rank = _ranks(list(candidates.values()))
    heap = [(rank[id], id) for id in candidates if not children.get(id)]
    heapq.heapify(heap)
    while heap:
        _, id = heapq.heappop(heap)
        record = candidates[id]
        yield record
        for parent in record.parents:
            children[parent] -= 1
            if not children[parent] and parent in candidates:
                heapq.heappush(heap, (rank[parent], parent))


def _ranks(records: list[UsageRecord]) -> dict[str, tuple[float, int]]:
    """Never used first; then rank of last use plus rank of use count, each scaled to 0..1; the oldest of equals first."""
    used = _scaled(records, [-1 if record.last_used_at is None else record.last_used_at for record in records])
    counts = _scaled(records, [record.usage_count for record in records])
    return {
        record.id: (-1.0 if record.last_used_at is None else used[record.id] + counts[record.id], record.created_at)
        for record in records
    }


def _scaled(records: list[UsageRecord], values: list[int]) -> dict[str, float]:
    index = {value: place for place, value in enumerate(sorted(set(values)))}
    highest = max(len(index) - 1, 1)
    return {record.id: index[value] / highest for record, value in zip(records, values, strict=True)}


def _why(record: UsageRecord, now: int) -> str:
    if record.last_used_at is None:
        return "never used"
    times = "once" if record.usage_count == 1 else f"{record.usage_count} times"
    return f"used {times}, last {age_text(now - record.last_used_at)} ago"


def age_text(ns: int) -> str:
    seconds = max(ns, 0) // 10**9
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def size_text(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.4g}{unit}"
        value /= 1000
    return f"{value:.4g}TB"


__all__ = ["Target", "age_text", "default_policies", "disk_of", "percent_of", "plan", "size_text", "target_of", "why_kept"]
