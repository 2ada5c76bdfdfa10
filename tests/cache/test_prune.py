# SPDX-License-Identifier: Apache-2.0
"""Disk usage and pruning: what is counted, what goes, what never does."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cache_parts import Home

from chantier.cache.check import check
from chantier.store import Policy

pytestmark = pytest.mark.root

ALL = Policy(all=True)


def test_usage_says_what_buildkit_says(home: Home) -> None:
    base = home.image({"a": "x" * 100_000})
    ref = home.step(base, {"b": "2"}, description="RUN it")
    records = {record.id: record for record in home.cache.usage()}
    assert records.keys() == {base.id, ref.id}
    top = records[ref.id]
    assert (top.description, top.record_type, top.mutable, top.in_use, top.shared) == ("RUN it", "regular", False, True, False)
    assert top.parents == (base.id,)
    assert (top.last_used_at, top.usage_count) == (None, 0)
    assert records[base.id].size >= 100_000
    base.release()
    # Still in use: a record that is in use is made of it.
    assert {r.id: r.in_use for r in home.cache.usage()} == {base.id: True, ref.id: True}
    ref.release()
    after = {record.id: record for record in home.cache.usage()}
    assert [after[id].in_use for id in (base.id, ref.id)] == [False, False]
    assert after[ref.id].usage_count == 1
    assert after[ref.id].last_used_at is not None
    assert [r.id for r in home.cache.usage(filters=["description~=RUN"])] == [ref.id]
    assert home.cache.usage(age_limit_ns=3600 * 10**9) == []


def test_what_is_in_use_stays_with_all_it_is_made_of(home: Home) -> None:
    base = home.image({"a": "1"}, {"b": "2"})
    ref = home.step(base, {"c": "3"})
    loose = home.step(None, {"x": "1"})
    loose.release()
    base.release()
    assert [r.id for r in home.cache.prune(ALL)] == [loose.id]
    assert home.tree(ref) == {"a": "1", "b": "2", "c": "3"}
    ref.release()
    removed: list[str] = []
    home.cache.prune(ALL, on_removed=lambda record: removed.append(record.id))
    assert removed[0] == ref.id  # children first
    assert len(removed) == 3
    assert home.cache.usage() == []
    assert list(home.root.blobs.walk()) == []
    assert list(home.snapshots.walk()) == []
    assert check(home.root, home.snapshots) == []


def test_everything_goes_merges_diffs_and_blobs_too(home: Home) -> None:
    a, b = home.step(None, {"a": "1"}), home.image({"b": "1"}, {"c": "1"})
    merged = home.cache.merge([a, b], description="m")
    diff = home.cache.diff(a, merged, description="d")
    assert diff is not None
    home.tree(merged), home.tree(diff)
    merged.layers(compression="zstd", force=True)
    for ref in (a, b, merged, diff):
        ref.release()
    home.cache.prune(ALL)
    assert home.cache.usage() == []
    assert list(home.root.blobs.walk()) == []
    assert list(home.snapshots.walk()) == []


def test_blobs_of_others_stay_while_they_are_wanted(home: Home) -> None:
    kept = home.root.blobs.put(b"history")
    home.root.blobs.keep(kept, "history:1")
    with home.root.lease():
        leased = home.root.blobs.put(b"in use")
        home.cache.prune(ALL)
        assert {info.digest for info in home.root.blobs.walk()} == {kept, leased}
    home.cache.prune(ALL)
    assert {info.digest for info in home.root.blobs.walk()} == {kept}
    # While any build runs, fresh blobs of nobody stay: it may be about to use them.
    ref = home.step(None, {"a": "1"})
    fresh = home.root.blobs.put(b"fresh")
    home.cache.prune(ALL)
    assert {info.digest for info in home.root.blobs.walk()} == {kept, fresh}
    ref.release()


def test_a_ceiling_removes_the_least_used_first(home: Home) -> None:
    refs = [home.step(None, {"f": "x" * 200_000}, description=str(i)) for i in range(4)]
    for ref in refs:
        ref.release()
    used = home.cache.get(refs[0].id)
    used.release()  # twice now, and last
    plan = home.cache.plan(Policy(max_used_space=500_000))
    assert [eviction.id for eviction in plan] == [refs[1].id, refs[2].id]
    assert "limit of 500kB" in plan[0].reason
    assert [r.id for r in home.cache.prune(Policy(max_used_space=500_000))] == [refs[1].id, refs[2].id]
    assert {r.id for r in home.cache.usage()} == {refs[0].id, refs[3].id}


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cache_parts import Home
home = Home(Path(sys.argv[2]))
ref = home.cache.get(sys.argv[3])
print("held", flush=True)
time.sleep(60)
"""


def test_another_process_keeps_what_it_holds_until_it_dies(home: Home) -> None:
    ref = home.step(home.step(None, {"a": "1"}), {"b": "2"})
    ref.release()
    argv = [sys.executable, "-c", HOLDER, str(Path(__file__).parent), str(home.path), ref.id]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        home.cache.snapshots.usage(str(home.cache.records.get(ref.id).snapshot))
        for record in home.cache.usage():
            assert record.in_use or record.id != ref.id
        assert home.cache.prune(ALL) == []
        assert home.cache.exists(ref.id)
    finally:
        process.kill()
        process.wait()
    assert ref.id in {record.id for record in home.cache.prune(ALL)}


def test_pruning_while_building_never_hurts(home: Home) -> None:
    stop = threading.Event()
    trouble: list[BaseException] = []

    def prune() -> None:
        while not stop.is_set():
            try:
                home.cache.prune(ALL)
            except BaseException as err:
                trouble.append(err)
                return

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        for turn in range(10):
            base = home.image({"a": "1"}, {"b": str(turn % 2)})
            ref = home.step(base, {"c": str(turn)})
            base.release()
            merged = home.cache.merge([ref, home.step(None, {"d": "1"})], description="m")
            ref.release()
            assert home.tree(merged) == {"a": "1", "b": str(turn % 2), "c": str(turn), "d": "1"}
            assert len(merged.layers()) == 4
            for layer in merged.layers():
                assert layer.local
            merged.release()
    finally:
        stop.set()
        thread.join(60)
    assert trouble == []
    home.cache.prune(ALL)
    assert check(home.root, home.snapshots, deep=True) == []
