# SPDX-License-Identifier: Apache-2.0
"""The keys of what is active, by the same links as the stored ones: how equal work under different digests is found.

An edge without a stored key is given a name in memory as soon as its inputs have keys; an equal edge finds the same name.
The first edge about to do the work of a name owns it, and the others take its result. Handles nothing but names: merging
is the edge's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .keys import Link, fresh_key_id

if TYPE_CHECKING:
    from .edge import ActiveEdge
    from .vertex import ActiveVertex


class ActiveIndex:
    def __init__(self) -> None:
        self._names: dict[tuple[str, Link], dict[str, int]] = {}
        self._owners: dict[str, ActiveEdge] = {}
        self._loose = False  # some merge went to a deeper vertex: depths no longer rule out cycles

    def name(self, edge: ActiveEdge) -> None:
        """Give the edge its names: those of equal edges or a new one; and let others find it by all its inputs' keys."""
        ways = [probe.ways() for probe in edge.probes]
        found: set[str] | None = None
        for way in ways:
            names = {name for key in way for name in self._names.get(key, ())}
            found = names if found is None else found & names
            if not found:
                break
        names = found or edge.names or {fresh_key_id()}
        edge.names |= names
        for way in ways:
            for key in way:
                for name in edge.names:
                    if (key, name) not in edge.registered:
                        edge.registered.add((key, name))
                        holders = self._names.setdefault(key, {})
                        holders[name] = holders.get(name, 0) + 1

    def owner(self, edge: ActiveEdge) -> ActiveEdge | None:
        """Who does the work of this edge already, if the edge may wait for it."""
        for key in edge.all_keys():
            owner = self._owners.get(key)
            while owner is not None and owner.merged_into is not None:
                owner = owner.merged_into
            if owner is not None and owner is not edge and self._may_merge(edge, owner):
                return owner
        return None

    def claim(self, edge: ActiveEdge) -> ActiveEdge | None:
        """As `owner`; if there is none, the edge becomes it."""
        owner = self.owner(edge)
        if owner is None:
            for key in edge.all_keys():
                if self._owners.setdefault(key, edge) is edge:
                    edge.owned.add(key)
        return owner

    def merged(self, edge: ActiveEdge, into: ActiveEdge) -> None:
        self._loose |= into.vertex.depth > edge.vertex.depth
        self._disown(edge)

    def forget(self, edge: ActiveEdge) -> None:
        self._disown(edge)
        for key, name in edge.registered:
            holders = self._names[key]
            holders[name] -= 1
            if not holders[name]:
                del holders[name]
                if not holders:
                    del self._names[key]
        edge.registered.clear()
        if not self._names and not self._owners:
            self._loose = False

    def _disown(self, edge: ActiveEdge) -> None:
        for key in edge.owned:
            if self._owners.get(key) is edge:
                del self._owners[key]
        edge.owned.clear()

    def _may_merge(self, edge: ActiveEdge, owner: ActiveEdge) -> bool:
        if edge.vertex.ignoring and not owner.vertex.ignoring:
            return False
        if edge.vertex is owner.vertex:
            return False
        # Waiting only ever goes to lesser or equal depth, and never back to one already merged: no cycle. Else look.
        if not self._loose and owner.vertex.depth <= edge.vertex.depth:
            return True
        return not _reaches(owner.vertex, edge.vertex)


def _reaches(start: ActiveVertex, goal: ActiveVertex) -> bool:
    """Whether `start` may wait for `goal`, over inputs and merges."""
    seen = {start}
    stack = [start]
    while stack:
        vertex = stack.pop()
        if vertex is goal:
            return True
        for other in _next(vertex):
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return False


def _next(vertex: ActiveVertex) -> Iterable[ActiveVertex]:
    yield from (edge.vertex for edge in vertex.inputs)
    yield from vertex.merged


__all__ = ["ActiveIndex"]
