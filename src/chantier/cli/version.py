# SPDX-License-Identifier: Apache-2.0
"""`chantier version`."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence

from .args import Parser

_EXAMPLE = """chantier version
chantier version --format json"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier version", "Print the version.", _EXAMPLE)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    given = parser.parse(args)
    from chantier import __version__

    if given.format == "json":
        sys.stdout.write(json.dumps({"version": __version__, "python": platform.python_version()}) + "\n")
    else:
        sys.stdout.write(f"chantier {__version__}\n")
    return 0
