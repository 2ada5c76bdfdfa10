# SPDX-License-Identifier: Apache-2.0
"""Image configs made ready for export: diff ids, history that fits the layers, creation times (semantics.md 6.6)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from chantier.errors import UsageError
from chantier.spec import Platform, dumps, host_platform
from chantier.spec.times import parse_rfc3339, rfc3339

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def default_config(platform: Platform | None) -> bytes:
    """The config of a result that brings none (a graph made by hand)."""
    platform = platform or host_platform()
    raw: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        raw["variant"] = platform.variant
    raw["config"] = {"Env": [f"PATH={DEFAULT_PATH}"], "WorkingDir": "/"}
    raw["rootfs"] = {"type": "layers", "diff_ids": []}
    return dumps(raw)


def patch_config(
    config: bytes,
    *,
    diff_ids: Sequence[str],
    created_at: Sequence[int | None],
    descriptions: Sequence[str],
    epoch: int | None = None,
    base_history: int = 0,
    extra: dict[str, Any] | None = None,
) -> bytes:
    """The config as it is exported.

    `created_at` (ns) and `descriptions` have one entry a layer. `epoch` (s) clamps all history times but those of the first
    `base_history` entries. Raises UsageError for a config without os or architecture.
    """
    try:
        raw = json.loads(config)
    except ValueError as err:
        raise UsageError(f"invalid image config for export: {err}") from err
    for key in ("os", "architecture"):
        if not raw.get(key):
            raise UsageError(f"invalid image config for export: missing {key}")
    history = _fit_history(list(raw.get("history") or ()), created_at, descriptions)
    if epoch is not None:
        for entry in history[base_history:]:
            if not entry.get("created") or parse_rfc3339(entry["created"]) > epoch * 1_000_000_000:
                entry["created"] = rfc3339(epoch * 1_000_000_000)
    raw["rootfs"] = {"type": "layers", "diff_ids": [str(d) for d in diff_ids]}
    raw["history"] = [_ordered(entry) for entry in history]
    if epoch is not None:
        if not raw.get("created") or parse_rfc3339(raw["created"]) > epoch * 1_000_000_000:
            raw["created"] = rfc3339(epoch * 1_000_000_000)
    elif not raw.get("created") and history and history[-1].get("created"):
        raw["created"] = history[-1]["created"]
    raw.update(extra or {})
    return dumps({key: raw[key] for key in sorted(raw)})


def _fit_history(
    history: list[dict[str, Any]], created_at: Sequence[int | None], descriptions: Sequence[str]
) -> list[dict[str, Any]]:
    history = [dict(entry) for entry in history]
    layers = 0
    for entry in history:
        if not entry.get("empty_layer"):
            layers += 1
            if layers > len(created_at):
                entry["empty_layer"] = True
    for number in range(min(layers, len(created_at)), len(created_at)):
        entry = {"comment": "buildkit.exporter.image.v0"}
        if descriptions[number]:
            entry["created_by"] = descriptions[number]
        if created_at[number] is not None:
            entry["created"] = rfc3339(created_at[number] or 0)
        history.append(entry)
    number = 0
    for entry in history:
        if entry.get("empty_layer"):
            continue
        if not entry.get("created") and number < len(created_at) and created_at[number] is not None:
            entry["created"] = rfc3339(created_at[number] or 0)
        number += 1
    last = next((entry["created"] for entry in history if entry.get("created")), None)
    for entry in history:
        if entry.get("created"):
            last = entry["created"]
        elif last:
            entry["created"] = last
    return history


def _ordered(entry: dict[str, Any]) -> dict[str, Any]:
    keys = ("created", "created_by", "author", "comment", "empty_layer")  # the Go struct's order
    return {k: entry[k] for k in keys if entry.get(k) not in (None, "", False)} | {
        k: v for k, v in entry.items() if k not in keys
    }
