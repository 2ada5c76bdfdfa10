# SPDX-License-Identifier: Apache-2.0
"""Lazy images: identity, fetching, unpacking side by side, failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from cache_parts import Home

from chantier.cache.check import check
from chantier.errors import CancelledError_, IntegrityError, NotFoundError, RegistryError
from chantier.progress import Recorder, Status, Step, Vertex
from chantier.spec import Digest
from chantier.store import Policy

pytestmark = pytest.mark.root


def clean(home: Home) -> None:
    assert [str(problem) for problem in check(home.root, home.snapshots, deep=True)] == []


def test_nothing_is_fetched_until_something_mounts_it(home: Home) -> None:
    ref = home.image({"a": "1"}, {"b": "2"})
    assert ref.lazy
    assert home.fetcher.calls == []
    assert ref.size() == 0
    layers = ref.known_layers()
    assert layers is not None
    assert [layer.local for layer in layers] == [False, False]
    assert home.tree(ref) == {"a": "1", "b": "2"}
    assert not ref.lazy
    assert len(home.fetcher.calls) == 2
    assert ref.size() > 0
    clean(home)


def test_no_layers_is_scratch(home: Home) -> None:
    assert home.cache.image([], description="scratch") is None


def test_layers_are_fetched_at_the_same_time(home: Home) -> None:
    home.fetcher.meet = threading.Barrier(5)  # breaks unless five fetches are under way at once
    ref = home.image(*({f"f{i}": str(i)} for i in range(5)))
    assert home.tree(ref) == {f"f{i}": str(i) for i in range(5)}


def test_whiteouts_and_replaced_kinds_across_layers(home: Home) -> None:
    ref = home.image(
        {"etc/": None, "etc/a": "1", "etc/b": "1", "usr/lib/": None, "usr/lib/x": "x", "link": "-> etc"},
        {"etc/.wh.a": "", "usr/lib/.wh..wh..opq": "", "usr/lib/y": "y"},
        {"etc/b": "3", ".wh.link": ""},
    )
    assert home.tree(ref) == {"etc/b": "3", "usr/lib/y": "y"}
    clean(home)


def test_native_snapshots_give_the_same_tree(native: Home) -> None:
    ref = native.image({"etc/a": "1", "etc/b": "1"}, {"etc/.wh.a": "", "c": "2"})
    assert native.tree(ref) == {"etc/b": "1", "c": "2"}
    clean(native)


def test_equal_blobs_are_one_record_and_equal_layers_one_tree(home: Home) -> None:
    base, top = {"a": "1"}, {"b": "2"}
    first = home.image(base, top)
    again = home.image(base, top)
    assert again.id == first.id
    first.realise()
    other_blobs = [home.layer(base, level=1), home.layer(top, level=0)]
    other = home.cache.image(other_blobs, description="other blobs")
    assert other is not None
    assert other.id != first.id
    assert not other.lazy
    assert home.tree(other) == {"a": "1", "b": "2"}
    assert len(home.fetcher.calls) == 2
    # The tree outlives the record that made it.
    first.release()
    again.release()
    home.cache.prune(Policy(all=True))
    assert home.tree(other) == {"a": "1", "b": "2"}
    clean(home)


def test_a_shared_prefix_is_made_once(home: Home) -> None:
    one, two = home.image({"a": "1"}, {"b": "2"}), home.image({"a": "1"}, {"c": "3"})
    one.realise()
    two.realise()
    assert len(home.fetcher.calls) == 3
    assert home.tree(two) == {"a": "1", "c": "3"}


def test_many_threads_make_it_once(home: Home) -> None:
    ref = home.image(*({f"f{i}": "x" * 1000} for i in range(6)))
    trees = []
    threads = [threading.Thread(target=lambda: trees.append(home.tree(ref))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert trees == [{f"f{i}": "x" * 1000 for i in range(6)}] * 6
    assert len(home.fetcher.calls) == 6
    clean(home)


def test_progress_names_blobs_and_extraction(home: Home) -> None:
    recorder = Recorder()
    ref = home.image({"a": "1"})
    ref.realise(step=Step(recorder, Vertex(digest="sha256:" + "0" * 64, name="pull")))
    layers = ref.known_layers()
    assert layers is not None
    digest, size = layers[0].descriptor.digest, layers[0].descriptor.size
    statuses = [event for event in recorder.events if isinstance(event, Status)]
    done = {status.id: status for status in statuses if status.completed}
    assert done.keys() == {digest, f"extracting {digest}"}
    assert (done[digest].current, done[digest].total) == (size, size)


def test_a_failing_layer_leaves_nothing_named(home: Home) -> None:
    good, bad = home.layer({"a": "1"}), home.layer({"b": "2"})
    home.fetcher.blobs.pop(bad.descriptor.digest)
    ref = home.cache.image([good, bad], description="test")
    assert ref is not None
    with pytest.raises(RegistryError, match="no blob"):
        ref.realise()
    assert ref.lazy
    assert list(home.snapshots.walk()) == []
    clean(home)


def test_wrong_bytes_are_refused(home: Home) -> None:
    layer = home.layer({"a": "1"})
    home.fetcher.blobs[layer.descriptor.digest] = b"x" * layer.descriptor.size
    ref = home.cache.image([layer], description="test")
    assert ref is not None
    with pytest.raises(IntegrityError, match="digest"):
        ref.realise()
    assert home.root.blobs.stat(layer.descriptor.digest) is None
    clean(home)


def test_content_that_the_image_does_not_name_is_refused(home: Home) -> None:
    layer = replace(home.layer({"a": "1"}), diff_id=Digest("sha256:" + "1" * 64))
    ref = home.cache.image([layer], description="test")
    assert ref is not None
    with pytest.raises(IntegrityError, match="does not match its image"):
        ref.realise()
    assert list(home.snapshots.walk()) == []


def test_sources_are_tried_in_turn_and_kept(home: Home) -> None:
    layer = replace(home.layer({"a": "1"}), sources=("registry:mirror", "registry:origin"))
    home.fetcher.broken["registry:mirror"] = RegistryError("mirror is down")
    ref = home.cache.image([layer], description="test")
    assert ref is not None
    id = ref.id
    ref.release()
    home = home.reopen()
    ref = home.cache.get(id)
    assert home.tree(ref) == {"a": "1"}
    assert [call[0] for call in home.fetcher.calls] == ["registry:mirror", "registry:origin"]
    home.close()


def test_without_any_source_the_blob_is_named(home: Home) -> None:
    layer = replace(home.layer({"a": "1"}), sources=())
    ref = home.cache.image([layer], description="test")
    assert ref is not None
    with pytest.raises(NotFoundError, match=layer.descriptor.digest):
        ref.realise()


def test_a_partial_download_is_resumed(home: Home) -> None:
    layer = home.layer({"a": bytes(range(256)) * 4000})
    data = home.fetcher.blobs[layer.descriptor.digest]
    with home.root.blobs.writer(key=layer.descriptor.digest) as writer:
        writer.write(data[: len(data) // 2])
    ref = home.cache.image([layer], description="test")
    assert ref is not None
    ref.realise()
    assert home.fetcher.calls == [("registry:test", layer.descriptor.digest, len(data) // 2)]


def test_a_damaged_partial_download_is_started_over(home: Home) -> None:
    layer = home.layer({"a": "1" * 5000})
    with home.root.blobs.writer(key=layer.descriptor.digest) as writer:
        writer.write(b"bad")
    ref = home.cache.image([layer], description="test")
    assert ref is not None
    assert home.tree(ref) == {"a": "1" * 5000}
    assert [call[2] for call in home.fetcher.calls] == [3, 0]


def test_cancelling_stops_the_fetch(home: Home) -> None:
    home.fetcher.chunk, home.fetcher.pause_s = 10, 1.0
    ref = home.image({"a": "1" * 100}, {"b": "2"})
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(CancelledError_):
        ref.realise(cancelled=stop.is_set)
    assert ref.lazy
    home.fetcher.pause_s = 0
    assert home.tree(ref) == {"a": "1" * 100, "b": "2"}
    clean(home)


def test_fetch_blobs_brings_bytes_without_unpacking(home: Home) -> None:
    ref = home.image({"a": "1"}, {"b": "2"})
    ref.fetch_blobs()
    assert ref.lazy
    layers = ref.known_layers()
    assert layers is not None
    assert all(layer.local for layer in layers)
    assert ref.layers() == layers


def test_a_record_whose_tree_is_lost_is_fetched_again(home: Home) -> None:
    ref = home.image({"a": "1"})
    ref.realise()
    shutil.rmtree(home.snapshots.upper(str(ref.record.snapshot)))
    assert home.tree(home.cache.get(ref.id)) == {"a": "1"}


def test_a_lost_tree_further_down_is_fetched_again(home: Home) -> None:
    ref = home.image({"a": "1"}, {"b": "2"}, {"c": "3"})
    ref.realise()
    below = home.cache.records.get(ref.parents[0])
    shutil.rmtree(home.snapshots.upper(str(below.snapshot)))
    assert home.tree(home.image({"a": "1"}, {"b": "2"}, {"c": "3"})) == {"a": "1", "b": "2", "c": "3"}
    home.cache.prune(Policy(max_used_space=10**9))
    clean(home)


PULL = """
import sys
from pathlib import Path
from cache_parts import Home
home = Home(Path(sys.argv[1]))
home.fetcher.pause_s, home.fetcher.chunk = 0.01, 50
ref = home.image(*({f"f{i}": "x" * 1000} for i in range(4)))
assert home.tree(ref) == {f"f{i}": "x" * 1000 for i in range(4)}
print(len(home.fetcher.calls))
home.close()
"""


def test_processes_make_it_once(home: Home) -> None:
    argv = [sys.executable, "-c", PULL, str(home.path)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) for _ in range(3)]
    counts = [int(child.communicate(timeout=60)[0]) for child in children]
    assert sum(counts) == 4
    assert len(list(home.snapshots.walk())) == 4
    clean(home)


def test_a_lost_result_of_a_step_is_not_found(home: Home) -> None:
    ref = home.step(None, {"a": "1"})
    shutil.rmtree(home.snapshots.upper(str(ref.record.snapshot)))
    ref.release()
    with pytest.raises(NotFoundError):
        home.cache.get(ref.id)
    assert not home.cache.exists(ref.id)
    clean(home)
