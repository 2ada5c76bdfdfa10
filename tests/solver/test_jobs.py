# SPDX-License-Identifier: Apache-2.0
"""Several jobs: single flight, cancellation, errors, parallelism, merging, what a stall looks like."""

from __future__ import annotations

import asyncio

import pytest
from solver_world import Slots, World, build, op, run, runs, until

from chantier.errors import CancelledError_, ChantierError, SolveError, StoreError, UsageError
from chantier.progress import Recorder
from chantier.solver import Edge, Keep, Vertex, render


def test_equal_vertices_of_many_jobs_run_once() -> None:
    world = World()

    async def main() -> None:
        solver, gate = world.solver(), asyncio.Event()
        graphs = []
        for _ in range(20):
            base = world.node("base", gate=gate)
            graphs.append((base, world.node("top", base)))
        builds = [asyncio.create_task(build(solver, top, job=str(n))) for n, (_, top) in enumerate(graphs)]
        await until(lambda: sum(op(base).running for base, _ in graphs) == 1)
        gate.set()
        outcomes = await asyncio.gather(*builds)
        assert {tuple(outcome.values) for outcome in outcomes} == {(2,)}
        assert sum(op(base).runs for base, _ in graphs) == 1
        assert sum(op(base).map_calls for base, _ in graphs) == 1
        assert sum(op(top).runs for _, top in graphs) == 1
        assert not solver.dump()

    run(main())
    assert world.results.handles == 0


def test_the_run_goes_on_until_the_last_waiter_is_cancelled() -> None:
    world = World()

    async def main() -> None:
        solver = world.solver()
        base = world.node("base", gate=asyncio.Event())
        top = world.node("top", base)
        builds = [asyncio.create_task(build(solver, top, job=str(n))) for n in range(3)]
        await until(lambda: op(base).running == 1)
        for one in builds[:2]:
            one.cancel()
        await asyncio.wait(builds[:2])
        assert op(base).running == 1
        builds[2].cancel()
        await asyncio.wait(builds)
        assert all(one.cancelled() for one in builds)
        assert (op(base).running, op(base).cancelled) == (0, 1)
        assert not solver.dump()
        assert not solver.leaving

    run(main())
    assert world.results.handles == 0


