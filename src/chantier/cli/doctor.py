# SPDX-License-Identifier: Apache-2.0
"""`chantier doctor`: what this machine can do for builds, one line each, with what to do about the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from .args import Parser

_ABOUT = """Show what this machine can do for builds, and what to do about the rest.

Exit code: 0 all is well, 2 there are warnings, 1 something failed."""
_EXAMPLE = """chantier doctor
chantier doctor --json | jq '.findings[] | select(.state != "ok")'"""
_MARKS = {"ok": "ok  ", "warning": "warn", "failure": "FAIL"}


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier doctor", _ABOUT, _EXAMPLE)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--no-registries", action="store_true", help="do not try to reach the registries of the config")
    parser.add_argument("--root", default=None, metavar="DIR", help="the state directory to look at")
    parser.add_argument("--config", default=None, metavar="FILE", help="the config file to use instead of the one found")
    given = parser.parse(args)
    from chantier.driver.doctor import examine

    findings, code = examine(root=given.root, config=given.config, registries=not given.no_registries)
    if given.json:
        document = {"exit_code": code, "findings": list(findings)}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return code
    for finding in findings:
        sys.stdout.write(f"{_MARKS[finding['state']]}  {finding['name']:12} {finding['found']}\n")
        if finding["fix"] and finding["state"] != "ok":
            sys.stdout.write(f"      {'':12} fix: {finding['fix']}\n")
    return code
