# SPDX-License-Identifier: Apache-2.0
"""The way back from a result to all keys and records that led to it: what a cache exporter writes down.

A node is one record of BuildKit's cache config (`application/vnd.buildkit.cacheconfig.v0`): its `op` is the record's
digest, sha256 of `<cache map digest>@<output>`, or of `<content digest>@-1` for a content key. Keys in memory
(`random:`) are not stored, so they are not met here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from chantier.values import dataclass

from .keys import KeyStore, Link
from .types import CacheRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportKey:
    """One way to a key. `inputs[i]` are the alternatives for input i: (node id, selector), each the id of an earlier node.

    A key that operations of several digests lead to is as many nodes: the first has the key as its id.
    """

    id: str
    op: str
    inputs: tuple[tuple[tuple[str, str], ...], ...] = ()
    records: tuple[CacheRecord, ...] = ()  # newest first
    name: str = ""
    export_cache: bool | None = None  # what the build said of its vertex
    final: bool = False  # a key of the result itself


def walk_keys(keys: KeyStore, ids: Iterable[str], export_cache: Mapping[str, bool] | None = None) -> list[ExportKey]:
    """All keys that lead to these, inputs before those that use them. Linear in the links.

    `export_cache` are the overrides of vertices by key id (`Job.export_cache`). Keys with an input that nothing leads to are
    left out: nobody could find them.
    """
    final = set(ids)
    nodes: dict[str, tuple[ExportKey, ...]] = {}
    links: dict[str, list[tuple[str, Link]]] = {}
    stack = [(key, False) for key in sorted(final, reverse=True)]
    while stack:
        key, ready = stack.pop()
        if key in nodes:
            continue
        if ready:
            nodes[key] = tuple(_nodes(keys, key, links.pop(key), nodes, (export_cache or {}).get(key), final=key in final))
        elif key not in links:
            found = links[key] = sorted(keys.parents(key), key=lambda pair: (pair[1].input, pair[1].selector, pair[0]))
            stack.append((key, True))
            stack += [(parent, False) for parent, _ in reversed(found) if parent not in nodes]
    return [node for some in nodes.values() for node in some]


def _nodes(
    keys: KeyStore,
    key: str,
    links: list[tuple[str, Link]],
    nodes: Mapping[str, tuple[ExportKey, ...]],
    export_cache: bool | None,
    *,
    final: bool,
) -> Iterator[ExportKey]:
    info = keys.info(key)
    records = sorted(keys.records((key,)), key=lambda record: (-record.created_at, record.priority, record.result))
    usable: dict[str, tuple[tuple[tuple[str, str], ...], ...]] = {} if links else {key: ()}
    for op in dict.fromkeys(link.op for _, link in links):
        inputs = _inputs(nodes, [pair for pair in links if pair[1].op == op])
        if all(inputs):
            usable[op] = inputs
    for number, (op, inputs) in enumerate(usable.items()):
        yield ExportKey(
            id=f"{key}.{number}" if number else key,
            op=op,
            inputs=inputs,
            records=tuple(records),
            name=info.name if info else "",
            export_cache=export_cache,
            final=final,
        )


def _inputs(nodes: Mapping[str, tuple[ExportKey, ...]], links: list[tuple[str, Link]]) -> tuple[tuple[tuple[str, str], ...], ...]:
    inputs: list[list[tuple[str, str]]] = [[] for _ in range(1 + max(link.input for _, link in links))]
    for parent, link in links:
        # A link back to where it came from would make the config circular: its key has no nodes yet.
        inputs[link.input] += [(node.id, link.selector) for node in nodes.get(parent, ())]
    return tuple(tuple(some) for some in inputs)


__all__ = ["ExportKey", "walk_keys"]
