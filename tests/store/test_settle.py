# SPDX-License-Identifier: Apache-2.0
"""What had not reached the disk when the machine went down is found out, and nothing else is given up (docs/adr/0011)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chantier.snapshot import Native
from chantier.spec import Digest, digest_of
from chantier.store import Root, settle


def notes(root: Root) -> set[tuple[str, str]]:
    return {(kind, key) for kind, key in root.db.read("SELECT kind, key FROM store_unsettled")}


def another_boot(root: Root, *keys: str) -> None:
    """As if these had been noted before the machine started."""
    for key in keys:
        with root.db.write() as cursor:
            cursor.execute("UPDATE store_unsettled SET boot = 'before' WHERE key = ?", (key,))
            assert cursor.rowcount == 1


def damage(path: Path) -> None:
    """The right size, but bytes that never came: what a file system leaves of a file whose name it knew already."""
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))


def opened(path: Path) -> tuple[Root, list[str]]:
    said: list[str] = []
    return Root.open(path, warn=said.append), said


def test_a_note_lasts_until_the_disk_has_it(tmp_path: Path) -> None:
    with Root.open(tmp_path) as root:
        first = root.blobs.put(b"one")
        assert notes(root) == {("blob", first)}
        root.settler.now()
        assert not notes(root)
        second = root.blobs.put(b"two")
        assert notes(root) == {("blob", second)}
    with Root.open(tmp_path) as root:
        assert not notes(root)
        assert root.blobs.read(second) == b"two"


def test_many_blobs_and_trees_too(tmp_path: Path) -> None:
    with Root.open(tmp_path) as root:
        for number in range(40):
            root.blobs.put(b"%d" % number)
        root.settler.now()
        assert not notes(root)
        snapshots = Native(root.path, root.db)
        snapshots.prepare("key")
        snapshots.commit("key", "tree")
        assert [kind for kind, _ in notes(root)] == ["snapshot"]
        root.settler.now()
        assert not notes(root)


def test_a_blob_that_was_deleted_meanwhile_does_not_matter(tmp_path: Path) -> None:
    with Root.open(tmp_path) as root:
        digest = root.blobs.put(b"one")
        root.blobs.path(digest).unlink()
        root.settler.now()
        assert not notes(root)


def test_what_is_noted_again_meanwhile_stays(tmp_path: Path) -> None:
    with Root.open(tmp_path) as root:
        digest = root.blobs.put(b"one")
        (last, _, _) = root.unsettled.noted()[-1]
        root.blobs.delete(digest)
        assert not notes(root)
        root.blobs.put(b"one")
        root.unsettled.settled(last)
        assert notes(root) == {("blob", digest)}


def test_the_disk_is_asked_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "SOON_S", 0.01)
    with Root.open(tmp_path) as root:
        for text in (b"one", b"two"):
            root.blobs.put(text)
            root.settler.soon()
            end = time.monotonic() + 60
            while notes(root):
                assert time.monotonic() < end
                time.sleep(0.01)


def test_blobs_of_another_boot_are_read(tmp_path: Path) -> None:
    with Root.open(tmp_path) as root:
        whole, broken, gone, later = [root.blobs.put(text) for text in (b"whole", b"broken", b"gone", b"later")]
        another_boot(root, whole, broken, gone)
        damage(root.blobs.path(broken))
        root.blobs.path(gone).unlink()
        damage(root.blobs.path(later))  # of this boot: the kernel has its bytes, so nobody looks
    root, said = opened(tmp_path)
    with root:
        assert len(said) == 1
        assert "2 blobs had not reached the disk" in said[0]
        assert root.unclean
        assert {info.digest for info in root.blobs.walk()} == {whole, later}
        assert root.blobs.read(whole) == b"whole"
        assert root.blobs.stat(broken) is None
        assert not notes(root)
    root, said = opened(tmp_path)
    with root:
        assert not said


def test_a_file_without_a_row_is_read(tmp_path: Path) -> None:
    """Its row was lost with the machine; or its writer was killed before it could write one."""
    with Root.open(tmp_path) as root:
        whole, broken, asked = [root.blobs.put(text) for text in (b"whole", b"broken", b"asked")]
        with root.db.write() as cursor:
            cursor.execute("DELETE FROM blob")
        damage(root.blobs.path(broken))
        damage(root.blobs.path(asked))
        assert root.blobs.stat(asked) is None
        assert not root.blobs.path(asked).exists()
        assert root.blobs.reindex() == (1, 0)
        assert {info.digest for info in root.blobs.walk()} == {whole}
        assert not root.blobs.path(broken).exists()


def test_snapshots_of_another_boot_go_with_all_on_top_of_them(tmp_path: Path) -> None:
    with Root.open(tmp_path) as root:
        snapshots = Native(root.path, root.db)
        for name, parent in (("base", None), ("lost", "base"), ("above", "lost"), ("beside", "base")):
            snapshots.prepare("key", parent)
            snapshots.commit("key", name)
        snapshots.prepare("active", "above")
        identity = snapshots.upper("lost").parent.name
        another_boot(root, identity)
        assert sorted(snapshots.drop_lost()) == ["above", "active", "lost"]
        assert {info.name for info in snapshots.walk()} == {"base", "beside"}
        assert {key for _, key in notes(root)} == {snapshots.upper(name).parent.name for name in ("base", "beside")}
        left = {entry.name for entry in os.scandir(root.snapshots_dir) if entry.is_dir()}
        assert left == {key for _, key in notes(root)}
        assert snapshots.drop_lost() == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from chantier.store import Root
root = Root.open(Path(sys.argv[1]))
root.blobs.put(b"finished")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_is_killed_leaves_notes_for_the_next(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert done.returncode == -9
    digest: Digest = digest_of(b"finished")
    root, said = opened(tmp_path)
    with root:
        assert not said
        assert notes(root) == {("blob", digest)}
        assert root.blobs.read(digest) == b"finished"
    with Root.open(tmp_path) as root:
        assert not notes(root)
