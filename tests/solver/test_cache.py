# SPDX-License-Identifier: Apache-2.0
"""What is found by which key, and what runs."""

from __future__ import annotations

import pytest
from solver_world import Outcome, World, op, runs

from chantier.solver import Edge, key_id
from chantier.solver import Vertex as Node


def test_runs_once_and_is_found_by_the_next_process() -> None:
    world = World()

    def graph() -> list[Node]:
        base = world.node("base", value=1)
        left, right = world.node("left", base, value=10), world.node("right", base, value=100)
        return [base, left, right, world.node("top", left, right, value=1000)]

    first = graph()
    outcome = world.build(first[-1])
    assert outcome.values == [1112]
    assert runs(*first) == [1, 1, 1, 1]
    again = graph()
    outcome = world.build(again[-1])
    assert outcome.values == [1112]
    assert runs(*again) == [0, 0, 0, 0]
    assert world.results.loads == ["r3"]  # nothing but the result itself
    assert outcome.outcome("sha256:top") == "hit"
    assert outcome.reason("sha256:top") == "definition key matched record r3"
    assert outcome.outcome("sha256:left") == "skipped"


def test_a_changed_operation_runs_with_its_dependants_only() -> None:
    world = World()

    def graph(middle: str) -> list[Node]:
        base = world.node("base", value=1)
        one = world.node("one", base)
        two = world.node(middle, one)
        return [base, one, two, world.node("three", two)]

    world.build(graph("two")[-1])
    changed = graph("other")
    outcome = world.build(changed[-1])
    assert runs(*changed) == [0, 0, 1, 1]
    assert outcome.reason("sha256:other") == "no record for key (op digest changed; the nearest is that of sha256:two)"
    assert outcome.explanations["sha256:other"].nearest.detail == b"sha256:two"
    assert outcome.explanations["sha256:other"].detail == b"sha256:other"
    assert outcome.reason("sha256:three") == "input 0 (sha256:other) changed"
    assert outcome.explanations["sha256:three"].changed == (0,)
    assert outcome.explanations["sha256:three"].nearest.name == "sha256:three"


def test_content_key_finds_what_the_definition_key_does_not() -> None:
    world = World()

    def graph(session: str, value: int) -> list[Node]:
        local = world.node(f"random:{session}", value=value)
        base = world.node("base", value=1)
        copy = world.node("copy", base, local, contents=frozenset({1}))
        return [local, base, copy, world.node("run", copy)]

    world.build(graph("s1", 7)[-1])
    same = graph("s2", 7)
    outcome = world.build(same[-1])
    assert runs(*same) == [1, 0, 0, 0]
    assert outcome.outcome("sha256:run") == "hit"
    assert outcome.outcome("sha256:copy") == "skipped"
    other = graph("s3", 8)
    outcome = world.build(other[-1])
    assert runs(*other) == [1, 0, 1, 1]
    assert outcome.reason("sha256:copy") == "content of input 1 (random:s3) changed"
    assert outcome.explanations["sha256:copy"].changed == (1,)
    assert outcome.explanations["random:s3"].reason == "the source has no lasting key"


def test_nothing_is_kept_of_an_input_without_a_lasting_key() -> None:
    world = World()
    local = world.node("random:s1", value=3)
    world.build(world.node("run", local))
    assert world.results.values == {}
    again = world.node("run", world.node("random:s1", value=3))
    world.build(again)
    assert op(again).runs == 1


def test_definition_keys_are_linked_to_what_a_content_key_found() -> None:
    world = World()

    def graph(source: str) -> list[Node]:
        fetched = world.node(source, value=5)
        return [fetched, world.node("copy", fetched, contents=frozenset({0}))]

    world.build(graph("url-1")[-1])
    by_content = graph("url-2")
    outcome = world.build(by_content[-1])
    assert runs(*by_content) == [1, 0]
    assert outcome.reason("sha256:copy").startswith("content key matched record")
    world.results.drop("r2")  # of url-2: it would have to run again were it asked for
    by_definition = graph("url-2")
    outcome = world.build(by_definition[-1])
    assert runs(*by_definition) == [0, 0]
    assert op(by_definition[1]).content_calls == 0
    assert outcome.reason("sha256:copy").startswith("definition key matched record")


def test_inputs_with_a_candidate_wait_while_others_have_none() -> None:
    world = World()

    def graph(second: str) -> list[Node]:
        one = world.node("one", value=1)
        two = world.node(second, value=2)
        return [one, two, world.node("copy", one, two, contents=frozenset({0, 1}))]

    world.build(graph("two")[-1])
    changed = graph("zwei")
    world.build(changed[-1])
    assert runs(*changed) == [0, 1, 0]
    assert op(changed[2]).content_calls == 1  # of the second input only; the first was not even loaded


def test_a_source_with_two_maps_is_found_by_the_second() -> None:
    world = World()

    def graph(manifest: str) -> list[Node]:
        image = world.node("", value=1, maps=(f"sha256:manifest-{manifest}", "sha256:chain"))
        return [image, world.node("run", image)]

    first = graph("a")
    world.build(first[-1])
    second = graph("b")
    outcome = world.build(second[-1])
    assert runs(*second) == [0, 0]
    assert op(second[0]).map_calls == 2
    third = graph("b")
    outcome = world.build(third[-1])
    assert runs(*third) == [0, 0]
    assert op(third[0]).map_calls == 1  # the link from the first map's key is there by now
    assert outcome.reason("sha256:run").startswith("definition key")


