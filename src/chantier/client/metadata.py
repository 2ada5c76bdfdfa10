# SPDX-License-Identifier: Apache-2.0
"""Files a build leaves for other programs: --metadata-file and --iidfile (builders.md 5.11)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from chantier.kernel.temporary import write_whole

from .provenance import metadata_values
from .request import BuildResult


def write_metadata(path: str, result: BuildResult, *, place: str = "embedded/embedded0", provenance: str = "min") -> None:
    """Sorted JSON, two spaces; values that are base64 of a JSON object stand as that object. Written whole or not at all.

    `place` is BUILDER/NODE; `provenance` how much is told of that: min, max or disabled.
    """
    values = {**result.response, **metadata_values(result.provenance, provenance)}
    document: dict[str, Any] = {key: _decoded(value) for key, value in values.items()}
    document["buildx.build.ref"] = f"{place}/{result.ref}"
    write_text(path, json.dumps(document, indent=2, sort_keys=True))


def write_text(path: str, text: str) -> None:
    """Mode 0644, and whole or not at all."""
    write_whole(Path(path), text.encode(), mode=0o644, exact=True)


def _decoded(value: str) -> Any:
    try:
        document = json.loads(base64.b64decode(value, validate=True))
    except ValueError:
        return value
    return document if isinstance(document, dict | list) else value
