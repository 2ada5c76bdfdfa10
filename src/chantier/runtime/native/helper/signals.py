# SPDX-License-Identifier: Apache-2.0
"""Signals as something to poll, and how a process has ended."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from chantier.kernel import process as caller


class Signals:
    """All signals of this process: signalfd(2) is not in Python, so a pipe that the interpreter writes their numbers to."""

    def __init__(self) -> None:
        self.readable, self._writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
        for number in signal.valid_signals():
            with suppress(OSError, ValueError):  # KILL and STOP
                signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def take(self) -> bytes:
        try:
            return os.read(self.readable, 256)
        except BlockingIOError:
            return b""


def reset_signals() -> None:
    """What a program expects to begin with: nothing is caught, ignored or blocked."""
    signal.set_wakeup_fd(-1)
    for number in range(1, 65):
        with suppress(OSError, ValueError):  # those that cannot be changed
            signal.signal(number, signal.SIG_DFL)
    caller.reset_signals()


def code_of(status: int) -> int:
    """A wait status as a shell says it."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else 255
