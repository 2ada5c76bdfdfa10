# SPDX-License-Identifier: Apache-2.0
"""From a result back to its keys, and caches that come from elsewhere."""

from __future__ import annotations

import hashlib

from solver_world import World, op, run, runs

from chantier.solver import CombinedKeyStore, Edge, ExportKey, Keep, KeySource, Link, content_key_id, key_id, walk_keys
from chantier.solver import Vertex as Node
from chantier.solver.types import CacheRecord
from chantier.testing.solver import MemoryKeyStore


def graph(world: World, session: str = "s") -> list[Node]:
    base = world.node("", value=1, maps=("sha256:manifest", "sha256:chain"))
    local = world.node(f"random:{session}", value=7)
    copy = world.node("copy", base, local, contents=frozenset({1}), selectors={1: "sha256:paths"})
    return [base, local, copy, world.node("run", copy)]


def walk(world: World, node: Node) -> list[ExportKey]:
    async def main() -> list[ExportKey]:
        async with world.solver().job("job") as job:
            with await job.build(Edge(node)) as built:
                return await built.walk()

    nodes: list[ExportKey] = run(main())
    return nodes


def test_the_walk_gives_what_a_cache_config_needs() -> None:
    world = World()
    nodes = walk(world, graph(world)[-1])
    assert len(nodes) == 5  # two keys of the image, the content key, copy, run; nothing of the local source
    copy, top = nodes[-2:]
    assert (copy.name, top.name) == ("sha256:copy", "sha256:run")
    assert top.final
    assert not copy.final
    assert top.op == "sha256:" + hashlib.sha256(b"sha256:run@0").hexdigest()
    assert top.inputs == (((copy.id, ""),),)
    roots, content = copy.inputs
    assert {key for key, _ in roots} == {key_id("sha256:manifest", 0), key_id("sha256:chain", 0)}
    assert content == ((content_key_id("sha256:content-7"), ""),)
    assert content_key_id("sha256:x") == "sha256:" + hashlib.sha256(b"sha256:x@-1").hexdigest()
    assert [record.result for record in top.records] == ["r3"]
    assert not next(node for node in nodes if node.id == content[0][0]).records


def test_the_walk_of_a_cached_result_is_the_same() -> None:
    world = World()
    first = walk(world, graph(world)[-1])
    again = walk(world, graph(world, "other")[-1])
    assert first == again


def test_the_walk_carries_what_the_build_says_of_exporting() -> None:
    world = World()
    base = world.node("base")
    object.__setattr__(base, "export_cache", True)
    nodes = walk(world, world.node("top", base))
    assert [node.export_cache for node in nodes] == [True, None]


def test_the_walk_leaves_out_links_that_lead_back() -> None:
    keys = MemoryKeyStore()
    keys.apply([Keep(key="b", links=(("a", Link(0, "op")),)), Keep(key="a", links=(("b", Link(0, "op")),))])
    assert walk_keys(keys, ["b"]) == []  # nothing leads to either
    keys.apply([Keep(key="a", links=(("sha256:root", Link(0, "op")),))])
    nodes = walk_keys(keys, ["b"])
    assert [node.id for node in nodes] == ["sha256:root", "a", "b"]
    assert nodes[1].inputs == ((("sha256:root", ""),),)


def test_a_key_that_two_operations_lead_to_is_two_nodes() -> None:
    keys = MemoryKeyStore()
    links = (("sha256:root", Link(0, "op")), ("sha256:root", Link(0, "before")))
    keys.apply([Keep(key="a", links=links), Keep(key="b", links=(("a", Link(0, "next", "s")),))])
    nodes = {node.id: node for node in walk_keys(keys, ["b"])}
    assert {node.op for node in nodes.values()} == {"sha256:root", "op", "before", "next"}
    assert set(nodes["b"].inputs[0]) == {("a", "s"), ("a.1", "s")}


def test_an_imported_cache_is_used_and_taken_over() -> None:
    remote, world = World(), World()
    remote.build(graph(remote)[-1])
    source = KeySource(keys=remote.keys, results=remote.results, name="registry")
    here = graph(world, "mine")

    async def main() -> None:
        solver = world.solver()
        async with solver.job("job", imports=(source,)) as job:
            with await job.build(Edge(here[-1])) as built:
                assert built.value.value == 10
                assert built.explanation is not None
                assert built.explanation.reason.endswith("matched record r3 of registry")
                assert len(await built.walk()) == 5
        await solver.aclose()

    run(main())
    assert runs(*here) == [0, 1, 0, 0]
    assert remote.results.handles == 0
    later = graph(world, "later")  # no import any more
    outcome = world.build(later[-1])
    assert outcome.values == [10]
    assert runs(*later) == [0, 1, 0, 0]


