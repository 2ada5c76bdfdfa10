# SPDX-License-Identifier: Apache-2.0
"""Directories and files for a while: nothing stays of those whose owners are killed, and nobody takes a live one's away."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chantier import kernel
from chantier.kernel import temporary
from chantier.kernel.mounts import mount_points, remove_unmounted
from chantier.kernel.temporary import NewFile, TemporaryDirectory, write_whole

_OWNER = """
import sys
from pathlib import Path
from chantier.kernel.temporary import TemporaryDirectory
made = TemporaryDirectory("held", base=sys.argv[1])
Path(made.name, "file").write_text("data")
print(made.name, flush=True)
sys.stdin.read()
"""

_CHURN = """
import sys
from chantier.kernel.temporary import TemporaryDirectory
print("go", flush=True)
while True:
    with TemporaryDirectory("churn", base=sys.argv[1]) as name:
        open(name + "/file", "w").close()
"""


@contextmanager
def child(program: str, base: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def place(base: Path) -> Path:
    return base / f"chantier-{os.geteuid()}"


def test_nothing_stays_of_one_that_ends_in_order(tmp_path: Path) -> None:
    with TemporaryDirectory("kind", base=tmp_path) as name, TemporaryDirectory("kind", base=tmp_path) as other:
        assert Path(name).parent == Path(other).parent == place(tmp_path)
        assert Path(name).name.startswith("kind-")
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o700
    assert os.listdir(tmp_path) == []


def test_what_the_dead_left_goes_with_the_next_and_what_the_living_have_stays(tmp_path: Path) -> None:
    with child(_OWNER, tmp_path) as (living, mine), child(_OWNER, tmp_path) as (dead, left):
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert Path(left, "file").read_text() == "data"
        with TemporaryDirectory("next", base=tmp_path):
            assert not os.path.exists(left)
            assert Path(mine, "file").read_text() == "data"
        assert living.stdin is not None
        living.stdin.close()
        assert living.wait(60) == 0  # which it leaves to the interpreter's end
    assert os.listdir(place(tmp_path)) == []


def test_killed_at_any_time_beside_others(tmp_path: Path) -> None:
    with child(_CHURN, tmp_path) as (steady, _):
        for _ in range(10):
            with child(_CHURN, tmp_path):
                with TemporaryDirectory("here", base=tmp_path) as name:
                    (Path(name) / "file").touch()
        assert steady.poll() is None  # it never met a place or a directory that had been taken away
    with TemporaryDirectory("last", base=tmp_path) as name:
        assert os.listdir(place(tmp_path)) == [os.path.basename(name)]
    assert os.listdir(tmp_path) == []


def test_many_threads(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                with TemporaryDirectory("thread", base=tmp_path) as name:
                    Path(name, "file").touch()
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["link", "open to all", "file"])
def test_a_place_that_cannot_be_ours_is_not_used(tmp_path: Path, what: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "precious").mkdir(parents=True)
    base = tmp_path / "base"
    base.mkdir()
    if what == "link":
        place(base).symlink_to(elsewhere)
    elif what == "open to all":
        place(base).mkdir()
        place(base).chmod(0o777)
    else:
        place(base).touch()
    with TemporaryDirectory("kind", base=base) as name:
        assert Path(name).parent == base
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o700
    assert os.listdir(base) == [place(base).name]
    assert (elsewhere / "precious").is_dir()


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        TemporaryDirectory("kind", base=tmp_path / "missing")


@pytest.mark.root
def test_what_the_dead_had_mounted_is_not_deleted_through(tmp_path: Path) -> None:
    user = tmp_path / "user"
    user.mkdir()
    (user / "file").write_text("precious")
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path)
    with child(_OWNER, linked) as (dead, left):
        at = Path(left, "at")
        at.mkdir()
        kernel.bind(str(user), str(at))
        dead.kill()
        dead.wait()
    assert mount_points(linked) == [str(place(tmp_path) / Path(left).name / "at")]
    with TemporaryDirectory("next", base=linked):
        assert not os.path.exists(left)
    assert mount_points(tmp_path) == []
    assert (user / "file").read_text() == "precious"


def test_a_tree_that_is_very_deep_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert remove_unmounted(top)
    assert not top.exists()


# Files


@pytest.fixture(params=["without a name", "with one of its own"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The second is what file systems without O_TMPFILE have, as overlayfs before Linux 6.1."""
    if request.param == "with one of its own":
        real: Callable[..., int] = os.open

        def refusing(path: object, flags: int, *args: object, **more: object) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return real(path, flags, *args, **more)

        monkeypatch.setattr(temporary.os, "open", refusing)
    return str(request.param)


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path, how: str) -> None:
    target = tmp_path / "out"
    for number in range(2):
        file = NewFile(target)
        kernel.write_all(file.fd, b"%d" % number)
        assert [name for name in os.listdir(tmp_path) if not name.startswith(".out.")] == ["out"][:number]
        if how == "without a name":
            assert os.listdir(tmp_path) == ["out"][:number]
        file.take()
        assert target.read_bytes() == b"%d" % number
        assert os.listdir(tmp_path) == ["out"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


def test_a_file_that_is_given_up(tmp_path: Path, how: str) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    file = NewFile(target)
    kernel.write_all(file.fd, b"new")
    file.drop()
    file.drop()
    assert target.read_text() == "old"
    (tmp_path / "directory/in").mkdir(parents=True)
    file = NewFile(tmp_path / "directory")
    with pytest.raises(IsADirectoryError):
        file.take()
    assert sorted(os.listdir(tmp_path)) == ["directory", "out"]
    with pytest.raises(FileNotFoundError):
        NewFile(tmp_path / "missing/out")


def test_write_whole(tmp_path: Path, how: str) -> None:
    umask = os.umask(0o077)
    try:
        write_whole(tmp_path / "exact", b"x" * 300_000, mode=0o644, exact=True, sync=True)
        write_whole(tmp_path / "cut", b"y", mode=0o644)
    finally:
        os.umask(umask)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("exact", "cut")] == [0o644, 0o600]
    assert (tmp_path / "exact").read_bytes() == b"x" * 300_000
