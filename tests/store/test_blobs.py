# SPDX-License-Identifier: Apache-2.0
"""Blobs: named only when whole and right, resumable, shared by processes, kept as long as they are wanted."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chantier.errors import CancelledError_, DiskFullError, IntegrityError, NotFoundError, ReferenceError_
from chantier.spec import digest_of
from chantier.store import BlobStore, Db, Root
from chantier.store.writer import translated

HELLO = digest_of(b"hello")


class Clock:
    def __init__(self) -> None:
        self.now = 10**18

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[BlobStore]:
    db = Db(tmp_path / "db")
    yield BlobStore(tmp_path, db, clock=clock)
    db.close()


def test_a_blob_has_a_name_only_once_committed(store: BlobStore) -> None:
    with store.writer(media_type="text/plain", labels={"a": "b"}) as writer:
        writer.write(b"hel")
        writer.write(memoryview(b"lo"))
        assert (writer.offset, writer.digest()) == (5, HELLO)
        assert store.stat(HELLO) is None
        assert writer.commit(HELLO, 5) == HELLO
    info = store.stat(HELLO)
    assert info is not None
    assert (info.size, info.media_type, dict(info.labels), info.created) == (5, "text/plain", {"a": "b"}, 10**18)
    path = store.path(HELLO)
    assert path.parts[-4:] == ("blobs", "sha256", HELLO.hex[:2], HELLO.hex)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert store.read(HELLO) == b"hello"
    assert os.listdir(path.parents[3] / "ingest") == []


def test_leaving_without_commit_drops_the_bytes(store: BlobStore, tmp_path: Path) -> None:
    with store.writer() as writer:
        writer.write(b"hello")
    assert store.stat(HELLO) is None
    assert os.listdir(tmp_path / "ingest") == []
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"more")


@pytest.mark.parametrize(("digest", "size"), [(digest_of(b"other"), None), (HELLO, 4), (None, 6)])
def test_what_was_not_promised_is_refused(store: BlobStore, tmp_path: Path, digest: str | None, size: int | None) -> None:
    with store.writer(key="k") as writer:
        writer.write(b"hello")
        with pytest.raises(IntegrityError, match=r"want|has"):
            writer.commit(digest, size)
    assert list(store.walk()) == []
    assert os.listdir(tmp_path / "ingest") == []  # not worth resuming


def test_committing_twice_is_fine(store: BlobStore) -> None:
    assert store.put(b"hello") == store.put(b"hello", media_type="text/plain") == HELLO
    info = store.stat(HELLO)
    assert info is not None
    assert info.media_type == "text/plain"


def test_sha512(store: BlobStore) -> None:
    digest = "sha512:" + hashlib.sha512(b"hello").hexdigest()
    with store.writer() as writer:
        writer.write(b"hello")
        assert writer.commit(digest) == digest
    assert store.read(digest) == b"hello"
    with pytest.raises(ReferenceError_):
        store.stat("md5:abc")


def test_a_keyed_writer_goes_on_where_another_stopped(store: BlobStore) -> None:
    with store.writer(key="blob") as writer:
        writer.write(b"hel")
    with store.writer(key="blob") as writer:
        assert (writer.offset, writer.resumed) == (3, True)
        writer.write(b"lo")
        assert writer.commit() == HELLO
    with store.writer(key="blob") as writer:
        assert writer.offset == 0
        writer.write(b"x")
        writer.restart()
        writer.write(b"hello")
        assert writer.commit() == HELLO


def test_equal_keys_wait_for_each_other(store: BlobStore) -> None:
    first = store.writer(key="blob")
    with pytest.raises(CancelledError_):
        store.writer(key="blob", cancelled=lambda: True)
    seen: list[int] = []

    def second() -> None:
        with store.writer(key="blob") as writer:
            seen.append(writer.offset)

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.05)
    assert seen == []
    first.write(b"hello")
    first.commit()
    thread.join(60)
    assert seen == [0]


def test_damage_is_noticed_while_reading(store: BlobStore) -> None:
    store.put(b"hello")
    path = store.path(HELLO)
    path.chmod(0o644)
    path.write_bytes(b"hellO")
    with pytest.raises(IntegrityError, match="damaged"):
        store.read(HELLO)
    path.write_bytes(b"hell")  # a wrong size is noticed at once
    assert store.stat(HELLO) is None
    with pytest.raises(NotFoundError):
        store.open(HELLO)
    assert store.put(b"hello") == HELLO


def test_reading_is_limited(store: BlobStore) -> None:
    store.put(b"hello")
    with pytest.raises(IntegrityError, match="larger"):
        store.read(HELLO, limit=4)


def test_labels(store: BlobStore) -> None:
    store.put(b"hello", labels={"a": "1", "b": "2"})
    store.set_labels(HELLO, {"a": None, "c": "3"})
    info = store.stat(HELLO)
    assert info is not None
    assert dict(info.labels) == {"b": "2", "c": "3"}
    with pytest.raises(NotFoundError):
        store.set_labels(digest_of(b"none"), {})


def test_unowned_blobs_go_after_a_while(store: BlobStore, clock: Clock) -> None:
    kept, loose = store.put(b"kept"), store.put(b"loose")
    store.keep(kept, "record:1")
    store.keep(kept, "record:2")
    assert store.collect(grace_ns=100) == 0
    clock.now += 101
    assert [info.digest for info in store.unused(grace_ns=100)] == [loose]
    assert store.collect(grace_ns=100) == 5
    store.drop("record:1")
    assert store.owners(kept) == ["record:2"]
    assert store.collect(grace_ns=100) == 0
    store.drop("record:2", kept)
    assert store.collect(grace_ns=100) == 4
    assert list(store.walk()) == []
    assert not store.path(kept).exists()


def test_use_prolongs_life(store: BlobStore, clock: Clock) -> None:
    store.put(b"hello")
    clock.now += 10**12
    assert store.stat(HELLO) is not None
    assert store.collect(grace_ns=10**11) == 0


def test_rows_and_files_are_matched_again(store: BlobStore) -> None:
    for data in (b"hello", b"gone", b"short"):
        store.put(data)
    store.path(digest_of(b"gone")).unlink()
    os.truncate(store.path(digest_of(b"short")), 2)
    new = store.path(digest_of(b"new"))
    new.parent.mkdir(exist_ok=True)
    new.write_bytes(b"new")
    assert store.reindex() == (1, 2)
    assert {info.digest for info in store.walk()} == {HELLO, digest_of(b"new")}


def test_a_full_disk_is_an_error_of_its_own() -> None:
    import errno

    err = translated(OSError(errno.ENOSPC, "No space left on device"), "write a blob")
    assert isinstance(err, DiskFullError)
    assert str(err) == "failed to write a blob: No space left on device"


@pytest.mark.root
def test_writing_to_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    try:
        with Root.open(disk / "root") as root:
            with pytest.raises(DiskFullError), root.blobs.writer() as writer:
                for _ in range(64):
                    writer.write(b"x" * 65536)
            assert os.listdir(disk / "root/ingest") == []
            assert root.blobs.put(b"hello") == HELLO
    finally:
        subprocess.run(["umount", str(disk)], check=True)


WRITER = """
import sys
from pathlib import Path
from chantier.store import Root
root = Root.open(Path(sys.argv[1]))
for turn in range(40):
    data = b"%d" % turn * 1000
    with root.blobs.writer(key=f"k{turn}") as writer:
        if not writer.offset:
            writer.write(data)
        writer.commit()
root.close()
"""


def test_two_processes_write_the_same_blobs(tmp_path: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "root")]) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    with Root.open(tmp_path / "root") as root:
        found = {info.digest for info in root.blobs.walk()}
        assert found == {digest_of(b"%d" % turn * 1000) for turn in range(40)} == dict(root.blobs.files()).keys()
        for digest in found:
            root.blobs.read(digest)
