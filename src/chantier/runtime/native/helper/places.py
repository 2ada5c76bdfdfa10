# SPDX-License-Identifier: Apache-2.0
"""What makes a container: every record before those of its process, in order."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from chantier.kernel import namespaces

from . import mounts
from .hooks import run_hooks
from .plan import Plan, Refused, because

_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def _loopback() -> None:
    try:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError:  # a kernel without IPv4
        return
    with made:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(made, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(made, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _netns(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        namespaces.setns(fd, namespaces.CLONE_NEWNET)
        os.close(fd)
    except OSError as err:
        raise because(f'error joining network namespace "{path}"', err) from err


def _link(to: str, path: str) -> None:
    with suppress(FileExistsError):
        os.symlink(to, path)


_SET_UP: dict[str, Callable[..., None]] = {
    "netns": _netns,
    "cgroupns": lambda: namespaces.unshare(namespaces.CLONE_NEWCGROUP),
    "loopback": _loopback,
    "hostname": socket.sethostname,
    "root": mounts.enter_root,
    "mount": mounts.mount_new,
    "bind": mounts.bind,
    "node": mounts.node,
    "symlink": _link,
    "mask": mounts.mask,
    "readonly": mounts.make_readonly,
    "remount": mounts.remount,
    "pivot": mounts.pivot,
    "mkdir": lambda path: mounts.make_path(path, directory=True),
}


def open_terminal(uid: str, console: str, parent: socket.socket) -> int:
    try:
        master = mounts.open_ptmx()
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        os.fchown(slave, int(uid), -1)
        if int(console):
            mounts.bind_console(slave)
    except OSError as err:
        raise because("error opening a terminal", err) from err
    socket.send_fds(parent, [b"T"], [master])
    os.close(master)
    return slave


def set_up(plan: Plan, parent: socket.socket) -> int:
    """All records that make the container; returns the terminal, or -1."""
    os.umask(0)
    terminal = -1
    for name, args in plan.records:
        if name == "tty":
            terminal = open_terminal(args[0], args[1], parent)
        elif name == "pause":
            parent.send(b"H")
            if parent.recv(8) != b"G":  # the monitor is gone
                os._exit(1)
        elif name in _SET_UP:
            if name == "pivot":
                run_hooks(plan, "createContainer", outside=True)
            try:
                _SET_UP[name](*args)
            except OSError as err:
                raise because(f"error at {name}", err) from err
    return terminal


def enter(args: list[str], alive: int) -> None:
    """Become a neighbour of a running container; `alive` proves that the PID is still that one."""
    pid, kinds = args[0], args[1:]
    try:
        fds = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
    except OSError as err:
        raise Refused("container has stopped") from err
    if alive >= 0 and select.select([alive], [], [], 0)[0]:
        raise Refused("container has stopped")
    for kind, fd in zip(kinds, fds, strict=True):
        try:
            namespaces.setns(fd)
        except OSError as err:
            raise because(f"error joining the container's {kind} namespace", err) from err
        os.close(fd)
