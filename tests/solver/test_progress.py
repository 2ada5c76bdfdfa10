# SPDX-License-Identifier: Apache-2.0
"""What jobs are told: order, intervals, CACHED, late joiners, the end."""

from __future__ import annotations

import asyncio

import pytest
from solver_world import World, build, op, run, until

from chantier.errors import ChantierError
from chantier.progress import Group, Log, Recorder, Status, Vertex
from chantier.solver import Edge
from chantier.solver import vertex as vertex_module


def kinds(events: list[Vertex]) -> list[str]:
    """One word an event, for comparing."""

    def kind(event: Vertex) -> str:
        if event.started is None:
            return "announced"
        if event.completed is None:
            return "started"
        if event.error:
            return f"error: {event.error}"
        return "cached" if event.cached else "completed"

    return [kind(event) for event in events]


def test_announced_first_then_intervals() -> None:
    world = World()
    group = Group(id="g", name="group")
    base = world.node("base")
    top = world.node("top", base)
    object.__setattr__(top, "group", group)
    outcome = world.build(top)
    seen: set[str] = set()
    for event in outcome.events:
        assert isinstance(event, Vertex)
        assert event.started is None or event.digest in seen
        seen.add(event.digest)
    assert kinds(outcome.vertices("sha256:base")) == ["announced", "started", "completed", "started", "completed"]
    tops = outcome.vertices("sha256:top")
    assert kinds(tops) == ["announced", "started", "completed"]
    assert tops[0].inputs == (base.digest,)
    assert {event.group for event in tops} == {group}
    assert tops[1].started == tops[2].started
    assert tops[1].reason == "no record for key (nothing like it was run before)"


def test_cached_is_one_event_inputs_first_and_each_once() -> None:
    world = World()

    def graph() -> object:
        base = world.node("base")
        left, right = world.node("left", base), world.node("right", base)
        middle = world.node("middle", left, right)
        return world.node("top", middle, left)

    world.build(graph())
    outcome = world.build(graph())
    for name in ("left", "right", "middle", "top"):
        events = outcome.vertices(f"sha256:{name}")
        assert kinds(events) == ["announced", "cached"]
        assert events[1].started == events[1].completed
        assert events[1].reason
    order = [event.name for event in outcome.events if isinstance(event, Vertex) and event.cached]
    assert order.index("sha256:left") < order.index("sha256:middle") < order.index("sha256:top")
    assert kinds(outcome.vertices("sha256:base")) == ["announced", "started", "completed"]  # its cache map, as upstream shows it


def test_a_source_that_was_loaded_says_cached_after_its_cache_map() -> None:
    world = World()
    world.build(world.node("base"))
    assert kinds(world.build(world.node("base")).vertices("sha256:base")) == ["announced", "started", "completed", "cached"]


def test_late_joiners_get_what_was_said_before() -> None:
    world = World()

    async def main() -> None:
        solver, gate = world.solver(), asyncio.Event()

        async def talk(job: object, inputs: object) -> list[object]:
            step = job.step  # type: ignore[attr-defined]
            step.log(b"one\n")
            started = step.status("part", current=1, total=3)
            step.status("part", current=2, total=3, started=started)
            await gate.wait()
            step.log(b"two\n", 2)
            step.status("part", current=3, total=3, started=started, done=True)
            return [world.results.make(1)]

        base = world.node("base", work=talk)
        first = asyncio.create_task(build(solver, world.node("first", base), job="1"))
        await until(lambda: op(base).running == 1)
        second = asyncio.create_task(build(solver, world.node("second", base), job="2"))
        await until(lambda: len(solver.jobs) == 2)
        gate.set()
        outcomes = await asyncio.gather(first, second)
        for outcome in outcomes:
            logs = [(event.data, event.stream) for event in outcome.events if isinstance(event, Log)]
            assert logs == [(b"one\n", 1), (b"two\n", 2)]
            statuses = [event for event in outcome.events if isinstance(event, Status)]
            assert statuses[-1].current == 3
            assert statuses[-1].completed is not None
            assert statuses[0].started is not None
        assert [event.current for event in outcomes[0].events if isinstance(event, Status)] == [1, 2, 3]
        assert [event.current for event in outcomes[1].events if isinstance(event, Status)] == [
            2,
            3,
        ]  # only the latest of the past

    run(main())


