# SPDX-License-Identifier: Apache-2.0
"""Names of records: the same wherever the same record is met, so that caches written twice are equal and imports join."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

Ways = Sequence[Sequence[tuple[str, str]]]
"""For each input the alternatives: (name of a record, selector)."""


def record_name(digest: str, inputs: Ways) -> str:
    """A record without inputs is named by its digest, as the solver's roots are; another by all that leads to it."""
    if not inputs:
        return digest
    whole = [digest, [sorted(set(some)) for some in inputs]]
    return "i" + hashlib.sha256(json.dumps(whole, separators=(",", ":")).encode()).hexdigest()[:32]


__all__ = ["Ways", "record_name"]
