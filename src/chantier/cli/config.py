# SPDX-License-Identifier: Apache-2.0
"""`chantier config check FILE` and `chantier config show`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from chantier.config import Config, find, parse, read_text, settings, show, state_root
from chantier.errors import ChantierError, ConfigError, UsageError

from .args import Parser

_EXAMPLE = """chantier config check /etc/buildkit/buildkitd.toml
chantier config check --offline buildkitd.toml
chantier config show
chantier config show --format json | jq -r '"\\(.key) \\(.origin)"'"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser(
        "chantier config",
        "check: whether a file says what it should, its certificates can be used, and the registries' own are trusted by them.\n"
        "show: what is in effect, and the line, variable or default it comes from. Flags of a daemon are not known here.",
        _EXAMPLE,
    )
    parser.add_argument("what", choices=("check", "show"))
    parser.add_argument("file", nargs="?", help="the file (default: the one that builds would use)")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--offline", action="store_true", help="check: do not connect to registries")
    given = parser.parse(args)
    path = Path(given.file) if given.file else find(os.environ)
    if given.what == "show":
        return _show(path, given.format)
    if path is None:
        raise UsageError("no config file was found", hint="name one: chantier config check FILE")
    return _check(path, given.format, connect=not given.offline)


def _check(path: Path, form: str, *, connect: bool) -> int:
    from chantier.driver.certificate import check_config, place, raise_all

    errors: list[ConfigError] = []
    warnings: list[str] = []
    try:
        text = read_text(path)
        config = parse(text, str(path))
        errors, warnings = check_config(config, connect=connect, daemon=True)
        errors, warnings = place(errors, text, str(path)), [*config.warnings, *warnings]
    except ConfigError as err:
        errors = [err]
    if form == "json":
        wrong = [{"key": e.key, "line": e.line, "message": str(e), "hint": e.hint, "detail": e.detail} for e in errors]
        sys.stdout.write(json.dumps({"file": str(path), "errors": wrong, "warnings": warnings}, indent=2) + "\n")
        return 1 if errors else 0
    for warning in warnings:
        sys.stderr.write(f"WARNING: {warning}\n")
    raise_all(errors)
    sys.stdout.write(f"{path}: ok\n")
    return 0


def _show(path: Path | None, form: str) -> int:
    text = read_text(path) if path is not None else ""
    config = parse(text, str(path)) if path is not None else Config()
    found = settings(config, text, env=os.environ, disk_bytes=_disk(state_root(config, os.environ)))
    if form == "json":
        for one in found:
            sys.stdout.write(json.dumps({"key": one.key, "value": one.value, "origin": one.origin}) + "\n")
        return 0
    sys.stdout.write(f"# {path}{_chosen()}\n" if path is not None else "# there is no config file\n")
    sys.stdout.write(show(found))
    return 0


def _chosen() -> str:
    return ", named by CHANTIER_CONFIG" if os.environ.get("CHANTIER_CONFIG") else ""


def _disk(root: Path) -> int:
    """Bytes of the disk that holds, or would hold, the root."""
    while not root.exists():
        root = root.parent
    try:
        stat = os.statvfs(root)
    except OSError as err:
        raise ChantierError(f"cannot tell the size of the disk of {root}: {(err.strerror or str(err)).lower()}") from err
    return stat.f_blocks * stat.f_frsize
