# SPDX-License-Identifier: Apache-2.0
"""Record what BuildKit gives for the graphs: `python -m tests.corpus.record_graphs BUILDER [NAME...]`.

BUILDER is a daemon's address, or a docker context whose engine has the containerd image store. The recorded files were made by
the engine of Debian 13 (docker.io 26.1): `scripts/peer DIR`, then DOCKER_HOST=unix://DIR/docker.sock and BUILDER `default`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from .graphs import CASES, build

EXPECTED = Path(__file__).parent / "expected/graphs"


def main(builder: str, *names: str) -> None:
    for name in names or CASES:
        with tempfile.TemporaryDirectory(prefix="graphs-") as work:
            found = build(name, Path(work), {"builder": builder})
        (EXPECTED / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(name, found.get("error", "ok"))


if __name__ == "__main__":
    main(*sys.argv[1:])
