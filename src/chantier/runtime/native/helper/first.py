# SPDX-License-Identifier: Apache-2.0
"""The first process of a container, and the guard of a step in a container that runs."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress
from typing import Any, NoReturn

from chantier.kernel import mounts, namespaces, paths
from chantier.kernel import process as caller

from . import places
from .plan import Plan, Refused, because
from .signals import Signals, code_of, reset_signals
from .step import limit_bounding, run_step, set_capabilities

_CAP_KILL = 1 << 5
_GIVEN = 4  # what comes with a plan: descriptors 0, 1 and 2 of the step, and the plan


def wait_for_plan(parent: socket.socket) -> NoReturn:
    """A first process that was made ahead, in its own pid namespace: everything that does not depend on the plan is done."""
    try:
        parent = _alone_with(parent)
        _begin(entering=False)
        caller.join_session_keyring()
        warm_up()
        packet, fds, _, _ = socket.recv_fds(parent, 16, _GIVEN)
        if not packet or len(fds) != _GIVEN:
            os._exit(1)
        for number, fd in enumerate(fds[:3]):
            os.dup2(fd, number)
            os.close(fd)
        plan = Plan.of(fds[3])
        os.close(fds[3])
    except BaseException as err:
        _refuse(parent, err)
    run_first(plan, parent, -1, begun=True)


def _alone_with(parent: socket.socket) -> socket.socket:
    """The socket as descriptor 3, where those who say what went wrong look for it; all others but 0, 1 and 2 are closed."""
    if parent.fileno() != 3:
        os.dup2(parent.fileno(), 3, inheritable=False)
        parent.detach()
        parent = socket.socket(fileno=3)
    caller.close_range(4)
    return parent


def warm_up() -> None:
    """What every container would have to do anew: C functions looked up, and pages of ours copied that all of them write to."""
    caller.prctl(caller.PR_CAPBSET_READ, 0)
    caller.capget()
    mounts.file_system(3)
    paths.has_openat2()
    Plan(b"env\0002\0A=b\0C=d\0args\0001\0true\0").find("env")


def run_first(plan: Plan, parent: socket.socket, alive: int, *, begun: bool = False) -> NoReturn:
    """Make the container and become its step; `begun` if `wait_for_plan` has done its part."""
    try:
        if not begun:
            _begin(entering=plan.find("enter") is not None)
        _first(plan, parent, alive, keyring=not begun)
    except BaseException as err:
        _refuse(parent, err)


def _refuse(parent: socket.socket, err: BaseException) -> NoReturn:
    with suppress(OSError):  # nobody is there to be told
        parent.send(b"E" + (os.fsencode(str(err)) if isinstance(err, Refused) else repr(err).encode())[:3900])
    os._exit(1)


def _begin(*, entering: bool) -> None:
    caller.prctl(caller.PR_SET_NAME, b"chantier-first")
    os.setsid()
    if not entering:
        caller.prctl(caller.PR_SET_PDEATHSIG, signal.SIGKILL)
        reset_signals()


def _first(plan: Plan, parent: socket.socket, alive: int, *, keyring: bool) -> NoReturn:
    if plan.joins and parent.recv(1) != b"G":  # in its cgroups; or the monitor is gone
        os._exit(1)
    flags = plan.find("clone")
    assert flags is not None
    try:
        namespaces.unshare(int(flags[0], 0) & ~namespaces.CLONE_NEWPID)
    except OSError as err:
        raise because("error making namespaces", err) from err
    if keyring:
        caller.join_session_keyring()
    entered = plan.find("enter")
    if entered is not None:
        places.enter(entered, alive)
        wanted = plan.find("tty")
        terminal = places.open_terminal(wanted[0], wanted[1], parent) if wanted is not None else -1
        _run_guarded(plan, parent, terminal, alive)
    terminal = places.set_up(plan, parent)
    if terminal == 3:
        terminal = os.dup(terminal)
    if parent.fileno() != 3:
        os.dup2(parent.fileno(), 3, inheritable=False)
        parent.close()
        parent = socket.socket(fileno=3)
    try:
        run_step(plan, terminal, parent)
    except BaseException as err:
        _refuse(parent, err)


def _run_guarded(plan: Plan, parent: socket.socket, terminal: int, alive: int) -> NoReturn:
    """The step of a container that runs: it is in that one's pid namespace, so it is our child."""
    readable, writable = os.pipe2(os.O_CLOEXEC)
    signals = Signals()
    step = os.fork()
    if step == 0:
        _step(plan, terminal, writable)
    os.close(writable)
    for fd in (0, 1, 2, terminal, alive):
        if fd >= 0:
            os.close(fd)
    failure = b""
    while piece := os.read(readable, 4096):
        failure += piece
    if failure:
        parent.send(b"E" + failure[:3900])
        os._exit(1)
    os.close(readable)
    plan.records.clear()
    limit_bounding(0)
    caller.prctl(caller.PR_SET_NO_NEW_PRIVS, 1)
    set_capabilities(_CAP_KILL, _CAP_KILL, 0, 0)
    parent.send(b"R")
    _watch_step(parent, signals, step)


def _step(plan: Plan, terminal: int, errors: int) -> NoReturn:
    try:
        os.setsid()
        if terminal == 3:
            terminal = os.dup(terminal)
        os.dup2(errors, 3, inheritable=False)
        reset_signals()
        run_step(plan, terminal)
    except Refused as err:
        os.write(3, os.fsencode(str(err)))
    except BaseException as err:
        os.write(3, repr(err).encode())
    os._exit(1)


def _watch_step(parent: socket.socket, signals: Signals, step: int) -> NoReturn:
    watched: list[Any] = [parent, signals.readable]
    while True:
        ready = select.select(watched, [], [])[0]
        for number in signals.take():
            if number != signal.SIGCHLD:
                with suppress(ProcessLookupError):
                    os.kill(step, number)
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not ended:
                break
            if ended == step:
                parent.send(b"X%d" % code_of(status))
                os._exit(0)
        if parent in ready:
            try:
                packet = parent.recv(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            if not packet:
                with suppress(ProcessLookupError):
                    os.kill(step, signal.SIGKILL)
                os._exit(137)
            if packet[:1] == b"S":
                with suppress(ProcessLookupError):
                    os.kill(step, int(packet[1:]))
