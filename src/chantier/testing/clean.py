# SPDX-License-Identifier: Apache-2.0
"""Removes a state directory with whatever is still mounted below it: `python -m chantier.testing.clean DIR`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from chantier.kernel import MNT_DETACH, umount


def clean(root: Path) -> None:
    """Unmount, deepest first, then delete. A root that is not there is clean."""
    below = os.path.realpath(root) + "/"
    with open("/proc/self/mountinfo") as file:
        targets = [line.split()[4].encode().decode("unicode_escape") for line in file]
    for target in sorted((t for t in targets if t.startswith(below)), reverse=True):
        umount(target, MNT_DETACH)
    if root.exists():
        shutil.rmtree(root)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        clean(Path(argument))