def test_a_cancelled_build_waits_for_the_end_of_its_operations() -> None:
    world = World()

    async def main() -> None:
        solver = world.solver()
        ended = False

        async def slow_to_end(job: object, inputs: object) -> list[None]:
            nonlocal ended
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.02)
                ended = True
            return []

        top = world.node("top", world.node("slow", work=slow_to_end))
        async with solver.job("job") as job:
            task = asyncio.create_task(job.build(Edge(top)))
            await until(lambda: op(top.inputs[0].vertex).running == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ended

    run(main())


def test_a_cancelled_run_is_not_remembered() -> None:
    world = World()

    async def main() -> None:
        solver, gate = world.solver(), asyncio.Event()
        node = world.node("base", gate=gate)
        async with solver.job("job") as job:
            task = asyncio.create_task(job.build(Edge(node)))
            await until(lambda: op(node).running == 1)
            task.cancel()
            await asyncio.wait([task])
            gate.set()
            (await job.build(Edge(node))).release()
            assert op(node).runs == 2

    run(main())


def test_a_new_waiter_during_the_end_of_a_cancelled_run_starts_anew_afterwards() -> None:
    world = World()

    async def main() -> None:
        solver = world.solver()
        rounds = 0

        async def stubborn(job: object, inputs: object) -> list[object]:
            nonlocal rounds
            rounds += 1
            if rounds == 1:
                try:
                    await asyncio.sleep(60)
                finally:
                    await asyncio.sleep(0.05)
            return [world.results.make(9)]

        node = world.node("base", work=stubborn)  # the operation itself checks that it never runs twice at once
        async with solver.job("a") as a, solver.job("b") as b:
            first = asyncio.create_task(a.build(Edge(node)))
            await until(lambda: rounds == 1)
            first.cancel()
            await asyncio.sleep(0.01)
            with await b.build(Edge(node)) as built:
                assert built.value.value == 9
            await asyncio.wait([first])
        assert rounds == 2

    run(main())
    assert world.results.handles == 0


def test_job_cancel_and_leaving_the_block_end_all_builds() -> None:
    world = World()

    async def main() -> None:
        solver = world.solver()
        node = world.node("base", gate=asyncio.Event())
        async with solver.job("job") as job:
            task = asyncio.create_task(job.build(Edge(node)))
            await until(lambda: op(node).running == 1)
            job.cancel()
            with pytest.raises(CancelledError_, match="context canceled"):
                await task
            assert op(node).running == 0
            task = asyncio.create_task(job.build(Edge(node)))
            await until(lambda: op(node).running == 1)
        assert op(node).running == 0
        with pytest.raises(CancelledError_):
            await task
        with pytest.raises(CancelledError_):
            await job.build(Edge(node))

    run(main())


def test_two_jobs_of_one_id() -> None:
    async def main() -> None:
        solver = World().solver()
        async with solver.job("x"):
            with pytest.raises(UsageError, match="job x already exists"):
                solver.job("x")

    run(main())


def test_a_failure_is_remembered_and_ends_the_siblings() -> None:
    world = World()

    async def main() -> None:
        solver = world.solver()
        gate = asyncio.Event()
        bad = world.node("bad", gate=gate, fail=ChantierError("boom"))
        slow = world.node("slow", gate=asyncio.Event())
        top = world.node("top", slow, bad)
        recorder = Recorder()
        async with solver.job("job", recorder) as job:
            task = asyncio.create_task(job.build(Edge(top)))
            await until(lambda: op(slow).running == 1 and op(bad).running == 1)
            gate.set()
            with pytest.raises(ChantierError, match=r"^boom$") as caught:
                await task
            assert caught.value.vertex == bad.digest
            assert caught.value.__cause__ is None
            assert op(slow).running == 0
            with pytest.raises(ChantierError, match=r"^boom$"):
                await job.build(Edge(bad))
            assert op(bad).runs == 1
        errors = {event.name: event.error for event in recorder.events if getattr(event, "error", "")}
        assert errors == {"sha256:bad": "boom", "sha256:slow": "context canceled"}
        with pytest.raises(ChantierError, match=r"^boom$"):
            await build(solver, bad)
        assert op(bad).runs == 2  # it was no longer active

    run(main())
    assert world.results.handles == 0


@pytest.mark.parametrize(
    ("how", "text", "shown"),
    [
        ("fail_map", "failed to load cache key: no such image", "no such image"),
        ("fail_content", "failed to compute cache key: no such image", "no such image"),
        ("fail", "no such image", "no such image"),
    ],
)
def test_error_texts(how: str, text: str, shown: str) -> None:
    world = World()
    node = world.node("copy", world.node("base"), contents=frozenset({0}), **{how: ChantierError("no such image", hint="try")})

    async def main() -> None:
        recorder = Recorder()
        with pytest.raises(ChantierError) as caught:
            async with world.solver().job("job", recorder) as job:
                await job.build(Edge(world.node("top", node)))
        assert str(caught.value) == text
        assert caught.value.hint == "try"
        assert caught.value.vertex == node.digest
        ends = [event for event in recorder.events if getattr(event, "error", "")]
        assert [(event.digest, event.error) for event in ends] == [(node.digest, shown)]
        assert ends[0].started is not None
        assert ends[0].completed is not None

    run(main())


def test_an_error_that_is_not_ours_is_wrapped() -> None:
    world = World()
    with pytest.raises(SolveError, match="odd") as caught:
        world.build(world.node("base", fail=ValueError("odd")))
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.vertex is not None


def test_a_key_store_that_cannot_be_written_fails_the_build_without_a_leak() -> None:
    world = World()

    def full(changes: object) -> None:
        raise StoreError("no space left")

    world.keys.apply = full  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="no space left"):
        world.build(world.node("base"))
    assert world.results.handles == 0


