# SPDX-License-Identifier: Apache-2.0
"""The way back from a result to all keys and records that led to it: what a cache exporter writes down.

A node is one record of BuildKit's cache config (`application/vnd.buildkit.cacheconfig.v0`): its `op` is the record's
digest, sha256 of `<cache map digest>@<output>`, or of `<content digest>@-1` for a content key. Keys in memory
(`random:`) are not stored, so they are not met here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .keys import KeyStore, Link
from .types import CacheRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportKey:
    """One key. `inputs[i]` are the alternatives for input i: (key id, selector), each the id of an earlier node."""

    id: str
    op: str
    inputs: tuple[tuple[tuple[str, str], ...], ...] = ()
    records: tuple[CacheRecord, ...] = ()  # newest first
    name: str = ""
    export_cache: bool | None = None  # what the build said of its vertex
    final: bool = False  # a key of the result itself


def walk_keys(keys: KeyStore, ids: Iterable[str], export_cache: Mapping[str, bool] | None = None) -> list[ExportKey]:
    """All keys that lead to these, inputs before those that use them, each once. Linear in the links.

    `export_cache` are the overrides of vertices by key id (`Job.export_cache`).
    """
    final = set(ids)
    nodes: dict[str, ExportKey] = {}
    links: dict[str, list[tuple[str, Link]]] = {}
    stack = [(key, False) for key in sorted(final, reverse=True)]
    while stack:
        key, ready = stack.pop()
        if key in nodes:
            continue
        if ready:
            nodes[key] = _node(keys, key, links.pop(key), nodes, (export_cache or {}).get(key), final=key in final)
        elif key not in links:
            found = links[key] = sorted(keys.parents(key), key=lambda pair: (pair[1].input, pair[1].selector, pair[0]))
            stack.append((key, True))
            stack += [(parent, False) for parent, _ in reversed(found) if parent not in nodes]
    return list(nodes.values())


def _node(
    keys: KeyStore,
    key: str,
    links: list[tuple[str, Link]],
    nodes: Mapping[str, ExportKey],
    export_cache: bool | None,
    *,
    final: bool,
) -> ExportKey:
    width = 1 + max((link.input for _, link in links), default=-1)
    inputs: list[list[tuple[str, str]]] = [[] for _ in range(width)]
    for parent, link in links:
        if parent in nodes:  # a link back to where it came from would make the config circular
            inputs[link.input].append((parent, link.selector))
    info = keys.info(key)
    records = sorted(keys.records((key,)), key=lambda record: (-record.created_at, record.priority, record.result))
    return ExportKey(
        id=key,
        op=links[0][1].op if links else key,
        inputs=tuple(tuple(some) for some in inputs),
        records=tuple(records),
        name=info.name if info else "",
        export_cache=export_cache,
        final=final,
    )


__all__ = ["ExportKey", "walk_keys"]
