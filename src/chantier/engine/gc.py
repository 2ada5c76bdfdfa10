# SPDX-License-Identifier: Apache-2.0
"""Keeping the state within its limits: the config's rules, applied after builds, at most once a minute."""

from __future__ import annotations

import time

from chantier.cache import Cache
from chantier.config import Config, gc_rules
from chantier.kernel.trace import point
from chantier.store import Policy, Root

_EVERY_S = 60.0


def collect(root: Root, cache: Cache, config: Config) -> None:
    """Prune by the rules, unless somebody did so within the last minute or `gc = false` says not to."""
    stamp = root.path / "gc.stamp"
    try:
        if time.time() - stamp.stat().st_mtime < _EVERY_S:
            return
    except FileNotFoundError:
        pass
    stamp.touch()
    point("gc.begun")
    rules = gc_rules(config.worker_oci, root.disk().total)
    if rules:
        cache.prune(
            [
                Policy(
                    all=rule.all,
                    filters=rule.filters,
                    keep_duration_ns=int(rule.keep_duration_s * 1e9),
                    reserved_space=rule.reserved_bytes,
                    max_used_space=rule.max_used_bytes,
                    min_free_space=rule.min_free_bytes,
                )
                for rule in rules
            ]
        )
