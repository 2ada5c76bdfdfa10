# SPDX-License-Identifier: Apache-2.0
"""Each kind of damage is found, and repaired without more loss than the damage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cache_parts import Home

from chantier.cache.check import check
from chantier.cache.repair import repair
from chantier.snapshot import Overlay
from chantier.store import Root, settle

pytestmark = pytest.mark.root


def made(home: Home) -> dict[str, str]:
    """Three records, one on the other, packed; and one beside them."""
    base = home.step(None, {"a": "1"})
    middle = home.step(base, {"b": "2"})
    top = home.step(middle, {"c": "3"})
    other = home.step(None, {"o": "4"})
    for ref in (top, other):
        ref.layers()
    ids = {"base": base.id, "middle": middle.id, "top": top.id, "other": other.id}
    for ref in (base, middle, top, other):
        ref.release()
    return ids


def snapshot_dir(home: Home, id: str) -> Path:
    name = home.cache.records.get(id).snapshot or ""
    return Path(home.cache.snapshots.layers(name)[0]).parent


def lose_tree(home: Home, ids: dict[str, str]) -> None:
    shutil.rmtree(snapshot_dir(home, ids["middle"]))


def lose_tree_and_blob(home: Home, ids: dict[str, str]) -> None:
    lose_tree(home, ids)
    (blob,) = home.cache.records.blobs(ids["middle"])
    home.cache.blobs.path(blob.descriptor.digest).unlink()


def damage_blob(home: Home, ids: dict[str, str]) -> None:
    (blob,) = home.cache.records.blobs(ids["other"])
    path = home.cache.blobs.path(blob.descriptor.digest)
    os.chmod(path, 0o600)
    path.write_bytes(os.urandom(path.stat().st_size))


def truncate_blob(home: Home, ids: dict[str, str]) -> None:
    (blob,) = home.cache.records.blobs(ids["other"])
    os.truncate(home.cache.blobs.path(blob.descriptor.digest), 3)


def stray_file(home: Home, ids: dict[str, str]) -> None:
    path = home.cache.blobs.path("sha256:" + "0" * 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"what is this")


def stray_directory(home: Home, ids: dict[str, str]) -> None:
    (home.path / "snapshots/stray/fs").mkdir(parents=True)


def lose_parent(home: Home, ids: dict[str, str]) -> None:
    with home.cache.db.write() as cursor:
        cursor.execute("DELETE FROM cache_record WHERE id = ?", (ids["base"],))


def lose_owner(home: Home, ids: dict[str, str]) -> None:
    with home.cache.db.write() as cursor:
        cursor.execute("DELETE FROM blob_owner WHERE owner = ?", (f"record:{ids['other']}",))


def orphan_rows(home: Home, ids: dict[str, str]) -> None:
    with home.cache.db.write() as cursor:
        cursor.execute("INSERT INTO cache_meta VALUES ('nobody', 'k', x'00')")
        cursor.execute("INSERT INTO blob_owner VALUES ('sha256:1', 'record:nobody2')")


def dead_hold(home: Home, ids: dict[str, str]) -> None:
    with home.cache.db.write() as cursor:
        cursor.execute("INSERT INTO store_hold VALUES ('dead', '', 'record', ?)", (ids["other"],))


DAMAGE: list[tuple[Callable[[Home, dict[str, str]], None], set[str]]] = [
    (lose_tree, set()),
    (lose_tree_and_blob, {"middle", "top"}),
    (damage_blob, set()),
    (truncate_blob, set()),
    (stray_file, set()),
    (stray_directory, set()),
    (lose_parent, {"base", "middle", "top"}),
    (lose_owner, set()),
    (orphan_rows, set()),
    (dead_hold, set()),
]


@pytest.mark.parametrize(("harm", "lost"), DAMAGE, ids=[harm.__name__ for harm, _ in DAMAGE])
def test_damage(home: Home, harm: Callable[[Home, dict[str, str]], None], lost: set[str]) -> None:
    ids = made(home)
    harm(home, ids)
    home.close()
    with Root.open(home.path, warn=lambda _text: None) as root:
        snapshots = Overlay(home.path, root.db)
        found, left = repair(root, snapshots, deep=True)
        assert left == []
        if harm not in (stray_file, stray_directory, dead_hold, truncate_blob):  # opening the root sees to these
            assert found, "the damage was not seen"
        assert check(root, snapshots, deep=True) == []
    again = Home(home.path)
    try:
        assert {name for name, id in ids.items() if not again.cache.exists(id)} == lost
        for name, id in ids.items():
            if name not in lost:
                with again.cache.get(id) as ref:
                    ref.mounts()
                    ref.layers()
    finally:
        again.close()


def test_a_tree_that_did_not_reach_the_disk_is_forgotten(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine went down: the pulled layer is unpacked again, the step's result is gone, what was settled stays."""
    monkeypatch.setattr(settle, "SOON_S", 3600.0)
    image = home.image({"a": "a"})
    image.realise()
    settled = home.step(image, {"b": "b"})
    home.root.settler.now()
    lost = home.step(settled, {"c": "c"})
    other = home.image({"x": "x"})
    other.realise()
    torn = [home.snapshots.upper(str(ref.record.snapshot)).parent.name for ref in (lost, other)]
    for ref in (image, settled, lost, other):
        ref.release()
    ids = image.id, settled.id, lost.id, other.id
    with home.root.db.write() as cursor:
        cursor.execute("UPDATE store_unsettled SET boot = 'before'")
        assert cursor.rowcount >= 2
    again = home.reopen()
    try:
        assert not any((again.root.snapshots_dir / name).exists() for name in torn)
        assert check(again.root, again.snapshots) == []
        assert [again.cache.records.find(id) is not None for id in ids] == [True, True, False, True]
        for id, want in zip(ids, ({"a": "a"}, {"a": "a", "b": "b"}, None, {"x": "x"}), strict=True):
            if want is not None:
                ref = again.cache.get(id)
                assert again.tree(ref) == want
                ref.release()
    finally:
        again.close()
