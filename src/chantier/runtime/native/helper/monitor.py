# SPDX-License-Identifier: Apache-2.0
"""The monitor of one container: it makes the first process, passes signals on, and tells the engine how it ended."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from chantier.kernel import namespaces
from chantier.kernel import process as caller

from .first import run_first, wait_for_plan
from .plan import Plan, Refused, because, reason
from .signals import Signals, code_of

_OWN_PIDS = b"pids\0"  # how the plan of a container with a pid namespace of its own begins
_FDS = 8
_DEPTH = 64  # groups within groups that are removed


def monitor(control: socket.socket, plan_fd: int, alive: int) -> NoReturn:
    """Carry out a plan, with 0, 1 and 2 for the step; `alive` is a pidfd of the container to enter, or -1."""
    try:
        os.setsid()
        plan = Plan.of(plan_fd)
        os.close(plan_fd)
        _watch(control, plan, *_make_first(plan, control, alive))
    except BaseException as err:
        _refuse(control, err)


def spare(server: socket.socket, server_pid: int, report: socket.socket) -> NoReturn:
    """Make a first process, in a pid namespace of its own, before anybody asks; wait for who does, and be its monitor.

    `report` is told "T" once we are taken, and closed once the step runs. Requests that this is of no use for, such as to enter a
    container, are passed on to it: "N" with the descriptors.
    """
    caller.prctl(caller.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server_pid:  # killed before we could ask for that signal
        os._exit(1)
    os.setsid()
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    namespaces.unshare(namespaces.CLONE_NEWPID)
    first = os.fork()
    if first == 0:
        wait_for_plan(theirs)
    theirs.close()
    signals = Signals()
    while True:
        packet, fds, _, _ = socket.recv_fds(server, 16, _FDS)
        if not packet:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)
            os._exit(0)
        if len(fds) == 5 and os.pread(fds[4], len(_OWN_PIDS), 0) == _OWN_PIDS:
            try:
                socket.send_fds(mine, [b"P"], [*fds[:3], fds[4]])
            except OSError:  # somebody has killed it
                socket.send_fds(report, [b"N"], fds)
                os._exit(1)
            break
        socket.send_fds(report, [b"N"], fds)
        for fd in fds:
            os.close(fd)
    report.send(b"T")
    caller.prctl(caller.PR_SET_PDEATHSIG, 0)  # containers outlive a server that is killed
    control = socket.socket(fileno=fds[3])
    try:
        plan = Plan.of(fds[4])
        for fd in (*fds[:3], fds[4], server.detach()):
            os.close(fd)
        _watch(control, plan, mine, signals, first, report.close)
    except BaseException as err:
        _refuse(control, err)


def _refuse(control: socket.socket, err: BaseException) -> NoReturn:
    with suppress(OSError):  # the engine is gone
        control.send(b"E" + (str(err) if isinstance(err, Refused) else repr(err)).encode(errors="surrogateescape")[:3900])
    os._exit(1)


def _make_first(plan: Plan, control: socket.socket, alive: int) -> tuple[socket.socket, Signals, int]:
    """Our end of its socket, our signals, and its PID."""
    if not plan.own_pids:
        caller.prctl(caller.PR_SET_CHILD_SUBREAPER, 1)
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    signals = Signals()
    try:
        if plan.own_pids:
            namespaces.unshare(namespaces.CLONE_NEWPID)  # for our children; the rest is the first one's to make
        first = os.fork()
    except OSError as err:
        raise because("error making namespaces", err) from err
    if first == 0:
        signal.set_wakeup_fd(-1)
        control.close()
        mine.close()
        run_first(plan, theirs, alive)
    theirs.close()
    return mine, signals, first


def _watch(
    control: socket.socket,
    plan: Plan,
    mine: socket.socket,
    signals: Signals,
    first: int,
    begun: Callable[[], None] = lambda: None,
) -> NoReturn:
    entered = plan.find("enter") is not None
    mine.setblocking(False)
    for fd in (0, 1, 2):
        os.close(fd)
    code = _join(plan, first, control)
    if plan.joins:
        with suppress(OSError):
            mine.send(b"G")
    code = _serve(control, mine, signals, first, code, begun, entered=entered)
    if not plan.own_pids and not entered:
        _kill_children()
    out_of_memory = _oom(plan)
    _remove_groups(plan)
    with suppress(OSError):
        control.send(b"X%d %d" % (255 if code < 0 else code, out_of_memory))
    control.close()  # the engine need not wait until our memory is given back
    os._exit(0)


def _join(plan: Plan, first: int, control: socket.socket) -> int:
    for _, args in plan.all("group", "join"):
        try:
            with open(f"{args[0]}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(first))
        except OSError as err:
            control.send(f"Eerror joining cgroup {args[0]}: {reason(err)}".encode())
            os.kill(first, signal.SIGKILL)
            return 1
    return -1


def _serve(
    control: socket.socket,
    mine: socket.socket,
    signals: Signals,
    first: int,
    code: int,
    begun: Callable[[], None],
    *,
    entered: bool,
) -> int:
    """Until the first process has ended; returns the step's exit code, or -1."""
    pidfd = os.pidfd_open(first)
    watched: list[Any] = [signals.readable, mine, control, pidfd]
    ended = failed = False
    while not ended:
        ready = select.select(watched, [], [])[0]
        if control in ready:
            packet = _packet(control)
            if not packet:
                watched.remove(control)
            if not packet or packet[:1] == b"K":
                with suppress(OSError):
                    if entered:
                        mine.send(b"S9")
                    else:
                        os.kill(first, signal.SIGKILL)
            elif packet == b"G":
                with suppress(OSError):  # it has ended meanwhile
                    mine.send(packet)
            elif packet[:1] == b"S":
                with suppress(OSError):
                    if entered:
                        mine.send(packet)
                    else:
                        os.kill(first, int(packet[1:]))
        if signals.readable in ready:
            signals.take()
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == first:
                    ended = True
                    # A guard has said how its step ended; if it says nothing and ends well, something is wrong.
                    if code < 0 and (not entered or code_of(found[1])):
                        code = code_of(found[1])
        while mine in watched:
            try:
                packet, fds, _, _ = socket.recv_fds(mine, 4096, 1)
            except BlockingIOError:
                break
            except ConnectionError:
                packet, fds = b"", []
            if not packet:
                watched.remove(mine)
                begun()
                if not entered and not failed:  # it is closed as the step is executed
                    _tell_begun(control, first, pidfd)
            elif packet[:1] == b"X":
                code = int(packet[1:])
            elif packet[:1] == b"R":
                _tell_begun(control, first, pidfd)
            elif packet[:1] == b"H":
                _tell(control, b"H%d" % first, [])
            else:
                failed = failed or packet[:1] == b"E"
                _tell(control, packet, fds)
            for fd in fds:
                os.close(fd)
    return code


