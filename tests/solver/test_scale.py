# SPDX-License-Identifier: Apache-2.0
"""Depth, width, and what they cost."""

from __future__ import annotations

import asyncio
import time

import pytest
from solver_world import World, build, op, run, until

from chantier.errors import ChantierError
from chantier.solver import Edge, Vertex
from chantier.testing.solver import IntOp


def chain(world: World, size: int, **base: object) -> Vertex:
    vertex = world.node("base", **base)
    for number in range(size - 1):
        vertex = world.node(str(number), vertex)
    return vertex


def test_200_cached_vertices_take_little() -> None:
    world = World()
    world.build(chain(world, 200))
    best = 100.0
    for _ in range(3):
        top = chain(world, 200)
        start = time.process_time()
        outcome = world.build(top)
        best = min(best, time.process_time() - start)
        assert outcome.outcome(op(top).name) == "hit"
    assert best < 2


@pytest.mark.slow
def test_10_000_chained_vertices() -> None:
    world = World()
    assert world.build(chain(world, 10_000)).values == [10_000]
    top = chain(world, 10_000)
    start = time.process_time()
    assert world.build(top).values == [10_000]
    assert op(top).runs == 0
    assert time.process_time() - start < 120


@pytest.mark.slow
def test_a_deep_failure_and_a_deep_cancellation() -> None:
    world = World()

    async def main() -> None:
        solver = world.solver()
        with pytest.raises(ChantierError, match="boom") as caught:
            await build(solver, chain(world, 2_000, fail=ChantierError("boom")))
        depth, trace = 0, caught.value.__traceback__
        while trace is not None:
            depth, trace = depth + 1, trace.tb_next
        assert depth < 40
        top = chain(world, 2_000, gate=asyncio.Event())
        base: IntOp = op(_first(top))
        task = asyncio.create_task(build(solver, top))
        await until(lambda: base.running == 1)
        start = time.process_time()
        task.cancel()
        await asyncio.wait([task])
        assert base.running == 0
        assert time.process_time() - start < 60
        assert not solver.leaving

    run(main())
    assert world.results.handles == 0


def _first(vertex: Vertex) -> Vertex:
    while vertex.inputs:
        vertex = vertex.inputs[0].vertex
    return vertex


@pytest.mark.slow
def test_2_000_inputs() -> None:
    world = World()

    def graph() -> Vertex:
        base = world.node("base")
        return world.node("top", *(world.node(str(number), base) for number in range(2_000)))

    assert world.build(graph()).values == [4001]
    top = graph()
    assert world.build(top).values == [4001]
    assert op(top).runs == 0


def test_one_failure_of_many_inputs_ends_all() -> None:
    world = World()

    async def main() -> None:
        solver = world.solver()
        gates = [asyncio.Event() for _ in range(300)]
        nodes = [world.node(str(number), gate=gate) for number, gate in enumerate(gates)]
        op(nodes[150]).fail = ChantierError("boom")
        async with solver.job("job") as job:
            task = asyncio.create_task(job.build(Edge(world.node("top", *nodes))))
            await until(lambda: sum(op(node).running for node in nodes) == 300)
            gates[150].set()
            with pytest.raises(ChantierError, match="boom"):
                await task
            assert sum(op(node).running for node in nodes) == 0
            assert sum(op(node).cancelled for node in nodes) == 299

    run(main())


@pytest.mark.slow
def test_shared_inputs_are_not_walked_again_for_each_path() -> None:
    world = World()

    def ladder() -> Vertex:
        left, right = world.node("a"), world.node("b")
        for number in range(200):  # 2**200 paths
            left, right = world.node(f"l{number}", left, right, value=0), world.node(f"r{number}", left, right, value=0)
        return world.node("top", left, right)

    first = ladder()
    world.build(first)
    again = ladder()
    world.build(again)
    assert op(again).runs == 0
