# SPDX-License-Identifier: Apache-2.0
"""The recorded cases: whatever stock tools refuse while parsing, and warn about while parsing, we do with the same words.

The folder is named by CHANTIER_GOLDEN, or found beside the repository; where it is neither, the test is skipped and
says so.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from chantier.dockerfile import Linter, parse
from chantier.dockerfile import lint as rules
from chantier.errors import DockerfileError

NAMED = os.environ.get("CHANTIER_GOLDEN")
FOLDER = Path(NAMED) if NAMED else Path(__file__).parents[3] / "shared" / "golden"
UNPREFIXED = (  # refusals of the line parsers, which stock tools give no line
    "the Dockerfile cannot be empty",
    "file with no instructions",
    "dockerfile contains no stages",
    "no build stage in current context",
    "only one ",
    "invalid escape token",
    "Syntax error - can't find =",
    "ENV must have two arguments",
    "LABEL must have two arguments",
    "when using JSON array syntax",
    "unterminated heredoc",
)
PARSE_RULES = {
    "StageNameCasing",
    "FromAsCasing",
    "NoEmptyContinuation",
    "ConsistentInstructionCasing",
    "DuplicateStageName",
    "ReservedStageName",
    "MaintainerDeprecated",
    "InvalidDefinitionDescription",
}

pytestmark = pytest.mark.skipif(
    NAMED is None and not (FOLDER / "cases").is_dir(), reason="no recorded cases here: set CHANTIER_GOLDEN to their folder"
)


def cases() -> list[tuple[str, bytes, dict[str, Any]]]:
    """Every case whose Dockerfile is the plain one of its context, as (name, data, expected)."""
    found = []
    for folder in sorted((FOLDER / "cases").iterdir()):
        path = folder / "ctx" / "Dockerfile"
        flags = json.loads((folder / "case.json").read_text()).get("flags", [])
        if path.is_file() and not any(f == "-f" or f.startswith("--file") or "BUILDKIT_DOCKERFILE_CHECK" in f for f in flags):
            found.append((folder.name, path.read_bytes(), json.loads((folder / "expected.json").read_text())))
    return found


def refusal(data: bytes) -> tuple[str, Linter]:
    lint = Linter()
    try:
        lint = Linter.for_file(data)
        parse(data, lint=lint)
    except DockerfileError as err:
        return err.brief, lint
    return "", lint


def expected_text(expected: dict[str, Any]) -> str:
    call = expected.get("call")
    if isinstance(call, dict) and call.get("buildError"):
        return str(call["buildError"]["message"])
    return str(expected.get("error") or "").removeprefix("failed to solve: ")


def is_parse_error(text: str) -> bool:
    return text.startswith(("dockerfile parse error on line ", *UNPREFIXED))


def test_refusals() -> None:
    all_cases = cases()
    assert len(all_cases) > 300, "the folder holds too few cases to mean anything"
    wrong, refused = [], 0
    for name, data, expected in all_cases:
        wanted = expected_text(expected)
        got, _ = refusal(data)
        if is_parse_error(wanted):
            refused += 1
        if (got or is_parse_error(wanted)) and got != wanted:
            wrong.append((name, wanted, got))
    assert wrong == []
    assert refused >= 30


def test_warnings() -> None:
    by_name = {rule.name: rule for rule in rules.RULES}
    wrong, compared = [], 0
    for name, data, expected in cases():
        call = expected.get("call")
        if not isinstance(call, dict) or "warnings" not in call:
            continue
        warnings = call["warnings"] or []
        for warning in warnings:
            rule = by_name[warning["ruleName"]]
            assert (warning["description"], warning.get("url", "")) == (rule.description, rule.url)
        wanted = [
            (w["ruleName"], w["detail"], [r["start"]["line"] for r in w["location"]["ranges"]])
            for w in warnings
            if w["ruleName"] in PARSE_RULES
        ]
        got = [(w.rule.name, w.detail, [r.start for r in w.ranges]) for w in refusal(data)[1].warnings]
        compared += len(wanted)
        if got != wanted:
            wrong.append((name, wanted, got))
    assert wrong == []
    assert compared >= 15