def _packet(control: socket.socket) -> bytes:
    try:
        return control.recv(64, socket.MSG_DONTWAIT)
    except OSError:
        return b""


def _tell(control: socket.socket, packet: bytes, fds: list[int]) -> None:
    with suppress(OSError):
        socket.send_fds(control, [packet], list(fds))


def _tell_begun(control: socket.socket, first: int, pidfd: int) -> None:
    with suppress(OSError):
        socket.send_fds(control, [b"R%d" % first], [pidfd])


def _oom(plan: Plan) -> int:
    place = plan.find("oom")
    if place is None:
        return 0
    try:
        with open(place[0], encoding="ascii") as file:
            counts = dict(line.split(maxsplit=1) for line in file.read().splitlines() if " " in line)
    except OSError:
        return 0
    return int(int(counts.get("oom_kill", 0)) > 0)


def _kill_children() -> None:
    """Without a pid namespace: whatever is left of the container is our child by now, since we are its reaper."""
    while True:
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError, ValueError, IndexError):
                    with open(f"/proc/{name}/stat", "rb") as file:
                        if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                            os.kill(int(name), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _remove_groups(plan: Plan) -> None:
    for _, args in plan.all("group"):
        _remove_group(args[0])


def _remove_group(path: str, depth: int = 0) -> None:
    """A privileged step may have made groups below its own."""
    try:
        os.rmdir(path)
        return
    except OSError as err:
        if err.errno != errno.EBUSY:
            return
    if depth < _DEPTH:
        with suppress(OSError):  # the engine has been faster
            for entry in os.scandir(path):
                if entry.is_dir(follow_symlinks=False):
                    _remove_group(entry.path, depth + 1)
    for _attempt in range(100):  # what has just died may be counted there for a moment
        try:
            os.rmdir(path)
        except OSError as err:
            if err.errno != errno.EBUSY:
                return
            time.sleep(0.002)
        else:
            return
