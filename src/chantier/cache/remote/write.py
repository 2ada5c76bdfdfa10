# SPDX-License-Identifier: Apache-2.0
"""From keys and the layers of their results to a cache config. Pure; the caller says which results are worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chantier.cache.types import LayerBlob
from chantier.solver.export import ExportKey
from chantier.solver.keys import is_volatile
from chantier.values import dataclass, replace

from .config import CacheConfig, CacheLayer, CacheRecordEntry, CacheResult, Input, LayerNote
from .names import record_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The layers of one result, bottom first."""

    layers: Sequence[LayerBlob]
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A config, and the layers it speaks of, in its order and once each time it names them."""

    config: CacheConfig
    layers: tuple[LayerBlob, ...]


@dataclass(slots=True)
class _Entry:
    digest: str
    inputs: list[list[tuple[str, str]]]
    result: Result | None = None


def write_config(nodes: Sequence[ExportKey], results: Mapping[str, Result], *, notes: bool = False) -> Written:
    """`nodes` have their inputs before them; `results` go by the ids of nodes.

    Equal records become one, with the newest result. Records that lead to no result are left out. With `notes` each layer
    says itself what it is.
    """
    entries = _entries(nodes, results)
    _keep_useful(entries)
    table = _Layers()
    tops = {name: table.add(entry.result.layers) for name, entry in entries.items() if entry.result is not None}
    order, layers = table.sorted()
    names = sorted(entries, key=lambda name: _rank(entries, name))
    index = {name: number for number, name in enumerate(names)}
    records = [_record(entries[name], index, order[tops[name]] if name in tops else None) for name in names]
    listed = [CacheLayer(blob=str(blob.descriptor.digest), parent=parent) for blob, parent in layers]
    if notes:
        listed = [replace(one, note=_note(blob)) for one, (blob, _) in zip(listed, layers, strict=True)]
    return Written(
        config=CacheConfig(layers=tuple(listed), records=tuple(records)),
        layers=tuple(blob for blob, _ in layers),
    )


def _entries(nodes: Sequence[ExportKey], results: Mapping[str, Result]) -> dict[str, _Entry]:
    names: dict[str, str] = {}
    entries: dict[str, _Entry] = {}
    for node in nodes:
        if is_volatile(node.op):
            continue
        inputs = [sorted({(names[parent], selector) for parent, selector in some if parent in names}) for some in node.inputs]
        if not all(inputs):
            continue  # an input has no lasting key: nobody could find this record
        name = names[node.id] = record_name(node.op, inputs)
        entry = entries.setdefault(name, _Entry(node.op, inputs))
        result = results.get(node.id)
        if result is not None and result.layers and (entry.result is None or result.created_at > entry.result.created_at):
            entry.result = result
    return entries


def _keep_useful(entries: dict[str, _Entry]) -> None:
    """Drop what leads to no result. Entries stand after their inputs."""
    wanted = {name for name, entry in entries.items() if entry.result is not None}
    for name in reversed(list(entries)):
        if name in wanted:
            wanted.update(parent for some in entries[name].inputs for parent, _ in some)
        else:
            del entries[name]


def _rank(entries: Mapping[str, _Entry], name: str) -> tuple[object, ...]:
    """BuildKit's order (digest, number of inputs, selectors, digests of inputs), made total by the name."""
    entry = entries[name]
    return (
        entry.digest,
        len(entry.inputs),
        tuple((len(some), tuple((selector, entries[parent].digest) for parent, selector in some)) for some in entry.inputs),
        name,
    )


def _record(entry: _Entry, index: Mapping[str, int], top: int | None) -> CacheRecordEntry:
    results: tuple[CacheResult, ...] = ()
    if top is not None and entry.result is not None:
        results = (CacheResult(layers=(top,), created_at=entry.result.created_at),)
    inputs = tuple(
        tuple(
            sorted(
                (Input(link=index[parent], selector=selector) for parent, selector in some),
                key=lambda item: (item.link, item.selector),
            )
        )
        for some in entry.inputs
    )
    return CacheRecordEntry(digest=entry.digest, inputs=inputs, results=results)


def _note(blob: LayerBlob) -> LayerNote:
    return LayerNote(
        media_type=blob.descriptor.media_type, diff_id=str(blob.diff_id), size=blob.descriptor.size, created_at=blob.created_at
    )


class _Layers:
    """Chains of layers as a forest: each blob once under each parent."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, int], int] = {}
        self._layers: list[tuple[LayerBlob, int]] = []

    def add(self, chain: Sequence[LayerBlob]) -> int:
        """The number of the topmost layer."""
        parent = -1
        for blob in chain:
            key = (str(blob.descriptor.digest), parent)
            place = self._places.get(key)
            if place is None:
                place = self._places[key] = len(self._layers)
                self._layers.append((blob, parent))
            parent = place
        return parent

    def sorted(self) -> tuple[list[int], list[tuple[LayerBlob, int]]]:
        """New numbers by old ones, and the layers in BuildKit's order, by digest, with new parents."""
        chains: list[tuple[str, ...]] = []  # what a layer stands on, from it down: tells equal blobs apart
        for blob, parent in self._layers:
            chains.append((str(blob.descriptor.digest), *(chains[parent] if parent >= 0 else ())))
        new = sorted(range(len(self._layers)), key=lambda old: chains[old])
        order = [0] * len(new)
        for number, old in enumerate(new):
            order[old] = number
        return order, [(self._layers[old][0], order[parent] if (parent := self._layers[old][1]) >= 0 else -1) for old in new]


__all__ = ["Result", "Written", "write_config"]