def test_all_keys_that_an_import_has_of_a_result_are_taken_over() -> None:
    """A cache has a key for each digest of the same work: who exports what was imported has to find them all."""
    remote, world = World(), World()
    base, top = walk(remote, remote.node("top", remote.node("base")))
    links, record = tuple(remote.keys.parents(top.id)), top.records[0]
    same = CacheRecord(key="same", result=record.result, created_at=record.created_at)
    other = CacheRecord(key="other", result=base.records[0].result, created_at=1)
    remote.keys.apply([Keep(key="same", links=links, record=same), Keep(key="other", links=links, record=other)])
    here = world.node("top", world.node("base"))

    async def main() -> list[ExportKey]:
        async with world.solver().job("job", imports=(KeySource(keys=remote.keys, results=remote.results),)) as job:
            with await job.build(Edge(here)) as built:
                return await built.walk()

    assert {node.id for node in run(main()) if node.final} == {top.id, "same"}
    assert op(here).runs == 0


def test_an_import_that_cannot_load_is_not_fatal() -> None:
    remote, world = World(), World()
    remote.build(graph(remote)[-1])
    remote.results.values.clear()
    here = graph(world)

    async def main() -> None:
        async with world.solver().job("job", imports=(KeySource(keys=remote.keys, results=remote.results),)) as job:
            with await job.build(Edge(here[-1])) as built:
                assert built.value.value == 10

    run(main())
    assert runs(*here) == [1, 1, 1, 1]
    assert remote.keys.keys_of("r3") != []  # only the main store is changed


def test_a_build_on_top_of_an_import_is_found_later_without_it() -> None:
    remote, world = World(), World()
    remote.build(graph(remote)[-1])

    def more() -> list[Node]:
        nodes = graph(world)
        return [*nodes, world.node("more", nodes[-1])]

    here = more()

    async def main() -> None:
        async with world.solver().job("job", imports=(KeySource(keys=remote.keys, results=remote.results),)) as job:
            (await job.build(Edge(here[-1]))).release()

    run(main())
    assert runs(*here) == [0, 1, 0, 0, 1]
    later = more()
    world.build(later[-1])
    assert runs(*later) == [0, 1, 0, 0, 0]


def test_combined_records_are_sorted_newest_first_then_local() -> None:
    one, two = MemoryKeyStore(), MemoryKeyStore()
    one.apply([Keep(key="k", record=CacheRecord(key="k", result="local", created_at=5))])
    one.apply([Keep(key="k", record=CacheRecord(key="k", result="low", created_at=5, priority=3))])
    two.apply([Keep(key="k", record=CacheRecord(key="k", result="new", created_at=6))])
    two.apply([Keep(key="k", record=CacheRecord(key="k", result="same", created_at=5))])
    world = World()
    store = CombinedKeyStore([KeySource(keys=one, results=world.results), KeySource(keys=two, results=world.results)])
    assert [(record.result, record.source) for record in store.records(["k"])] == [
        ("new", 1),
        ("local", 0),
        ("same", 1),
        ("low", 0),
    ]


def test_what_is_only_matched_in_an_import_leads_nowhere_in_the_main_store() -> None:
    """The copy is matched by the import but has to run: what it gives is kept under keys that the main store can find."""
    remote, world = World(), World()
    remote.build(graph(remote)[-1])
    remote.results.drop("r3")
    remote.results.drop("r2")
    here = graph(world)

    async def main() -> None:
        async with world.solver().job("job", imports=(KeySource(keys=remote.keys, results=remote.results),)) as job:
            (await job.build(Edge(here[-1]))).release()

    run(main())
    assert runs(*here) == [0, 1, 1, 1]
    later = graph(world)
    nodes = walk(world, later[-1])
    assert all(node.inputs or node.id.startswith("sha256:") for node in nodes)  # no key of the import's is left dangling
    assert runs(*later)[2:] == [0, 0]
    assert op(later[0]).runs == 0
