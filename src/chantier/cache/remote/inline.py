# SPDX-License-Identifier: Apache-2.0
"""A cache inside an image: records in its config, whose layers are the image's own (config key `moby.buildkit.cache.v0`).

A result that is the first N layers of the image is named by the number of the last of them, another by a chain of numbers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from chantier.cache.types import LayerBlob, LayerSource
from chantier.errors import IntegrityError
from chantier.spec import Digest, Manifest, dumps
from chantier.spec.times import parse_rfc3339

from .config import CacheConfig, CacheLayer, CacheRecordEntry, CacheResult, records_from_json, records_to_json
from .write import Written

CONFIG_KEY = "moby.buildkit.cache.v0"


def inline_records(written: Written, layers: Sequence[LayerBlob]) -> bytes | None:
    """The records as the image with these layers carries them; None if no result is made of them alone."""
    place: dict[str, int] = {}
    for number, layer in enumerate(layers):
        place.setdefault(str(layer.diff_id), number)
    records = []
    found = False
    for record in written.config.records:
        results = [r for r in (_placed(r, written, place) for r in record.results) if r is not None]
        found = found or bool(results)
        records.append(CacheRecordEntry(digest=record.digest, inputs=record.inputs, results=tuple(results)))
    return dumps(records_to_json(records)) if found else None


def _placed(result: CacheResult, written: Written, place: dict[str, int]) -> CacheResult | None:
    chain: list[int] = []
    at = result.layers[-1]
    while at >= 0:
        number = place.get(str(written.layers[at].diff_id))
        if number is None:
            return None
        chain.insert(0, number)
        at = written.config.layers[at].parent
    if chain == list(range(len(chain))):
        return CacheResult(layers=(len(chain) - 1,), created_at=result.created_at)
    return CacheResult(layers=tuple(chain), created_at=result.created_at, chain=True)


def inline_config(image_config: bytes, manifest: Manifest, source: str) -> tuple[CacheConfig, list[LayerSource]] | None:
    """The cache that an image carries, if it does, and its layers. Raises IntegrityError."""
    try:
        raw = json.loads(image_config)
    except ValueError as err:
        raise IntegrityError(f"invalid image config: not JSON: {err}") from err
    text = raw.get(CONFIG_KEY) if isinstance(raw, dict) else None
    if not text or not manifest.layers:
        return None
    diff_ids = (raw.get("rootfs") or {}).get("diff_ids") or ()
    if len(diff_ids) != len(manifest.layers):
        raise IntegrityError("invalid image with mismatching manifest and config")
    try:
        records = records_from_json(json.loads(base64.b64decode(text)))
    except ValueError as err:
        raise IntegrityError(f"invalid inline cache: {err}") from err
    made = [entry for entry in raw.get("history") or () if not entry.get("empty_layer")]
    layers = tuple(CacheLayer(blob=str(d.digest), parent=number - 1) for number, d in enumerate(manifest.layers))
    sources = [
        LayerSource(
            descriptor=descriptor,
            diff_id=Digest.parse(diff_id),
            sources=(source,),
            created_at=_time(made[number].get("created")) if number < len(made) else None,
            description=str(made[number].get("created_by") or "") if number < len(made) else "",
        )
        for number, (descriptor, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=True))
    ]
    return CacheConfig(layers=layers, records=records), sources


def _time(text: Any) -> int | None:
    try:
        return parse_rfc3339(text) if isinstance(text, str) else None
    except ValueError:
        return None


__all__ = ["CONFIG_KEY", "inline_config", "inline_records"]
