# SPDX-License-Identifier: Apache-2.0
"""`chantier version`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .args import Parser


def run(args: Sequence[str], debug: bool) -> int:
    Parser("chantier version", "Print the version.", "chantier version").parse(args)
    from chantier import __version__

    sys.stdout.write(f"chantier {__version__}\n")
    return 0
