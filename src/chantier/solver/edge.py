# SPDX-License-Identifier: Apache-2.0
"""Active edges: how one output of a vertex climbs from its definition key over content keys to a result.

Three flights, each asked for only when the one before did not settle it:

    fast   keys that follow from definitions alone: own cache map, fast keys of the inputs, stored links
    slow   more keys: for inputs by which nothing was found, first their own slow keys, then the content of their result;
           inputs by which something was found wait meanwhile
    done   the result: a record of a key that was found, the result of an equal active edge, or a run
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from chantier.errors import CancelledError_, ChantierError
from chantier.progress import Warning

from . import keeping
from .explain import explain_miss
from .flight import Flight, gather
from .keys import Drop, Link, content_key_id, fresh_key_id, is_volatile, key_id
from .probe import FAST, SPENT, Probe
from .types import CacheRecord, Dep

if TYPE_CHECKING:
    from .vertex import ActiveVertex

_PLAIN = Dep()


class ActiveEdge:
    """One output of an active vertex."""

    __slots__ = (
        "_done",
        "_fast",
        "_renewal",
        "_slow",
        "_tried",
        "_unique",
        "gone",
        "has_result",
        "index",
        "linked",
        "matched",
        "merged_into",
        "names",
        "op_keys",
        "opaque",
        "owned",
        "probes",
        "registered",
        "result",
        "roots",
        "vertex",
    )

    def __init__(self, vertex: ActiveVertex, index: int) -> None:
        self.vertex = vertex
        self.index = index
        self.op_keys: tuple[str, ...] = ()
        self.probes: list[Probe] = []
        self.roots: list[str] = []  # keys of a source, the cheap one first
        self.matched: dict[str, int] = {}  # lasting keys -> number of the store that has them
        self.names: set[str] = set()  # keys in memory, see ActiveIndex
        self.registered: set[tuple[tuple[str, Link], str]] = set()
        self.owned: set[str] = set()
        self.opaque = vertex.ignoring  # its keys say nothing of its result: nothing is found by them
        self.merged_into: ActiveEdge | None = None
        self.result: Any = None
        self.has_result = False
        self.gone: CacheRecord | None = None
        self._unique = ""
        self.linked: set[str] = set()
        self._tried: set[tuple[str, str, int]] = set()
        self._fast: Flight | None = None
        self._slow: Flight | None = None
        self._done: Flight | None = None
        self._renewal: Flight | None = None

    @property
    def fast(self) -> Flight:
        if self._fast is None:
            self._fast = Flight(self.vertex, "fast keys", self._find_fast)
        return self._fast

    @property
    def slow(self) -> Flight:
        if self._slow is None:
            self._slow = Flight(self.vertex, "slow keys", self._find_slow)
        return self._slow

    @property
    def done(self) -> Flight:
        if self._done is None:
            self._done = Flight(self.vertex, "result", self._finish)
        return self._done

    def flights(self) -> Iterator[Flight]:
        for flight in (self._fast, self._slow, self._done, self._renewal):
            if flight is not None:
                yield flight
        for probe in self.probes:
            if probe.climb is not None:
                yield probe.climb

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for the result just now."""
        return any(flight is not None and bool(flight.tasks) for flight in (self._done, self._renewal))

    @property
    def op_key(self) -> str:
        return self.op_keys[0] if self.op_keys else ""

    @property
    def lasting_keys(self) -> tuple[str, ...]:
        """Keys of the result in the main store."""
        return tuple(key for key, source in self.matched.items() if source == 0)

    def exported(self) -> Iterator[str]:
        """Keys by which those that use the result are told equal."""
        if self.opaque:
            self._unique = self._unique or "active:" + fresh_key_id()
            yield self._unique
            return
        yield from self.matched
        yield from self.names
        yield from (key for key in self.roots if key not in self.matched)

    def all_keys(self) -> Iterator[str]:
        yield from self.matched
        yield from self.names
        yield from (key for key in self.roots if key not in self.matched)

    # fast

    async def _find_fast(self) -> None:
        vertex = self.vertex
        await gather((vertex.map_flight(0), *(edge.fast for edge in vertex.inputs)), self._fast)
        if not vertex.inputs:
            self._add_roots()
            return
        found = vertex.maps[0]
        self.op_keys = tuple(key_id(digest, self.index) for digest in (found.digest, *found.also))
        deps = found.deps or (_PLAIN,) * len(vertex.inputs)
        self.probes = [Probe(i, edge, dep, self.op_keys) for i, (edge, dep) in enumerate(zip(vertex.inputs, deps, strict=True))]
        self._look()

    def _add_roots(self) -> None:
        for found in self.vertex.maps[len(self.roots) :]:
            root = key_id(found.digest, self.index)
            self.op_keys = self.op_keys or (root,)
            self.roots.append(root)
            if not is_volatile(root):
                self.matched[root] = 0

    def _look(self) -> None:
        """Look for keys with what is known of the inputs now."""
        if not self.vertex.ignoring:
            for probe in self.probes:
                probe.look(self)
            smallest = min((probe.candidates for probe in self.probes), key=len)
            for key, source in smallest.items():
                if key not in self.matched and all(key in probe.candidates for probe in self.probes):
                    self.matched[key] = source
            keeping.link(self)
        if not self.matched:
            self.vertex.solver.index.name(self)

    # slow

    async def _find_slow(self) -> None:
        await gather((self.fast,), self._slow)
        if not self.probes:
            while not self.vertex.maps_done:
                await gather((self.vertex.map_flight(len(self.vertex.maps)),), self._slow)
            self._add_roots()
            return
        if self.vertex.ignoring:
            return
        while not self.matched and await self._escalate(self._slow):
            pass

    async def _escalate(self, by: Flight | None) -> bool:
        """Learn one more thing of some inputs; False if there is nothing left that could find a key."""
        lacking = [probe for probe in self.probes if not probe.candidates]
        if any(probe.level == SPENT for probe in lacking):
            return False
        if len(lacking) > 1:
            # Each by itself: the result of one input must not wait until the keys of another are known.
            for probe in lacking:
                probe.climb = Flight(self.vertex, f"keys of input {probe.index}", partial(self._climb, probe))
            await gather([probe.climb for probe in lacking if probe.climb is not None], by)
            self._look()
            return True
        todo = lacking or [probe for probe in self.probes if probe.level < SPENT]
        if not todo:
            return False
        flights = []
        for probe in todo:
            if probe.level == FAST:
                flights.append(probe.edge.slow)
            elif probe.dep.content is not None:
                flights.append(self.vertex.content_flight(probe.index))
        await gather(flights, by)
        for probe in todo:
            probe.level += 1
        self._take_content()
        self._look()
        return True

    async def _climb(self, probe: Probe) -> None:
        """Learn by one input until something is found by it, or there is nothing left to learn."""
        while not probe.candidates and probe.level < SPENT:
            if probe.level == FAST:
                await gather((probe.edge.slow,), probe.climb)
            elif probe.dep.content is not None:
                await gather((self.vertex.content_flight(probe.index),), probe.climb)
            probe.level += 1
            self._take_content_of(probe)
            probe.look(self)

    def _take_content(self) -> None:
        for probe in self.probes:
            self._take_content_of(probe)

    def _take_content_of(self, probe: Probe) -> None:
        digest = self.vertex.content_keys.get(probe.index)
        if digest is not None and not probe.content:
            probe.contents = tuple(content_key_id(one) for one in digest.split())
            probe.content = probe.contents[0]
            probe.level = SPENT

    # done

    async def _finish(self) -> None:
        await gather((self.fast,), self._done)
        if self.has_result:
            return
        if self.merged_into is not None:
            await self._follow(self.merged_into)
        elif self.vertex.ignoring or not await self._find():
            await self._run()

    async def _find(self) -> bool:
        """Get the result without work of our own, if a key leads to one."""
        if await self._load("definition"):
            return True
        owner = self.vertex.solver.index.owner(self)
        if owner is not None:
            await self._follow(owner)
            return True
        await gather((self.slow,), self._done)
        while not await self._load("content"):
            if not self.probes or not await self._escalate(self._done):
                return False
        return True

    async def _load(self, kind: str) -> bool:
        """Take the best record that can still be loaded."""
        if not self.matched:
            return False
        vertex, solver = self.vertex, self.vertex.solver
        for record in vertex.store.records(tuple(self.matched)):
            mark = (record.key, record.result, record.source)
            if mark in self._tried:
                continue
            loaded, value = await solver.load(vertex.store, record)
            self._tried.add(mark)
            if not loaded:
                self.gone = record
                continue
            self._set_result(value)
            what = "source" if not self.probes else kind
            origin = f" of {vertex.store.sources[record.source].name}" if record.source else ""
            reason = f"{what} key matched record {record.result or 'of an empty result'}{origin}"
            vertex.explain("hit", reason)
            solver.skip_inputs(vertex)
            vertex.cached(reason)
            if record.source:
                keeping.adopt(self, record)
            return True
        return False

    async def _follow(self, owner: ActiveEdge) -> None:
        """Take the result of an equal edge."""
        vertex, solver = self.vertex, self.vertex.solver
        if self.merged_into is None:
            self.merged_into = owner
            vertex.merged.append(owner.vertex)
            for job in vertex.jobs:
                solver.join(job, owner.vertex)
        await gather((owner.done,), self._done)
        self._set_result(None if owner.result is None else owner.result.clone())
        self.opaque = self.opaque or owner.opaque
        self.names |= owner.names
        if owner.lasting_keys:
            keeping.link_to(self, owner.lasting_keys[0])
        self.matched.update(owner.matched)
        reason = f"the same work as {owner.vertex.name}"
        vertex.explain("merged", reason)
        solver.skip_inputs(vertex)
        vertex.cached(reason)

    async def _run(self) -> None:
        vertex, solver = self.vertex, self.vertex.solver
        await gather(
            [vertex.content_flight(probe.index) if probe.dep.content is not None else probe.edge.done for probe in self.probes],
            self._done,
        )
        if self.probes:
            self._take_content()
            self._look()
            solver.index.name(self)
        if not vertex.ignoring and await self._load("content"):
            return
        owner = solver.index.claim(self)
        if owner is not None:
            await self._follow(owner)
            return
        if vertex.outputs is None:
            vertex.explanation = solver.describe(explain_miss(self))
        await self._work(self._done)

    async def _work(self, by: Flight | None) -> None:
        """Do the vertex's work, keep the result and take it."""
        vertex, solver = self.vertex, self.vertex.solver
        try:
            await gather((vertex.exec_flight,), by)
        except (asyncio.CancelledError, CancelledError_):
            solver.index.disown(self)
            raise
        # Made of a result that its keys did not tell: the key that it is kept under led to another result until now, and what is
        # known by that key is of that one.
        self.opaque = self.opaque or any(probe.edge.opaque for probe in self.probes)
        outputs = vertex.outputs or ()
        if self.index >= len(outputs):
            raise vertex.failed(ChantierError(f"{vertex.name} has {len(outputs)} outputs, output {self.index} was asked for"))
        value = outputs[self.index]
        keeping.save(self, value)
        self._set_result(None if value is None else value.clone())

    # once more

    def renewal(self, why: str) -> Flight | None:
        """The work of making the result anew, whose data can no longer be had; None if that cannot help, or was done already.

        The old result stays until the vertex is released: who was given it may be using it.
        """
        if not self.probes or (self._renewal is not None and self._renewal.finished):
            return None
        if self._renewal is None:
            self._renewal = Flight(self.vertex, "result once more", partial(self._renew, why))
        return self._renewal

    async def _renew(self, why: str) -> None:
        vertex, solver = self.vertex, self.vertex.solver
        old = self.result
        if self.merged_into is not None:
            owner = self.merged_into
            await vertex.renew(((owner, owner.result),), self._renewal)
            vertex.outworn.append(old)
            self._set_result(None if owner.result is None else owner.result.clone())
            return
        text = f"the cached result of this step cannot be used, so that it runs again: {why}"
        vertex.emit(Warning(vertex=vertex.digest, level=1, short=text.encode("utf-8", "replace")))
        await gather([probe.edge.done for probe in self.probes], self._renewal)
        await vertex.renew([(probe.edge, probe.edge.result) for probe in self.probes], self._renewal)
        if vertex.outputs is not None:
            vertex.forget_run()
        vertex.explain("miss", f"the result that was found cannot be used: {why}")
        solver.writer.add(*(Drop(key=key, result=old.id) for key in self.lasting_keys))
        await self._work(self._renewal)
        vertex.outworn.append(old)

    def _set_result(self, value: Any) -> None:
        self.result = value
        self.has_result = True

    def release(self) -> None:
        """Give back the result."""
        self.vertex.solver.index.forget(self)
        value, self.result, self.has_result = self.result, None, False
        if value is not None:
            value.release()


__all__ = ["ActiveEdge"]
