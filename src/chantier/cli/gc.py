# SPDX-License-Identifier: Apache-2.0
"""`chantier gc explain`: what a collection would remove now, what stays, and what keeps it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from chantier.display.human import human_size
from chantier.driver.embedded import Embedded

from .args import Parser

_EXAMPLE = """chantier gc explain
chantier gc explain --format json"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier gc", "Say what garbage collection would do; nothing is removed.", _EXAMPLE)
    parser.add_argument("what", choices=("explain",))
    parser.add_argument("--config", default=None, metavar="FILE", help="the config file to use instead of the one found")
    parser.add_argument("--format", default="table", metavar="FORMAT", help="table or json")
    parser.add_argument("--root", default=None, metavar="DIR", help="where the engine keeps its state")
    given = parser.parse(args)
    with Embedded(root=given.root, config=given.config) as driver:
        plan = driver.gc_plan()
    sys.stdout.write(json.dumps(_document(plan), indent=2) + "\n" if given.format == "json" else _text(plan))
    return 0


def _text(plan: Any) -> str:
    weight = plan.weight
    lines = [
        (
            f"in all {human_size(weight.total)}: trees {human_size(weight.trees)}, blobs {human_size(weight.blobs)}, "
            f"running {human_size(weight.running)}, database {human_size(weight.database)}, other {human_size(weight.other)}"
        ),
        f"hard limit: {human_size(plan.limit)}" if plan.limit else "hard limit: none ([chantier] maxBytes)",
    ]
    lines += [f"rule {number}: {_rule(rule)}" for number, rule in enumerate(plan.rules)]
    for title, some in (
        ("would go", [fate for fate in plan.fates if fate.rule >= 0]),
        ("stay", [fate for fate in plan.fates if fate.rule < 0]),
    ):
        lines.append(f"\n{len(some)} {title} ({human_size(sum(fate.record.size for fate in some))})")
        for fate in sorted(some, key=lambda fate: -fate.record.size):
            by = f"rule {fate.rule}: " if fate.rule >= 0 else ""
            what = fate.record.description or fate.record.record_type
            lines.append(f"  {fate.record.id}  {human_size(fate.record.size):>10}  {what}\n      {by}{fate.reason}")
    return "\n".join(lines) + "\n"


def _rule(rule: Any) -> str:
    parts = [f"filters {', '.join(rule.filters)}"] if rule.filters else []
    parts += ["all records"] if rule.all else []
    parts += [f"kept {rule.keep_duration_ns / 3.6e12:g}h after their last use"] if rule.keep_duration_ns else []
    for name, value in (
        ("reserved", rule.reserved_space),
        ("at most", rule.max_used_space),
        ("free at least", rule.min_free_space),
    ):
        parts += [f"{name} {human_size(value)}"] if value else []
    return "; ".join(parts) or "everything"


def _document(plan: Any) -> dict[str, Any]:
    return {
        "total": plan.weight.total,
        "limit": plan.limit,
        "records": [
            {
                "id": fate.record.id,
                "size": fate.record.size,
                "type": fate.record.record_type,
                "description": fate.record.description,
                "removed": fate.rule >= 0,
                "rule": fate.rule if fate.rule >= 0 else None,
                "reason": fate.reason,
            }
            for fate in plan.fates
        ],
    }
