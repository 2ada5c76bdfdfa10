# SPDX-License-Identifier: Apache-2.0
"""What the owner of an engine adds to every provenance: the JSON files of `provenanceEnvDir` (protocol.md 8.3)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chantier.errors import ConfigError

from .provenance import BUILT_IN

_DEFAULT = "/etc/buildkit/provenance.d"


def load_environment(directory: str) -> dict[str, Any]:
    """All files in the order of their names, later ones win; "" is the usual place, which may be missing. Raises ConfigError."""
    place = Path(directory or _DEFAULT)
    found: dict[str, Any] = {}
    try:
        names = sorted(place.glob("*.json")) if place.is_dir() else []
        for path in names:
            document = json.loads(path.read_text())
            if not isinstance(document, dict):
                raise ConfigError(f"{path}: want a JSON object")
            found |= document
    except (OSError, ValueError) as err:
        raise ConfigError(f"failed to read provenance environment {place}: {err}") from err
    for key in found:
        if key in BUILT_IN:
            raise ConfigError(f'key "{key}" is builtin and not allowed to be modified in provenance config', hint=str(place))
    return found


__all__ = ["load_environment"]
