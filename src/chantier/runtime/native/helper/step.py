# SPDX-License-Identifier: Apache-2.0
"""The step: what its process gives up, and its program."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
import stat
import termios
from contextlib import suppress
from typing import NoReturn

from chantier.kernel import process as caller

from .hooks import run_hooks
from .plan import Plan, Refused, because, reason
from .signals import reset_signals


def limit_bounding(keep: int) -> None:
    for cap in range(64):
        try:
            caller.prctl(caller.PR_CAPBSET_READ, cap)
        except OSError:
            return
        if not keep >> cap & 1:
            with suppress(PermissionError):  # we never had CAP_SETPCAP, nor then what it would let through
                caller.prctl(caller.PR_CAPBSET_DROP, cap)


def set_capabilities(effective: int, permitted: int, inheritable: int, ambient: int) -> None:
    have = caller.capget()[1]
    permitted &= have
    effective &= permitted
    inheritable &= have
    caller.capset(effective, permitted, inheritable)
    with suppress(OSError):  # a kernel without ambient capabilities
        caller.prctl(caller.PR_CAP_AMBIENT, caller.PR_CAP_AMBIENT_CLEAR_ALL)
    for cap in range(64):
        if (ambient & permitted & inheritable) >> cap & 1:
            caller.prctl(caller.PR_CAP_AMBIENT, caller.PR_CAP_AMBIENT_RAISE, cap)


def _label(path: str, text: str) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            if os.readlink(f"/proc/self/fd/{file.fileno()}").startswith("/proc/"):
                file.write(text.encode())
                return
    except OSError as err:
        raise because(f'error applying profile "{text}"', err) from err
    raise Refused(f'error applying profile "{text}": /proc is not what it should be')


def _give_stdio(uid: int) -> None:
    """The pipes are root's; a step that opens /dev/stderr by name must be allowed to."""
    for fd in range(3):
        info = os.fstat(fd)
        if info.st_uid == uid or (stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3)):
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError as err:
            if err.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                raise


def _runnable(path: str) -> int:
    try:
        info = os.stat(path)
    except OSError as err:
        return err.errno or errno.ENOENT
    if stat.S_ISDIR(info.st_mode):
        return errno.EISDIR
    if not info.st_mode & 0o111 or not os.access(path, os.X_OK, effective_ids=True):
        return errno.EACCES
    return 0


def _look_up(name: str, environment: dict[str, str]) -> str:
    """Where a program lies, by PATH of the step's own environment. Messages are those of Go's exec.LookPath."""
    if "/" in name:
        wrong = _runnable(name)
        if not wrong:
            return name
        said = reason(OSError(wrong, ""))
        raise Refused(
            f'exec: "{name}": {said}' if wrong in (errno.EACCES, errno.EISDIR) else f'exec: "{name}": stat {name}: {said}'
        )
    for directory in environment.get("PATH", "").split(":"):
        if directory and not _runnable(f"{directory}/{name}"):
            return f"{directory}/{name}"
    raise Refused(f'exec: "{name}": executable file not found in $PATH')


def run_step(plan: Plan, terminal: int, monitor: socket.socket | None = None) -> NoReturn:
    """In the step's process, with what it may keep at 0, 1, 2 and at 3 what errors are told on. Raises Refused."""
    described, args, env = plan.find("process"), plan.find("args"), plan.find("env") or []
    assert described is not None
    assert args is not None
    uid, gid, cwd, quiet, umask = int(described[0]), int(described[1]), described[2], int(described[3]), int(described[4], 0)
    masks = [int(mask, 0) for mask in plan.find("caps") or ["0"] * 5]
    program = bytes.fromhex((plan.find("seccomp") or [""])[0])
    if terminal >= 0:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        for fd in range(3):
            os.dup2(terminal, fd)
    else:
        _give_stdio(uid)
    caller.close_range(4)
    for _, (kind, soft, hard) in plan.all("rlimit"):
        try:
            limits = [resource.RLIM_INFINITY if int(value) >= 1 << 63 else int(value) for value in (soft, hard)]
            resource.setrlimit(int(kind), (limits[0], limits[1]))
        except (OSError, ValueError) as err:
            raise Refused(f"error setting rlimit type {kind}: operation not permitted") from err
    os.umask(umask)
    lost = f'chdir to cwd ("{cwd}") set in config.json failed'
    later = False
    try:
        os.chdir(cwd)
    except PermissionError:
        later = True
    except OSError as err:
        raise because(lost, err) from err
    for _, (path, text) in plan.all("label"):
        _label(path, text)
    environment = dict(entry.partition("=")[::2] for entry in env)
    try:
        if quiet:
            caller.prctl(caller.PR_SET_NO_NEW_PRIVS, 1)
        elif program:
            caller.load_seccomp(program)
        limit_bounding(masks[0])
        caller.prctl(caller.PR_SET_KEEPCAPS, 1)
        groups = plan.find("groups")
        if groups is not None:
            os.setgroups([int(group) for group in groups])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        caller.prctl(caller.PR_SET_KEEPCAPS, 0)
        set_capabilities(masks[2], masks[1], masks[3], masks[4])
    except OSError as err:
        raise because("error changing the user", err) from err
    if monitor is not None:
        # If the monitor is killed. A change of user takes this away: it comes after.
        caller.prctl(caller.PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(BlockingIOError):
            if not monitor.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                os._exit(1)
    if later:
        try:
            os.chdir(cwd)
        except OSError as err:
            raise because(lost, err) from err
    try:
        outside = not os.getcwd().startswith("/")
    except OSError:
        outside = True
    if outside:
        raise Refused("current working directory is outside of container mount namespace root")
    path = _look_up(args[0], environment)
    if program and quiet:
        caller.load_seccomp(program)
    if monitor is not None:
        run_hooks(plan, "startContainer", outside=False)
    reset_signals()
    try:
        os.execve(path, args, environment)
    except OSError as err:
        raise because(f"exec {path}", err) from err
