# SPDX-License-Identifier: Apache-2.0
"""Trees being written: commit, release, freezing, indexes, cache mounts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cache_parts import Home, read, write

from chantier.cache.check import check
from chantier.errors import CancelledError_, NotFoundError, StoreError, UsageError
from chantier.kernel.mounts import mount_points
from chantier.store import Policy

pytestmark = pytest.mark.root


def content(home: Home, mutable: object) -> object:
    with mutable.mounted() as path:  # type: ignore[attr-defined]
        return read(path)


def test_release_without_commit_leaves_nothing(home: Home) -> None:
    mutable = home.cache.new(None)
    write(mutable, {"a": "1"})
    mutable.release()
    assert list(home.snapshots.walk()) == []
    assert home.cache.usage() == []
    assert not home.root.holds.any()


def test_commit_makes_an_immutable_record_and_uses_the_handle_up(home: Home) -> None:
    mutable = home.cache.new(None, description="step")
    mutable.set_meta("key", b"value")
    write(mutable, {"a": "1"})
    with pytest.raises(NotFoundError):
        home.cache.get(mutable.id)
    ref = mutable.commit()
    assert (ref.description, ref.record_type, ref.parents) == ("step", "regular", ())
    assert ref.get_meta("key") == b"value"
    with pytest.raises(StoreError, match="ended"):
        mutable.mounts()
    with pytest.raises(StoreError):
        home.snapshots.mounts(str(ref.record.snapshot), readonly=False)
    assert check(home.root, home.snapshots) == []


def test_an_index_keeps_it_and_finds_it(home: Home) -> None:
    mutable = home.cache.new(None, index="local:abc", record_type="source.local")
    write(mutable, {"a": "1"})
    assert mutable.fresh
    id = mutable.id
    assert home.cache.get_mutable(id) is None  # somebody has it
    mutable.release()
    assert home.cache.find("local:abc") == [id]
    again = home.cache.get_mutable(id)
    assert again is not None
    assert not again.fresh
    assert content(home, again) == {"a": "1"}
    again.release()
    home = home.reopen()
    assert home.cache.find("local:abc") == [id]
    home.close()


def test_the_newest_of_an_index_comes_first(home: Home) -> None:
    refs = [home.step(None, {"a": str(i)}, index="git:x") for i in range(3)]
    assert home.cache.find("git:x") == [ref.id for ref in reversed(refs)]
    home.cache.clear_index("git:x")
    assert home.cache.find("git:x") == []


def test_freeze_gives_a_view_and_takes_it_back(home: Home) -> None:
    mutable = home.cache.new(None, index="local:abc")
    write(mutable, {"a": "1"})
    id = mutable.id
    view = mutable.freeze()
    view.set_meta("digest", b"x")
    assert view.get_meta("digest") == b"x"
    assert home.tree(view) == {"a": "1"}
    assert view.known_layers() is None
    for other in (view.id, id):
        with pytest.raises(NotFoundError):
            home.cache.get(other)
    assert home.cache.get_mutable(id) is None
    clone = view.clone()
    view.release()
    assert home.cache.get_mutable(id) is None
    clone.release()
    again = home.cache.get_mutable(id)
    assert again is not None
    write(again, {"a": "2"})
    second = again.freeze()
    assert second.id != view.id
    assert second.get_meta("digest") is None
    assert home.tree(second) == {"a": "2"}


def test_building_on_a_view_makes_it_a_record_for_good(home: Home) -> None:
    mutable = home.cache.new(None, index="local:abc")
    write(mutable, {"a": "1"})
    view = mutable.freeze()
    view.set_meta("digest", b"x")
    child = home.step(view, {"b": "2"})
    assert home.tree(child) == {"a": "1", "b": "2"}
    assert home.cache.find("local:abc") == []
    again = home.cache.get(view.id)
    assert again.get_meta("digest") == b"x"
    view.release()
    again.release()
    assert len(child.layers()) == 2
    assert check(home.root, home.snapshots, deep=True) == []


def test_a_view_can_be_packed_and_merged(home: Home) -> None:
    views = []
    for name in "ab":
        mutable = home.cache.new(None, index=f"local:{name}")
        write(mutable, {name: name})
        views.append(mutable.freeze())
    merged = home.cache.merge(views, description="merge")
    assert home.tree(merged) == {"a": "a", "b": "b"}
    assert len(views[0].layers()) == 1


def test_a_step_on_an_image_and_its_parents(home: Home) -> None:
    base = home.image({"a": "1"})
    ref = home.step(base, {"b": "2"})
    assert ref.parents == (base.id,)
    assert home.tree(ref) == {"a": "1", "b": "2"}


# Cache mounts


def test_shared_users_write_to_one_tree(home: Home) -> None:
    one, two = home.cache.mutable("cache-dir:x"), home.cache.mutable("cache-dir:x")
    assert one.id == two.id
    assert (one.fresh, two.fresh) == (True, False)
    write(one, {"a": "1"})
    assert content(home, two) == {"a": "1"}
    one.release()
    assert home.cache.mutable("cache-dir:x").id == two.id


def test_private_users_get_a_free_tree_or_a_new_one(home: Home) -> None:
    one = home.cache.mutable("cache-dir:x", sharing="private")
    two = home.cache.mutable("cache-dir:x", sharing="private")
    assert one.id != two.id
    id = one.id
    one.release()
    assert home.cache.mutable("cache-dir:x", sharing="private").id == id


def test_locked_users_wait(home: Home) -> None:
    one = home.cache.mutable("cache-dir:x", sharing="locked")
    got: list[str] = []
    thread = threading.Thread(target=lambda: got.append(home.cache.mutable("cache-dir:x", sharing="locked").id))
    thread.start()
    time.sleep(0.15)
    assert got == []
    one.release()
    thread.join(60)
    assert got == [one.id]


def test_waiting_can_be_cancelled(home: Home) -> None:
    one = home.cache.mutable("cache-dir:x", sharing="locked")
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(CancelledError_):
        home.cache.mutable("cache-dir:x", sharing="locked", cancelled=stop.is_set)
    one.release()
    with pytest.raises(UsageError, match="exclusive"):
        home.cache.mutable("cache-dir:x", sharing="exclusive")


def test_a_cache_mount_with_a_base_starts_from_it_and_is_its_own(home: Home) -> None:
    base, other = home.step(None, {"seed": "1"}), home.step(None, {"seed": "2"})
    one = home.cache.mutable("cache-dir:x", base=base)
    write(one, {"a": "1"})
    assert content(home, one) == {"seed": "1", "a": "1"}
    two = home.cache.mutable("cache-dir:x", base=other)
    assert content(home, two) == {"seed": "2"}
    # Two users of one overlay see each other at once: it is mounted a single time.
    again = home.cache.mutable("cache-dir:x", base=base)
    assert again.id == one.id
    with one.mounted() as left, again.mounted() as right:
        (left / "b").write_text("b")
        assert (right / "b").read_text() == "b"
    two.release()
    pool = home.root.scratch()
    assert len(list(pool.iterdir())) == 1
    one.release()
    again.release()
    assert list(pool.iterdir()) == []
    home.cache.clear_index("cache-dir:x")
    assert home.cache.find(f"cache-dir:x:{base.id}") == []


def test_content_survives_failure_and_process(home: Home) -> None:
    one = home.cache.mutable("cache-dir:x")
    write(one, {"a": "1"})
    one.release()
    home = home.reopen()
    again = home.cache.mutable("cache-dir:x")
    assert content(home, again) == {"a": "1"}
    (record,) = home.cache.usage()
    assert (record.record_type, record.mutable, record.in_use) == ("exec.cachemount", True, True)
    again.release()
    assert [r.id for r in home.cache.prune(Policy(filters=("type==exec.cachemount",)))] == [record.id]
    home.close()


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cache_parts import Home, write
home = Home(Path(sys.argv[2]))
base = home.cache.get(sys.argv[4]) if len(sys.argv) > 4 else None
mutable = home.cache.mutable("cache-dir:x", sharing=sys.argv[3], base=base)
write(mutable, {"child": "1"})
print(mutable.id, flush=True)
time.sleep(60)
"""


