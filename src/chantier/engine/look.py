# SPDX-License-Identifier: Apache-2.0
"""Looking after a state directory without an engine on it: is it whole, what would be collected, and why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chantier.cache import Cache
from chantier.cache.check import Problem, check
from chantier.cache.repair import repair
from chantier.config import Config, gc_rules
from chantier.snapshot import Snapshotter, choose
from chantier.store import Policy, Root, UsageRecord, Weight, plan, weigh, why_kept
from chantier.store.gc import size_text
from chantier.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """`found` is what was wrong, `left` what still is (the same if nothing was to be repaired)."""

    found: tuple[Problem, ...]
    left: tuple[Problem, ...]
    warnings: tuple[str, ...] = ()  # of opening the state: what had to be given up

    @property
    def clean(self) -> bool:
        return not self.left


def fsck(path: Path, config: Config, *, mend: bool = False, deep: bool = False) -> Checked:
    """Check the state below `path`; with `mend` repair it. `deep` reads every blob. Raises StoreError if it cannot be opened."""
    with Root.open(path, warn=lambda _text: None) as root:
        snapshots = snapshotter(path, root, config)
        if mend:
            found, left = repair(root, snapshots, deep=deep)
        else:
            Cache(root, root.db, root.blobs, snapshots)  # cleans up after processes that died, as every start does
            found = left = check(root, snapshots, deep=deep)
        return Checked(found=tuple(found), left=tuple(left), warnings=root.warnings)


def snapshotter(path: Path, root: Root, config: Config) -> Snapshotter:
    return choose(config.worker_oci.snapshotter, root.snapshots_dir).open(path, root.db)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What becomes of one record. `rule` is the number of the rule that takes it, -1 if it stays."""

    record: UsageRecord
    rule: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    weight: Weight
    limit: int  # maxBytes, 0 for none
    rules: tuple[Policy, ...]
    fates: tuple[Fate, ...]


@contextmanager
def opened(path: Path, config: Config) -> Iterator[tuple[Root, Cache]]:
    with Root.open(path) as root:
        yield root, Cache(root, root.db, root.blobs, snapshotter(path, root, config))


def explain_gc(path: Path, config: Config) -> Plan:
    """What a collection would remove now, rule after rule, and why the rest stays. Changes nothing."""
    with opened(path, config) as (root, cache):
        limit = config.chantier.max_bytes.of(root.disk().total)
        return explain(cache, policies(config, root.disk().total), weigh(root.path, root.db), limit, root)


def policies(config: Config, disk_bytes: int) -> tuple[Policy, ...]:
    return tuple(
        Policy(
            all=rule.all,
            filters=rule.filters,
            keep_duration_ns=int(rule.keep_duration_s * 1e9),
            reserved_space=rule.reserved_bytes,
            max_used_space=rule.max_used_bytes,
            min_free_space=rule.min_free_bytes,
        )
        for rule in gc_rules(config.worker_oci, disk_bytes)
    )


def explain(cache: Cache, rules: tuple[Policy, ...], weight: Weight, limit: int, root: Root) -> Plan:
    """The same for an open cache."""
    records = cache.usage()
    now = time.time_ns()
    fates: dict[str, Fate] = {}
    todo = [*rules]
    if limit and weight.total > limit:
        todo.append(Policy(all=True, max_used_space=max(sum(r.size for r in records) - (weight.total - limit), 1)))
    for number, rule in enumerate(todo):
        left = [record for record in records if record.id not in fates]
        for eviction in plan(left, rule, now, root.disk()):
            record = next(record for record in left if record.id == eviction.id)
            fates[record.id] = Fate(record=record, rule=number, reason=eviction.reason)
    for record in records:
        if record.id not in fates:
            fates[record.id] = Fate(record=record, rule=-1, reason=_why_kept(record, records, rules, now, cache, fates))
    return Plan(weight=weight, limit=limit, rules=tuple(todo), fates=tuple(fates[record.id] for record in records))


def _why_kept(
    record: UsageRecord,
    records: list[UsageRecord],
    rules: tuple[Policy, ...],
    now: int,
    cache: Cache,
    fates: dict[str, Fate],
) -> str:
    children = [other for other in records if record.id in other.parents and fates.get(other.id, _STAYS).rule < 0]
    if record.in_use:
        holders = cache.root.db.read("SELECT DISTINCT process FROM store_hold WHERE kind = 'record' AND key = ?", (record.id,))
        names = ", ".join(str(process)[:12] for (process,) in holders)
        return f"in use by {names}" if names else "in use: something that is in use is made of it"
    if children:
        return f"{len(children)} records that stay are built on it, {children[0].description or children[0].id} among them"
    if not rules:
        return "garbage collection is off"
    reasons = {why for rule in rules if (why := why_kept(record, rule, now)) is not None}
    return "; ".join(sorted(reasons)) if len(reasons) == len(rules) and reasons else "everything is within its limits"


_STAYS = Fate(record=UsageRecord(id=""), rule=-1, reason="")

__all__ = ["Checked", "Fate", "Plan", "explain", "explain_gc", "fsck", "opened", "policies", "size_text", "snapshotter"]
