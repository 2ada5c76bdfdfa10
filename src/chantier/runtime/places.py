# SPDX-License-Identifier: Apache-2.0
"""Directories that belong to one process, so that another can tell what a dead one left behind.

EXECUTOR/
  OWNER/            one a live process and use, flock'ed as long as it lives
    lock
    runtime         the OCI runtime's binary, if containers run from here
    state/ID        the runtime's own state
    ID/             a container's bundle, or a step's mounts and files
  OWNER/groups/ID   cgroups of a container that lie where only its engine knows, a line each
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from chantier.kernel import MNT_DETACH, MS_NODEV, MS_NOSUID, UMOUNT_NOFOLLOW, mount, umount
from chantier.spec import new_id

from .processes import kill_those

_AT = "at"
_STATE = "state"
_GROUPS = "groups"
_DELETE_S = 30.0
_DYING, _DYING_S = 500, 0.01  # how often, and after which pause, a group is tried to be removed
_PAUSES_S = (0.01, 0.05, 0.2, 0.5, 0.0)


class Places:
    """Directories below `root` owned by this process until `close`. Any thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._owner: Path | None = None
        self._lock = -1
        self._claiming = threading.Lock()

    @property
    def owner(self) -> Path:
        """This process's directory, made and locked at first use."""
        with self._claiming:
            if self._owner is None:
                self._claim()
            assert self._owner is not None
            return self._owner / _AT

    def _claim(self) -> None:
        self._owner, self._lock = claim(self.root, lambda owner: _make_in_memory(owner / _AT))

    def new(self, name: str) -> Path:
        """An empty directory; its parents can be passed through by others, as a container's user may have to."""
        path = self.owner / name
        path.mkdir(mode=0o711)
        path.chmod(0o711)  # whatever the umask
        return path

    def note_groups(self, id: str, groups: Sequence[Path]) -> None:
        """What `recover` has to remove if we are killed: cgroups that it would not find. An ordinary user's are wherever he was."""
        noted = self.owner.parent / _GROUPS
        noted.mkdir(mode=0o700, exist_ok=True)
        (noted / id).write_text("".join(f"{group}\n" for group in groups), encoding="utf-8", errors="surrogateescape")

    def end_noted(self, id: str) -> None:
        """Kill what runs in the groups that were noted, and remove them."""
        _end_noted(self.owner.parent / _GROUPS / id)

    def forget_groups(self, id: str) -> None:
        """They are gone."""
        (self.owner.parent / _GROUPS / id).unlink(missing_ok=True)

    def close(self) -> None:
        """Give the directory up and remove it; whatever is still mounted in it is unmounted."""
        if self._owner is None:
            return
        clear_owner(self._owner)
        self._owner = None
        os.close(self._lock)


