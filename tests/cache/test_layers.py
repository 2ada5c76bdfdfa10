# SPDX-License-Identifier: Apache-2.0
"""Packing results: reuse, compressions, conversion, chains."""

from __future__ import annotations

import gzip
import threading

import pytest
from cache_parts import Home, names_in

from chantier.cache import Ref
from chantier.cache.check import check
from chantier.errors import StoreError, UsageError
from chantier.spec import DOCKER_LAYER_GZIP, EMPTY_LAYER, OCI_LAYER_GZIP, OCI_LAYER_TAR, OCI_LAYER_ZSTD, digest_of

pytestmark = pytest.mark.root


def names(home: Home, ref: Ref) -> list[list[str]]:
    return [
        names_in(home.root.blobs.read(layer.descriptor.digest)) for layer in ref.layers(compression="uncompressed", force=True)
    ]


def test_a_step_is_packed_on_top_of_an_image(home: Home) -> None:
    base = home.image({"etc/": None, "etc/a": "1", "etc/b": "1"})
    ref = home.step(base, {"etc/c": "3"}, remove=["etc/a"], description="RUN it")
    lower, upper = ref.layers()
    assert lower.descriptor.media_type == upper.descriptor.media_type == OCI_LAYER_GZIP
    assert not lower.local or home.fetcher.calls  # the base had to be there to run the step
    blob = home.root.blobs.read(upper.descriptor.digest)
    assert upper.descriptor.size == len(blob)
    assert upper.diff_id == digest_of(gzip.decompress(blob))
    assert names_in(gzip.decompress(blob)) == ["etc", "etc/.wh.a", "etc/c"]
    assert (upper.description, lower.description) == ("RUN it", "pulled from test")
    assert lower.created_at == 1_600_000_000 * 10**9
    assert check(home.root, home.snapshots, deep=True) == []


def test_a_lazy_base_stays_lazy_when_layers_are_asked_for(home: Home) -> None:
    ref = home.image({"a": "1"}, {"b": "2"})
    assert [layer.local for layer in ref.layers()] == [False, False]
    assert home.fetcher.calls == []
    assert [layer.sources for layer in ref.layers()] == [("registry:test",)] * 2


def test_packing_is_done_once(home: Home) -> None:
    ref = home.step(None, {"a": "1"})
    assert ref.known_layers() is None
    first = ref.layers()
    assert ref.known_layers() == first
    trees = []
    threads = [threading.Thread(target=lambda: trees.append(ref.layers())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert trees == [first] * 4
    assert len(list(home.root.blobs.walk())) == 1


def test_a_step_that_changes_nothing_is_the_empty_layer(home: Home) -> None:
    ref = home.step(home.step(None, {"a": "1"}), {})
    assert ref.layers()[1].diff_id == EMPTY_LAYER


@pytest.mark.parametrize(
    ("compression", "media_type"), [("gzip", OCI_LAYER_GZIP), ("zstd", OCI_LAYER_ZSTD), ("uncompressed", OCI_LAYER_TAR)]
)
def test_compressions(home: Home, compression: str, media_type: str) -> None:
    (layer,) = home.step(None, {"a": "1"}).layers(compression=compression)
    assert layer.descriptor.media_type == media_type
    if compression == "uncompressed":
        assert layer.descriptor.digest == layer.diff_id


def test_unless_forced_existing_blobs_are_used_whatever_their_compression(home: Home) -> None:
    base = home.image({"a": "1"})
    ref = home.step(base, {"b": "2"})
    (gz_base, gz_top) = ref.layers()
    assert [x.descriptor.digest for x in ref.layers(compression="zstd")] == [gz_base.descriptor.digest, gz_top.descriptor.digest]
    forced = ref.layers(compression="zstd", force=True)
    assert [x.descriptor.media_type for x in forced] == [OCI_LAYER_ZSTD] * 2
    assert [x.diff_id for x in forced] == [gz_base.diff_id, gz_top.diff_id]
    # Both forms are known now, and each is found again.
    assert ref.layers(compression="zstd") == forced
    assert ref.layers() == (ref.layers(force=True)) == (ref.layers(compression="gzip", force=True))
    assert ref.layers()[1].descriptor.digest == gz_top.descriptor.digest
    assert check(home.root, home.snapshots, deep=True) == []


def test_docker_media_types(home: Home) -> None:
    (layer,) = home.step(None, {"a": "1"}).layers(oci=False)
    assert layer.descriptor.media_type == DOCKER_LAYER_GZIP


def test_unknown_compression(home: Home) -> None:
    with pytest.raises(UsageError, match="nydus"):
        home.step(None, {}).layers(compression="nydus")


def test_layers_survive_the_process(home: Home) -> None:
    ref = home.step(home.step(None, {"a": "1"}), {"b": "2"})
    layers = ref.layers()
    id = ref.id
    ref.set_meta("k", b"v")
    home = home.reopen()
    again = home.cache.get(id)
    assert again.known_layers() == layers
    assert again.get_meta("k") == b"v"
    assert home.tree(again) == {"a": "1", "b": "2"}
    home.close()


def test_the_image_of_a_result_is_that_result(home: Home) -> None:
    from chantier.cache import LayerSource

    ref = home.step(home.step(None, {"a": "1"}), {"b": "2"})
    sources = [LayerSource(descriptor=x.descriptor, diff_id=x.diff_id, sources=("registry:pushed",)) for x in ref.layers()]
    pulled = home.cache.image(sources, description="pulled")
    assert pulled is not None
    assert pulled.id == ref.id
    # The same layers in other blobs share the tree.
    other = [LayerSource(descriptor=x.descriptor, diff_id=x.diff_id) for x in ref.layers(compression="zstd", force=True)]
    pulled = home.cache.image(other, description="pulled")
    assert pulled is not None
    assert pulled.id != ref.id
    assert not pulled.lazy


def test_a_blob_that_was_lost_is_packed_again(home: Home) -> None:
    ref = home.step(None, {"a": "1"})
    (layer,) = ref.layers()
    home.root.blobs.delete(layer.descriptor.digest)
    assert ref.known_layers() is None
    (again,) = ref.layers()
    assert again.descriptor == layer.descriptor
    assert again.local


def test_native_snapshots_pack_the_same(home: Home, tmp_path: object) -> None:
    from pathlib import Path

    other = Home(Path(str(tmp_path)) / "native", native=True)
    tars = []
    for each in (home, other):
        ref = each.step(each.image({"etc/a": "1", "x/": None, "x/y": "1"}), {"b": "2"}, remove=["etc/a", "x"])
        tars.append(names(each, ref))
    other.close()
    assert tars[0] == tars[1]
    assert tars[0][1] == ["b", "etc", "etc/.wh.a", ".wh.x"]  # sorted by the name that goes


def test_an_ended_handle_cannot_be_used(home: Home) -> None:
    ref = home.step(None, {"a": "1"})
    clone = ref.clone()
    ref.release()
    ref.release()
    with pytest.raises(StoreError, match="ended"):
        ref.mounts()
    assert home.tree(clone) == {"a": "1"}
