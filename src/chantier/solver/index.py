# SPDX-License-Identifier: Apache-2.0
"""The keys of what is active, by the same links as the stored ones: how equal work under different digests is found.

An edge without a stored key is given a name in memory as soon as its inputs have keys; an equal edge finds the same name.
The first edge about to do the work of a name owns it, and the others take its result. Handles nothing but names: merging
is the edge's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .keys import Link, fresh_key_id

if TYPE_CHECKING:
    from .edge import ActiveEdge


class ActiveIndex:
    def __init__(self) -> None:
        self._names: dict[tuple[str, Link], dict[str, int]] = {}
        self._owners: dict[str, ActiveEdge] = {}

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
        """Who does or did the work of this edge.

        An owner has the results of all its inputs and waits for no other edge: waiting for it can close no circle.
        """
        for key in edge.all_keys():
            owner = self._owners.get(key)
            # What ignores the cache may stand for what does not, and not the other way round.
            if owner is not None and owner is not edge and (owner.vertex.ignoring or not edge.vertex.ignoring):
                return owner
        return None

    def claim(self, edge: ActiveEdge) -> ActiveEdge | None:
        """As `owner`; if there is none, the edge becomes it. All its inputs must have their results."""
        owner = self.owner(edge)
        if owner is None:
            for key in edge.all_keys():
                if self._owners.setdefault(key, edge) is edge:
                    edge.owned.add(key)
        return owner

    def disown(self, edge: ActiveEdge) -> None:
        """The edge does not do its work after all."""
        for key in edge.owned:
            if self._owners.get(key) is edge:
                del self._owners[key]
        edge.owned.clear()

    def forget(self, edge: ActiveEdge) -> None:
        self.disown(edge)
        for key, name in edge.registered:
            holders = self._names[key]
            holders[name] -= 1
            if not holders[name]:
                del holders[name]
                if not holders:
                    del self._names[key]
        edge.registered.clear()


__all__ = ["ActiveIndex"]
