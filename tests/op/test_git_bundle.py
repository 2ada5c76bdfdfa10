# SPDX-License-Identifier: Apache-2.0
"""Git bundles: made of a remote's history, read back in place of the remote."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chantier.errors import FetchError, NotFoundError, UsageError
from chantier.op.git import GitOp, named
from chantier.pb import ops_pb2 as pb
from chantier.session.local import LocalSession

from .test_git import Remote, git, remote  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from conftest import Bench, Job

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(shutil.which("git") is None, reason="no git")]


def op(bench: Bench, url: str, ref: str, **attrs: str) -> GitOp:
    return GitOp(bench.vertex(pb.Op(source=source(url, ref, **attrs))), bench.worker)


def source(url: str, ref: str, **attrs: str) -> pb.SourceOp:
    attributes = {"git.fullurl": url, **{"git." + key: value for key, value in attrs.items()}}
    if "git.bundle" in attributes:
        attributes["oci.store"] = "bundles"
    return pb.SourceOp(identifier=f"git://{url.partition('://')[2]}#{ref}", attrs=attributes)


def made(bench: Bench, job: Job, url: str, ref: str, **attrs: str) -> bytes:
    (ref_,) = bench.run(op(bench, url, ref, checkoutbundle="true", **attrs), job=job)
    assert ref_ is not None
    with ref_.mounted() as root:
        assert [path.name for path in root.iterdir()] == ["bundle"]
        return (root / "bundle").read_bytes()


def offered(directory: Path, data: bytes) -> tuple[LocalSession, str]:
    digest = hashlib.sha256(data).hexdigest()
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)
    (blobs / digest).write_bytes(data)
    return LocalSession(layouts={"bundles": directory}), f"oci-layout+blob://not/real@sha256:{digest}"


@pytest.fixture
def history(remote: Remote, request: pytest.FixtureRequest) -> tuple[str, str]:  # noqa: F811
    """A repository of three commits: its address and the last commit."""
    name = f"bundle-{abs(hash(request.node.name))}"
    remote.make(name)
    for number in range(3):
        sha = remote.commit(name, file=f"{number}\n")
    git(remote.root / name, "tag", "-a", "v1", "-m", "v1")
    return remote.url(name), sha


def test_a_bundle_has_the_whole_history(bench: Bench, job: Job, history: tuple[str, str], tmp_path: Path) -> None:
    url, sha = history
    bench.run(op(bench, url, "main"), job=job)  # leaves a shallow repository behind
    data = made(bench, job, url, "main", checksum=sha)
    assert data == made(bench, job, url, "refs/heads/main")
    (tmp_path / "b").write_bytes(data)
    git(tmp_path, "clone", "--quiet", "-b", "main", "b", "clone")
    assert git(tmp_path / "clone", "rev-list", "--count", "HEAD") == "3"
    assert git(tmp_path / "clone", "rev-parse", "HEAD") == sha


@pytest.mark.parametrize("ref", ["main", "", "SHA"])
def test_read_in_place_of_the_remote(bench: Bench, job: Job, history: tuple[str, str], tmp_path: Path, ref: str) -> None:
    url, sha = history
    session, locator = offered(tmp_path / "layout", made(bench, job, url, "main"))
    job.sessions = [session]
    away = "git://127.0.0.1:1/nobody"  # nobody listens there
    reading = op(bench, away, sha if ref == "SHA" else ref, bundle=locator, checksum=sha)
    key = bench.map_of(reading, job=job)
    assert reading.pin == sha
    assert key.digest == bench.map_of(op(bench, url, "main"), job=job).digest  # where it came from is no part of the key
    (files,) = bench.run(reading, job=job)
    assert bench.files(files) == {"file": "2\n"}


def test_git_dir_of_a_bundle(bench: Bench, job: Job, history: tuple[str, str], tmp_path: Path) -> None:
    url, sha = history
    session, locator = offered(tmp_path / "layout", made(bench, job, url, "main"))
    job.sessions = [session]
    (ref,) = bench.run(op(bench, "git://127.0.0.1:1/x", "main", bundle=locator, checksum=sha, keepgitdir="true"), job=job)
    assert ref is not None
    with ref.mounted() as root:
        assert git(root, "-c", "safe.directory=*", "rev-parse", "HEAD", "refs/heads/main").split() == [sha, sha]


def test_what_a_bundle_says_of_a_name(bench: Bench, job: Job, history: tuple[str, str], tmp_path: Path) -> None:
    url, sha = history
    session, locator = offered(tmp_path / "layout", made(bench, job, url, "refs/tags/v1"))
    asked = source("git://127.0.0.1:1/x", "refs/tags/v1", bundle=locator, checksum=sha)
    found = bench.wait(named(asked, bench.worker, [session], job=job_of()))
    assert found == (sha, "refs/tags/v1", "")


def job_of() -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(resolved={})


def test_other_commits_and_no_bundles(bench: Bench, job: Job, history: tuple[str, str], tmp_path: Path) -> None:
    url, sha = history
    session, locator = offered(tmp_path / "layout", made(bench, job, url, "main"))
    bogus, nothing = offered(tmp_path / "other", b"no bundle\n")
    other = "0" * 40
    job.sessions = [session]
    with pytest.raises(NotFoundError, match=f"commit {other} not found in bundle"):
        bench.run(op(bench, url, "main", bundle=locator, checksum=other), job=job)
    job.sessions = [bogus]
    with pytest.raises(FetchError, match="failed to import git bundle"):
        bench.run(op(bench, "git://127.0.0.1:1/x", "main", bundle=nothing, checksum=sha), job=job)
    with pytest.raises(NotFoundError, match="not found in the content store"):
        bench.run(op(bench, "git://127.0.0.1:1/x", "main", bundle=locator, checksum=sha), job=job)


@pytest.mark.parametrize(
    ("ref", "attrs", "text"),
    [
        ("main", {"bundle": "docker-image+blob://a@sha256:" + "a" * 64}, "requires git.checksum"),
        ("", {"bundle": "docker-image+blob://a@sha256:" + "a" * 64, "checksum": "abc"}, "requires the whole commit"),
        ("main", {"bundle": "https://a", "checksum": "a" * 40}, "names no blob"),
        ("main", {"checkoutbundle": "true", "keepgitdir": "true"}, "incompatible with git.keepgitdir"),
        ("main:sub", {"checkoutbundle": "true"}, "incompatible with git.subdir"),
    ],
)
def test_what_cannot_be(bench: Bench, ref: str, attrs: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        op(bench, "git://h.test/a", ref, **attrs)