def child(home: Home, sharing: str, *more: str) -> tuple[subprocess.Popen[str], str]:
    argv = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(home.path), sharing, *more]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_sharing_between_processes_and_dead_holders(home: Home) -> None:
    process, id = child(home, "locked")
    try:
        assert home.cache.get_mutable(id) is None
        assert home.cache.mutable("cache-dir:x", sharing="private").id != id
    finally:
        process.kill()
        process.wait()
    got = home.cache.get_mutable(id)  # nobody had to notice the death first
    assert got is not None
    assert content(home, got) == {"child": "1"}


def test_shared_bare_trees_cross_processes_and_based_ones_do_not(home: Home) -> None:
    process, id = child(home, "shared")
    try:
        assert home.cache.mutable("cache-dir:x").id == id
    finally:
        process.kill()
        process.wait()
    base = home.step(None, {"seed": "1"})
    process, id = child(home, "shared", base.id)
    try:
        assert home.cache.mutable("cache-dir:x", base=base).id != id
    finally:
        process.kill()
        process.wait()


_MOUNTING = """
import sys, time
from pathlib import Path
from cache_parts import Home
home = Home(Path(sys.argv[1]))
base = home.step(None, {"a": "1"})
above = home.cache.new(base)
with base.clone().mounted(), above.mounted() as tree:
    print(tree, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_had_mounted_is_unmounted(home: Home) -> None:
    """By whoever notices that it is dead: a process that lives beside it, or the next to open the root."""
    for how in (home.root.reap, lambda: Home(home.path).close()):
        process = subprocess.Popen(
            [sys.executable, "-c", _MOUNTING, str(home.path)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            tree = process.stdout.readline().strip()
            assert tree in mount_points(home.path)
            home.root.reap()
            assert tree in mount_points(home.path)
        finally:
            process.kill()
            process.wait()
        how()
        assert mount_points(home.path) == []
        assert os.listdir(home.path / "tmp") == []
