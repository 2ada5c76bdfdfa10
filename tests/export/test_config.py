# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from chantier.errors import UsageError
from chantier.export.config import default_config, patch_config
from chantier.export.options import ImageOptions, parse_bool, parse_epoch
from chantier.export.types import Exportable
from chantier.spec.times import parse_rfc3339, rfc3339

S = 1_000_000_000
BASE = {"os": "linux", "architecture": "amd64", "config": {"Env": ["A=<b>"]}, "extra": {"z": 1, "a": 2}}


def _patched(config: dict, **more: object) -> dict:
    values = {"diff_ids": ["sha256:a"], "created_at": [5 * S], "descriptions": ["d"]} | more
    return json.loads(patch_config(json.dumps(config).encode(), **values))  # type: ignore[arg-type]


def test_times_print_as_in_go() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1_600_000_000 * S + 120_000_000) == "2020-09-13T12:26:40.12Z"
    for moment in (0, 1, 1_600_000_000 * S + 123_456_789):
        assert parse_rfc3339(rfc3339(moment)) == moment
    assert parse_rfc3339("2020-09-13T14:26:40.5+02:00") == 1_600_000_000 * S + S // 2


def test_keys_are_sorted_on_top_and_kept_below() -> None:
    data = patch_config(json.dumps(BASE).encode(), diff_ids=[], created_at=[], descriptions=[])
    assert list(json.loads(data)) == sorted(json.loads(data))
    assert b'"extra":{"z":1,"a":2}' in data
    assert b"A=\\u003cb\\u003e" in data


def test_history_takes_the_times_of_layers() -> None:
    history = [
        {"created": "2001-01-01T00:00:00Z", "created_by": "base"},
        {"created_by": "ENV", "empty_layer": True},
        {"created_by": "RUN"},
        {"created_by": "CMD", "empty_layer": True},
    ]
    done = _patched(BASE | {"history": history}, diff_ids=["a", "b"], created_at=[1 * S, 9 * S], descriptions=["", ""])
    times = [entry["created"] for entry in done["history"]]
    assert times == ["2001-01-01T00:00:00Z", "2001-01-01T00:00:00Z", "1970-01-01T00:00:09Z", "1970-01-01T00:00:09Z"]
    assert done["created"] == times[-1]


def test_layers_without_history_get_one() -> None:
    done = _patched(BASE)
    assert done["history"] == [{"created": "1970-01-01T00:00:05Z", "created_by": "d", "comment": "buildkit.exporter.image.v0"}]


def test_history_without_layers_is_marked_empty() -> None:
    done = _patched(BASE | {"history": [{"created_by": "a"}, {"created_by": "b"}]})
    assert [entry.get("empty_layer", False) for entry in done["history"]] == [False, True]


def test_an_epoch_clamps_all_but_the_base() -> None:
    history = [{"created": "2030-01-01T00:00:00Z", "created_by": "base"}, {"created_by": "RUN"}]
    done = _patched(
        BASE | {"history": history}, diff_ids=["a", "b"], created_at=[1, 99 * S], descriptions=["", ""], epoch=7, base_history=1
    )
    assert [entry["created"] for entry in done["history"]] == ["2030-01-01T00:00:00Z", "1970-01-01T00:00:07Z"]
    assert done["created"] == "1970-01-01T00:00:07Z"


def test_configs_that_cannot_be_exported() -> None:
    with pytest.raises(UsageError, match="invalid image config for export: missing os"):
        patch_config(b'{"architecture":"amd64"}', diff_ids=[], created_at=[], descriptions=[])
    with pytest.raises(UsageError, match="invalid image config for export"):
        patch_config(b"{", diff_ids=[], created_at=[], descriptions=[])


def test_the_default_config_is_complete() -> None:
    assert json.loads(default_config(None))["os"] == "linux"


def test_attributes() -> None:
    options = ImageOptions.parse(
        {"name": "a,b", "push": "", "compression": "zstd", "compression-level": "3", "annotation.k": "v"}
    )
    assert options.names == ("a", "b")
    assert options.push
    assert (options.compression.kind, options.compression.level) == ("zstd", 3)
    assert [(a.kind, a.key, a.value) for a in options.annotations] == [("manifest", "k", "v")]
    told = {"annotation.g": b"all", "annotation-index.i": b"x", "annotation-manifest[linux/amd64].k": b"theirs", "other": b"1"}
    with_told = options.with_annotations({**told, "annotation.k": b"theirs"}).annotations
    assert [(a.kind, a.platform, a.key, a.value) for a in with_told] == [
        ("index", "", "i", "x"),
        ("manifest", "linux/amd64", "k", "theirs"),
        ("manifest", "", "g", "all"),
        ("manifest", "", "k", "v"),  # the output's own
    ]
    docker = ImageOptions.parse({"oci-mediatypes": "false"})
    assert docker.with_annotations(told) == docker
    assert parse_epoch("") is None
    result = Exportable(refs={"": None}, metadata={"source.date.epoch": b"7"})
    assert [ImageOptions.parse(attrs).epoch.of_result(result, "") for attrs in ({}, {"source-date-epoch": "9"})] == [7, 9]
    assert ImageOptions.parse({"source-date-epoch": ""}).epoch.of_result(result, "") is None  # an output that wants none
    assert parse_bool("x", "F") is False


@pytest.mark.parametrize(
    ("attrs", "text"),
    [
        ({"compression": "lzma"}, "unsupported layer compression type lzma"),
        ({"compression-level": "x"}, "non-integer value x"),
        ({"compression-level": "10"}, "out of range for gzip"),
        ({"push": "maybe"}, 'non-bool value specified for push: "maybe"'),
        ({"annotation.a": "b", "oci-mediatypes": "false"}, "annotations require OCI media types"),
        ({"source-date-epoch": "soon"}, "invalid SOURCE_DATE_EPOCH: soon"),
    ],
)
def test_attributes_that_cannot_be_meant(attrs: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        ImageOptions.parse(attrs)
    assert text in str(caught.value)
