# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from chantier.errors import IntegrityError, ReferenceError_
from chantier.spec import (
    Descriptor,
    Digest,
    Index,
    Manifest,
    Platform,
    Reference,
    descriptor_from_json,
    descriptor_to_json,
    dumps,
    dumps_indent,
    new_id,
    parse_manifest,
)

D = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("alpine", "docker.io/library/alpine", "alpine"),
        ("me/app:1", "docker.io/me/app:1", "me/app:1"),
        ("docker.io/alpine:3", "docker.io/library/alpine:3", "alpine:3"),
        ("index.docker.io/a/b", "docker.io/a/b", "a/b"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("reg:5000/x", "reg:5000/x", "reg:5000/x"),
        ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
        (f"reg.test/a/b:t@{D}", f"reg.test/a/b:t@{D}", f"reg.test/a/b:t@{D}"),
    ],
)
def test_references(text: str, full: str, familiar: str) -> None:
    ref = Reference.parse(text)
    assert str(ref) == full
    assert ref.familiar() == familiar
    assert Reference.parse(str(ref)) == ref


@pytest.mark.parametrize("text", ["", "UPPER", "a b", "a:", "a@sha256:12", "-a", "a//b", "f" * 64, "a:" + "t" * 129])
def test_references_that_are_none(text: str) -> None:
    with pytest.raises(ReferenceError_):
        Reference.parse(text)


def test_default_tag_and_object() -> None:
    assert str(Reference.parse("a").with_default_tag()) == "docker.io/library/a:latest"
    assert Reference.parse(f"a:1@{D}").object == D
    assert Reference.parse("a").object == "latest"


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "a" * 32, "sha256:" + "a" * 63, "sha256"])
def test_digests_that_are_none(text: str) -> None:
    with pytest.raises(ReferenceError_):
        Digest.parse(text)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("darwin/arm64", "darwin/arm64"),
        ("arm64", "linux/arm64"),
    ],
)
def test_platforms(text: str, want: str) -> None:
    assert str(Platform.parse(text)) == want


def test_platforms_with_a_version() -> None:
    platform = Platform.parse("windows(10.0.17763.1)/amd64")
    assert platform.format_all() == "windows(10.0.17763.1)/amd64"
    assert str(platform) == "windows/amd64"


@pytest.mark.parametrize("text", ["", "foo", "linux/a/b/c", "linux/a b", "bogus"])
def test_platforms_that_are_none(text: str) -> None:
    with pytest.raises(ReferenceError_):
        Platform.parse(text)


def test_platform_fallbacks() -> None:
    assert [str(p) for p in Platform.parse("linux/arm/v7").candidates()] == ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    assert Platform.parse("linux/amd64").matches(Platform("linux", "amd64", "v1"))


def test_descriptors_keep_the_order_of_keys() -> None:
    desc = Descriptor(
        media_type="m", digest=Digest(D), size=1, annotations={"b": "1", "a": "2"}, platform=Platform("linux", "amd64")
    )
    raw = descriptor_to_json(desc)
    assert list(raw) == ["mediaType", "digest", "size", "annotations", "platform"]
    assert descriptor_from_json(raw) == desc


@pytest.mark.parametrize("raw", [None, {}, {"digest": D, "size": -1}, {"digest": D, "size": True}, {"digest": D, "size": "1"}])
def test_descriptors_that_are_none(raw: object) -> None:
    with pytest.raises(IntegrityError):
        descriptor_from_json(raw)


def test_manifests() -> None:
    layer = {"mediaType": "l", "digest": D, "size": 1}
    document = {"schemaVersion": 2, "config": layer, "layers": [layer]}
    assert isinstance(parse_manifest(json.dumps(document).encode()), Manifest)
    assert isinstance(parse_manifest(json.dumps({"schemaVersion": 2, "manifests": [layer]}).encode()), Index)
    for bad in (b"[]", b"{", b"{}", b'{"schemaVersion":1}'):
        with pytest.raises(IntegrityError):
            parse_manifest(bad)


def test_json_has_the_bytes_of_go() -> None:
    assert dumps({"b": "<&>\u2028é", "a": [1, True, None]}) == b'{"b":"\\u003c\\u0026\\u003e\\u2028\xc3\xa9","a":[1,true,null]}'
    assert dumps({"b": 1, "a": 2}, sort_keys=True) == b'{"a":2,"b":1}'
    assert dumps_indent({"a": [1]}) == b'{\n  "a": [\n    1\n  ]\n}'
    assert dumps(["a\udcff"]) == b'["a\\ufffd"]'  # a byte that is no UTF-8


def test_ids() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == 25 and i.isalnum() and i.lower() == i for i in ids)
