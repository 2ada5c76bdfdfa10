# SPDX-License-Identifier: Apache-2.0
"""`chantier config check FILE` and `chantier config show`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from chantier.config import Config, dump, find, load, state_root
from chantier.errors import UsageError

from .args import Parser

_EXAMPLE = """chantier config check /etc/buildkit/buildkitd.toml
chantier config show"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier config", "Check a config file, or show what is in effect.", _EXAMPLE)
    parser.add_argument("what", choices=("check", "show"))
    parser.add_argument("file", nargs="?", help="the file (default: the one that builds would use)")
    given = parser.parse(args)
    path = Path(given.file) if given.file else find(os.environ)
    if given.what == "check":
        return _check(path)
    config = load(path) if path is not None else Config()
    sys.stdout.write(f"# from {path}\n" if path is not None else "# no config file: defaults\n")
    sys.stdout.write(f"# state in {state_root(config, os.environ)}\n")
    sys.stdout.write(dump(config))
    return 0


def _check(path: Path | None) -> int:
    if path is None:
        raise UsageError("no config file was found", hint="name one: chantier config check FILE")
    config = load(path)
    for warning in config.warnings:
        sys.stderr.write(f"WARNING: {warning}\n")
    sys.stdout.write(f"{path}: ok\n")
    return 0