def test_a_flush_waits_for_its_own_part_only() -> None:
    world = World()

    async def main() -> None:
        solver = world.solver()
        busy = asyncio.Event()

        async def add_always() -> None:
            number = 0
            while not busy.is_set():
                number += 1
                solver.writer.add(Keep(key=f"k{number}"))
                await asyncio.sleep(0)

        task = asyncio.create_task(add_always())
        await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            await solver.writer.flush()
        busy.set()
        await task
        await solver.aclose()

    run(main())


def test_a_record_that_cannot_be_loaded_is_passed_over() -> None:
    world = World()
    world.build(world.node("base"))

    def broken(id: str) -> None:
        raise StoreError("damaged")

    world.results.load = broken  # type: ignore[assignment,method-assign]
    again = world.node("base")
    assert world.build(again).values == [1]
    assert op(again).runs == 1
    assert world.keys.keys_of("r0") != []  # it is not gone


def test_branches_run_side_by_side_and_never_more_than_the_limit() -> None:
    world = World()

    async def main(limit: int) -> int:
        slots = Slots(limit)
        most = 0

        async def count(job: object, inputs: object) -> list[object]:
            nonlocal most
            most = max(most, len(slots.running))
            while most < (limit or 12):
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.005)
            return [world.results.make(1)]

        nodes = [world.node(f"{limit}-{number}", work=count, slots=slots) for number in range(12)]
        await build(world.solver(), world.node(f"top-{limit}", *nodes, slots=slots))
        assert not slots.running
        assert not slots.waiting
        return most

    assert run(main(0)) == 12
    assert run(main(2)) == 2
    assert run(main(5)) == 5


def test_started_is_reported_once_there_is_a_slot() -> None:
    world = World()

    async def main() -> None:
        solver, slots, gate = world.solver(), Slots(1), asyncio.Event()
        first = world.node("first", world.node("b1"), gate=gate, slots=slots)
        second = world.node("second", world.node("b2"), slots=slots)
        recorder = Recorder()
        async with solver.job("job", recorder) as job:
            task = asyncio.create_task(job.build_many([Edge(first), Edge(second)]))
            await until(lambda: op(first).running + op(second).running == 1 and len(slots.waiting) == 1)
            started = [event.name for event in recorder.events if getattr(event, "started", None)]
            waiting = second if op(first).running else first
            assert op(waiting).name not in started
            assert "waiting for a slot since" in render(job.status())
            gate.set()
            for one in await task:
                one.release()

    run(main())


def test_slots_are_fair_and_can_be_resized() -> None:
    async def main() -> None:
        slots, order, gates = Slots(1), [], [asyncio.Event() for _ in range(6)]

        async def hold(number: int) -> None:
            async with slots.hold(str(number)):
                order.append(number)
                await gates[number].wait()

        tasks = [asyncio.create_task(hold(number)) for number in range(6)]
        await until(lambda: len(slots.waiting) == 5)
        assert slots.running == ("0",)
        assert slots.waiting == ("1", "2", "3", "4", "5")
        tasks[1].cancel()
        slots.resize(3)
        await until(lambda: len(order) == 3)
        assert order == [0, 2, 3]
        slots.resize(1)
        gates[0].set()
        gates[2].set()
        await asyncio.sleep(0.005)
        assert order == [0, 2, 3]
        slots.resize(0)
        await until(lambda: len(order) == 5)
        for gate in gates:
            gate.set()
        await asyncio.wait(tasks)
        assert (slots.running, slots.waiting) == ((), ())

    run(main())


def test_a_slot_given_to_one_that_is_cancelled_in_the_same_turn_is_passed_on() -> None:
    async def main() -> None:
        slots = Slots(1)
        got = []

        async def hold(name: str) -> None:
            async with slots.hold(name):
                got.append(name)

        async with slots.hold("first"):
            one, two = asyncio.create_task(hold("one")), asyncio.create_task(hold("two"))
            await until(lambda: len(slots.waiting) == 2)
        one.cancel()  # the slot is its own by now
        await asyncio.wait([one, two])
        assert got == ["two"]
        assert slots.running == ()

    run(main())


# Merging


