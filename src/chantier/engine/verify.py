# SPDX-License-Identifier: Apache-2.0
"""What a frontend's result must be before it is exported, and whether it is what was asked for. Texts are BuildKit's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from chantier.dockerfile.bridge import FrontendResult
from chantier.errors import ReferenceError_, UsageError
from chantier.progress import Reporter, Warning, step
from chantier.spec import Platform, host_platform, new_id

_PLATFORMS = "refs.platforms"
_CONFIG = "containerimage.config"


def check_metadata(metadata: Mapping[str, bytes]) -> None:
    """Raises UsageError for platforms or image configs that no exporter could write."""
    listed(metadata)
    for key, data in metadata.items():
        if key == _CONFIG or key.startswith(_CONFIG + "/"):
            _check_config(_read(data, "image config for export"), alone=_PLATFORMS not in metadata)


def listed(metadata: Mapping[str, bytes]) -> list[tuple[str, Platform]]:
    """The platforms the result says it is for; none if it says nothing."""
    if _PLATFORMS not in metadata:
        return []
    value = _read(metadata[_PLATFORMS], "platforms passed to exporter")
    entries = value.get("Platforms") if isinstance(value, dict) else None
    if not entries:
        raise UsageError("invalid empty platforms index for exporter")
    found = []
    for entry in entries:
        if not entry.get("ID"):
            raise UsageError("invalid empty platform key for exporter")
        platform = entry.get("Platform") or {}
        if not platform.get("os") or not platform.get("architecture"):
            raise UsageError(f"invalid platform value {json.dumps(platform)} for exporter")
        found.append((str(entry["ID"]), Platform.from_json(platform).normalise()))
    return found


def _read(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as err:
        raise UsageError(f"failed to parse {what}: {err}") from err


def _check_config(config: Any, *, alone: bool) -> None:
    """`alone` where nothing else says what platform it is for."""
    if config is None:
        raise UsageError("invalid null image config for export")
    if not isinstance(config, dict):
        raise UsageError("invalid image config for export")
    if alone and bool(config.get("os")) != bool(config.get("architecture")):
        raise UsageError("invalid image config: os and architecture must be specified together")


def verify(result: FrontendResult, attrs: Mapping[str, str], reporter: Reporter) -> None:
    """Warn where the platforms of a result are not those that were asked for."""
    wanted = [text for text in attrs.get("platform", "").split(",") if text]
    if attrs.get("requestid") or all(ref is None for ref in result.refs.values()):  # an answer to a question, no build
        return
    wanted = wanted or [str(host_platform())]
    said = _difference(wanted, result)
    if not said:
        return
    digest = "sha256:" + hashlib.sha256(new_id().encode()).hexdigest()
    with step(reporter, "Verifying build result", digest=digest):
        reporter.emit(Warning(vertex=digest, level=0, short=said.encode()))


def _difference(wanted: list[str], result: FrontendResult) -> str:
    try:
        asked = {Platform.parse(text).normalise().format_all() for text in wanted}
    except ReferenceError_ as err:
        return f"Invalid platform result requested: {err}"
    if len(asked) != len(wanted):
        return "Duplicate platform result requested"
    got = [platform for _, platform in listed(result.metadata)] or [host_platform()]
    names = {platform.format_all() for platform in got}
    if len(asked) == 1 and len(got) == 1:
        plain = Platform(got[0].os, got[0].architecture, got[0].variant).format_all()
        if asked & {*names, plain}:
            return ""
        return f'Requested platform "{wanted[0]}" does not match result platform "{got[0].format_all()}"'
    if "" in result.refs and len(asked) > 1:
        return "Multiple platforms requested but result is not multi-platform"
    if asked != names:
        return f"Requested platforms {','.join(sorted(asked))} do not match result platforms {','.join(sorted(names))}"
    return ""


__all__ = ["check_metadata", "listed", "verify"]
