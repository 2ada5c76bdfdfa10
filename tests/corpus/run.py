# SPDX-License-Identifier: Apache-2.0
"""Build one case with one builder: the same command line for all of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cases import Case
from .look import failure, images
from .servers import Servers


def build(case: Case, builder: Sequence[str], servers: Servers, work: Path, *, env: Mapping[str, str]) -> dict[str, Any]:
    """`builder` is a command that takes the arguments of `docker buildx build`."""
    context = work / "context"
    context.mkdir(parents=True)
    for name, value in case.files.items():
        path = context / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if value == "/":
            path.mkdir(exist_ok=True)
        elif value.startswith("-> "):
            path.symlink_to(value[3:])
        else:
            path.write_text(value)
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)

    def fill(text: str) -> str:
        return servers.fill(text).replace("{context}", str(context)).replace("{key}", str(servers.key))

    output = f"type=oci,dest={work}/out.tar" + (",rewrite-timestamp=true" if case.rewrite else "")
    dockerfile = ["-f", "-"] if case.dockerfile else []
    command = [*builder, "--progress=plain", "-o", output, *dockerfile, *map(fill, case.args), fill(case.context) or str(context)]
    done = subprocess.run(
        command,
        input=fill(case.dockerfile).encode(),
        capture_output=True,
        env={"BUILDX_NO_DEFAULT_ATTESTATIONS": "1", **env, **case.env},  # the peer's engine could not make any
        timeout=400,
        check=False,
    )
    stderr = done.stderr.decode(errors="replace")
    if done.returncode != 0:
        return {"error": servers.hide(failure(stderr)) or stderr[-500:]}
    found: dict[str, Any] = json.loads(servers.hide(json.dumps({"images": images(work / "out.tar", times=case.times)})))
    return found


__all__ = ["build"]
