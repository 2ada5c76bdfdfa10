# SPDX-License-Identifier: Apache-2.0
"""Several key stores seen as one: the local one, and caches imported for a build.

Questions go to all, changes to the first. Names of keys with inputs are a store's own, so that keys of two stores only
meet in the named roots; a key taken from an import is *adopted*: it and all that leads to it are copied, under the same
names, into the first store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from chantier.values import dataclass, replace

from .keys import Change, Keep, KeyInfo, KeyStore, Link, Swept
from .types import CacheRecord, Result, ResultStore


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeySource:
    """A key store together with the store that loads what its records name."""

    keys: KeyStore
    results: ResultStore[Result]
    name: str = "local"


class CombinedKeyStore:
    """A KeyStore over several; `sources[0]` is the main one and the only one that is changed."""

    def __init__(self, sources: Sequence[KeySource]) -> None:
        self.sources = tuple(sources)
        self._adopted: set[str] = set()

    @property
    def main(self) -> KeyStore:
        return self.sources[0].keys

    def children(self, parents: Collection[str], link: Link) -> set[str]:
        return set(self.found(parents, link))

    def found(self, parents: Collection[str], link: Link) -> dict[str, int]:
        """As `children`, each with the number of the first source that knows it."""
        found = dict.fromkeys(self.main.children(parents, link), 0)
        for number, source in enumerate(self.sources[1:], 1):
            for key in source.keys.children(parents, link):
                found.setdefault(key, number)
        return found

    def records(self, keys: Collection[str]) -> list[CacheRecord]:
        """Best first: the newest, then the lowest priority, then the first source."""
        records = list(self.main.records(keys))
        for number, source in enumerate(self.sources[1:], 1):
            records += [replace(record, source=number) for record in source.keys.records(keys)]
        records.sort(key=lambda record: (-record.created_at, record.priority, record.source, record.key, record.result))
        return records

    def parents(self, key: str) -> list[tuple[str, Link]]:
        return list(dict.fromkeys(pair for source in self.sources for pair in source.keys.parents(key)))

    def links(self, parent: str, limit: int = 64) -> list[tuple[Link, str]]:
        return list(dict.fromkeys(pair for source in self.sources for pair in source.keys.links(parent, limit)))[:limit]

    def info(self, key: str) -> KeyInfo | None:
        return next((info for source in self.sources if (info := source.keys.info(key)) is not None), None)

    def find(self, op: str, limit: int = 16) -> list[KeyInfo]:
        if len(self.sources) == 1:
            return self.main.find(op, limit)
        found = {info.id: info for source in reversed(self.sources) for info in source.keys.find(op, limit)}
        return sorted(found.values(), key=lambda info: -info.created_at)[:limit]

    def apply(self, changes: Sequence[Change]) -> None:
        self.main.apply(changes)

    def keys_of(self, result: str) -> list[str]:
        return self.main.keys_of(result)

    def sweep(self, exists: Callable[[str], bool]) -> Swept:
        return self.main.sweep(exists)

    def adopt(self, key: str, source: int) -> list[Change]:
        """Changes that bring an import's key, and all that leads to it, into the main store. Each is copied once."""
        changes: list[Change] = []
        keys = self.sources[source].keys
        stack = [key]
        while stack:
            current = stack.pop()
            if current in self._adopted:
                continue
            self._adopted.add(current)
            links = keys.parents(current)
            if links:
                changes.append(Keep(key=current, links=tuple(links), info=keys.info(current)))
                stack += [parent for parent, _ in links]
        return changes


__all__ = ["CombinedKeyStore", "KeySource"]
