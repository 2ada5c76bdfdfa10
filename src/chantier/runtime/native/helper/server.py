# SPDX-License-Identifier: Apache-2.0
"""The server of the helper: a monitor for each container that is asked for, one of them made ahead.

Forking a Python process costs milliseconds, and a container takes two forks. So after the first request there is always a spare
monitor, which has forked its first process already; it takes the next request from the engine itself, and the next one is made
meanwhile. Not before the first request: only then are we in the cgroups that all containers are to inherit from us.
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import signal
import socket
from contextlib import suppress
from typing import NoReturn

from chantier.kernel import process as caller

from .first import warm_up
from .monitor import monitor, spare

_FDS = 8
_LEAST = 5  # stdin, stdout, stderr, the control socket, the plan; a sixth is a pidfd


def main() -> NoReturn:
    caller.prctl(caller.PR_SET_DUMPABLE, 0)
    caller.prctl(caller.PR_SET_NAME, b"chantier")
    os.setsid()
    os.chdir("/")
    caller.close_range(4)
    server = socket.socket(fileno=3)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    warm_up()
    gc.collect()
    gc.disable()
    gc.freeze()
    while True:
        _serve_next(server)
        while _keep_spare(server):
            pass


def _serve_next(server: socket.socket) -> None:
    packet, fds, _, _ = socket.recv_fds(server, 16, _FDS)
    if not packet:
        os._exit(0)
    _serve(server, fds)


def _keep_spare(server: socket.socket) -> bool:
    """Until a spare monitor is taken and its step runs; False if it has ended untaken: the engine has, or somebody killed it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own_pid = os.getpid()
    try:
        pid = os.fork()
    except OSError:  # no room for one more process: the next request will say so
        ours.close()
        theirs.close()
        return False
    if pid == 0:
        ours.close()
        try:
            spare(server, own_pid, theirs)
        finally:
            os._exit(1)
    theirs.close()
    with ours:
        while True:
            packet, fds, _, _ = socket.recv_fds(ours, 16, _FDS)
            if packet == b"T":
                break
            if not packet:
                _wait_for(pid)
                return False
            _serve(server, fds)
        # The next one is made when this one's step runs, so as not to slow it down. Whoever asks meanwhile is served by hand.
        while server in select.select([server, ours], [], [])[0]:
            _serve_next(server)
    return True


def _wait_for(pid: int) -> None:
    """Until it has left our cgroups, which the engine may remove once we are gone. It is reaped by the kernel."""
    with suppress(ProcessLookupError):
        ended = os.pidfd_open(pid)
        select.select([ended], [], [])
        os.close(ended)


def _serve(server: socket.socket, fds: list[int]) -> None:
    if len(fds) >= _LEAST:
        try:
            pid = os.fork()
        except OSError as err:
            with socket.socket(fileno=os.dup(fds[3])) as control, suppress(OSError):
                control.send(b"Eerror starting a process: " + os.strerror(err.errno or 0).lower().encode())
            pid = -1
        if pid == 0:
            _become_monitor(server, fds)
    for fd in fds:
        os.close(fd)


def _become_monitor(server: socket.socket, fds: list[int]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server.close()
    # Out of the way first: they are to stand where others may stand now.
    places = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in fds]
    for number, place in enumerate(places[:6]):
        os.dup2(place, number, inheritable=number < 3)
    caller.close_range(len(places[:6]))
    monitor(socket.socket(fileno=3), 4, 5 if len(places) > 5 else -1)
