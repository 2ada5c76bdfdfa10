# SPDX-License-Identifier: Apache-2.0
"""`chantier update`: a builder that exists gets another config, without being made anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .args import Parser
from .builders import run_async

_EXAMPLE = """chantier update box --config /etc/buildkitd.toml
chantier update box --config /etc/buildkitd.toml --dry-run"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier update", "Change the config of a builder that exists.", _EXAMPLE)
    parser.add_argument("name", help="the builder")
    parser.add_argument("--config", "--buildkitd-config", required=True, metavar="FILE", help="the new config")
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")
    given = parser.parse(args)
    from chantier.driver.store import Store
    from chantier.driver.update import apply, plan_update

    store = Store.open(os.environ)
    with store.locked():
        group = store.group(given.name)
        changes = plan_update(group, given.config)
        for change in changes:
            sys.stdout.write(change.diff)
            for name in change.files:
                sys.stdout.write(f"{change.node.name}: new file {name}\n")
            if given.dry_run and change.restart:
                sys.stderr.write(f"{change.node.name}: a restart is needed for {', '.join(change.restart)}\n")
        sys.stdout.flush()
        if given.dry_run:
            return 0
        for line in run_async(apply(group, changes, store, os.environ)):
            sys.stderr.write(line + "\n")
    return 0
