# SPDX-License-Identifier: Apache-2.0
"""The cache config of BuildKit, read and written. data/ holds what Docker 26.1 exported (mode=max, local, as an index)."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chantier.cache import LayerBlob, LayerSource
from chantier.cache.remote import (
    CacheConfig,
    cache_manifest,
    inline_config,
    inline_records,
    read_config,
    read_manifest,
    write_config,
)
from chantier.cache.remote.write import Result
from chantier.errors import IntegrityError
from chantier.solver import ExportKey, Link, walk_keys
from chantier.solver.types import CacheRecord
from chantier.spec import CACHE_CONFIG, OCI_LAYER_GZIP, Descriptor, Digest, Manifest, digest_of

DATA = Path(__file__).parent / "data"
CONFIG = (DATA / "docker-26.1-config.json").read_bytes()
INDEX = (DATA / "docker-26.1-index.json").read_bytes()


def layer(number: int, created: int = 1) -> LayerBlob:
    digest = Digest(f"sha256:{number:064x}")
    return LayerBlob(
        descriptor=Descriptor(media_type=OCI_LAYER_GZIP, digest=digest, size=10 + number),
        diff_id=Digest(f"sha256:{number + 1000:064x}"),
        created_at=created,
    )


def source(blob: LayerBlob) -> LayerSource:
    return LayerSource(descriptor=blob.descriptor, diff_id=blob.diff_id, sources=("registry:r.test/c",))


def key(id: str, *inputs: tuple[tuple[str, str], ...], op: str = "", at: int = 0) -> ExportKey:
    records = (CacheRecord(key=id, result=f"r-{id}", created_at=at),) if at else ()
    return ExportKey(id=id, op=op or f"sha256:{id}", inputs=inputs, records=records)


def everything(config: CacheConfig) -> dict[str, LayerSource]:
    return {one.blob: source(layer(int(one.blob.removeprefix("sha256:"), 16))) for one in config.layers}


def test_what_docker_wrote_is_written_again_to_the_byte() -> None:
    assert CacheConfig.parse(CONFIG).dump() == CONFIG


def test_what_docker_wrote_is_found_by_its_keys() -> None:
    found = read_manifest(INDEX, "", "session:local:x")
    assert found.config is not None
    assert found.config.digest == digest_of(CONFIG)
    config = CacheConfig.parse(CONFIG)
    imported = read_config(config, found.layers)
    assert imported.dropped == 0
    assert imported.records == len(config.records)
    for record in config.records:
        for number, some in enumerate(record.inputs):
            for item in some:
                parent = config.records[item.link]
                starts = [parent.digest] if not parent.inputs else [info.id for info in imported.keys.find(parent.digest)]
                assert imported.keys.children(starts, Link(number, record.digest, item.selector))
    results = [r for info in config.records for key in imported.keys.find(info.digest) for r in imported.keys.records([key.id])]
    assert len(results) == sum(len(record.results) for record in config.records) == 14
    chains = [imported.chains[int(result.result)] for result in results]
    assert all(chain[0].sources == ("session:local:x",) for chain in chains)
    assert len({chain[0].descriptor.digest for chain in chains if len(chain) > 2}) == 1  # all stand on the base image


def test_a_layer_without_a_parent_field_stands_on_the_first() -> None:
    config = CacheConfig.parse(b'{"layers":[{"blob":"sha256:%s","parent":-1},{"blob":"sha256:%s"}]}' % (b"a" * 64, b"b" * 64))
    assert [one.parent for one in config.layers] == [-1, 0]


def test_keys_and_layers_become_a_config_and_the_same_keys_again() -> None:
    nodes = [
        key("base"),
        key("content"),
        key("k1", (("base", "s1"),), (("content", ""),), op="sha256:copy", at=5),
        key("k2", (("k1", ""),), op="sha256:run", at=7),
        key("dead", (("k1", "other"),), op="sha256:unused"),
    ]
    a, b, c = layer(1), layer(2), layer(3)
    written = write_config(nodes, {"k1": Result(layers=[a, b], created_at=5), "k2": Result(layers=[a, b, c], created_at=7)})
    assert [one.digest for one in written.config.records] == ["sha256:base", "sha256:content", "sha256:copy", "sha256:run"]
    assert len(written.config.layers) == 3  # shared: two chains, one forest
    imported = read_config(CacheConfig.parse(written.config.dump()), everything(written.config))
    (k1,) = imported.keys.children(["sha256:base"], Link(0, "sha256:copy", "s1"))
    assert imported.keys.children(["sha256:content"], Link(1, "sha256:copy")) == {k1}
    (k2,) = imported.keys.children([k1], Link(0, "sha256:run"))
    (record,) = imported.keys.records([k2])
    assert record.created_at == 7
    assert [one.descriptor.digest for one in imported.chains[int(record.result)]] == [one.descriptor.digest for one in (a, b, c)]


def test_equal_records_become_one_with_the_newest_result() -> None:
    nodes = [key("base"), *(key(f"k{n}", (("base", ""),), op="sha256:run", at=n) for n in (1, 2, 3))]
    results = {f"k{n}": Result(layers=[layer(n)], created_at=n) for n in (1, 3, 2)}
    written = write_config(nodes, results)
    assert len(written.config.records) == 2
    assert [r.created_at for r in written.config.records[1].results] == [3]
    again = write_config([nodes[0], *reversed(nodes[1:])], results)
    assert again.config.dump() == written.config.dump()


def test_what_needs_a_session_or_leads_to_nothing_is_left_out() -> None:
    nodes = [key("base"), key("local", op="random:abc"), key("k", (("base", ""),), (("local", ""),), op="sha256:run", at=1)]
    assert write_config(nodes, {"k": Result(layers=[layer(1)], created_at=1)}).config == CacheConfig()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"layers":3}',
        b'{"layers":[{"blob":"nonsense"}]}',
        b'{"records":[3]}',
        b'{"records":[{"inputs":[{"link":0}]}]}',
        b'{"records":[{"digest":"sha256:a","layers":[{"layer":"x"}]}]}',
    ],
)
def test_no_config_is_an_error(text: bytes) -> None:
    with pytest.raises(IntegrityError, match="invalid"):
        CacheConfig.parse(text)


def test_nonsense_among_records_is_left_out_and_the_rest_is_used() -> None:
    good = {"digest": "sha256:good", "inputs": [[{"link": 4}]], "layers": [{"layer": 0, "createdAt": "2024-01-02T03:04:05Z"}]}
    raw: dict[str, Any] = {
        "layers": [{"blob": f"sha256:{1:064x}", "parent": -1}, {"blob": f"sha256:{2:064x}", "parent": 1}],
        "records": [
            {"digest": "sha256:circle", "inputs": [[{"link": 1}]]},
            {"digest": "sha256:circle2", "inputs": [[{"link": 0}]]},
            {"digest": "sha256:dangling", "inputs": [[{"link": 99}]]},
            {"digest": "random:session"},
            {"digest": "sha256:base"},
            good,
            {"digest": "sha256:loop", "inputs": [[{"link": 4}]], "layers": [{"layer": 1, "createdAt": ""}]},
            {"digest": "sha256:beyond", "inputs": [[{"link": 4}]], "layers": [{"layer": 7, "createdAt": "x"}]},
            {"digest": "sha256:nothing", "inputs": [[]]},
        ],
    }
    config = CacheConfig.parse(json.dumps(raw).encode())
    imported = read_config(config, everything(config))
    (found,) = imported.keys.children(["sha256:base"], Link(0, "sha256:good"))
    assert [record.created_at for record in imported.keys.records([found])] == [1704164645 * 10**9]
    for op in ("sha256:loop", "sha256:beyond"):
        (found,) = imported.keys.children(["sha256:base"], Link(0, op))
        assert imported.keys.records([found]) == []
    assert imported.dropped == 7
    assert read_config(config, {}).keys.records([found]) == []  # its layers are not there


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_graph_survives_the_way_there_and_back(data: st.DataObject) -> None:
    nodes: list[ExportKey] = []
    results = {}
    for number in range(data.draw(st.integers(1, 12))):
        width = data.draw(st.integers(0, 2)) if nodes else 0
        ways = [
            data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3, unique_by=lambda n: n.id)) for _ in range(width)
        ]
        inputs = tuple(tuple((one.id, data.draw(st.sampled_from(["", "s"]))) for one in some) for some in ways)
        op = f"sha256:{data.draw(st.integers(0, 3)) if inputs else 'root' + str(number)}"
        nodes.append(key(f"n{number}" if inputs else op, *inputs, op=op, at=number + 1))
        if inputs:
            chain = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True))
            results[nodes[-1].id] = Result(layers=[layer(n) for n in chain], created_at=number + 1)
    written = write_config(nodes, results)
    config = CacheConfig.parse(written.config.dump())
    assert config == written.config
    imported = read_config(config, everything(config))
    assert imported.dropped == 0
    names: dict[str, set[str]] = {}
    for node in nodes:
        if not node.inputs:
            names[node.id] = {node.id}
            continue
        found: set[str] | None = None
        for number, some in enumerate(node.inputs):
            keys = {
                child
                for parent, selector in some
                for child in imported.keys.children(names[parent], Link(number, node.op, selector))
            }
            found = keys if found is None else found & keys
        names[node.id] = found or set()
        assert found
        best = max(imported.keys.records(found), key=lambda record: record.created_at)
        assert best.created_at >= results[node.id].created_at
    again = walk_keys(imported.keys, {name for some in names.values() for name in some})
    assert {node.op for node in again} >= {record.digest for record in config.records}


def test_both_forms_of_the_manifest() -> None:
    config = Descriptor(media_type=CACHE_CONFIG, digest=digest_of(b"{}"), size=2)
    layers = [layer(1, 10**9), layer(2)]
    for image_manifest, oci, kind in (
        (True, True, "application/vnd.oci.image.manifest.v1+json"),
        (False, True, "application/vnd.oci.image.index.v1+json"),
        (False, False, "application/vnd.docker.distribution.manifest.list.v2+json"),
    ):
        data, media_type = cache_manifest(layers, config, image_manifest=image_manifest, oci=oci)
        assert media_type == kind == json.loads(data)["mediaType"]
        found = read_manifest(data, "", "registry:r.test/c")
        assert found.config == config
        assert list(found.layers.values()) == [
            replace(source(one), created_at=one.created_at, sources=("registry:r.test/c",)) for one in layers
        ]
    raw = json.loads(cache_manifest(layers, config, image_manifest=False, oci=False)[0])
    assert raw["manifests"][0]["mediaType"] == "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert raw["manifests"][0]["annotations"] == {
        "buildkit/createdat": "1970-01-01T00:00:01Z",
        "containerd.io/uncompressed": str(layers[0].diff_id),
    }
    with pytest.raises(IntegrityError, match="OCI mediatypes are required for image-manifest cache format"):
        cache_manifest(layers, config, oci=False)


def test_a_layer_whose_content_nothing_vouches_for_is_left_out() -> None:
    config = Descriptor(media_type=CACHE_CONFIG, digest=digest_of(b"{}"), size=2)
    raw = json.loads(cache_manifest([layer(1), layer(2)], config)[0])
    del raw["layers"][0]["annotations"]["containerd.io/uncompressed"]
    assert list(read_manifest(json.dumps(raw).encode(), "", "s").layers) == [str(layer(2).descriptor.digest)]


def test_inline() -> None:
    a, b, c, d = (layer(n) for n in (1, 2, 3, 4))
    nodes = [key("base"), *(key(name, (("base", name),), op=f"sha256:{name}") for name in ("prefix", "chain", "other"))]
    written = write_config(
        nodes,
        {
            "prefix": Result(layers=[a, b], created_at=1),
            "chain": Result(layers=[c], created_at=2),
            "other": Result(layers=[a, d], created_at=3),
        },
    )
    records = inline_records(written, [a, b, c])
    assert records is not None
    by_digest = {record["digest"]: record for record in json.loads(records)}
    assert by_digest["sha256:prefix"]["layers"] == [{"layer": 1, "createdAt": "1970-01-01T00:00:00.000000001Z"}]
    assert by_digest["sha256:chain"]["chains"] == [{"layers": [2], "createdAt": "1970-01-01T00:00:00.000000002Z"}]
    assert "layers" not in by_digest["sha256:other"]  # one of its layers is not in the image
    assert inline_records(written, [d]) is None

    image = {
        "rootfs": {"type": "layers", "diff_ids": [str(one.diff_id) for one in (a, b, c)]},
        "moby.buildkit.cache.v0": base64.b64encode(records).decode(),
        "history": [{"created": "2024-01-02T03:04:05Z", "created_by": "RUN a"}, {"empty_layer": True}],
    }
    manifest = Manifest(
        config=Descriptor(media_type="", digest=digest_of(b""), size=0), layers=tuple(one.descriptor for one in (a, b, c))
    )
    found = inline_config(json.dumps(image).encode(), manifest, "registry:r.test/i")
    assert found is not None
    config, layers = found
    assert (layers[0].description, layers[0].created_at) == ("RUN a", 1704164645 * 10**9)
    imported = read_config(config, {str(one.descriptor.digest): one for one in layers})
    for name, wanted in (("prefix", [a, b]), ("chain", [c])):
        (child,) = imported.keys.children(["sha256:base"], Link(0, f"sha256:{name}", name))
        (record,) = imported.keys.records([child])
        assert [one.diff_id for one in imported.chains[int(record.result)]] == [one.diff_id for one in wanted]
    del image["moby.buildkit.cache.v0"]
    assert inline_config(json.dumps(image).encode(), manifest, "s") is None
    image |= {"moby.buildkit.cache.v0": "!", "rootfs": {"diff_ids": []}}
    with pytest.raises(IntegrityError, match="mismatching manifest and config"):
        inline_config(json.dumps(image).encode(), manifest, "s")
