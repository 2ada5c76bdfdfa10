# SPDX-License-Identifier: Apache-2.0
"""`chantier fsck`: is the state directory whole; with --repair it is made so."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from chantier.driver.embedded import Embedded

from .args import Parser

_EXAMPLE = """chantier fsck
chantier fsck --repair --deep --root /var/lib/chantier"""


def run(args: Sequence[str], debug: bool) -> int:
    """Exit code 0 if all is well (now), 1 if not."""
    parser = Parser("chantier fsck", "Check blobs, snapshots, links and holds of the state directory.", _EXAMPLE)
    parser.add_argument("--config", default=None, metavar="FILE", help="the config file to use instead of the one found")
    parser.add_argument("--deep", action="store_true", help="also read every blob and compare its digest")
    parser.add_argument("--repair", action="store_true", help="remove what is damaged, and what is made of it")
    parser.add_argument("--root", default=None, metavar="DIR", help="where the engine keeps its state")
    given = parser.parse(args)
    with Embedded(root=given.root, config=given.config) as driver:
        checked = driver.fsck(mend=given.repair, deep=given.deep)
    for text in checked.warnings:
        sys.stderr.write(f"WARNING: {text}\n")
    for problem in checked.found:
        mended = given.repair and problem not in checked.left
        sys.stdout.write(f"{problem}{' (repaired)' if mended else ''}\n")
    for problem in checked.left:
        if problem not in checked.found:
            sys.stdout.write(f"{problem}\n")
    sys.stdout.write("clean\n" if checked.clean else f"{len(checked.left)} problems; run chantier fsck --repair\n")
    return 0 if checked.clean else 1
