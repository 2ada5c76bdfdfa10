# SPDX-License-Identifier: Apache-2.0
"""Local sources: what is taken, kept, shared and refused."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chantier.cache.content import VOLATILE, Selector, content_digest
from chantier.cache.content_node import unpack
from chantier.errors import CancelledError_, NotFoundError, SessionError, UsageError
from chantier.op.local import LocalOp
from chantier.pb import ops_pb2 as pb
from chantier.session.follow import follow
from chantier.session.local import LocalSession
from chantier.session.types import FilesRequest, Followed
from chantier.store import settle

from ..session.remote_peers import joined

if TYPE_CHECKING:
    from conftest import Bench, Job

pytestmark = pytest.mark.root


def op(bench: Bench, name: str = "context", **attrs: Any) -> LocalOp:
    text = {f"local.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in attrs.items()}
    return LocalOp(bench.vertex(pb.Op(source=pb.SourceOp(identifier=f"local://{name}", attrs=text))), bench.worker)


@pytest.fixture(autouse=True, params=["here-c", "here-python", "beside-c", "beside-python", "wire-c", "wire-python"])
def way(request: pytest.FixtureRequest, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> str:
    """How directories are taken: in the client's own process, by a daemon beside it, or through its session; whole directories at
    a time, or entry by entry.
    """
    name, _, trees = request.param.partition("-")
    monkeypatch.setenv("CHANTIER_TREES", trees)
    if name != "here":
        bench.attached = behind(in_place=name == "beside")
    return str(name)


def behind(*, in_place: bool) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """Sessions of this process, as a daemon meets them."""

    @asynccontextmanager
    async def attached(session: Any) -> AsyncIterator[Any]:
        if type(session) is not LocalSession:
            yield session
            return
        with tempfile.TemporaryDirectory() as where:  # a socket's path must be short
            async with joined(Path(where), session, in_place=in_place) as (remote, _):
                yield remote

    return attached


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "ctx"
    (root / "d").mkdir(parents=True)
    for name in ("a", "b", "d/x"):
        (root / name).write_text(name)
    os.chown(root / "a", 7, 8)
    time.sleep(0.03)
    return root


def transferred(job: Job) -> int:
    return job.statuses()[-1].current


def test_taken_once_and_frozen(bench: Bench, context: Path, job: Job, way: str) -> None:
    more = 0 if way != "wire" else 20  # what goes over a wire is counted with all that is said of it
    job.sessions.append(LocalSession(directories={"context": context}))
    (ref,) = bench.run(op(bench), job=job)
    assert bench.files(ref) == {"a": "a", "b": "b", "d": "/", "d/x": "d/x"}
    assert job.statuses()[-1].id == "transferring context:"
    assert job.statuses()[-1].completed is not None
    assert transferred(job) == 5 if not more else transferred(job) > 5 + more
    assert ref is not None
    first = content_digest(ref, [Selector(path="d")])
    ref.release()
    (context / "d/x").write_text("X/d")
    (context / "a").unlink()
    job.sessions[:] = [LocalSession(directories={"context": context})]
    (again,) = bench.run(op(bench), job=job)
    assert again is not None
    assert bench.files(again) == {"b": "b", "d": "/", "d/x": "X/d"}
    assert transferred(job) == 3 if not more else transferred(job) > 3 + more
    assert content_digest(again, [Selector(path="d")]) != first
    again.release()
    (context / "d/x").write_text("d/x")
    (back,) = bench.run(op(bench), job=job)
    assert content_digest(back, [Selector(path="d")]) == first


def test_a_tree_in_use_is_not_touched(bench: Bench, context: Path, job: Job) -> None:
    job.sessions.append(LocalSession(directories={"context": context}))
    (one,) = bench.run(op(bench), job=job)
    (context / "new").write_text("n")
    (two,) = bench.run(op(bench), job=job)
    assert one is not None
    assert two is not None
    assert one.id != two.id
    assert "new" in bench.files(two)
    assert "new" not in bench.files(one)


def test_patterns_and_hints(bench: Bench, context: Path, job: Job) -> None:
    (context / "l").symlink_to("d/x")
    job.sessions.append(LocalSession(directories={"context": context}))
    (ref,) = bench.run(op(bench, excludepatterns=["d"], sharedkeyhint="h"), job=job)
    assert bench.files(ref).keys() == {"a", "b", "l"}
    (ref,) = bench.run(op(bench, followpaths=["l"], differ="none"), job=job)
    assert bench.files(ref).keys() == {"l", "d", "d/x"}
    with pytest.raises(SessionError) as caught:
        bench.run(op(bench, followpaths=["[a"]), job=job)
    assert str(caught.value) == "rpc error: code = Unknown desc = invalid includepatterns: [[a]: syntax error in pattern"
    with pytest.raises(UsageError, match="invalid pattern list"):
        op(bench, excludepatterns="{")


def test_interrupted_transfer_starts_anew(bench: Bench, context: Path, job: Job) -> None:
    job.sessions.append(LocalSession(directories={"context": context}))
    bench.run(op(bench), job=job)[0].release()  # type: ignore[union-attr]
    (context / "c").mkdir()
    (context / "c/later").write_text("l")
    os.symlink("x", context / "d/y")

    class Broken(LocalOp):
        def _follow(self, mutable: Any, source: Path, progress: Any, cancelled: Any) -> None:
            calls = iter([False, False, False, True])
            super()._follow(mutable, source, progress, lambda: next(calls, True))

        async def _receive(self, mutable: Any, session: Any, progress: Any) -> None:
            def broken(_count: int) -> None:
                raise CancelledError_

            progress.add = broken
            await super()._receive(mutable, session, progress)

    with pytest.raises(Exception, match="context canceled"):
        bench.run(Broken(bench.vertex(pb.Op(source=pb.SourceOp(identifier="local://context"))), bench.worker), job=job)
    (ref,) = bench.run(op(bench), job=job)
    assert bench.files(ref) == {"a": "a", "b": "b", "c": "/", "c/later": "l", "d": "/", "d/x": "d/x", "d/y": "-> x"}


def test_sessions(bench: Bench, context: Path, job: Job) -> None:
    with pytest.raises(SessionError, match=r"^could not access local files without session$"):
        bench.run(op(bench), job=job)
    other, right = LocalSession(), LocalSession(directories={"context": context, "p-context": context / "d"})
    job.sessions += [other, right]
    (ref,) = bench.run(op(bench), job=job)
    assert "a" in bench.files(ref)
    (ref,) = bench.run(op(bench, session=f"p:{right.id}"), job=job)
    assert bench.files(ref) == {"x": "d/x"}
    with pytest.raises(NotFoundError, match=r'^no access allowed to dir "context"$'):
        bench.run(op(bench, session=other.id), job=job)


class Remote(LocalSession):
    """A session whose directories lie elsewhere."""

    def __init__(self, root: Path) -> None:
        super().__init__(shared_base="remote")
        self.root = root

    async def locate(self, name: str) -> Path | None:
        return None

    async def follow(self, request: FilesRequest, into: Path, index: bytes | None, **more: Any) -> Followed:
        return follow(self.root, request, into, index, cancelled=lambda: False, **more)


def test_directories_of_another_machine(bench: Bench, context: Path, job: Job) -> None:
    job.sessions.append(Remote(context))
    for _ in range(2):
        (ref,) = bench.run(op(bench), job=job)
        assert bench.files(ref) == {"a": "a", "b": "b", "d": "/", "d/x": "d/x"}
        assert ref is not None
        ref.release()
        (context / "b").write_text("b")


def test_metadata_only(bench: Bench, context: Path, job: Job) -> None:
    job.sessions.append(LocalSession(directories={"context": context}))
    (context / "e").mkdir()
    (context / "e/one").write_text("1")
    (context / "e/two").write_text("2")
    os.utime(context / "e", (5, 5))
    (ref,) = bench.run(op(bench, metadatatransfer="true", metadatatransferexclude=["b", "**/one"]), job=job)
    assert ref is not None
    with ref.mounted() as root:
        found = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        assert found == [".fsutil-metadata", "b", "e", "e/one"]
        assert (root / "b").read_text() == "b"
        assert (root / "e").stat().st_mtime == 5
        listing = (root / ".fsutil-metadata").read_bytes()
    assert listing.count(b"d/x") == 1


def test_keys_are_random_and_by_session(bench: Bench, context: Path, job: Job) -> None:
    job.sessions.append(LocalSession(directories={"context": context}))
    key = bench.map_of(op(bench), job=job).digest
    assert key.startswith("random:")
    assert key == bench.map_of(op(bench), job=job).digest
    assert key != bench.map_of(op(bench, excludepatterns=["x"]), job=job).digest
    job.sessions[:] = [LocalSession(directories={"context": context})]
    assert key != bench.map_of(op(bench), job=job).digest


def test_digests_are_kept_with_the_tree(bench: Bench, context: Path, job: Job) -> None:
    job.sessions.append(LocalSession(directories={"context": context}))
    (ref,) = bench.run(op(bench), job=job)
    assert ref is not None
    time.sleep(0.03)
    assert ref.get_tree_meta(VOLATILE) == b"1"
    content_digest(ref)
    ref.release()
    (again,) = bench.run(op(bench), job=job)
    assert again is not None
    known = unpack(again.get_tree_meta("content.tree"))
    assert known.below == 4
    assert all(node.digest for node in (*known.children.values(), known.children[b"d"].children[b"x"]))


@pytest.mark.parametrize("remote", [False, True], ids=["here", "elsewhere"])
def test_a_tree_that_the_disk_may_not_have_is_noted_when_it_changed(
    bench: Bench, context: Path, job: Job, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index says what is in it: after the machine went down that is not to be believed (docs/adr/0011)."""
    monkeypatch.setattr(settle, "SOON_S", 3600.0)
    unsettled, settler = bench.cache.root.unsettled, bench.cache.root.settler

    def taken() -> set[str]:
        job.sessions[:] = [Remote(context) if remote else LocalSession(directories={"context": context})]
        (ref,) = bench.run(op(bench), job=job)
        assert ref is not None
        ref.release()
        return {key for _, kind, key in unsettled.noted() if kind == "snapshot"}

    first = taken()
    assert len(first) == 1
    settler.now()
    assert taken() == set()
    (context / "a").write_text("another")
    assert taken() == first