def pair(world: World, gate: asyncio.Event, name: str, value: int = 4) -> tuple[Vertex, Vertex]:
    """A copy of a local source; two of them have different digests and equal content."""
    local = world.node(f"random:{name}", value=value)
    return local, world.node("copy", world.node("base"), local, contents=frozenset({1}), gate=gate, vertex=f"copy-{name}")


def test_different_digests_with_equal_keys_run_once() -> None:
    world = World()

    async def main() -> None:
        solver, gate = world.solver(), asyncio.Event()
        (_, one), (_, two) = pair(world, gate, "one"), pair(world, gate, "two")
        _, other = pair(world, gate, "other", value=5)
        builds = [asyncio.create_task(build(solver, node, job=node.digest)) for node in (one, two, other)]
        await until(lambda: op(one).running + op(two).running == 1 and op(other).running == 1)
        await until(lambda: any(vertex.doing and "result of sha256:copy" in vertex.doing[0] for vertex in solver.dump()))
        gate.set()
        outcomes = await asyncio.gather(*builds)
        assert [outcome.values for outcome in outcomes] == [[6], [6], [7]]
        assert op(one).runs + op(two).runs == 1
        merged = outcomes[0] if op(one).runs == 0 else outcomes[1]
        assert "the same work as sha256:copy" in [each.reason for each in merged.by_digest.values()]
        shown = {event.digest for event in merged.events if getattr(event, "started", None)}
        assert {"copy-one", "copy-two"} <= shown  # the other build's vertex is part of this build's progress

    run(main())
    assert world.results.handles == 0


def test_the_survivor_lives_on_when_its_own_job_goes() -> None:
    world = World()

    async def main() -> None:
        solver, gate = world.solver(), asyncio.Event()
        (_, one), (_, two) = pair(world, gate, "one"), pair(world, gate, "two")
        first = asyncio.create_task(build(solver, one, job="1"))
        await until(lambda: op(one).running == 1)
        second = asyncio.create_task(build(solver, two, job="2"))
        await until(lambda: len(solver.jobs) == 2 and any(len(v.jobs) == 2 and v.digest == "copy-one" for v in solver.dump()))
        first.cancel()
        await asyncio.wait([first])
        assert op(one).running == 1
        gate.set()
        assert (await second).values == [6]
        assert op(two).runs == 0
        assert not solver.dump()

    run(main())
    assert world.results.handles == 0


def test_merging_within_one_build_and_the_links_it_leaves() -> None:
    world = World()

    def graph() -> list[Vertex]:
        one = world.node("copy", world.node("url-1", value=3), contents=frozenset({0}), vertex="c1")
        two = world.node("copy", world.node("url-2", value=3), contents=frozenset({0}), vertex="c2")
        return [one, two, world.node("top", one, two)]

    first = graph()
    assert world.build(first[-1]).values == [9]
    assert sum(runs(*first)) == 2
    again = graph()
    world.build(*again)
    assert sum(runs(*again)) == 0
    assert sum(op(node).content_calls for node in again) == 0  # both definition keys lead to the one key


def test_equal_work_at_both_ends_of_a_dependency_is_not_merged() -> None:
    world = World()
    inner = world.node("same", world.node("a", value=2), contents=frozenset({0}), value=0, vertex="inner")
    outer = world.node("same", inner, contents=frozenset({0}), value=0, vertex="outer")
    assert world.build(outer).values == [2]


def test_a_shallow_edge_merges_into_a_deep_one() -> None:
    world = World()

    async def main() -> None:
        solver, gate = world.solver(), asyncio.Event()
        deep_input = world.node("d2", world.node("d1", world.node("d0", value=1), value=1), value=1)
        deep = world.node("copy", deep_input, contents=frozenset({0}), gate=gate, vertex="deep")
        shallow = world.node("copy", world.node("s0", value=3), contents=frozenset({0}), gate=gate, vertex="shallow")
        first = asyncio.create_task(build(solver, deep, job="1"))
        await until(lambda: op(deep).running == 1)
        second = asyncio.create_task(build(solver, world.node("user", shallow), job="2"))
        await until(lambda: any(v.digest == "deep" and len(v.jobs) == 2 for v in solver.dump()))
        gate.set()
        await asyncio.gather(first, second)
        assert op(shallow).runs == 0

    run(main())


