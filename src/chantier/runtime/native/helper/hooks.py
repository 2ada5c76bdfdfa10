# SPDX-License-Identifier: Apache-2.0
"""Programs of whoever described a device, run while a container is made, in its namespaces."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from typing import NoReturn

from chantier.kernel import process as caller

from . import mounts
from .plan import Plan, Refused, because, reason
from .signals import reset_signals

_KEPT = 2048
_PAUSE_S = 0.002


def run_hooks(plan: Plan, kind: str, *, outside: bool) -> None:
    """All of a kind, in order; `outside` of the root that we are in until we pivot. Raises Refused if one fails."""
    for _, args in plan.all("hook"):
        if args[0] == kind:
            _run(args, outside=outside)


def _run(args: list[str], *, outside: bool) -> None:
    what, limit_s = f"error running {args[0]} hook #{args[1]}", int(args[2]) / 1000
    end = time.monotonic() + limit_s if limit_s else None
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        readable, writable = os.pipe2(os.O_CLOEXEC)
        said, telling = os.pipe2(os.O_CLOEXEC)
        state = f"{args[3]}{os.getpid()}{args[4]}".encode(errors="surrogateescape")
        child = os.fork()
    except OSError as err:
        raise because(what, err) from err
    if child == 0:
        _execute(args, readable, telling, outside=outside)
    os.close(readable)
    os.close(telling)
    with suppress(BrokenPipeError):  # it does not want to know
        os.write(writable, state)
    os.close(writable)
    text, late = _heard(said, end)
    os.close(said)
    status = _ended(child, end, late=late)
    if status is None:
        raise Refused(f"{what}: it ran past its timeout of {limit_s:.1f} s")
    if status:
        how = f"exit status {os.WEXITSTATUS(status)}" if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"
        raise Refused(f"{what}: {how}, output: {text.decode(errors='replace')}")


def _execute(args: list[str], readable: int, telling: int, *, outside: bool) -> NoReturn:
    path, count = args[5], int(args[6])
    try:
        os.setsid()
        caller.prctl(caller.PR_SET_PDEATHSIG, signal.SIGKILL)
        if outside:
            os.umask(0o022)
            mounts.leave()
        os.dup2(readable, 0)
        os.dup2(telling, 1)
        os.dup2(telling, 2)
        caller.close_range(3)
        reset_signals()
        os.execve(path, args[7 : 7 + count], dict(entry.partition("=")[::2] for entry in args[7 + count :]))
    except OSError as err:
        os.write(2, f"{path}: {reason(err)}".encode(errors="surrogateescape"))
    finally:
        os._exit(127)


def _heard(said: int, end: float | None) -> tuple[bytes, bool]:
    """What it writes until it closes its output, and whether it took too long."""
    text = b""
    while True:
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return text, True
        if select.select([said], [], [], left)[0]:
            piece = os.read(said, 4096)
            if not piece:
                return text, False
            text = (text + piece)[:_KEPT]


def _ended(child: int, end: float | None, *, late: bool) -> int | None:
    """Its status; None if it took too long, and was killed. It may have closed its output before it ends."""
    while True:
        late = late or (end is not None and time.monotonic() >= end)
        if late:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        ended, status = os.waitpid(child, 0 if late or end is None else os.WNOHANG)
        if ended:
            return None if late else status
        time.sleep(_PAUSE_S)
