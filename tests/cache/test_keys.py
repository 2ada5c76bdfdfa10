# SPDX-License-Identifier: Apache-2.0
"""One class of tests for the key store on disk and its fake, then what only a disk has."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chantier.cache.keys import SqliteKeyStore
from chantier.solver import CacheRecord, Change, Drop, Edge, Keep, KeyInfo, KeyStore, Link, Solver, Swept, Vertex
from chantier.store.db import Db
from chantier.testing.solver import IntOp, MemoryKeyStore, MemoryResultStore, int_vertex, resolve_int


def link(index: int = 0, op: str = "op", selector: str = "") -> Link:
    return Link(index, op, selector)


def record(key: str, result: str, at: int = 1) -> CacheRecord:
    return CacheRecord(key=key, result=result, created_at=at)


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyStore]:
    if request.param == "memory":
        yield MemoryKeyStore()
        return
    db = Db(tmp_path / "keys.db")
    yield SqliteKeyStore(db)
    db.close()


class TestKeyStore:
    def test_children_by_link(self, store: KeyStore) -> None:
        store.apply([Keep(key="c", links=(("a", link(0)), ("b", link(1, selector="s"))))])
        store.apply([Keep(key="d", links=(("a", link(0)),)), Keep(key="e", links=(("a", link(0, op="other")),))])
        assert store.children(["a"], link(0)) == {"c", "d"}
        assert store.children(["a", "b"], link(1, selector="s")) == {"c"}
        assert store.children(["b"], link(1)) == set()
        assert store.children([], link()) == set()
        assert sorted(store.parents("c"), key=str) == [("a", link(0)), ("b", link(1, selector="s"))]
        assert store.parents("a") == []
        assert sorted(child for _, child in store.links("a")) == ["c", "d", "e"]
        assert len(store.links("a", 2)) == 2

    def test_many_parents_in_one_question(self, store: KeyStore) -> None:
        store.apply([Keep(key=f"c{n}", links=((f"p{n}", link()),)) for n in range(1500)])
        assert len(store.children([f"p{n}" for n in range(1500)], link())) == 1500

    def test_records(self, store: KeyStore) -> None:
        store.apply(
            [
                Keep(key="k", record=record("k", "r1")),
                Keep(key="k", record=record("k", "r2", 5)),
                Keep(key="l", record=record("l", "r1")),
            ]
        )
        assert sorted(store.records(["k", "none"]), key=lambda one: one.result) == [record("k", "r1"), record("k", "r2", 5)]
        assert sorted(store.keys_of("r1")) == ["k", "l"]
        store.apply([Drop(key="k", result="r1"), Drop(key="k", result="none")])
        assert store.records(["k", "l"]) in ([record("k", "r2", 5), record("l", "r1")], [record("l", "r1"), record("k", "r2", 5)])

    def test_keeping_twice_is_keeping_once(self, store: KeyStore) -> None:
        change = Keep(key="k", links=(("a", link()),), record=record("k", "r"), info=KeyInfo(id="k", op="op", name="n"))
        store.apply([change, change])
        store.apply([change])
        assert store.records(["k"]) == [record("k", "r")]
        assert store.parents("k") == [("a", link())]
        assert len(store.find("op")) == 1

    def test_info_newest_first(self, store: KeyStore) -> None:
        infos = [KeyInfo(id=f"k{n}", op="op", name=f"n{n}", vertex="v", created_at=n, detail=b"\0d") for n in range(5)]
        store.apply([Keep(key=info.id, info=info) for info in infos])
        assert store.find("op", 3) == infos[:1:-1]
        assert store.info("k1") == infos[1]
        assert store.info("none") is None
        assert store.find("none") == []

    def test_sweep(self, store: KeyStore) -> None:
        store.apply(
            [
                Keep(key="a", info=KeyInfo(id="a", op="a"), record=record("a", "gone")),
                Keep(key="b", links=(("a", link()),), record=record("b", "gone")),
                Keep(key="c", links=(("b", link()),), record=record("c", "kept")),
                Keep(key="d", links=(("b", link(op="x")),), record=record("d", "gone"), info=KeyInfo(id="d", op="x")),
                Keep(key="e", links=(("d", link()), ("z", link(1))), record=record("e", "gone too")),
                Keep(key="f", links=(("b", link(op="y")),), record=record("f", "")),
            ]
        )
        assert store.sweep(lambda result: result == "kept") == Swept(records=4, keys=2)
        assert store.parents("e") == store.parents("d") == []
        assert store.info("d") is None
        assert store.children(["a"], link()) == {"b"}
        assert store.children(["b"], link()) == {"c"}
        assert store.records(["f"]) == [record("f", "")]  # an empty result is never gone
        assert store.sweep(lambda result: False) == Swept(records=1, keys=1)
        assert store.children(["b"], link()) == set()
        assert store.children(["a"], link()) == {"b"}

    def test_a_deep_chain_is_swept_whole(self, store: KeyStore) -> None:
        store.apply([Keep(key=f"k{n}", links=((f"k{n - 1}", link()),)) for n in range(1, 3000)])
        store.apply([Keep(key="k2999", record=record("k2999", "r"))])
        assert store.sweep(lambda result: True) == Swept(records=0, keys=0)
        assert store.sweep(lambda result: False) == Swept(records=1, keys=2999)

    def test_many_threads(self, store: KeyStore) -> None:
        def work(number: int) -> None:
            for n in range(40):
                store.apply([Keep(key=f"{number}-{n}", links=(("root", link()),), record=record(f"{number}-{n}", "r"))])
                assert f"{number}-{n}" in store.children(["root"], link())

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.keys_of("r")) == 160


NAMES = st.sampled_from("abcdef")
LINKS = st.builds(Link, st.integers(0, 1), st.sampled_from(["x", "y"]), st.sampled_from(["", "s"]))
CHANGES = st.one_of(
    st.builds(
        lambda key, links, result, at: Keep(
            key=key,
            links=tuple((parent, one) for parent, one in links if parent < key),
            record=None if result is None else CacheRecord(key=key, result=result, created_at=at),
            info=KeyInfo(id=key, op="x", created_at=at) if at % 2 else None,
        ),
        NAMES,
        st.lists(st.tuples(NAMES, LINKS), max_size=3),
        st.sampled_from([None, "", "r1", "r2"]),
        st.integers(0, 9),
    ),
    st.builds(Drop, key=NAMES, result=st.sampled_from(["", "r1", "r2"])),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.one_of(st.lists(CHANGES, max_size=4), st.sampled_from(["r1", "r2"])), max_size=8))
def test_disk_and_fake_agree(tmp_path_factory: pytest.TempPathFactory, steps: list[list[Change] | str]) -> None:
    db = Db(tmp_path_factory.mktemp("keys") / "keys.db")
    disk, fake = SqliteKeyStore(db), MemoryKeyStore()
    for step in steps:
        if isinstance(step, str):
            assert disk.sweep(lambda result, keep=step: result == keep) == fake.sweep(lambda result, keep=step: result == keep)
        else:
            disk.apply(step)
            fake.apply(step)
        for name in "abcdef":
            assert set(disk.parents(name)) == set(fake.parents(name))
            assert set(disk.links(name)) == set(fake.links(name))
            assert disk.info(name) == fake.info(name)
            assert sorted(map(str, disk.records([name]))) == sorted(map(str, fake.records([name])))
        assert disk.find("x") == fake.find("x")
        assert disk.keys_of("r1") == fake.keys_of("r1")
    db.close()


# Only on disk


def graph(results: MemoryResultStore) -> Vertex:
    vertex = int_vertex(IntOp(results=results, digest="sha256:base", value=1))
    for number in range(5):
        vertex = int_vertex(IntOp(results=results, digest=f"sha256:{number}", value=1), vertex)
    return vertex


def build(path: Path, results: MemoryResultStore) -> tuple[int, int]:
    """The value and how many operations ran."""

    async def main() -> tuple[int, int]:
        db = Db(path)
        solver = Solver(resolve_int, SqliteKeyStore(db), results)
        top = graph(results)
        async with solver.job("job") as job:
            with await job.build(Edge(top)) as built:
                value = built.value.value
        await solver.aclose()
        db.close()
        ran, vertex = 0, top
        while True:
            ran += vertex.sys.runs
            if not vertex.inputs:
                return value, ran
            vertex = vertex.inputs[0].vertex

    return asyncio.run(main())


def test_found_again_after_closing(tmp_path: Path) -> None:
    results = MemoryResultStore()
    assert build(tmp_path / "keys.db", results) == (6, 6)
    assert build(tmp_path / "keys.db", results) == (6, 0)
    assert results.handles == 0


WRITER = """
import sys
from pathlib import Path
from chantier.cache.keys import SqliteKeyStore
from chantier.solver import CacheRecord, Keep, KeyInfo, Link
from chantier.store.db import Db

store = SqliteKeyStore(Db(Path(sys.argv[1])))
n = len(store.find("op", 10**9))
while True:
    changes = []
    for part in range(3):
        key = f"{n}.{part}"
        parent = f"{n}.{part - 1}" if part else "root"
        record = CacheRecord(key=key, result=f"r{n}", created_at=n)
        changes.append(Keep(key=key, links=((parent, Link(0, "op")),), record=record, info=KeyInfo(id=key, op="op")))
    store.apply(changes)
    n += 1
    print(n, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    for round_ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        said = writer.stdout.readline()
        assert said
        time.sleep(0.02 * round_)
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait()
        written = int(rest[-1] if rest else said)
        db = Db(path)
        store = SqliteKeyStore(db)
        infos = store.find("op", 10**9)
        assert len(infos) % 3 == 0
        for info in infos:
            assert len(store.parents(info.id)) == 1
            assert len(store.records([info.id])) == 1
        assert store.records([f"{written - 1}.2"])  # what was said to be written is there
        assert store.sweep(lambda result: True) == Swept(records=0, keys=0)
        db.close()