def test_a_normal_request_joins_an_ignoring_one_and_not_the_reverse() -> None:
    world = World()
    world.build(world.node("base"))

    async def main(first_ignores: bool) -> int:
        solver, gate = world.solver(), asyncio.Event()
        world.results.values.clear()
        one = world.node("base", gate=gate, ignore_cache=first_ignores)
        two = world.node("base", gate=gate, ignore_cache=not first_ignores)
        first = asyncio.create_task(build(solver, one, job="1"))
        await until(lambda: op(one).running == 1)
        second = asyncio.create_task(build(solver, two, job="2"))
        await until(lambda: op(two).running == 1 or any(len(vertex.jobs) == 2 for vertex in solver.dump()))
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(first, second)
        return op(one).runs + op(two).runs

    assert run(main(first_ignores=True)) == 1
    assert run(main(first_ignores=False)) == 2


def test_a_vertex_over_an_ignoring_variant_is_a_variant_too() -> None:
    world = World()

    async def main() -> None:
        solver = world.solver()

        def graph(value: int, ignore: bool) -> Vertex:
            return world.node("top", world.node("stage", value=value, ignore_cache=ignore))

        async with solver.job("1") as one, solver.job("2") as two:
            with await one.build(Edge(graph(5, ignore=False))) as built:
                assert built.value.value == 6
            with await two.build(Edge(graph(7, ignore=True))) as built:
                assert built.value.value == 8

    run(main())


def test_the_dump_names_what_each_vertex_waits_for() -> None:
    world = World()

    async def main() -> None:
        solver = world.solver()
        base = world.node("base", gate=asyncio.Event())
        top = world.node("top", world.node("middle", base))
        async with solver.job("job") as job:
            task = asyncio.create_task(job.build(Edge(top)))
            await until(lambda: op(base).running == 1)
            dump = {vertex.name: vertex for vertex in solver.dump()}
            assert dump["sha256:base"].state == "busy"
            assert dump["sha256:base"].doing[-1].startswith("running since ")
            assert dump["sha256:middle"].waits_for == (base.digest,)
            assert dump["sha256:top"].doing == ("result waits for result of sha256:middle",)
            assert dump["sha256:top"].jobs == ("job",)
            assert "sha256:middle" in render(solver.dump())
            task.cancel()
            await asyncio.wait([task])

    run(main())


def test_sessions_of_all_jobs_are_offered() -> None:
    world = World()

    async def main() -> None:
        solver, gate, seen = world.solver(), asyncio.Event(), []

        async def work(job: object, inputs: object) -> list[object]:
            await gate.wait()
            seen.append(tuple(job.sessions))  # type: ignore[attr-defined]
            return [world.results.make(1)]

        node = world.node("base", work=work)
        async with solver.job("1", sessions=("s1",)) as one, solver.job("2", sessions=("s2", "s1")) as two:
            tasks = [asyncio.create_task(job.build(Edge(world.node("top", node)))) for job in (one, two)]
            await until(lambda: op(node).running == 1)
            gate.set()
            for task in tasks:
                (await task).release()
        assert seen == [("s1", "s2")]

    run(main())


def test_stages_copied_onto_one_another_run_at_the_same_time() -> None:
    """COPY --from=s0, COPY --from=s1, …: each copy hangs on the one before it, the stages on nothing but themselves."""
    world = World()

    async def main() -> None:
        solver, gate = world.solver(), asyncio.Event()
        base = world.node("base")
        stages = [world.node(f"stage{n}", base, gate=gate) for n in range(6)]
        target = world.node("copy0", stages[0], contents=frozenset({0}))
        for number, stage in enumerate(stages[1:], 1):
            target = world.node(f"copy{number}", target, stage, contents=frozenset({1}))
        building = asyncio.create_task(build(solver, target))
        await until(lambda: sum(op(stage).running for stage in stages) == 6)
        gate.set()
        await building

    run(main())
    assert world.results.handles == 0
