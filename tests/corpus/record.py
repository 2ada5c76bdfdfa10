# SPDX-License-Identifier: Apache-2.0
"""Record what BuildKit gives for the cases: `python -m tests.corpus.record [NAME...]`.

Needs a Docker engine with the containerd image store in DOCKER_HOST, whose mirror for docker.io is 127.0.0.1:PORT of
`CORPUS_REGISTRY_PORT`, and `docker buildx` on PATH. The recorded files were made by the engine of Debian 13
(docker.io 26.1, docker-buildx 0.13).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from ..conftest import make_base, push_tree, start_registry
from .cases import CASES
from .run import build
from .servers import serving

EXPECTED = Path(__file__).parent / "expected"
BUILDER = ("docker", "buildx", "build", "--provenance=false", "--sbom=false", "--network=host")


def main(names: list[str]) -> None:
    work = Path(tempfile.mkdtemp(prefix="corpus-"))
    registry = start_registry(work / "registry", port=int(os.environ["CORPUS_REGISTRY_PORT"]))
    try:
        push_tree(make_base(work), f"{registry.host}/library/alpine:latest", work)
        with serving(work / "servers") as servers:
            for case in CASES:
                if names and case.name not in names:
                    continue
                found = build(case, BUILDER, servers, work / case.name, env=dict(os.environ))
                (EXPECTED / f"{case.name}.json").write_text(
                    json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
                )
                print(case.name, found.get("error", "ok"))
    finally:
        registry.stop()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