def test_one_tree_is_kept_whichever_way_it_is_taken(bench: Bench, context: Path, job: Job, tmp_path: Path) -> None:
    ways = {"here": nullcontext, "beside": behind(in_place=True), "wire": behind(in_place=False)}
    digests, ids = {}, set()
    for text in ("", "changed"):
        for name in ("here", "wire", "beside", "wire", "beside", "here"):
            job.sessions[:] = [LocalSession(directories={"context": context})]
            bench.attached = ways[name]
            (ref,) = bench.run(op(bench), job=job)
            assert ref is not None
            assert bench.files(ref) == {"a": text or "a", "b": "b", "d": "/", "d/x": "d/x"}
            digests.setdefault(text, set()).add(content_digest(ref))
            ids |= set(bench.cache.find(f"local:context::{job.sessions[0].shared_key}"))
            ref.release()
        (context / "a").write_text("changed")
    assert len(digests[""]) == len(digests["changed"]) == 1 and digests[""] != digests["changed"]
    assert len(ids) == 1


class Unreadable(Remote):
    """A session whose directory has a file that nobody here can read, be it root: the client can."""

    async def locate(self, name: str) -> Path | None:
        return Path("/sys/bus/cpu")


def test_what_cannot_be_read_in_place_comes_over_the_session(
    bench: Bench, context: Path, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PermissionError):
        Path("/sys/bus/cpu/uevent").read_bytes()
    caplog.set_level(logging.DEBUG, "chantier.op.local")
    job.sessions.append(Unreadable(context))
    (ref,) = bench.run(op(bench), job=job)
    assert bench.files(ref) == {"a": "a", "b": "b", "d": "/", "d/x": "d/x"}
    assert "directory context cannot be read in place: failed to read" in caplog.messages[-1]
    assert "permission denied" in caplog.messages[-1]
