# SPDX-License-Identifier: Apache-2.0
"""The cache config as values (`application/vnd.buildkit.cacheconfig.v0`), to and from the JSON that BuildKit writes.

    {"layers": [{"blob": DIGEST, "parent": N}], "records": [
        {"layers": [{"layer": N, "createdAt": TIME}], "digest": DIGEST, "inputs": [[{"selector": DIGEST, "link": N}]]}]}

Numbers are indexes into the lists. A layer without `parent` has parent 0, one with -1 has none: Go leaves out zeros.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from chantier.errors import IntegrityError, ReferenceError_
from chantier.spec import Digest, dumps
from chantier.spec.times import parse_rfc3339, rfc3339
from chantier.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNote:
    """What a layer is where no manifest says it (S3 and its like)."""

    media_type: str = ""
    diff_id: str = ""
    size: int = 0
    created_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    blob: str
    parent: int = -1
    note: LayerNote | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheResult:
    """One result. `layers` are all its layers, bottom first, if `chain`; else the one number is the topmost of them."""

    layers: tuple[int, ...]
    created_at: int = 0
    chain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    link: int
    selector: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRecordEntry:
    digest: str
    inputs: tuple[tuple[Input, ...], ...] = ()
    results: tuple[CacheResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    layers: tuple[CacheLayer, ...] = ()
    records: tuple[CacheRecordEntry, ...] = ()

    def dump(self) -> bytes:
        """The document, byte for byte as BuildKit would write it."""
        whole: dict[str, Any] = {}
        if self.layers:
            whole["layers"] = [_layer_to_json(layer) for layer in self.layers]
        if self.records:
            whole["records"] = records_to_json(self.records)
        return dumps(whole)

    @classmethod
    def parse(cls, data: bytes) -> CacheConfig:
        """Raises IntegrityError for what is no cache config; single records and layers may still be nonsense."""
        try:
            raw = json.loads(data)
        except ValueError as err:
            raise IntegrityError(f"invalid cache config: not JSON: {err}") from err
        if not isinstance(raw, dict):
            raise IntegrityError("invalid cache config: want a JSON object")
        layers = tuple(_layer(item) for item in _list(raw.get("layers"), "layers"))
        return cls(layers=layers, records=records_from_json(raw.get("records")))


def records_to_json(records: Sequence[CacheRecordEntry]) -> list[dict[str, Any]]:
    out = []
    for record in records:
        entry: dict[str, Any] = {}
        plain = [r for r in record.results if not r.chain]
        chains = [r for r in record.results if r.chain]
        if plain:
            entry["layers"] = [{"layer": r.layers[0], "createdAt": rfc3339(r.created_at)} for r in plain]
        if chains:
            entry["chains"] = [{"layers": list(r.layers), "createdAt": rfc3339(r.created_at)} for r in chains]
        if record.digest:
            entry["digest"] = record.digest
        if record.inputs:
            entry["inputs"] = [
                [({"selector": i.selector} if i.selector else {}) | {"link": i.link} for i in some] for some in record.inputs
            ]
        out.append(entry)
    return out


def records_from_json(raw: Any) -> tuple[CacheRecordEntry, ...]:
    """Raises IntegrityError."""
    return tuple(_record(item) for item in _list(raw, "records"))


def _record(raw: Any) -> CacheRecordEntry:
    entry = _dict(raw, "record")
    results = [
        CacheResult(layers=(_int(r.get("layer"), "layer"),), created_at=_time(r.get("createdAt")))
        for r in map(_result, _list(entry.get("layers"), "layers"))
    ]
    results += [
        CacheResult(
            layers=tuple(_int(n, "layer") for n in _list(r.get("layers"), "layers")),
            created_at=_time(r.get("createdAt")),
            chain=True,
        )
        for r in map(_result, _list(entry.get("chains"), "chains"))
    ]
    inputs = tuple(
        tuple(
            Input(link=_int(i.get("link"), "link"), selector=str(i.get("selector") or ""))
            for i in (_dict(one, "input") for one in _list(some, "inputs"))
        )
        for some in _list(entry.get("inputs"), "inputs")
    )
    return CacheRecordEntry(digest=str(entry.get("digest") or ""), inputs=inputs, results=tuple(results))


def _layer(raw: Any) -> CacheLayer:
    entry = _dict(raw, "layer")
    noted = entry.get("annotations")
    note = None
    if isinstance(noted, dict):
        note = LayerNote(
            media_type=str(noted.get("mediaType") or ""),
            diff_id=str(noted.get("diffID") or ""),
            size=_int(noted.get("size"), "size"),
            created_at=_time(noted.get("createdAt")),
        )
    try:
        blob = Digest.parse(str(entry.get("blob") or ""))
    except ReferenceError_ as err:
        raise IntegrityError(f"invalid cache config: a layer without a digest: {err}") from err
    return CacheLayer(blob=str(blob), parent=_int(entry.get("parent"), "parent"), note=note)


def _layer_to_json(layer: CacheLayer) -> dict[str, Any]:
    out: dict[str, Any] = {"blob": layer.blob}
    if layer.parent:
        out["parent"] = layer.parent
    if layer.note is not None:
        note: dict[str, Any] = {}
        if layer.note.media_type:
            note["mediaType"] = layer.note.media_type
        if layer.note.diff_id:
            note["diffID"] = layer.note.diff_id
        if layer.note.size:
            note["size"] = layer.note.size
        out["annotations"] = note | {"createdAt": rfc3339(layer.note.created_at)}
    return out


def _result(raw: Any) -> dict[str, Any]:
    return _dict(raw, "result")


def _dict(raw: Any, what: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise IntegrityError(f"invalid cache config: a {what} is {type(raw).__name__}, want an object")
    return raw


def _list(raw: Any, what: str) -> list[Any]:
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise IntegrityError(f"invalid cache config: {what} is {type(raw).__name__}, want a list")
    return raw


def _int(raw: Any, what: str) -> int:
    if raw is None:
        return 0
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise IntegrityError(f"invalid cache config: {what} is {raw!r}, want a number")
    return raw


def _time(raw: Any) -> int:
    """Nanoseconds; 0 for what is missing, before 1970 (Go's zero time) or no time at all."""
    try:
        return max(parse_rfc3339(str(raw)), 0) if raw else 0
    except ValueError:
        return 0


__all__ = [
    "CacheConfig",
    "CacheLayer",
    "CacheRecordEntry",
    "CacheResult",
    "Input",
    "LayerNote",
    "records_from_json",
    "records_to_json",
]