def claim(root: Path, prepare: Callable[[Path], None] = lambda owner: None) -> tuple[Path, int]:
    """A new owner's directory below `root`, and the descriptor that holds its lock; `prepare` gets it once it is ours."""
    root.mkdir(mode=0o711, parents=True, exist_ok=True)
    while True:
        owner = root / new_id()[:12]
        owner.mkdir(mode=0o711)
        with suppress(FileNotFoundError):  # a recover() took it for a dead one's before we held the lock
            fd = os.open(owner / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.exists(owner / "lock"):
                prepare(owner)
                return owner, fd
            os.close(fd)


def _make_in_memory(directory: Path) -> None:
    directory.mkdir(mode=0o711)
    directory.chmod(0o711)  # whatever the umask
    with suppress(PermissionError):  # no mounts for us here: then it lies on the disk, and containers will say why not
        mount("tmpfs", os.fspath(directory), "tmpfs", MS_NOSUID | MS_NODEV, "mode=0711")


def recover(root: Path, clear: Callable[[Path], None] | None = None) -> list[str]:
    """End and remove what dead processes left below `root`: containers, mounts, cgroups, files. Returns their names.

    Safe while other processes work there: what is locked is left alone. `clear` removes one owner's directory.
    """
    found: list[str] = []
    if not root.is_dir():
        return found
    for owner in sorted(root.iterdir()):
        if not owner.is_dir() or owner.is_symlink():
            continue
        try:
            fd = os.open(owner / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # just removed by its owner
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A runtime that was still starting a container when its engine died has told nobody of it.
            kill_those("cmdline", (os.fsencode(owner / _AT / _STATE),))
            (clear or clear_owner)(owner)
            found.append(owner.name)
        except BlockingIOError:  # its owner lives
            continue
        finally:
            os.close(fd)
    return found


def clear_owner(owner: Path) -> None:
    """Remove an owner's directory with all that hangs on it."""
    _end_containers(owner)
    for pause_s in _PAUSES_S:
        # Each time: the kernel's table of mounts may miss one while others mount and unmount.
        unmount_below(owner)
        shutil.rmtree(owner, ignore_errors=True)  # what stays is tried again by the next recover()
        if not owner.exists():
            return
        time.sleep(pause_s)  # a runtime whose container we have just ended may be writing its last line


def _end_containers(owner: Path) -> None:
    at = owner / _AT
    names = [entry.name for entry in at.iterdir() if entry.is_dir() and entry.name != _STATE] if at.is_dir() else []
    binary = _text(at / "runtime")
    state = at / _STATE
    left = sorted(entry.name for entry in state.iterdir()) if state.is_dir() else []
    for name in left:
        if binary:
            command = [binary, "--root", str(state), "delete", "--force", name]
            with suppress(OSError, subprocess.TimeoutExpired):  # the cgroup is emptied below whatever becomes of this
                subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_DELETE_S, check=False)
    for name in {*names, *left}:
        end_cgroup(name)
    noted = owner / _GROUPS
    for file in noted.iterdir() if noted.is_dir() else ():
        _end_noted(file)


def _end_noted(file: Path) -> None:
    end_groups([Path(line) for line in _text(file).splitlines() if line.startswith("/")])


def end_cgroup(name: str) -> None:
    """Kill what runs in a container's cgroups and remove them; nothing if there are none."""
    end_groups([base / "buildkit" / name for base in cgroup_roots()])


def end_groups(groups: Sequence[Path]) -> None:
    """Kill what runs in some cgroups, and in those below them, and remove them; nothing of one that is not there."""
    for group in groups:
        for directory, _, _ in os.walk(group, topdown=False):  # a privileged step may have made some below its own
            _end_group(Path(directory))


def _end_group(group: Path) -> None:
    for _ in range(_DYING):
        for pid in _text(group / "cgroup.procs").split():  # each time: one may have forked while it was killed
            with suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            group.rmdir()
        except OSError as err:
            if err.errno == errno.EBUSY:  # what was killed is counted until it is gone
                time.sleep(_DYING_S)
                continue
        break


def cgroup_roots() -> list[Path]:
    """Where cgroup hierarchies are mounted."""
    base = Path("/sys/fs/cgroup")
    if (base / "cgroup.controllers").exists():
        return [base]
    return [entry for entry in base.iterdir() if entry.is_dir() and not entry.is_symlink()] if base.is_dir() else []


def unmount_below(directory: Path) -> None:
    """Detach every mount at or below a directory, the last one made first (proc_pid_mountinfo(5))."""
    prefix = os.fsencode(directory.resolve()) + b"/"
    points = []
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            point = line.split(b" ")[4].decode("unicode_escape").encode("latin-1")
            if (point + b"/").startswith(prefix):
                points.append(point)
    for point in reversed(points):
        with suppress(OSError):  # gone meanwhile, or busy in a way even a lazy unmount refuses
            umount(os.fsdecode(point), MNT_DETACH | UMOUNT_NOFOLLOW)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:  # not there, or a cgroup that ended
        return ""


__all__ = ["Places", "claim", "clear_owner", "recover", "unmount_below"]