def test_of_very_long_output_the_earliest_is_left_out_for_late_joiners() -> None:
    world = World()

    async def main() -> None:
        solver, gate = world.solver(), asyncio.Event()
        line = b"x" * (vertex_module.REPLAY_BYTES // 8)

        async def talk(job: object, inputs: object) -> list[object]:
            for number in range(20):
                job.step.log(b"%02d" % number + line)  # type: ignore[attr-defined]
                job.step.status(f"s{number % 3}")  # type: ignore[attr-defined]
            await gate.wait()
            return [world.results.make(1)]

        base = world.node("base", work=talk)
        first = asyncio.create_task(build(solver, base, job="1"))
        await until(lambda: op(base).running == 1)
        late = Recorder()
        async with solver.job("2", late) as job:
            task = asyncio.create_task(job.build(Edge(base)))
            await until(lambda: bool(late.events))
            numbers = [int(event.data[:2]) for event in late.events if isinstance(event, Log)]
            assert numbers == list(range(numbers[0], 20))
            assert 3 <= len(numbers) <= 8
            assert {event.id for event in late.events if isinstance(event, Status)} == {"s0", "s1", "s2"}
            gate.set()
            (await task).release()
        all_numbers = [int(event.data[:2]) for event in (await first).events if isinstance(event, Log)]
        assert all_numbers == list(range(20))

    run(main())


def test_what_goes_on_without_a_job_is_cancelled_to_it() -> None:
    world = World()

    async def main() -> None:
        solver, gate = world.solver(), asyncio.Event()
        base = world.node("base", gate=gate)
        recorder = Recorder()
        other = asyncio.create_task(build(solver, base, job="other"))
        await until(lambda: op(base).running == 1)
        async with solver.job("mine", recorder) as job:
            task = asyncio.create_task(job.build(Edge(base)))
            await until(lambda: len(solver.dump()[0].jobs) == 2)
            task.cancel()
            await asyncio.wait([task])
        assert kinds([event for event in recorder.events if isinstance(event, Vertex)])[-1] == "error: context canceled"
        assert recorder.events[-1].started == recorder.events[-2].started  # type: ignore[union-attr]
        gate.set()
        assert kinds([event for event in (await other).events if isinstance(event, Vertex)])[-1] == "completed"

    run(main())


def test_dependants_of_a_failure_never_complete() -> None:
    world = World()

    async def main() -> None:
        recorder = Recorder()
        bad = world.node("bad", fail=ChantierError("boom"))
        with pytest.raises(ChantierError):
            async with world.solver().job("job", recorder) as job:
                await job.build(Edge(world.node("top", bad)))
        events = [event for event in recorder.events if isinstance(event, Vertex)]
        assert kinds([event for event in events if event.name == "sha256:top"]) == ["announced"]
        assert kinds([event for event in events if event.name == "sha256:bad"])[-2:] == ["started", "error: boom"]

    run(main())


def test_events_may_come_from_threads() -> None:
    world = World()

    async def main() -> None:
        async def work(job: object, inputs: object) -> list[object]:
            def talk() -> None:
                for number in range(200):
                    job.step.log(b"%d" % number)  # type: ignore[attr-defined]

            await asyncio.gather(*(asyncio.to_thread(talk) for _ in range(3)))
            return [world.results.make(1)]

        outcome = await build(world.solver(), world.node("base", work=work))
        assert len([event for event in outcome.events if isinstance(event, Log)]) == 600

    run(main())


def test_nothing_is_said_after_the_end_of_the_job() -> None:
    world = World()
    steps = []

    async def work(job: object, inputs: object) -> list[object]:
        steps.append(job.step)  # type: ignore[attr-defined]
        return [world.results.make(1)]

    outcome = world.build(world.node("base", work=work))
    before = len(outcome.events)
    steps[0].log(b"late")
    assert len(outcome.events) == before
