# SPDX-License-Identifier: Apache-2.0
"""Snapshots as layers of fuse-overlayfs: for an ordinary user whose kernel refuses an overlay of its own.

One process of fuse-overlayfs a mount serves it, at the price of a turn through it for every file that is opened. Its layers are
kept as the kernel's overlay would have them: what it writes otherwise (`.wh.NAME` files, its own attributes) is put into that
form once a snapshot is committed, so everything that reads layers reads one form, and a state may change its snapshotter.

    engine --- guard (a shell) --- fuse-overlayfs

The guard waits for the end of a pipe from us: if we are killed it unmounts, and the server of the file system ends.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from chantier import kernel
from chantier.errors import StoreError

from .mount import Mount
from .names import KEEP, probe_directory
from .overlay import Overlay, overlay_options

PROGRAM = "fuse-overlayfs"
_PREFIX = b".wh."
_OPAQUE_FILES = (b".wh..wh..opq", b".wh..opq")
_THEIRS = "user.fuseoverlayfs."
_THEIR_OPAQUE = "user.fuseoverlayfs.opaque"
_LAYERS = ("lowerdir", "upperdir", "workdir")
_STOP_S = 10.0

# Arguments: the mount point, then the command that mounts and leaves a server behind.
_GUARD = """
target=$1; shift
said=$("$@" 2>&1 </dev/null) || { printf '%s\\n' "$said"; exit 1; }
echo mounted
read -r line && exit 0
umount -l "$target"
"""


class FuseOverlay(Overlay):
    """As `Overlay`, mounted by a program. It must be in PATH, and /dev/fuse must be there for us."""

    def mounts(self, name: str, *, readonly: bool = True, durable: bool = True) -> tuple[Mount, ...]:
        theirs = set(overlay_options())
        return tuple(
            Mount(PROGRAM, PROGRAM, tuple(word for word in mount.options if word not in theirs))
            if mount.type == "overlay"
            else mount
            for mount in super().mounts(name, readonly=readonly)
        )

    def commit(self, key: str, name: str, *, parent: str | None = KEEP) -> None:
        if not self.info(key).committed:
            normalise(self.upper(key))
        super().commit(key, name, parent=parent)


def normalise(upper: Path) -> None:
    """Give a layer that fuse-overlayfs has written the form of the kernel's overlay. Costs a walk; safe to repeat."""
    todo = [os.fsencode(upper)]
    while todo:
        here = todo.pop()
        info = os.lstat(here)
        names = os.listdir(here)
        opaque = _is_their_opaque(here)
        for name in names:
            path = here + b"/" + name
            if name in _OPAQUE_FILES:
                opaque = True
                os.unlink(path)
            elif name.startswith(_PREFIX):
                os.unlink(path)
                hidden = here + b"/" + name[len(_PREFIX) :]
                if not os.path.lexists(hidden):
                    kernel.mknod(hidden, stat.S_IFCHR, kernel.WHITEOUT_DEV)
            else:
                _drop_their_attributes(path)
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    todo.append(path)
        if opaque:
            kernel.set_xattr(here, _opaque_name(), b"y")
        _drop_their_attributes(here)
        kernel.utimens(here, info.st_atime_ns, info.st_mtime_ns)


def _opaque_name() -> str:
    return "user.overlay.opaque" if kernel.in_user_namespace() else "trusted.overlay.opaque"


def _is_their_opaque(directory: bytes) -> bool:
    return kernel.get_xattr(directory, _THEIR_OPAQUE) == b"y"


def _drop_their_attributes(path: bytes) -> None:
    for name in kernel.list_xattrs(path):
        if name.startswith(_THEIRS):
            kernel.remove_xattr(path, name)


_guards: dict[str, list[subprocess.Popen[str]]] = {}
_lock = threading.Lock()


def mount_fuse(target: str, options: Sequence[str]) -> None:
    """Start a server and wait until it has mounted. StoreError with what it says if it has not."""
    named = dict.fromkeys(_LAYERS, "")
    others = []
    for option in options:
        key, equals, value = option.partition("=")
        if equals and key in named:
            named[key] = value
        else:
            others.append(option)
    layers = [os.path.realpath(path) for path in kernel.split_lowers(named["lowerdir"])]
    upper, work = (kernel.split_lowers(named[key])[0] for key in ("upperdir", "workdir"))
    # Relative names: shorter, and nothing in them has to be escaped, whatever the state's own path holds.
    base = os.path.commonpath([*(os.path.dirname(layer) for layer in layers), *([os.path.dirname(upper)] if upper else [])])
    words = ["lowerdir=" + ":".join(os.path.relpath(layer, base) for layer in layers)]
    if upper:
        words += [f"upperdir={os.path.relpath(upper, base)}", f"workdir={os.path.relpath(work, base)}"]
    # libfuse mounts with nosuid and nodev unless it is told; steps have setuid programs.
    command = [PROGRAM, "-o", ",".join([*words, "suid", "dev", *others]), os.path.abspath(target)]
    try:
        guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "chantier-fuse", os.path.abspath(target), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=base,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )
    except OSError as err:
        raise StoreError(f"failed to start {PROGRAM}: {err.strerror}") from err
    assert guard.stdout is not None
    said = guard.stdout.readline()
    if said != "mounted\n":
        said += guard.communicate()[0]
        raise StoreError(f"failed to mount {PROGRAM} at {target}: {' '.join(said.split()) or 'no reason given'}")
    guard.stdout.close()
    with _lock:
        _guards.setdefault(os.path.abspath(target), []).append(guard)


def release(target: str) -> None:
    """After the mount is gone: its guard goes too. Nothing for a mount that is not ours."""
    with _lock:
        guards = _guards.get(os.path.abspath(target))
        guard = guards.pop() if guards else None
        if guards is not None and not guards:
            del _guards[os.path.abspath(target)]
    if guard is not None:
        try:
            guard.communicate("unmounted\n", timeout=_STOP_S)
        except (BrokenPipeError, ValueError):  # somebody has killed it
            guard.wait()


def fuse_works(directory: Path) -> str:
    """Why fuse-overlayfs cannot be used for layers that lie in `directory`; "" if it can: it is tried."""
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} is not installed"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not there, or not for us to open"
    with probe_directory(directory) as name:
        parts = {part: os.path.join(name, part) for part in ("lower", "upper", "work", "merged")}
        for part in parts.values():
            os.mkdir(part)
        try:
            kernel.mknod(os.path.join(parts["lower"], "hidden"), stat.S_IFCHR, kernel.WHITEOUT_DEV)
            kernel.set_xattr(parts["lower"], _opaque_name(), b"y")
        except OSError as err:  # on an overlay, as the file system of a container is: it refuses what it is made of itself
            return f"whiteouts cannot be kept there ({(err.strerror or '').lower()})"
        options = (f"lowerdir={parts['lower']}", f"upperdir={parts['upper']}", f"workdir={parts['work']}")
        try:
            mount_fuse(parts["merged"], tuple(_escaped(option) for option in options))
        except StoreError as err:
            return str(err)
        try:
            os.mkdir(os.path.join(parts["merged"], "made"))
        except OSError as err:
            return f"{PROGRAM} cannot be written to: {err.strerror}"
        finally:
            kernel.umount(parts["merged"], kernel.MNT_DETACH)
            release(parts["merged"])
    return ""


def _escaped(option: str) -> str:
    key, _, value = option.partition("=")
    return f"{key}={kernel.escape(value)}"


__all__ = ["PROGRAM", "FuseOverlay", "fuse_works", "mount_fuse", "normalise", "release"]
