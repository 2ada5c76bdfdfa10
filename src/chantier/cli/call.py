# SPDX-License-Identifier: Apache-2.0
"""What `--call` prints: documents of the frontend instead of an image (builders.md 5.10)."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from typing import Any

from chantier.display.errors import excerpt
from chantier.errors import Source, SourceRange


def print_call(method: str, form: str, documents: Mapping[str, bytes], *, ignore_status: bool) -> int:
    """Returns the exit code: for a check that of `result.statuscode`, unless it is to be ignored."""
    if form == "json":
        sys.stdout.write(documents.get("result.json", b"{}").decode() + "\n")
    elif method in ("check", "lint"):
        _print_check(json.loads(documents.get("result.json", b"{}")))
    else:
        sys.stdout.write(documents.get("result.txt", documents.get("result.json", b"")).decode())
    sys.stdout.flush()
    status = documents.get("result.statuscode", b"0").decode()
    return int(status) if status.isdigit() and not ignore_status else 0


def _print_check(document: Mapping[str, Any]) -> None:
    warnings = document.get("warnings") or []
    if not warnings and "buildError" not in document:
        sys.stdout.write("Check complete, no warnings found.\n")
    elif warnings:
        found = "1 warning has been found!" if len(warnings) == 1 else f"{len(warnings)} warnings have been found!"
        sys.stdout.write(f"Check complete, {found}\n")
    for warning in sorted(warnings, key=_position):
        url = f" - {warning['url']}" if warning.get("url") else ""
        sys.stdout.write(f"\nWARNING: {warning['ruleName']}{url}\n{warning.get('detail', '')}\n")
        sys.stdout.write(_snippet(document, warning.get("location")))
    failure = document.get("buildError")
    if failure:
        sys.stderr.write("\n" + _snippet(document, failure.get("location")) + f"ERROR: {failure['message']}\n")


def _position(warning: Mapping[str, Any]) -> tuple[int, int]:
    location = warning.get("location") or {}
    ranges = location.get("ranges") or [{}]
    return location.get("sourceIndex", 0), (ranges[0].get("start") or {}).get("line", 0)


def _snippet(document: Mapping[str, Any], location: Mapping[str, Any] | None) -> str:
    sources = document.get("sources") or []
    index = (location or {}).get("sourceIndex", 0)
    if not location or not location.get("ranges") or index >= len(sources):
        return ""
    source = sources[index]
    if isinstance(source, str):
        source = {"filename": "Dockerfile", "data": source}
    ranges = tuple(SourceRange(r["start"]["line"], r["end"]["line"]) for r in location["ranges"])
    return excerpt(Source(source.get("filename", "Dockerfile"), base64.b64decode(source.get("data", "")), ranges))
