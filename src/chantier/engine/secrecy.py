# SPDX-License-Identifier: Apache-2.0
"""Values that are meant to be secret, told by their names: what is kept of a build has them not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET = re.compile(r"(token|secret|password|passwd|credential|private|access_key)", re.IGNORECASE)
_MASK = "xxxxx"


def open_attrs(attrs: Mapping[str, str]) -> dict[str, str]:
    """Options without secret values."""
    return {key: _MASK if _SECRET.search(key) and not key.startswith("context:") else value for key, value in attrs.items()}


def open_predicate(predicate: dict[str, Any]) -> dict[str, Any]:
    """A v1 provenance without secret values in its arguments and in the environments of its steps; changed in place."""
    definition = predicate["buildDefinition"]
    _open_request(definition["externalParameters"]["request"])
    config = definition["internalParameters"].get("buildConfig") or {}
    for step in config.get("llbDefinition") or ():
        meta = step["op"]["Op"].get("exec", {}).get("meta", {})
        if "env" in meta:
            meta["env"] = [_open_variable(item) for item in meta["env"]]
    return predicate


def _open_request(request: dict[str, Any]) -> None:
    if "args" in request:
        request["args"] = open_attrs(request["args"])
    for other in (*(request.get("inputs") or {}).values(), *([request["root"]] if "root" in request else [])):
        _open_request(other["request"])


def _open_variable(item: str) -> str:
    name, equals, _ = item.partition("=")
    return f"{name}={_MASK}" if equals and _SECRET.search(name) else item


__all__ = ["open_attrs", "open_predicate"]
