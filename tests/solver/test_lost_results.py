# SPDX-License-Identifier: Apache-2.0
"""A result that was found in a cache turns out to be of no use only when something needs it: its step runs after all, once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chantier.errors import ChantierError, IntegrityError
from chantier.progress import Recorder, Warning
from chantier.solver import Edge
from chantier.solver import Vertex as Node
from chantier.testing.solver import IntResult

from .solver_world import World, build, op


def spoil(world: World, *ids: str) -> None:
    world.results.spoiled.update(dict.fromkeys(ids, "the layer is damaged"))


def reader(world: World, digest: str, *inputs: Node, **more: Any) -> Node:
    """Reads its inputs, as the lazy ones fail only then, and adds them."""

    async def read(job: object, given: Sequence[IntResult]) -> list[IntResult | None]:
        for one in given:
            if why := world.results.lost(one):
                raise IntegrityError(why)
        return [world.results.make(1 + sum(one.value for one in given))]

    return world.node(digest, *inputs, work=read, **more)


def found(world: World) -> Node:
    """A step of which the next build finds a result that is spoiled."""
    world.build(node := world.node("step", world.node("base")))
    spoil(world, *world.results.values)
    return node


def test_the_step_runs_once_for_all_that_need_it() -> None:
    world = World()
    found(world)
    step = world.node("step", world.node("base", value=5))
    one, two = reader(world, "one", step), reader(world, "two", step)
    world.results.spoiled = {id: why for id, why in world.results.spoiled.items() if id != base_id(world)}
    outcome = world.build(one, two)
    assert op(step).runs == 1
    assert outcome.values == [3, 3]
    assert outcome.outcome("sha256:step") == "miss"
    assert "the layer is damaged" in outcome.reason("sha256:step")
    warnings = [event for event in outcome.events if isinstance(event, Warning)]
    assert len(warnings) == 1
    assert b"runs again: the layer is damaged" in warnings[0].short
    again = world.node("step", world.node("base", value=5))
    assert world.build(reader(world, "three", again)).values == [3]
    assert op(again).runs == 0, "the new result is not found"


def base_id(world: World) -> str:
    """The first result that was kept is that of the source."""
    return min(world.results.values, key=lambda name: int(name[1:]))


def test_steps_below_are_made_anew_too() -> None:
    world = World()

    def chain() -> tuple[Node, Node, Node]:
        first = world.node("first", world.node("base"))
        second = reader(world, "second", first)
        return first, second, reader(world, "third", second)

    world.build(chain()[1])
    spoil(world, *(id for id in world.results.values if id != base_id(world)))
    first, second, third = chain()
    outcome = world.build(third)
    assert outcome.values == [4]
    assert [op(node).runs for node in (first, second, third)] == [1, 1, 2], "the third begins twice: it finds the damage"


def test_a_lazy_step_between_is_renewed_with_what_it_is_made_of() -> None:
    """A merge does not read its inputs: it is no use, and neither is what it is made of."""
    world = World()

    async def merge(job: object, given: Sequence[IntResult]) -> list[IntResult | None]:
        made = world.results.make(10 + given[0].value)
        if world.results.lost(given[0]):
            spoil(world, made.id)
        return [made]

    def graph() -> tuple[Node, Node, Node]:
        step = world.node("step", world.node("base"))
        merged = world.node("merge", step, work=merge)
        return step, merged, reader(world, "read", merged)

    world.build(graph()[0])
    spoil(world, *(id for id in world.results.values if id != base_id(world)))
    step, merged, read = graph()
    assert world.build(read).values == [13]
    assert [op(node).runs for node in (step, merged)] == [1, 2]


def test_a_source_is_not_fetched_again() -> None:
    world = World()
    world.build(world.node("base"))
    spoil(world, *world.results.values)
    with pytest.raises(ChantierError, match="the layer is damaged"):
        world.build(reader(world, "read", world.node("base")))
    assert world.results.handles == 0


def test_once_is_enough() -> None:
    """What is of no use again, made anew, is an error."""
    world = World()
    found(world)
    world.results.spoiled.pop(base_id(world))

    async def bad(job: object, given: object) -> list[IntResult | None]:
        made = world.results.make(1)
        spoil(world, made.id)
        return [made]

    step = world.node("step", world.node("base"), work=bad)
    with pytest.raises(ChantierError, match="the layer is damaged"):
        world.build(reader(world, "read", step))
    assert op(step).runs == 1
    assert world.results.handles == 0


def test_content_keys_are_computed_of_the_new_result() -> None:
    world = World()
    found(world)
    world.results.spoiled.pop(base_id(world))
    step = world.node("step", world.node("base"))
    read = reader(world, "read", step, contents=frozenset({0}))
    take = op(read)._content

    async def content(job: object, given: IntResult) -> str:
        if why := world.results.lost(given):
            raise IntegrityError(why)
        return await take(job, given)

    op(read)._content = content  # type: ignore[method-assign]
    assert world.build(read).values == [3]
    assert op(step).runs == 1


def test_a_result_is_renewed_for_whoever_holds_it() -> None:
    world = World()
    found(world)
    world.results.spoiled.pop(base_id(world))
    step = world.node("step", world.node("base"))

    async def run() -> None:
        solver = world.solver()
        async with solver.job("job", Recorder()) as job:
            with await job.build(Edge(step)) as built:
                assert world.results.lost(built.value)
                other = built.clone()
                assert await job.renew(built)
                assert not world.results.lost(built.value)
                assert not await job.renew(built)
                with other:
                    assert await job.renew(other)
                    assert other.value.id == built.value.id
        await solver.aclose()

    asyncio.run(run())
    assert op(step).runs == 1
    assert world.results.handles == 0


def test_two_builds_share_what_is_made_anew() -> None:
    world = World()
    found(world)
    world.results.spoiled.pop(base_id(world))
    steps = [world.node("step", world.node("base")) for _ in range(2)]

    async def run() -> list[list[int | None]]:
        solver = world.solver()
        outcomes = await asyncio.gather(
            *(build(solver, reader(world, f"read{n}", step), job=f"job{n}") for n, step in enumerate(steps))
        )
        await solver.aclose()
        return [outcome.values for outcome in outcomes]

    assert asyncio.run(run()) == [[3], [3]]
    assert sum(op(step).runs for step in steps) == 1
    assert world.results.handles == 0
