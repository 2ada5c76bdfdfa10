# SPDX-License-Identifier: Apache-2.0
"""Single blobs as sources: out of a client's OCI layout, out of a real registry."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import RealRegistry

from chantier.errors import ChantierError, IntegrityError, NotFoundError, ReferenceError_, UsageError
from chantier.llb import image_blob, oci_layout_blob
from chantier.llb.definition import load
from chantier.op.blob import BlobOp, BlobPlace
from chantier.registry import Registries
from chantier.session.local import LocalSession
from chantier.spec import Platform

if TYPE_CHECKING:
    from conftest import Bench, Job

pytestmark = pytest.mark.root
DATA = b"some blob\n" * 1000
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


def op(bench: Bench, state: Any) -> BlobOp:
    graph = load(state.marshal(Platform("linux", "amd64")))
    (vertex,) = (v for v in graph.vertices.values() if v.op.WhichOneof("op") == "source")
    return BlobOp(vertex, bench.worker)


def layout(directory: Path, data: bytes = DATA) -> LocalSession:
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)
    (blobs / DIGEST.partition(":")[2]).write_bytes(data)
    return LocalSession(layouts={"store": directory})


def test_of_a_layout(bench: Bench, job: Job, tmp_path: Path) -> None:
    job.sessions = [layout(tmp_path / "layout")]
    blob = op(bench, oci_layout_blob(f"not/real@{DIGEST}", store="store", filename="a.bin", mode=0o640, uid=12, gid=34))
    assert blob.pin == DIGEST
    (ref,) = bench.run(blob, job=job)
    assert ref is not None
    with ref.mounted() as root:
        assert os.listdir(root) == ["a.bin"]
        info = os.stat(root / "a.bin")
        assert (info.st_mode & 0o7777, info.st_uid, info.st_gid, info.st_mtime) == (0o640, 12, 34, 0)
        assert (root / "a.bin").read_bytes() == DATA


def test_a_blob_without_a_name_is_named_by_its_digest(bench: Bench, job: Job, tmp_path: Path) -> None:
    job.sessions = [layout(tmp_path / "layout")]
    (ref,) = bench.run(op(bench, oci_layout_blob(f"x@{DIGEST}", store="store")), job=job)
    assert list(bench.files(ref)) == [DIGEST.partition(":")[2]]


def test_other_bytes_are_refused(bench: Bench, job: Job, tmp_path: Path) -> None:
    job.sessions = [layout(tmp_path / "layout", DATA[:-1])]
    with pytest.raises(IntegrityError, match="has other content"):
        bench.run(op(bench, oci_layout_blob(f"x@{DIGEST}", store="store")), job=job)
    with pytest.raises(NotFoundError, match="not found in the content store other"):
        bench.run(op(bench, oci_layout_blob(f"x@{DIGEST}", store="other")), job=job)
    assert not [record for record in bench.cache.usage() if record.description.startswith("blob ")]


def test_keys_are_of_the_file_and_not_of_the_place(bench: Bench) -> None:
    def key(state: Any) -> str:
        return str(bench.map_of(op(bench, state)).digest)

    assert key(image_blob(f"a/b@{DIGEST}")) == key(oci_layout_blob(f"c@{DIGEST}", store="s"))
    assert key(image_blob(f"a/b@{DIGEST}")) != key(image_blob(f"a/b@{DIGEST}", mode=0o644))


def push(host: str, repository: str, data: bytes) -> None:
    url = f"http://{host}/v2/{repository}/blobs/uploads/"
    run = lambda *args: subprocess.run(["curl", "-sSf", *args], input=data, check=True, capture_output=True).stdout  # noqa: E731
    headers = run("-X", "POST", "-D-", "-o/dev/null", url).decode()
    (place,) = (line.split(":", 1)[1].strip() for line in headers.splitlines() if line.lower().startswith("location:"))
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    run("-X", "PUT", "--data-binary", "@-", "-H", "content-type: application/octet-stream", f"{place}&digest={digest}")


@pytest.mark.registry
def test_of_a_registry(bench: Bench, registry: RealRegistry) -> None:
    push(registry.host, "me/blobs", DATA)
    registries = Registries()
    bench.worker.registry_for = lambda sessions: registries.open()
    (ref,) = bench.run(op(bench, image_blob(f"{registry.host}/me/blobs@{DIGEST}", filename="b")))
    assert bench.files(ref) == {"b": DATA.decode() + " 600"}
    missing = "sha256:" + "0" * 64
    with pytest.raises(NotFoundError, match="not found"):
        bench.run(op(bench, image_blob(f"{registry.host}/me/blobs@{missing}")))
    registries.close()


@pytest.mark.parametrize(
    ("locator", "error", "text"),
    [
        (f"docker-image+blob://a:1@{DIGEST}", UsageError, "tagged image reference not allowed"),
        ("docker-image+blob://a", UsageError, "checksum required"),
        (f"docker-image://a@{DIGEST}", UsageError, "names no blob"),
        (f"docker-image+blob://A@{DIGEST}", ReferenceError_, "lowercase"),
    ],
)
def test_names_that_are_none(locator: str, error: type[ChantierError], text: str) -> None:
    with pytest.raises(error, match=text):
        BlobPlace.parse(locator, {})


def test_a_place_in_a_layout() -> None:
    assert BlobPlace.parse(f"oci-layout+blob://some/name@{DIGEST}", {}).store == "some/name"
    place = BlobPlace.parse(f"oci-layout+blob://x@{DIGEST}", {"oci.store": "s", "oci.session": "i"})
    assert (place.store, place.session) == ("s", "i")
