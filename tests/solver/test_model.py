# SPDX-License-Identifier: Apache-2.0
"""Random histories of builds against a model that solves one edge after the other, by recursion."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from solver_world import World, build, op, run

from chantier.solver import KeyStore, Link, content_key_id, is_volatile, key_id
from chantier.solver import Vertex as Node
from chantier.testing.solver import MemoryResultStore

FEW = 3  # values are taken modulo this, so that different things often have equal content


@dataclass(frozen=True)
class Shape:
    """A vertex of a graph of which several variants are built."""

    inputs: tuple[int, ...]
    contents: frozenset[int]
    selectors: tuple[tuple[int, str], ...]
    source: str  # of one without inputs: plain, twin (two cache maps), volatile


@dataclass(frozen=True)
class Round:
    """One build: which variant each vertex has, which ignore the cache, what is wanted, which results go first."""

    variants: tuple[int, ...]
    ignoring: frozenset[int]
    wanted: tuple[int, ...]
    lost: float  # what share of the results is gone before
    seed: int


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Shape], list[Round]]:
    size = draw(st.integers(1, 8))
    shapes = []
    for number in range(size):
        inputs = tuple(draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True))) if number else ()
        contents = frozenset(draw(st.sets(st.integers(0, len(inputs) - 1)))) if inputs else frozenset()
        selectors = tuple((index, "s") for index in contents if draw(st.booleans()))
        shapes.append(Shape(inputs, contents, selectors, draw(st.sampled_from(["plain", "twin", "volatile"]))))
    rounds = []
    variants = [0] * size
    for _ in range(draw(st.integers(1, 5))):
        for number in draw(st.lists(st.integers(0, size - 1), max_size=2)):  # a little changes from one build to the next
            variants[number] = draw(st.integers(0, 3))
        rounds.append(
            Round(
                tuple(variants),
                frozenset(draw(st.sets(st.integers(0, size - 1), max_size=2))) if draw(st.booleans()) else frozenset(),
                tuple(draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=2, unique=True))),
                draw(st.sampled_from([0.0, 0.25])),
                draw(st.integers(0, 2**16)),
            )
        )
    return shapes, rounds


def graph(world: World, shapes: list[Shape], each: Round, session: int) -> list[Node]:
    nodes: list[Node] = []
    for number, shape in enumerate(shapes):
        variant = each.variants[number]

        async def work(job: object, inputs: list[object], amount: int = variant) -> list[object]:
            await asyncio.sleep(0)
            return [world.results.make((amount + sum(one.value for one in inputs)) % FEW)]  # type: ignore[attr-defined]

        more: dict[str, object] = {"value": variant, "work": work}
        if not shape.inputs and shape.source == "twin":
            more["maps"] = (f"sha256:{number}-manifest-{variant}", f"sha256:{number}-chain-{variant % 2}")
            more["value"] = variant % 2

            async def twin(job: object, inputs: list[object], amount: int = variant % 2) -> list[object]:
                return [world.results.make(amount)]

            more["work"] = twin
        digest = f"random:{session}-{number}" if not shape.inputs and shape.source == "volatile" else f"{number}-{variant}"
        nodes.append(
            world.node(
                digest,
                *(nodes[index] for index in shape.inputs),
                contents=shape.contents,
                selectors=dict(shape.selectors),
                ignore_cache=number in each.ignoring,
                vertex=f"v{session}-{number}",
                **more,
            )
        )
    return nodes


@dataclass
class Known:
    """What the model knows of one edge."""

    matched: set[str] = field(default_factory=set)
    candidates: list[set[str]] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    fast: bool = False
    slow: bool = False
    value: int | None = None


class Model:
    """Which vertices run, and what comes out."""

    def __init__(self, keys: KeyStore, results: MemoryResultStore) -> None:
        self.keys = keys
        self.results = results
        self.known: dict[Node, Known] = {}
        self.ran: set[Node] = set()

    def links(self, node: Node, index: int) -> tuple[Link, Link]:
        key = key_id(op(node).digest, 0)
        return Link(index, key, op(node).selectors.get(index, "")), Link(index, key)

    def roots(self, node: Node) -> list[str]:
        return [root for digest in op(node).maps or (op(node).digest,) if not is_volatile(root := key_id(digest, 0))]

    def look(self, node: Node) -> None:
        known = self.known[node]
        if node.ignore_cache:
            return
        for index, edge in enumerate(node.inputs):
            link, content_link = self.links(node, index)
            if not edge.vertex.ignore_cache:
                known.candidates[index] |= self.keys.children(self.known[edge.vertex].matched, link)
            value = self.known[edge.vertex].value
            if known.levels[index] == 2 and index in op(node).contents and value is not None:
                known.candidates[index] |= self.keys.children([content_key_id(f"sha256:content-{value}")], content_link)
        known.matched |= set.intersection(*known.candidates)

    def fast(self, node: Node) -> Known:
        known = self.known.setdefault(node, Known())
        if not known.fast:
            known.fast = True
            if not node.inputs:
                known.matched |= set(self.roots(node)[:1])
            else:
                for edge in node.inputs:
                    self.fast(edge.vertex)
                known.candidates = [set() for _ in node.inputs]
                known.levels = [0] * len(node.inputs)
                self.look(node)
        return known

    def slow(self, node: Node) -> Known:
        known = self.fast(node)
        if not known.slow:
            known.slow = True
            if not node.inputs:
                known.matched |= set(self.roots(node))
            elif not node.ignore_cache:
                while not known.matched and self.escalate(node):
                    pass
        return known

    def escalate(self, node: Node) -> bool:
        known = self.known[node]
        lacking = [i for i, found in enumerate(known.candidates) if not found]
        if any(known.levels[i] == 2 for i in lacking):
            return False
        todo = lacking or [i for i, level in enumerate(known.levels) if level < 2]
        for i in todo:
            if known.levels[i] == 0:
                self.slow(node.inputs[i].vertex)
            elif i in op(node).contents:
                self.solve(node.inputs[i].vertex)
            known.levels[i] += 1
        self.look(node)
        return bool(todo)

    def record(self, known: Known) -> bool:
        for record in sorted(self.keys.records(known.matched), key=lambda record: -record.created_at):
            if record.result in self.results.values:
                known.value = self.results.values[record.result]
                return True
        return False

    def solve(self, node: Node) -> int:
        known = self.fast(node)
        if known.value is None and not (not node.ignore_cache and self.find(node, known)):
            for index, edge in enumerate(node.inputs):
                self.solve(edge.vertex)
                known.levels[index] = 2
            if node.inputs:
                self.look(node)
            if node.ignore_cache or not self.record(known):
                self.ran.add(node)
                total = op(node).value + sum(self.known[edge.vertex].value or 0 for edge in node.inputs)
                known.value = total % FEW
        assert known.value is not None
        return known.value

    def find(self, node: Node, known: Known) -> bool:
        if self.record(known):
            return True
        self.slow(node)
        while not self.record(known):
            if not node.inputs or not self.escalate(node):
                return False
        return True


def true_value(node: Node) -> int:
    return (op(node).value + sum(true_value(edge.vertex) for edge in node.inputs)) % FEW


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_any_history_runs_what_the_model_runs(history: tuple[list[Shape], list[Round]]) -> None:
    shapes, rounds = history
    world = World()
    for session, each in enumerate(rounds):
        lose = random.Random(each.seed)
        for result in [result for result in world.results.values if lose.random() < each.lost]:
            world.results.drop(result)
        nodes = graph(world, shapes, each, session)
        wanted = [nodes[number] for number in each.wanted]
        model = Model(world.keys, world.results)
        expected = [model.solve(node) for node in wanted]
        outcome = world.build(*wanted)
        note(f"round {session}: {outcome.explanations}")
        assert outcome.values == expected == [true_value(node) for node in wanted]
        assert {node for node in nodes if op(node).runs} == model.ran
        assert max(op(node).runs for node in nodes) <= 1
        for explanation in outcome.explanations.values():
            assert explanation.outcome == "" or explanation.reason


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(), st.randoms(use_true_random=False))
def test_any_jobs_side_by_side_are_right_and_leak_nothing(
    history: tuple[list[Shape], list[Round]], chance: random.Random
) -> None:
    """All rounds at once on one solver, some cancelled at any moment."""
    shapes, rounds = history
    world = World()

    async def main() -> None:
        solver = world.solver()
        # One session: equal variants are the same vertices. A volatile source differs by build, as local ones do.
        graphs = [graph(world, shapes, each, session) for session, each in enumerate(rounds)]
        tasks = []
        for session, (each, nodes) in enumerate(zip(rounds, graphs, strict=True)):
            wanted = [nodes[number] for number in each.wanted]
            tasks.append((asyncio.create_task(build(solver, *wanted, job=str(session))), wanted))
        for task, _ in tasks:
            if chance.random() < 0.3:
                for _ in range(chance.randrange(20)):
                    await asyncio.sleep(0)
                task.cancel()
        await asyncio.wait([task for task, _ in tasks])
        for task, wanted in tasks:
            if not task.cancelled():
                assert task.result().values == [true_value(node) for node in wanted]
        for nodes in graphs:
            assert all(op(node).running == 0 for node in nodes)
        assert not solver.dump()
        assert not solver.leaving
        assert not solver.index._names
        assert not solver.index._owners
        await solver.aclose()

    run(main())
    assert world.results.handles == 0
