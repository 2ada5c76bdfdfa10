# SPDX-License-Identifier: Apache-2.0
"""A cache config as a KeyStore and a ResultStore: what a build looks into beside its own.

Roots keep their names (digests), so that they meet the keys of builds; other records get names made of all that leads to
them. A result is loaded as a lazy reference to its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chantier.cache.types import LayerSource
from chantier.errors import UnsupportedError
from chantier.solver.keys import Change, KeyInfo, Link, Swept, is_volatile
from chantier.solver.types import CacheRecord

from .config import CacheConfig, CacheRecordEntry, CacheResult
from .names import record_name

if TYPE_CHECKING:
    from chantier.cache import Cache, Ref

IMPORTED = "remote.imported"
"""Meta of a reference that was loaded from an import: where its blobs are may change without anybody telling."""


class Imported:
    """An import. `keys` and `results` are what a solver.KeySource takes; `records` counts what is usable."""

    def __init__(self, keys: ImportedKeys, chains: Sequence[tuple[LayerSource, ...]], *, dropped: int) -> None:
        self.keys = keys
        self.chains = tuple(chains)
        self.dropped = dropped  # records and results that could not be used

    @property
    def records(self) -> int:
        return self.keys.size

    def results(
        self,
        cache: Cache,
        *,
        available: Callable[[Sequence[LayerSource]], bool],
        fetch: Callable[[Ref], None] | None = None,
    ) -> ImportedResults:
        """`available` says whether the blobs of a result can be had just now; `fetch` brings them at once, where they cannot
        be fetched later."""
        return ImportedResults(cache, self.chains, available, fetch)


def read_config(config: CacheConfig, layers: Mapping[str, LayerSource]) -> Imported:
    """`layers` by blob digest: those that the cache has. What the config says beyond them is left out and counted."""
    return _Reader(config, layers).read()


class _Reader:
    def __init__(self, config: CacheConfig, layers: Mapping[str, LayerSource]) -> None:
        self._config = config
        self._layers = layers
        self._chains: dict[tuple[int, ...], int] = {}
        self._sources: list[tuple[LayerSource, ...]] = []
        self._names: dict[int, str | None] = {}
        self._dropped = 0

    def read(self) -> Imported:
        keys = ImportedKeys()
        for number in self._order():
            record = self._config.records[number]
            ways = [
                [(name, item.selector) for item in some if (name := self._names.get(item.link)) is not None]
                for some in record.inputs
            ]
            if not record.digest or is_volatile(record.digest) or not all(ways):
                self._names[number] = None
                self._dropped += 1
                continue
            name = self._names[number] = record_name(record.digest, ways)
            keys.add(name, record.digest, ways, self._results(name, record))
        return Imported(keys, self._sources, dropped=self._dropped)

    def _order(self) -> list[int]:
        """Records after their inputs. A circle is cut where it closes: that input has no name yet."""
        order: list[int] = []
        seen: set[int] = set()
        records = self._config.records
        for start in range(len(records)):
            stack = [(start, False)]
            while stack:
                number, ready = stack.pop()
                if ready:
                    order.append(number)
                elif number not in seen and 0 <= number < len(records):
                    seen.add(number)
                    stack.append((number, True))
                    stack += [(item.link, False) for some in records[number].inputs for item in some]
        return order

    def _results(self, name: str, record: CacheRecordEntry) -> list[CacheRecord]:
        found = []
        for result in record.results:
            chain = self._chain(result)
            if chain is None:
                self._dropped += 1
                continue
            found.append(CacheRecord(key=name, result=str(chain), created_at=result.created_at))
        return found

    def _chain(self, result: CacheResult) -> int | None:
        numbers = list(result.layers)
        if not result.chain:
            while numbers and (parent := self._parent(numbers[0])) != -1:
                if parent in numbers or len(numbers) > len(self._config.layers):
                    return None
                numbers.insert(0, parent)
        key = tuple(numbers)
        place = self._chains.get(key)
        if place is None:
            sources = [self._source(number) for number in key]
            if not sources or any(source is None for source in sources):
                return None
            place = self._chains[key] = len(self._sources)
            self._sources.append(tuple(source for source in sources if source is not None))
        return place

    def _parent(self, number: int) -> int:
        layers = self._config.layers
        return layers[number].parent if 0 <= number < len(layers) else -1

    def _source(self, number: int) -> LayerSource | None:
        layers = self._config.layers
        return self._layers.get(layers[number].blob) if 0 <= number < len(layers) else None


class ImportedKeys:
    """A KeyStore that is only read."""

    def __init__(self) -> None:
        self._children: dict[tuple[str, Link], set[str]] = {}
        self._from: dict[str, list[tuple[Link, str]]] = {}
        self._to: dict[str, list[tuple[str, Link]]] = {}
        self._records: dict[str, list[CacheRecord]] = {}
        self._by_op: dict[str, list[str]] = {}

    @property
    def size(self) -> int:
        return len(self._records)

    def add(self, name: str, digest: str, ways: Sequence[Sequence[tuple[str, str]]], records: Sequence[CacheRecord]) -> None:
        """While it is being read: one record."""
        self._records.setdefault(name, []).extend(records)
        if name in self._to:
            return
        self._by_op.setdefault(digest, []).append(name)
        links = self._to.setdefault(name, [])
        for number, some in enumerate(ways):
            for parent, selector in some:
                link = Link(number, digest, selector)
                links.append((parent, link))
                self._children.setdefault((parent, link), set()).add(name)
                self._from.setdefault(parent, []).append((link, name))

    def children(self, parents: Collection[str], link: Link) -> set[str]:
        return {child for parent in parents for child in self._children.get((parent, link), ())}

    def records(self, keys: Collection[str]) -> list[CacheRecord]:
        return [record for key in keys for record in self._records.get(key, ())]

    def parents(self, key: str) -> list[tuple[str, Link]]:
        return list(self._to.get(key, ()))

    def links(self, parent: str, limit: int = 64) -> list[tuple[Link, str]]:
        return self._from.get(parent, [])[:limit]

    def info(self, key: str) -> KeyInfo | None:
        return None  # a config does not say what its records were made for

    def find(self, op: str, limit: int = 16) -> list[KeyInfo]:
        return [KeyInfo(id=key, op=op) for key in self._by_op.get(op, ())[:limit]]

    def keys_of(self, result: str) -> list[str]:
        return sorted(key for key, records in self._records.items() if any(record.result == result for record in records))

    def apply(self, changes: Sequence[Change]) -> None:
        raise UnsupportedError("cannot change an imported cache")

    def sweep(self, exists: Callable[[str], bool]) -> Swept:
        return Swept(records=0, keys=0)


class ImportedResults:
    """The ResultStore beside it."""

    def __init__(
        self,
        cache: Cache,
        chains: Sequence[tuple[LayerSource, ...]],
        available: Callable[[Sequence[LayerSource]], bool],
        fetch: Callable[[Ref], None] | None,
    ) -> None:
        self._cache = cache
        self._chains = chains
        self._available = available
        self._fetch = fetch

    def load(self, id: str) -> Ref | None:
        """None if a blob of it is not to be had."""
        layers = self._chain(id)
        if layers is None or not self._available(layers):
            return None
        ref = self._cache.image(layers, description=f"imported {layers[-1].descriptor.digest}")
        if ref is None:
            return None
        try:
            ref.set_meta(IMPORTED, b"1")
            if self._fetch is not None:
                self._fetch(ref)
        except BaseException:
            ref.release()
            raise
        return ref

    def exists(self, id: str) -> bool:
        return self._chain(id) is not None

    def lost(self, result: Any) -> str:
        return str(result.lost())

    def save(self, result: Any) -> str:
        raise UnsupportedError("cannot change an imported cache")

    def _chain(self, id: str) -> tuple[LayerSource, ...] | None:
        number = int(id) if id.isdigit() else -1
        return self._chains[number] if 0 <= number < len(self._chains) else None


__all__ = ["IMPORTED", "Imported", "ImportedKeys", "ImportedResults", "read_config"]
