# SPDX-License-Identifier: Apache-2.0
"""The embedded engine's examination of this machine, for commands: made where that engine would work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chantier.config import Config, find, load, state_root
from chantier.kernel import userns

_NO_NAMESPACE = 125  # of kernel/enter.py


def examine(
    *, root: str | None = None, config: str | None = None, registries: bool = True, env: Mapping[str, str] = os.environ
) -> tuple[Sequence[Mapping[str, Any]], int]:
    """What was found (name, state, found, fix), and the exit code that says it."""
    if userns.needs_namespace():
        return _inside(root, config, registries=registries, env=env)
    from chantier.engine import doctor

    file = Path(config) if config is not None else find(env)
    read = load(file) if file is not None else Config()
    found = doctor.examine(Path(root) if root is not None else state_root(read, env), read, registries=registries)
    return [finding.plain() for finding in found], doctor.exit_code(found)


def _inside(
    root: str | None, config: str | None, *, registries: bool, env: Mapping[str, str]
) -> tuple[Sequence[Mapping[str, Any]], int]:
    """By another process in a user namespace; if there can be none, that is the finding."""
    flags = ["--json", *([] if registries else ["--no-registries"])]
    flags += [word for name, value in (("--root", root), ("--config", config)) if value is not None for word in (name, value)]
    again = userns.command([sys.executable, "-m", "chantier", "doctor", *flags])
    done = subprocess.run(again, capture_output=True, text=True, check=False, env={**env, "CHANTIER_NOTES": "0"})
    if done.returncode != _NO_NAMESPACE and done.stdout.startswith("{"):
        answer = json.loads(done.stdout)
        return answer["findings"], answer["exit_code"]
    lines = [line for line in done.stderr.splitlines() if line]
    cause = lines[0] if lines else "a user namespace cannot be made"
    fix = lines[1] if len(lines) > 1 else "run as root"
    return [{"name": "namespaces", "state": "failure", "found": cause, "fix": fix}], 1


__all__ = ["examine"]
