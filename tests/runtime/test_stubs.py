# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

from chantier.runtime import record

T = 1_000_000_000_000_000_000


def test_empty_stubs_go_and_their_directory_keeps_its_times(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    stubs = record(tmp_path, ["/etc/hosts", "/mnt", "/etc"])
    (tmp_path / "etc/hosts").touch()
    (tmp_path / "mnt").mkdir()
    os.utime(tmp_path / "etc", ns=(T, T + 5))
    stubs.remove()
    info = (tmp_path / "etc").stat()
    assert (info.st_atime_ns, info.st_mtime_ns) == (T, T + 5)
    assert os.listdir(tmp_path) == ["etc"]
    assert os.listdir(tmp_path / "etc") == []


def test_what_was_there_or_was_filled_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    stubs = record(tmp_path, ["/there", "/file", "/directory"])
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory/entry").touch()
    stubs.remove()
    assert sorted(os.listdir(tmp_path)) == ["directory", "file", "there"]


def test_missing_parents_stay_unless_asked_for(tmp_path: Path) -> None:
    plain = record(tmp_path, ["/a/b/c"])
    (tmp_path / "a/b/c").mkdir(parents=True)
    plain.remove()
    assert (tmp_path / "a/b").is_dir()
    assert not (tmp_path / "a/b/c").exists()
    os.removedirs(tmp_path / "a/b")
    tmp_path.mkdir(exist_ok=True)
    recursive = record(tmp_path, ["/a/b/c"], recursive=True)
    (tmp_path / "a/b/c").mkdir(parents=True)
    recursive.remove()
    assert os.listdir(tmp_path) == []


def test_targets_are_found_through_links_that_stay_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "real").mkdir()
    (root / "link").symlink_to("/real")
    (root / "bad").symlink_to(f"../../..{outside}")
    stubs = record(root, ["/link/x", "/bad/y"])
    (root / "real/x").touch()
    (outside / "y").touch()
    stubs.remove()
    assert not (root / "real/x").exists()
    assert (outside / "y").exists()


def test_a_step_that_replaced_the_directory_by_a_link_cannot_redirect_the_removal(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "d").mkdir(parents=True)
    outside.mkdir()
    stubs = record(root, ["/d/stub"])
    (root / "d").rmdir()
    (root / "d").symlink_to(outside)
    (outside / "stub").touch()
    stubs.remove()
    assert (outside / "stub").exists()