def test_selectors_are_part_of_the_link() -> None:
    world = World()

    def graph(selector: str) -> Node:
        return world.node("copy", world.node("base", value=1), selectors={0: selector})

    world.build(graph("a"))
    same = graph("a")
    world.build(same)
    assert op(same).runs == 0
    other = graph("b")
    world.build(other)
    assert op(other).runs == 1


def test_content_is_looked_up_without_the_selector() -> None:
    world = World()

    def graph(source: str, selector: str) -> Node:
        return world.node("copy", world.node(source, value=1), selectors={0: selector}, contents=frozenset({0}))

    world.build(graph("a", "x"))
    again = graph("b", "x")
    world.build(again)
    assert op(again).runs == 0


def test_a_gone_result_is_dropped_and_another_record_tried() -> None:
    world = World()

    def graph(ignore: bool = False) -> list[Node]:
        base = world.node("base", value=1)
        return [base, world.node("run", base, value=2, ignore_cache=ignore)]

    world.build(graph()[-1])
    world.build(graph(ignore=True)[-1])  # a second, newer record of the same key
    assert sorted(world.results.values) == ["r0", "r1", "r2"]
    world.results.drop("r2")
    again = graph()
    outcome = world.build(again[-1])
    assert runs(*again) == [0, 0]
    assert outcome.reason("sha256:run") == "definition key matched record r1"
    assert world.keys.keys_of("r2") == []
    world.results.drop("r1")
    gone = graph()
    outcome = world.build(gone[-1])
    assert runs(*gone) == [0, 1]
    assert outcome.reason("sha256:run") == "the result r1 of the key is gone"
    assert world.keys.keys_of("r1") == []
    assert len(world.keys.find(key_id("sha256:run", 0))) == 1  # kept under the key that was there


def test_the_newest_record_is_taken() -> None:
    world = World()
    world.build(world.node("base", value=1))
    world.build(world.node("base", value=2, ignore_cache=True))
    assert world.build(world.node("base", value=3)).values == [2]


def test_ignore_cache_runs_and_its_keys_find_nothing_stale() -> None:
    world = World()

    def graph(value: int, ignore: bool) -> list[Node]:
        base = world.node("base", value=1)
        stage = world.node("stage", base, value=value, ignore_cache=ignore)
        return [base, stage, world.node("copy", stage, contents=frozenset({0})), world.node("run", stage)]

    def both(nodes: list[Node]) -> Outcome:
        return world.build(nodes[2], nodes[3])

    both(graph(10, ignore=False))
    same = graph(10, ignore=True)
    outcome = both(same)
    assert runs(*same) == [0, 1, 0, 1]  # the copy is found by content, the run is not
    assert outcome.outcome("sha256:stage") == "ignored"
    assert outcome.reason("sha256:stage") == "ignore_cache"
    other = graph(20, ignore=True)
    assert both(other).values == [22, 22]
    assert runs(*other) == [0, 1, 1, 1]
    normal = graph(0, ignore=False)
    assert both(normal).values == [22, 22]  # the newest records
    assert runs(*normal) == [0, 0, 0, 0]


def test_what_stands_on_a_step_that_was_run_anew_is_run_anew_to_the_end() -> None:
    world = World()

    def graph(value: int, ignore: bool) -> list[Node]:
        nodes = [world.node("base", value=value, ignore_cache=ignore)]
        for name in ("first", "second", "third"):
            nodes.append(world.node(name, nodes[-1]))
        return nodes

    world.build(graph(1, ignore=False)[0])
    assert world.build(graph(1, ignore=False)[-1]).values == [4]
    other = graph(5, ignore=True)
    assert world.build(other[-1]).values == [8]  # not what the second step had made of the first's old result
    assert runs(*other) == [1, 1, 1, 1]
    normal = graph(0, ignore=False)
    assert world.build(normal[-1]).values == [8]
    assert runs(*normal) == [0, 0, 0, 0]


def test_outputs_are_kept_apart() -> None:
    world = World()

    def graph() -> tuple[Node, Node, Node]:
        two = world.node("two", value=5, outputs=2)
        return two, world.node("a", Edge(two, 0)), world.node("b", Edge(two, 1))

    two, a, b = graph()
    assert world.build(a, b).values == [6, 7]
    assert op(two).runs == 1
    two, a, b = graph()
    assert world.build(a, b, Edge(two, 1)).values == [6, 7, 6]
    assert runs(two, a, b) == [0, 0, 0]


def test_an_output_that_is_not_there_is_an_error() -> None:
    world = World()
    with pytest.raises(Exception, match="has 1 outputs, output 3 was asked for"):
        world.build(Edge(world.node("one"), 3))


def test_empty_results_are_kept() -> None:
    world = World()

    async def nothing(job: object, inputs: object) -> list[None]:
        return [None]

    world.build(world.node("empty", work=nothing))
    again = world.node("empty", work=nothing)
    assert world.build(again).values == [None]
    assert op(again).runs == 0


def test_prepare_is_called_before_a_run_only() -> None:
    world = World()

    def graph() -> Node:
        return world.node("copy", world.node("base"), contents=frozenset({0}))

    world.build(first := graph())
    assert op(first).prepared == 1
    world.build(again := graph())
    assert op(again).prepared == 0


def test_first_explanation_of_all() -> None:
    world = World()
    outcome = world.build(world.node("run", world.node("base")))
    assert outcome.reason("sha256:base") == "no record for key (new source key)"
    assert outcome.reason("sha256:run") == "no record for key (nothing like it was run before)"
