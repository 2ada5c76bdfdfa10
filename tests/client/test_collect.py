# SPDX-License-Identifier: Apache-2.0
"""Which blobs of a directory of exports go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chantier.client.cache_dir import collect, name_cache
from chantier.spec import OCI_MANIFEST, digest_of, dumps

KIND = "application/vnd.test.v1"


def put(root: Path, data: bytes) -> str:
    digest = digest_of(data)
    place = root / "blobs/sha256" / digest.hex
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return str(digest)


def export(root: Path, tag: str, *layers: bytes, kind: str = KIND) -> str:
    def described(data: bytes, media_type: str) -> dict[str, object]:
        return {"mediaType": media_type, "digest": put(root, data), "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(b"{}", "application/vnd.test.config"),
        "layers": [described(layer, "application/vnd.test.layer") for layer in layers],
    }
    descriptor = {**described(dumps(manifest), OCI_MANIFEST), "artifactType": kind}
    name_cache(root, descriptor, tag)
    return str(descriptor["digest"])


def blobs(root: Path) -> int:
    return len(os.listdir(root / "blobs/sha256"))


def test_what_nobody_names_goes(tmp_path: Path) -> None:
    export(tmp_path, "one", b"a", b"b")
    export(tmp_path, "two", b"c")
    export(tmp_path, "one", b"b")
    assert blobs(tmp_path) == 7
    collect(tmp_path, KIND)
    assert blobs(tmp_path) == 5  # two manifests, their config, b and c


@pytest.mark.parametrize("how", ["another kind", "gone", "no manifest"])
def test_beside_what_is_not_known_nothing_goes(tmp_path: Path, how: str) -> None:
    other = export(tmp_path, "other", b"o", kind="application/vnd.other" if how == "another kind" else KIND)
    export(tmp_path, "one", b"a")
    export(tmp_path, "one", b"b")
    place = tmp_path / "blobs/sha256" / other.removeprefix("sha256:")
    if how == "gone":
        place.unlink()
    elif how == "no manifest":
        place.write_bytes(b"7")
    before = blobs(tmp_path)
    collect(tmp_path, KIND)
    assert blobs(tmp_path) == before
