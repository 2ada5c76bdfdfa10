# SPDX-License-Identifier: Apache-2.0
"""MergeOp and DiffOp: trees and layers agree, files are shared, deletions travel."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from cache_parts import Home, Tree, names_in

from chantier.cache import LayerSource, Ref
from chantier.cache.check import check
from chantier.errors import UsageError

pytestmark = pytest.mark.root


def unpacked(ref: Ref, where: Path) -> Tree:
    """The tree that anybody gets who pulls the layers of `ref` into an empty root."""
    other = Home(where)
    try:
        sources = []
        for layer in ref.layers():
            other.fetcher.blobs[layer.descriptor.digest] = ref.cache.blobs.read(layer.descriptor.digest)
            sources.append(LayerSource(descriptor=layer.descriptor, diff_id=layer.diff_id, sources=("x",)))
        made = other.cache.image(sources, description="copy")
        return other.tree(made) if made is not None else {}
    finally:
        other.close()


def test_later_inputs_win_and_directories_merge(home: Home, tmp_path: Path) -> None:
    a = home.step(None, {"etc/a": "a", "etc/same": "a", "d/x": "a", "link": "-> etc"})
    b = home.step(None, {"etc/b": "b", "etc/same": "b", "d": "file"})
    c = home.step(None, {"link/inside": "c"})
    ref = home.cache.merge([a, b, c], description="merge")
    assert ref.lazy
    want = {"etc/a": "a", "etc/b": "b", "etc/same": "b", "d": "file", "link/inside": "c"}
    assert home.tree(ref) == want
    assert [x.diff_id for x in ref.layers()] == [x.layers()[0].diff_id for x in (a, b, c)]
    assert unpacked(ref, tmp_path / "other") == want
    assert check(home.root, home.snapshots, deep=True) == []


def test_files_are_linked_not_copied(home: Home) -> None:
    a, b = home.step(None, {"a": "a"}), home.step(None, {"b": "b" * 1000})
    ref = home.cache.merge([a, b], description="merge")
    with ref.mounted() as path:
        assert (path / "b").read_text() == "b" * 1000
    source = home.snapshots.upper(str(b.record.snapshot)) / "b"
    assert os.stat(source).st_nlink == 2
    # What is built on the merge does not write through the link.
    child = home.step(ref, {"b": "changed"})
    assert home.tree(child)["b"] == "changed"
    assert home.tree(b) == {"b": "b" * 1000}


def test_deletions_of_an_input_reach_those_before_it(home: Home, tmp_path: Path) -> None:
    base = home.step(None, {"etc/a": "1", "etc/b": "1", "gone/x": "1"})
    other = home.step(home.step(None, {"etc/a": "2", "gone/y": "1", "keep/k": "1"}), {"etc/c": "3"}, remove=["etc/a", "gone"])
    ref = home.cache.merge([base, other], description="merge")
    want = {"etc/b": "1", "etc/c": "3", "keep/k": "1"}
    assert home.tree(ref) == want
    assert unpacked(ref, tmp_path / "other") == want


def test_merges_are_flattened_and_one_input_is_itself(home: Home) -> None:
    a, b, c = (home.step(None, {name: name}) for name in "abc")
    ab = home.cache.merge([a, b], description="ab")
    abc = home.cache.merge([ab, c], description="abc")
    assert abc.parents == (a.id, b.id, c.id)
    assert home.tree(abc) == {"a": "a", "b": "b", "c": "c"}
    single = home.cache.merge([a], description="a")
    assert single.id == a.id
    with pytest.raises(UsageError):
        home.cache.merge([], description="none")


def test_a_merge_of_lazy_images_needs_bytes_only_when_mounted(home: Home) -> None:
    ref = home.cache.merge([home.image({"a": "1"}), home.image({"b": "2"}, {"c": "3"})], description="merge")
    assert len(ref.layers()) == 3
    assert home.fetcher.calls == []
    child = home.step(ref, {"d": "4"})
    assert home.tree(child) == {"a": "1", "b": "2", "c": "3", "d": "4"}
    assert len(child.layers()) == 4


def test_attributes_travel(home: Home) -> None:
    a = home.step(None, {"d/a": "a"})
    mutable = home.cache.new(None)
    with mutable.mounted() as path:
        (path / "d").mkdir(mode=0o700)
        os.chown(path / "d", 5, 6)
        os.setxattr(path / "d", "user.note", b"x")
        (path / "d/b").write_text("b")
        os.chmod(path / "d/b", 0o4755)
        os.utime(path / "d", ns=(10**18, 10**18))
    ref = home.cache.merge([a, mutable.commit()], description="merge")
    with ref.mounted() as path:
        info = os.stat(path / "d")
        assert (info.st_mode & 0o7777, info.st_uid, info.st_gid, info.st_mtime_ns) == (0o700, 5, 6, 10**18)
        assert os.getxattr(path / "d", "user.note") == b"x"
        assert os.stat(path / "d/b").st_mode & 0o7777 == 0o4755
        assert (path / "d/a").exists()


def test_diff_of_one_layer_is_that_layer(home: Home) -> None:
    base = home.step(None, {"a": "1", "b": "1"})
    top = home.step(base, {"c": "3"}, remove=["a"])
    ref = home.cache.diff(base, top, description="diff")
    assert ref is not None
    assert ref.layers() == top.layers()[1:]
    assert home.tree(ref) == {"c": "3"}
    # Put on something else, it deletes there too.
    other = home.step(None, {"a": "other", "z": "z"})
    merged = home.cache.merge([other, ref], description="rebase")
    assert home.tree(merged) == {"z": "z", "c": "3"}
    assert check(home.root, home.snapshots, deep=True) == []


def test_diff_of_several_layers_is_their_merge(home: Home) -> None:
    base = home.step(None, {"a": "1"})
    top = home.step(home.step(home.step(base, {"b": "2"}), {"c": "3"}, remove=["a"]), {"b": "4"})
    ref = home.cache.diff(base, top, description="diff")
    assert ref is not None
    assert ref.record.kind == "merge"
    assert [x.diff_id for x in ref.layers()] == [x.diff_id for x in top.layers()[1:]]
    assert home.tree(ref) == {"b": "4", "c": "3"}
    again = home.cache.merge([base, ref], description="together")
    assert home.tree(again) == home.tree(top)


def test_diff_of_unrelated_trees_is_computed(home: Home, tmp_path: Path) -> None:
    lower = home.step(None, {"same": "1", "changed": "old", "gone/a": "1", "kind": "file"})
    upper = home.step(None, {"same": "1", "changed": "newer", "added": "1", "kind/inside": "1"})
    for ref in (lower, upper):
        os.utime(home.snapshots.upper(str(ref.record.snapshot)) / "same", ns=(5 * 10**18, 10**18 + 5))
    ref = home.cache.diff(lower, upper, description="diff")
    assert ref is not None
    (layer,) = ref.layers(compression="uncompressed")
    assert names_in(home.root.blobs.read(layer.descriptor.digest)) == ["added", "changed", ".wh.gone", "kind", "kind/inside"]
    assert home.tree(ref) == {"added": "1", "changed": "newer", "kind/inside": "1"}
    both = home.cache.merge([lower, ref], description="both")
    assert home.tree(both) == home.tree(upper)
    assert unpacked(both, tmp_path / "other") == home.tree(upper)


def test_diffs_that_are_nothing_or_one_side(home: Home) -> None:
    a = home.step(None, {"a": "1"})
    assert home.cache.diff(a, a, description="same") is None
    assert home.cache.diff(None, None, description="none") is None
    only_upper = home.cache.diff(None, a, description="upper")
    assert only_upper is not None
    assert only_upper.id == a.id
    deleted = home.cache.diff(a, None, description="all gone")
    assert deleted is not None
    assert home.tree(deleted) == {}
    other = home.step(None, {"a": "x", "b": "1"})
    assert home.tree(home.cache.merge([other, deleted], description="m")) == {"b": "1"}


def test_opaque_directories_delete_only_what_was_theirs(home: Home, tmp_path: Path) -> None:
    base = home.step(None, {"d/one": "1", "d/two": "2"})
    top = home.step(base, {"d/three": "3"}, remove=["d"])  # overlayfs makes d opaque
    ref = home.cache.diff(base, top, description="diff")
    assert ref is not None
    other = home.step(None, {"d/one": "x", "d/mine": "x"})
    merged = home.cache.merge([other, ref], description="merge")
    want = {"d/three": "3", "d/mine": "x"}
    assert home.tree(merged) == want
    assert unpacked(merged, tmp_path / "other") == want


def test_replacing_a_whiteout_by_a_directory_keeps_it_empty(home: Home, tmp_path: Path) -> None:
    base = home.step(None, {"d/old": "1"})
    remove = home.cache.diff(base, home.step(base, {}, remove=["d"]), description="rm")
    fresh = home.step(None, {"d/new": "1"})
    assert remove is not None
    ref = home.cache.merge([base, remove, fresh], description="merge")
    assert home.tree(ref) == {"d/new": "1"}
    assert unpacked(ref, tmp_path / "other") == {"d/new": "1"}


def test_native_snapshots_merge_and_diff(native: Home) -> None:
    a = native.step(None, {"a": "1", "d/x": "1"})
    top = native.step(native.step(None, {"d/x": "2", "e": "1"}), {"f": "1"}, remove=["d"])
    merged = native.cache.merge([a, top], description="merge")
    assert native.tree(merged) == {"a": "1", "e": "1", "f": "1"}
    ref = native.cache.diff(a, merged, description="diff")
    assert ref is not None
    assert native.tree(ref) == {"e": "1", "f": "1"}


def test_random_merges_are_what_their_layers_unpack_to(home: Home, tmp_path: Path) -> None:
    rng = random.Random(20)
    names = ["a", "b", "d/a", "d/b", "d/e/a", "d/e/b", "e/d/a"]

    def chain() -> Ref:
        ref: Ref | None = None
        tree: Tree = {}
        for _ in range(rng.randint(1, 3)):
            remove = []
            for name in list(tree):
                if rng.random() < 0.4:
                    top = name.split("/")[0] if rng.random() < 0.5 else name
                    if any(x == top or x.startswith(top + "/") for x in tree):
                        remove.append(top)
                        tree = {x: c for x, c in tree.items() if x != top and not x.startswith(top + "/")}
            made: Tree = {}
            for name in rng.sample(names, 3):
                clash = [x for x in {**tree, **made} if x.startswith(name + "/") or name.startswith(x + "/")]
                if not clash:
                    made[name] = str(rng.random())
            tree |= made
            ref = home.step(ref, made, remove=remove)
        assert ref is not None
        return ref

    for turn in range(12):
        ref = home.cache.merge([chain(), chain(), chain()], description="m")
        assert home.tree(ref) == unpacked(ref, tmp_path / f"other{turn}")
    assert check(home.root, home.snapshots) == []
