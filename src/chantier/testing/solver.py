# SPDX-License-Identifier: Apache-2.0
"""Fakes for the solver: integers as results, operations that add, stores in memory that count handles."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from chantier.solver import (
    CacheMap,
    CacheRecord,
    Change,
    Dep,
    Drop,
    Edge,
    JobContext,
    KeyInfo,
    Link,
    Slots,
    Swept,
    Vertex,
)
from chantier.values import dataclass, field


class IntResult:
    """One handle of an integer; counted by the store it came from."""

    def __init__(self, value: int, store: MemoryResultStore, id: str) -> None:
        self.value = value
        self.id = id
        self._store = store
        self._released = False
        store.handles += 1

    def clone(self) -> IntResult:
        if self._released:
            raise AssertionError(f"clone of the released result {self.id}")
        return IntResult(self.value, self._store, self.id)

    def release(self) -> None:
        if self._released:
            raise AssertionError(f"the result {self.id} is released twice")
        self._released = True
        self._store.handles -= 1


class MemoryResultStore:
    """A ResultStore of integers. `handles` are open ones: 0 when nothing leaked."""

    def __init__(self, prefix: str = "r") -> None:
        self.values: dict[str, int] = {}
        self.handles = 0
        self.loads: list[str] = []
        self.spoiled: dict[str, str] = {}  # why results that can still be loaded cannot be used, by id
        self._prefix = prefix
        self._numbers = itertools.count()

    def make(self, value: int) -> IntResult:
        return IntResult(value, self, f"{self._prefix}{next(self._numbers)}")

    def save(self, result: IntResult) -> str:
        self.values[result.id] = result.value
        return result.id

    def load(self, id: str) -> IntResult | None:
        self.loads.append(id)
        return IntResult(self.values[id], self, id) if id in self.values else None

    def exists(self, id: str) -> bool:
        return id in self.values

    def lost(self, result: IntResult) -> str:
        return self.spoiled.get(result.id, "")

    def drop(self, id: str) -> None:
        """As the GC would."""
        self.values.pop(id, None)


@dataclass(eq=False, kw_only=True)
class IntOp:
    """Adds its inputs and `value`, unless `work` is given; counts its calls.

    `maps` are the digests of its cache maps (several for a source), `contents` the inputs with a content key, whose
    digest is the integer, `selectors` those of inputs. `gate` holds up the run until set, `delay_s` for a time.
    """

    results: MemoryResultStore
    digest: str = ""
    value: int = 0
    maps: tuple[str, ...] = ()
    inputs: int = 0
    contents: frozenset[int] = frozenset()
    selectors: dict[int, str] = field(default_factory=dict)
    outputs: int = 1
    work: Callable[[JobContext, Sequence[IntResult]], Awaitable[Sequence[IntResult | None]]] | None = None
    gate: asyncio.Event | None = None
    delay_s: float = 0.0
    slots: Slots | None = None
    fail: Exception | None = None
    fail_map: Exception | None = None
    fail_content: Exception | None = None
    runs: int = 0
    map_calls: int = 0
    content_calls: int = 0
    prepared: int = 0
    cancelled: int = 0
    running: int = 0
    name: str = ""

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        self.map_calls += 1
        if self.fail_map is not None:
            raise self.fail_map
        digests = self.maps or (self.digest,)
        deps = tuple(
            Dep(
                selector=self.selectors.get(i, ""),
                content=self._content if i in self.contents else None,
                prepare=self._prepare if i in self.contents else None,
            )
            for i in range(self.inputs)
        )
        return CacheMap(digest=digests[index], deps=deps, detail=digests[index].encode()), index + 1 == len(digests)

    async def run(self, job: JobContext, inputs: Sequence[IntResult]) -> Sequence[IntResult | None]:
        self.runs += 1
        self.running += 1
        if self.running != 1:
            raise AssertionError(f"{self.name} runs twice at once")
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.gate is not None:
                await self.gate.wait()
            if self.fail is not None:
                raise self.fail
            if self.work is not None:
                return await self.work(job, inputs)
            total = self.value + sum(result.value for result in inputs)
            return [self.results.make(total + output) for output in range(self.outputs)]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return self.slots.hold(self.name) if self.slots is not None else nullcontext()

    async def _content(self, job: JobContext, result: IntResult) -> str:
        self.content_calls += 1
        if self.fail_content is not None:
            raise self.fail_content
        return f"sha256:content-{result.value}"

    async def _prepare(self, job: JobContext, result: IntResult) -> None:
        self.prepared += 1


def int_vertex(op: IntOp, *inputs: Vertex | Edge, digest: str = "", ignore_cache: bool = False, **more: Any) -> Vertex:
    """A vertex of an IntOp; its digest follows from the operation's and those of its inputs unless given."""
    edges = tuple(each if isinstance(each, Edge) else Edge(each) for each in inputs)
    op.inputs = len(edges)
    key = op.maps[0] if op.maps else op.digest
    digest = digest or f"v:{key}({','.join(f'{edge.vertex.digest}:{edge.index}' for edge in edges)})"
    if len(digest) > 200:
        digest = f"v:{key}:{hash(digest):x}"
    op.name = more.pop("name", "") or key
    return Vertex(digest=digest, name=op.name, inputs=edges, sys=op, ignore_cache=ignore_cache, **more)


