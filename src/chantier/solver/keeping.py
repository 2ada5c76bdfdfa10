# SPDX-License-Identifier: Apache-2.0
"""What an active edge writes into the main key store: its result under keys, and links by which others will find them.

After a content key found what the definition keys did not, links from these are stored, so that next time those are enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .keys import DETAIL_LIMIT, Keep, KeyInfo, Link, fresh_key_id, is_volatile
from .types import CacheRecord

if TYPE_CHECKING:
    from .edge import ActiveEdge


def link(edge: ActiveEdge) -> None:
    """Store links from the definition keys to what content keys found."""
    if not any(probe.level for probe in edge.probes):
        return
    for key, source in edge.matched.items():
        if source == 0 and key not in edge.linked:
            edge.linked.add(key)
            links = tuple(pair for probe in edge.probes for pair in probe.missing(key))
            if links:
                edge.vertex.solver.writer.add(Keep(key=key, links=links))


def adopt(edge: ActiveEdge, record: CacheRecord) -> None:
    """Bring a record of an import, and what leads to it, into the main store: under every key of ours that it has there.

    A cache has one key for each digest of the same work (`CacheMap.also`); who exports again should find them all.
    """
    store, writer = edge.vertex.store, edge.vertex.solver.writer
    theirs = tuple(key for key, source in edge.matched.items() if source == record.source)
    known = store.sources[record.source].keys.records(theirs)
    same = [one for one in known if one.result == record.result]
    for one in same:
        writer.add(*store.adopt(one.key, record.source))

    def changes(made: str) -> list[Keep]:
        kept = [CacheRecord(key=one.key, result=made, created_at=one.created_at) for one in same]
        return [Keep(key=one.key, record=one) for one in kept]

    writer.save(edge.result, changes)
    edge.matched.update((one.key, 0) for one in same)
    link(edge)


def link_to(edge: ActiveEdge, key: str) -> None:
    """The keys of the edge's own inputs lead to the key of an equal edge from now on."""
    links = [probe.kept() for probe in edge.probes]
    if links and all(links):
        edge.vertex.solver.writer.add(Keep(key=key, links=tuple(pair for some in links for pair in some)))


def save(edge: ActiveEdge, value: Any) -> None:
    """Keep the result under the key that these inputs already lead to, or under a new one."""
    links: tuple[tuple[str, Link], ...] = ()
    if not edge.probes:
        keys = [root for root in edge.roots if not is_volatile(root)]
    else:
        kept = [probe.kept() for probe in edge.probes]
        if not all(kept):
            return  # an input has no lasting key, so nobody could ever find this one
        links = tuple(pair for some in kept for pair in some)
        keys = [_lasting_key(edge)]
    if not keys:
        return
    at = edge.vertex.solver.clock()
    infos = [_info(edge, key, at) for key in keys]

    def changes(id: str) -> list[Keep]:
        return [
            Keep(key=info.id, links=links, record=CacheRecord(key=info.id, result=id, created_at=at), info=info) for info in infos
        ]

    edge.vertex.solver.writer.save(value, changes)
    edge.matched.update(dict.fromkeys(keys, 0))


def _lasting_key(edge: ActiveEdge) -> str:
    if lasting := edge.lasting_keys:
        return min(lasting)
    found: set[str] | None = None
    for probe in edge.probes:
        keys: set[str] = set()
        for parent, way in probe.kept():
            keys |= edge.vertex.store.main.children((parent,), way)
        found = keys if found is None else found & keys
        if not found:
            break
    if found:
        return min(found)
    return min(edge.names) if edge.names and not edge.vertex.ignoring else fresh_key_id()


def _info(edge: ActiveEdge, key: str, at: int) -> KeyInfo:
    vertex = edge.vertex
    detail = vertex.maps[0].detail
    return KeyInfo(
        id=key,
        op=edge.op_key,
        name=vertex.name,
        vertex=vertex.vertex.digest,
        created_at=at,
        detail=detail if len(detail) <= DETAIL_LIMIT else b"",
    )


__all__ = ["adopt", "link", "link_to", "save"]
