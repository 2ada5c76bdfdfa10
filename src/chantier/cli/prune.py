# SPDX-License-Identifier: Apache-2.0
"""`chantier prune`: the cache of a builder, or a part of it, is deleted."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chantier.client.parse import parse_size
from chantier.display.human import human_size

from .args import Parser
from .builders import add_builder, add_timeout, confirm, run_async, seconds
from .usage import ago, block, fields, filters_of

if TYPE_CHECKING:
    from chantier.client.worker import Usage

_EXAMPLE = """chantier prune
chantier prune --all --force --filter until=24h
chantier prune --max-used-space 20g --force
chantier prune --force --format json | jq -r .ID"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier prune", "Delete what a builder's cache holds.", _EXAMPLE)
    add = parser.add_argument
    add("-a", "--all", action="store_true", help="also images of frontends and internal records")
    add("--filter", action="append", default=[], metavar="NAME=VALUE", help="only these records, for example until=24h")
    add("-f", "--force", action="store_true", help="do not ask")
    add("--format", choices=("table", "json"), default="table", help="json: each record on a line, no total")
    add("--keep-storage", default="", metavar="SIZE", help="old name of --reserved-space")
    add("--max-used-space", default="0", metavar="SIZE", help="delete until no more than this is used")
    add("--min-free-space", default="0", metavar="SIZE", help="delete until this much of the disk is free")
    add("--reserved-space", default="0", metavar="SIZE", help="always keep this much")
    add("--verbose", action="store_true", help="say all of each record")
    add_builder(parser)
    add_timeout(parser)
    given = parser.parse(args)
    from chantier.driver.context import Contexts

    more = [str(f) for f in Contexts(os.environ).config().get("pruneFilters") or ()]
    filters, keep = filters_of([*more, *given.filter])
    if given.keep_storage:
        sys.stderr.write("Flag --keep-storage has been deprecated, keep-storage flag has been changed to reserved-space\n")
    what = "all build cache" if given.all else "all dangling build cache"
    if not given.force and not confirm(f"WARNING! This will remove {what}."):
        return 0
    options = {
        "all": given.all,
        "keep_duration": keep,
        "reserved_space": parse_size(given.keep_storage or given.reserved_space),
        "max_used_space": parse_size(given.max_used_space),
        "min_free_space": parse_size(given.min_free_space),
    }
    shown = _Shown(verbose=given.verbose, form=given.format)

    async def ask(client: Any) -> None:
        async for record in client.prune(filters, **options):
            shown.add(record)

    from .du import over_nodes

    run_async(over_nodes(given.builder, ask, seconds(given.timeout)))
    if given.format == "table":
        sys.stdout.write(f"Total:\t{human_size(shown.size)}\n")
    return 0


class _Shown:
    """Records, printed as they go."""

    def __init__(self, *, verbose: bool, form: str) -> None:
        self.size = 0
        self._form = form
        self._verbose = verbose
        self._begun = False

    def add(self, record: Usage) -> None:
        self.size += record.size
        if self._form == "json":
            sys.stdout.write(json.dumps(fields(record), separators=(",", ":")) + "\n")
            return
        if self._verbose:
            sys.stdout.write(block(record, tabs=True) + "\n")
            return
        if not self._begun:
            self._begun = True
            sys.stdout.write(f"{'ID':40}\t{'RECLAIMABLE'}\t{'SIZE'}\t{'LAST ACCESSED'}\n")
        reclaimable = str(not record.in_use).lower()
        mark = "*" if record.mutable else ""
        size = human_size(record.size) + ("*" if record.shared else "")
        sys.stdout.write(f"{record.id + mark:40}\t{reclaimable:5}\t{size:10}\t{ago(record.last_used_at)}\n")
        sys.stdout.flush()
