# SPDX-License-Identifier: Apache-2.0
"""Which request made a graph that another build is given as an input: remembered while the build that made it is open.

Builds of one engine may hand graphs to each other (a client takes a result as a state and puts it into the next request); the
provenance of the taker then tells the request of the giver.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chantier.llb.definition import raw_ops
from chantier.pb import ops_pb2 as pb


class Producers:
    """One for an engine; used in its loop."""

    def __init__(self) -> None:
        self._by_head: dict[str, list[tuple[object, dict[str, Any]]]] = {}

    def add(self, owner: object, definition: pb.Definition, request: dict[str, Any]) -> None:
        """`request` is `{configSource, request}`; it counts until `owner` is forgotten."""
        digest = head(definition)
        if digest:
            self._by_head.setdefault(digest, []).append((owner, request))

    def forget(self, owner: object) -> None:
        for digest, entries in list(self._by_head.items()):
            kept = [entry for entry in entries if entry[0] is not owner]
            if kept:
                self._by_head[digest] = kept
            else:
                del self._by_head[digest]

    def of(self, inputs: Mapping[str, pb.Definition]) -> dict[str, Any]:
        """The requests that made these inputs; none for a graph that no request made, or several different ones."""
        found = {}
        for name in sorted(inputs):
            known = [_without_root(request) for _, request in self._by_head.get(head(inputs[name]), ())]
            if known and all(one == known[0] for one in known):
                found[name] = known[0]
        return found


def head(definition: pb.Definition) -> str:
    """The vertex a definition's result comes from, "" for an empty one."""
    raws = raw_ops(definition)
    inputs = pb.Op.FromString(raws[-1]).inputs if raws else ()
    return str(inputs[0].digest) if inputs else ""


def _without_root(request: Mapping[str, Any]) -> dict[str, Any]:
    return {**request, "request": {key: value for key, value in request["request"].items() if key != "root"}}


__all__ = ["Producers", "head"]
