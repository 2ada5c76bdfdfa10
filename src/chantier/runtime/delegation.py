# SPDX-License-Identifier: Apache-2.0
"""Cgroups that were handed to an ordinary user: where those of steps with limits may be made (cgroups(7), cgroup-v2.rst "Delegation").

On v1 that is, for each controller, the group we are in, if it is ours to write to. On v2 it is our own group as systemd's
`Delegate=` gives it: processes may then sit in its leaves only, so we, and those who started us, move to `chantier-engine` in it before
the first group is made. Where others sit there too it is the group above, as user@UID.service has them, with those controllers
that are handed down already: none of them is ours to switch.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from chantier.values import dataclass, field, replace

from .processes import descendants, parent_of
from .types import Container, Resources

CONTROLLERS = ("memory", "cpu", "cpuset")
_LEAF = "chantier-engine"
_ROUNDS = 100  # to empty a group in which processes start processes

_LIMITS = {
    "memory": ("memory", "memory_swap"),
    "cpu": ("cpu_shares", "cpu_period", "cpu_quota"),
    "cpuset": ("cpuset_cpus", "cpuset_mems"),
}
_V1_FIX = "as root make a group in each hierarchy, chown it to the user, and start there (docs/rootless.md)"
_V2_FIX = "systemd-run --user --scope -p Delegate=yes chantier …"
_MORE_FIX = "as root: Delegate=cpu cpuset io memory pids for user@.service (docs/rootless.md)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """`places` are directories below which groups may be made, by controller; `why` and `fix` are of those that have none.

    `every` are those of all hierarchies, `closed` the names of those on v1 in which we may make none: an OCI runtime wants a group
    in each. `settle` is the group on v2 that has to be left first.
    """

    layout: str = "none"  # v1, v2 or none
    places: Mapping[str, Path] = field(default_factory=dict)
    mount: Path = Path("/sys/fs/cgroup")
    every: tuple[Path, ...] = ()
    closed: tuple[str, ...] = ()
    settle: Path | None = None
    why: str = ""
    fix: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in CONTROLLERS if name not in self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mounted:
    point: Path
    root: str
    controllers: tuple[str, ...]  # none for v2


def find(layout: str, *, own: str | None = None, mounts: str | None = None) -> Delegation:
    """What is ours; `layout` is `Host.cgroups`, the texts are those of /proc/self/cgroup and /proc/self/mountinfo. Changes nothing."""
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8") if own is None else own
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape") if mounts is None else mounts
    paths = {names: path for _, names, path in (line.split(":", 2) for line in own.splitlines())}
    mounted = _mounted(mounts)
    if layout == "v2":
        return _find_v2(paths.get("", "/"), [mount for mount in mounted if not mount.controllers])
    if layout in ("v1", "hybrid"):
        return _find_v1(paths, [mount for mount in mounted if mount.controllers])
    return Delegation(why="no cgroups are mounted", fix="mount cgroup2 on /sys/fs/cgroup")


def _mounted(text: str) -> list[_Mounted]:
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            fields = before.split(" ")
            names = tuple(word for word in options.split(",") if word not in ("rw", "ro", "xattr", "noprefix", "clone_children"))
            names = tuple(word for word in names if "=" not in word or word.startswith("name="))
            found.append(_Mounted(point=Path(fields[4]), root=fields[3], controllers=names if kind == "cgroup" else ()))
    return found


def _place(mount: _Mounted, path: str) -> Path | None:
    """Where a group is to be found in what is mounted; None if that shows another part of the tree."""
    root = mount.root.rstrip("/")
    if ".." in path.split("/") or (path != root and not path.startswith(root + "/")):
        return None
    return mount.point / path[len(root) :].lstrip("/")


def _find_v1(paths: Mapping[str, str], mounted: Sequence[_Mounted]) -> Delegation:
    given: dict[str, Path] = {}
    every, closed = [], []
    for mount in mounted:
        path = next((path for names, path in paths.items() if set(names.split(",")) & set(mount.controllers)), "")
        place = _place(mount, path)
        if place is None or not os.access(place, os.W_OK):
            closed += [name for name in mount.controllers if "=" not in name]  # of systemd's own none is wanted
            continue
        every.append(place)
        given |= dict.fromkeys(mount.controllers, place)
    places = {name: given[name] for name in CONTROLLERS if name in given}
    missing = ", ".join(name for name in CONTROLLERS if name not in places)
    why = f"the groups of this process are not its user's to write to ({missing})" if missing else ""
    return Delegation(
        layout="v1", places=places, every=tuple(every), closed=tuple(closed), why=why, fix=_V1_FIX if missing else ""
    )


def _find_v2(path: str, mounted: Sequence[_Mounted]) -> Delegation:
    for mount in mounted:
        own = _place(mount, path)
        if own is None:
            continue
        others = False
        if _is_ours(own):
            others = not _only_ours(own)
            if not others:
                return _with_v2(own, mount.point, _words(own / "cgroup.controllers"), settle=own)
        if own != mount.point and _is_ours(own.parent):
            found = _with_v2(own.parent, mount.point, _words(own.parent / "cgroup.subtree_control"))
            if found.places:
                return found
        if others:
            return Delegation(layout="v2", mount=mount.point, why=f"other processes are in the cgroup {path}, too", fix=_V2_FIX)
        return Delegation(layout="v2", mount=mount.point, why=f"the cgroup {path} is not delegated to this user", fix=_V2_FIX)
    return Delegation(layout="v2", why=f"the cgroup {path} is not to be seen here", fix="mount cgroup2 on /sys/fs/cgroup")


def _with_v2(place: Path, mount: Path, controllers: Sequence[str], *, settle: Path | None = None) -> Delegation:
    places = {name: place for name in CONTROLLERS if name in controllers}
    missing = ", ".join(name for name in CONTROLLERS if name not in places)
    why = f"not handed down to {place}: {missing}" if missing else ""
    return Delegation(
        layout="v2", places=places, every=(place,), mount=mount, settle=settle, why=why, fix=_MORE_FIX if missing else ""
    )


def _is_ours(group: Path) -> bool:
    return all(os.access(path, os.W_OK) for path in (group, group / "cgroup.procs", group / "cgroup.subtree_control"))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except OSError:  # the group has ended, or the kernel knows no such file for it
        return []


def _only_ours(group: Path) -> bool:
    """Whether all processes of a group are us, those who started us, and what these have started."""
    present = {int(word) for word in _words(group / "cgroup.procs")}
    top = os.getpid()
    with suppress(OSError):  # it has just ended
        while (parent := parent_of(top)) in present:
            top = parent
    return present <= {top, *descendants(top)}


# Making use of it.

_lock = threading.Lock()
_settled: dict[str, Delegation] = {}


def settle(layout: str) -> Delegation:
    """`find`, once in a process, and what has to be done before groups are made. Any thread."""
    with _lock:
        if layout not in _settled:
            found = find(layout)
            _settled[layout] = _leave(found) if found.settle is not None else found
        return _settled[layout]


def _leave(found: Delegation) -> Delegation:
    """Empty our group, and hand its controllers down."""
    assert found.settle is not None
    group = found.settle
    handle = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # several engines may have been started here
        (group / _LEAF).mkdir(exist_ok=True)
        for _ in range(_ROUNDS):
            present = _words(group / "cgroup.procs")
            if not present:
                break
            for pid in present:
                with suppress(ProcessLookupError):  # ended meanwhile
                    (group / _LEAF / "cgroup.procs").write_text(pid, encoding="ascii")
        for name in found.places:
            with suppress(OSError):  # left out below, by name
                (group / "cgroup.subtree_control").write_text(f"+{name}", encoding="ascii")
    except OSError as err:
        return replace(found, places={}, why=f"the cgroup {group} cannot be divided: {err.strerror}", fix=_V2_FIX)
    finally:
        os.close(handle)
    return _with_v2(group, found.mount, _words(group / "cgroup.subtree_control"))


def fit(container: Container, found: Delegation, *, everywhere: bool = False) -> tuple[Container, str]:
    """The container with those of its limits that can be set, and what is to be said of the others, "" if nothing.

    `everywhere`: the runtime makes a group in every hierarchy of v1, or none.
    """
    places = {} if everywhere and found.closed else found.places
    lost = {
        name: getattr(Resources(), name)
        for controller, names in _LIMITS.items()
        if controller not in places
        for name in names
        if getattr(container.resources, name)
    }
    names = [name.replace("_", "-") for name in lost]
    resources = replace(container.resources, **lost) if lost else container.resources
    parent = container.cgroup_parent
    if parent and not places:
        names, parent = [*names, "cgroup-parent"], ""
    if not names:
        return container, ""
    why = found.why or f"this runtime wants a group in every hierarchy: {', '.join(found.closed)}"
    text = f"WARNING: limits without effect: {', '.join(names)}: {why}"
    return replace(container, resources=resources, cgroup_parent=parent), f"{text}; {found.fix or _V1_FIX}\n"


def is_limited(container: Container) -> bool:
    """Whether a container needs groups of its own."""
    return container.resources != Resources() or bool(container.cgroup_parent)


__all__ = ["CONTROLLERS", "Delegation", "find", "fit", "is_limited", "settle"]