def resolve_int(vertex: Vertex) -> IntOp:
    op: IntOp = vertex.sys
    return op


class MemoryKeyStore:
    """A KeyStore in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: dict[tuple[str, Link], dict[str, None]] = {}
        self._from: dict[str, dict[tuple[Link, str], None]] = {}
        self._to: dict[str, dict[tuple[str, Link], None]] = {}
        self._records: dict[str, dict[str, CacheRecord]] = {}
        self._infos: dict[str, KeyInfo] = {}
        self._by_op: dict[str, dict[str, None]] = {}
        self.applied = 0  # transactions

    def children(self, parents: Collection[str], link: Link) -> set[str]:
        with self._lock:
            return {child for parent in parents for child in self._links.get((parent, link), ())}

    def records(self, keys: Collection[str]) -> list[CacheRecord]:
        with self._lock:
            return [record for key in keys for record in self._records.get(key, {}).values()]

    def parents(self, key: str) -> list[tuple[str, Link]]:
        with self._lock:
            return list(self._to.get(key, ()))

    def links(self, parent: str, limit: int = 64) -> list[tuple[Link, str]]:
        with self._lock:
            return list(itertools.islice(self._from.get(parent, ()), limit))

    def info(self, key: str) -> KeyInfo | None:
        with self._lock:
            return self._infos.get(key)

    def find(self, op: str, limit: int = 16) -> list[KeyInfo]:
        with self._lock:
            infos = [self._infos[key] for key in self._by_op.get(op, ())]
        return sorted(infos, key=lambda info: (-info.created_at, info.id))[:limit]

    def apply(self, changes: Sequence[Change]) -> None:
        with self._lock:
            self.applied += 1
            for change in changes:
                if isinstance(change, Drop):
                    self._records.get(change.key, {}).pop(change.result, None)
                    continue
                for parent, link in change.links:
                    self._links.setdefault((parent, link), {})[change.key] = None
                    self._from.setdefault(parent, {})[link, change.key] = None
                    self._to.setdefault(change.key, {})[parent, link] = None
                if change.record is not None:
                    self._records.setdefault(change.key, {})[change.record.result] = change.record
                if change.info is not None:
                    self._infos[change.key] = change.info
                    self._by_op.setdefault(change.info.op, {})[change.key] = None

    def keys_of(self, result: str) -> list[str]:
        with self._lock:
            return sorted(key for key, records in self._records.items() if result in records)

    def sweep(self, exists: Callable[[str], bool]) -> Swept:
        with self._lock:
            gone = [(key, id) for key, records in self._records.items() for id in records if id and not exists(id)]
            for key, id in gone:
                del self._records[key][id]
            todo = [key for key in {*self._to, *self._infos} if self._useless(key)]
            removed = 0
            while todo:
                key = todo.pop()
                if key not in self._to and key not in self._infos:
                    continue
                removed += 1
                if (info := self._infos.pop(key, None)) is not None:
                    del self._by_op[info.op][key]
                for parent, link in self._to.pop(key, {}):
                    del self._links[parent, link][key]
                    del self._from[parent][link, key]
                    if self._useless(parent):
                        todo.append(parent)
            return Swept(records=len(gone), keys=removed)

    def _useless(self, key: str) -> bool:
        return not self._records.get(key) and not self._from.get(key)


__all__ = ["IntOp", "IntResult", "MemoryKeyStore", "MemoryResultStore", "int_vertex", "resolve_int"]
