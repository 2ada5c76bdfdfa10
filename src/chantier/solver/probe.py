# SPDX-License-Identifier: Apache-2.0
"""What an active edge knows by one of its inputs, and how it learns more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .flight import Flight
from .keys import Link
from .types import Dep

if TYPE_CHECKING:
    from .edge import ActiveEdge

FAST, SLOW, SPENT = range(3)
"""What an input's keys are known to: from definitions, with its own slow keys, with the content of its result."""


class Probe:
    """What is known by one input: the keys it has, and the keys of ours that they lead to."""

    __slots__ = (
        "_asked",
        "_known",
        "candidates",
        "climb",
        "content",
        "content_links",
        "contents",
        "dep",
        "edge",
        "index",
        "level",
        "links",
    )

    def __init__(self, index: int, edge: ActiveEdge, dep: Dep, ops: Sequence[str]) -> None:
        self.index = index
        self.edge = edge
        self.dep = dep
        self.links = tuple(Link(index, op, dep.selector) for op in ops)  # of the operation, then of its further digests
        self.content_links = tuple(Link(index, op) for op in ops) if dep.selector else self.links
        self.level = FAST
        self.content = ""  # the content key, once known
        self.contents: tuple[str, ...] = ()  # the same with what it is called elsewhere
        self.candidates: dict[str, int] = {}  # key -> number of the store it was found in
        self.climb: Flight | None = None  # learning by this input alone
        self._asked: set[str] = set()
        self._known: set[tuple[str, str]] = set()

    def parents(self) -> Iterator[str]:
        """Stored keys of the input that may be probed with."""
        if not self.edge.opaque:
            yield from self.edge.matched
        yield from self.contents

    def ways(self) -> list[tuple[str, Link]]:
        """All ways by which an equal edge is found among the active ones."""
        ways = [(key, self.links[0]) for key in self.edge.exported()]
        if self.content:
            ways.append((self.content, self.content_links[0]))
        return ways

    def kept(self) -> list[tuple[str, Link]]:
        """Links to store with a result of ours: from all lasting keys of the input's result."""
        links = [(key, link) for key, source in self.edge.matched.items() if source == 0 for link in self.links]
        links += [(content, link) for content in self.contents for link in self.content_links]
        return links

    def missing(self, key: str) -> list[tuple[str, Link]]:
        """Of `kept`, what does not lead to this key yet."""
        return [pair for pair in self.kept() if (pair[0], key) not in self._known]

    def look(self, edge: ActiveEdge) -> None:
        """Follow the links of keys that were not asked for yet."""
        store = edge.vertex.store
        for parent in self.parents():
            if parent not in self._asked:
                self._asked.add(parent)
                for link in self.content_links if parent in self.contents else self.links:
                    for key, source in store.found((parent,), link).items():
                        self.candidates.setdefault(key, source)
                        self._known.add((parent, key))


__all__ = ["FAST", "SLOW", "SPENT", "Probe"]
