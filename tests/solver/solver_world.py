# SPDX-License-Identifier: Apache-2.0
"""A small world for solver tests: stores that outlive solvers, and builds that check for leaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from chantier.progress import Recorder, Vertex
from chantier.solver import Edge, Explanation, KeyStore, Slots, Solver
from chantier.solver import Vertex as Node
from chantier.testing.solver import IntOp, MemoryKeyStore, MemoryResultStore, int_vertex, resolve_int


class World:
    def __init__(self, keys: KeyStore | None = None) -> None:
        self.keys: KeyStore = keys if keys is not None else MemoryKeyStore()
        self.results = MemoryResultStore()
        self.time = 1_000

    def clock(self) -> int:
        self.time += 1
        return self.time

    def solver(self) -> Solver:
        return Solver(resolve_int, self.keys, self.results, clock=self.clock)

    def op(self, digest: str = "", value: int = 0, **more: Any) -> IntOp:
        if digest and ":" not in digest:
            digest = f"sha256:{digest}"
        return IntOp(results=self.results, digest=digest, value=value, **more)

    def node(
        self, digest: str, *inputs: Node | Edge, value: int = 1, ignore_cache: bool = False, vertex: str = "", **more: Any
    ) -> Node:
        return int_vertex(self.op(digest, value, **more), *inputs, ignore_cache=ignore_cache, digest=vertex)

    def build(self, *nodes: Node | Edge, job: str = "job") -> Outcome:
        """Build in a new solver, as a new process would; check that nothing leaks."""

        async def run() -> Outcome:
            solver = self.solver()
            outcome = await build(solver, *nodes, job=job)
            assert not solver.dump()
            await solver.aclose()
            return outcome

        outcome = asyncio.run(run())
        assert self.results.handles == 0
        return outcome


class Outcome:
    def __init__(self, values: list[int | None], explanations: list[Explanation], recorder: Recorder) -> None:
        self.values = values
        self.explanations = {explanation.name: explanation for explanation in explanations}
        self.by_digest = {explanation.vertex: explanation for explanation in explanations}
        self.events = recorder.events

    def vertices(self, name: str) -> list[Vertex]:
        return [event for event in self.events if isinstance(event, Vertex) and event.name == name]

    def outcome(self, name: str) -> str:
        return self.explanations[name].outcome

    def reason(self, name: str) -> str:
        return self.explanations[name].reason


async def build(solver: Solver, *nodes: Node | Edge, job: str = "job") -> Outcome:
    recorder = Recorder()
    async with solver.job(job, recorder) as opened:
        edges = [node if isinstance(node, Edge) else Edge(node) for node in nodes]
        built = await opened.build_many(edges)
        values = [one.value.value if one.value is not None else None for one in built]
        explanations = opened.explain()
        for one in built:
            one.release()
    return Outcome(values, explanations, recorder)


def op(node: Node) -> IntOp:
    result: IntOp = node.sys
    return result


def runs(*nodes: Node) -> list[int]:
    return [op(node).runs for node in nodes]


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(400):
            return await work

    return asyncio.run(limited())


__all__ = ["Outcome", "Slots", "World", "build", "op", "run", "runs", "until"]
