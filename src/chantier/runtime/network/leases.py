# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that belong to one process, with a note of what connects each: what a dead process left can be undone.

NET/
  OWNER/            one a live process, flock'ed as long as it lives
    lock
    ID              the namespace, bind mounted
    ID.json         {"kind": the provider, "state": what undoes it, "tries": failed attempts to undo it}

The note is written before the namespace is connected and removed after it was disconnected. It lies on the disk: the state
directory may outlive the mount namespace of its owner, as that of a container that is started again, and addresses outlive
the namespaces they were given to.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from chantier import kernel
from chantier.errors import ChantierError, UnsupportedError
from chantier.runtime import places
from chantier.runtime.processes import kill_those
from chantier.spec import new_id
from chantier.values import dataclass

_log = logging.getLogger(__name__)
_TRIES = 5


class Provider(Protocol):
    """Connects namespaces. Any thread, several at once."""

    kind: str

    def attach(self, lease: Lease, hostname: str) -> None:
        """Connect a namespace, whose loopback is up. What undoes it is noted before it is done. Raises what went wrong."""

    def check(self, lease: Lease) -> None:
        """Raises ChantierError if a namespace that was connected some time ago is connected no more."""

    def close(self) -> None:
        """When no namespace of this process is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One namespace. `path` is what `Container.network` takes."""

    id: str
    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(self.id + ".json")

    def noted(self) -> dict[str, Any]:
        """{} if nothing has to be undone."""
        try:
            found = json.loads(self.note.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # ValueError: a machine that lost power; what it was connected to is gone too
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, kind: str, state: Mapping[str, Any], tries: int = 0) -> None:
        """Note what undoes the connection."""
        fresh = self.note.with_suffix(".new")
        fresh.write_text(json.dumps({"kind": kind, "state": dict(state), "tries": tries}), encoding="utf-8")
        os.replace(fresh, self.note)

    @property
    def namespace(self) -> str:
        """`path`, or "" if there is no namespace any more."""
        try:
            return str(self.path) if self.path.stat().st_dev != self.path.parent.stat().st_dev else ""
        except FileNotFoundError:
            return ""


class Leases:
    """The namespaces of this process below `root` (ROOT/net). Any thread."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._owner, self._lock = places.claim(root)

    def new(self) -> Lease:
        """A namespace with nothing but its loopback interface, which is up. Raises UnsupportedError."""
        id = new_id()
        lease = Lease(id=id, path=self._owner / id)
        lease.path.touch(mode=0o444, exist_ok=False)
        try:
            kernel.apart(lambda: _make(lease.path))
        except OSError as err:
            self.drop(lease)
            raise UnsupportedError(
                f"failed to make a network namespace: {err.strerror}",
                hint="builders in a container need CAP_SYS_ADMIN; networkMode host in [worker.oci] needs no namespaces",
            ) from err
        return lease

    def drop(self, lease: Lease) -> None:
        """Disconnect and remove a namespace. What could not be disconnected keeps its note, for the next recover()."""
        undo(lease)

    def close(self) -> None:
        """Give up ownership. Notes that are left are the next recover()'s."""
        left = [entry for entry in self._owner.iterdir() if entry.name != "lock"]
        if not left:
            _remove(self._owner)
        os.close(self._lock)


def _make(path: Path) -> None:
    """In a thread of its own."""
    kernel.unshare(kernel.CLONE_NEWNET)
    with kernel.Rtnetlink() as inner:
        loopback = inner.link("lo")
        assert loopback is not None
        inner.set_up(loopback.index)
    kernel.mount("/proc/thread-self/ns/net", os.fspath(path), None, kernel.MS_BIND)


def inside(path: str, call: Callable[[], Any]) -> Any:
    """`call` in a thread that is in the namespace."""

    def body() -> Any:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(fd, kernel.CLONE_NEWNET)
        finally:
            os.close(fd)
        return call()

    return kernel.apart(body)


def undo(lease: Lease) -> bool:
    """Disconnect and remove; whether nothing is left. Done again it does what is left to do."""
    noted = lease.noted()
    done = not noted or _detached(lease, noted)
    with suppress(OSError):  # not mounted
        kernel.umount(os.fspath(lease.path), kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
    with suppress(OSError):  # gone, or still mounted: the next recover() takes it
        lease.path.unlink(missing_ok=True)
    if done:
        lease.note.unlink(missing_ok=True)
        lease.note.with_suffix(".new").unlink(missing_ok=True)
    return done


def _detached(lease: Lease, noted: Mapping[str, Any]) -> bool:
    from . import bridge, cni, usermode

    detach = {"bridge": bridge.detach, "cni": cni.detach}.get(noted["kind"], usermode.detach)
    try:
        detach(lease, noted["state"])
        return True
    except (ChantierError, OSError) as err:
        tries = int(noted.get("tries", 0)) + 1
        said = "tried again at the next start" if tries < _TRIES else "given up: its address may stay taken"
        _log.warning("network namespace %s was not disconnected, %s: %s", lease.id[:12], said, err)
        if tries >= _TRIES:
            return True
        lease.write(noted["kind"], noted["state"], tries)
        return False


def recover(root: Path) -> list[str]:
    """Disconnect and remove the namespaces of dead processes. Returns the owners' names. Safe while others work there."""
    return places.recover(root, _clear)


def _clear(owner: Path) -> None:
    names = {entry.name.partition(".")[0] for entry in owner.iterdir() if entry.name != "lock"}
    # A plugin that outlived the engine would connect the namespace after it was disconnected here.
    kill_those("environ", [b"CNI_CONTAINERID=" + os.fsencode(name) for name in names])
    undone = [undo(Lease(id=name, path=owner / name)) for name in sorted(names)]
    if all(undone):
        _remove(owner)


def _remove(owner: Path) -> None:
    (owner / "lock").unlink(missing_ok=True)
    with suppress(OSError):  # a namespace that is still mounted, or a file cut off while it was written
        owner.rmdir()


__all__ = ["Lease", "Leases", "Provider", "inside", "recover"]
