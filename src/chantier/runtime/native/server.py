# SPDX-License-Identifier: Apache-2.0
"""The helper's server: one small process an engine, from which the monitors of containers are forked.

The engine itself never forks, and starting a container costs no program start. If the server is killed, its containers go on,
and the next one gets a new server.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

from chantier.errors import UnsupportedError

from .built import Helper, sealed
from .groups import Hierarchy

_FIRST_FREE = 10  # descriptors of ours that must not be those the helper is given
_FULL_S = 0.002


class Server:
    """Started at the first `ask`. Belongs to one event loop."""

    def __init__(self, helper: Helper, hierarchy: Hierarchy) -> None:
        self.helper = helper
        self._hierarchy = hierarchy
        self._socket: socket.socket | None = None
        self._pid = 0
        self._changing = asyncio.Lock()  # held while it is started or ended: steps that begin together share one

    async def ask(self, fds: list[int]) -> None:
        """Have a monitor forked that gets these descriptors. Raises UnsupportedError if there can be no helper."""
        for _ in range(2):
            async with self._changing:
                if self._socket is None:
                    await asyncio.to_thread(self._start)
                asked = self._socket
            assert asked is not None
            try:
                await self._send(asked, fds)
                return
            except OSError as err:  # it was killed, and may be closed by now: once more, with a new one
                if not isinstance(err, ConnectionError) and err.errno != errno.EBADF:
                    raise
                async with self._changing:
                    if self._socket is asked:
                        await asyncio.to_thread(self.close)
        raise UnsupportedError("the sandbox helper ends as soon as it is started")

    async def _send(self, asked: socket.socket, fds: list[int]) -> None:
        while True:
            try:
                socket.send_fds(asked, [b"C"], fds)
                return
            except BlockingIOError:  # many are being started at this moment
                await asyncio.sleep(_FULL_S)

    def _start(self) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = sealed(self.helper.program)
        given = _moved(theirs.fileno())
        try:
            null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
            self._pid = os.posix_spawn(
                f"/proc/self/fd/{program}",
                list(self.helper.args),
                dict(self.helper.env),
                file_actions=[*null, (os.POSIX_SPAWN_DUP2, given, 3)],
                setsigdef=[signal.SIGPIPE, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM],
                setsigmask=[],
            )
        except OSError as err:
            mine.close()
            raise UnsupportedError(
                f"cannot start the sandbox helper {self.helper.program}: {err.strerror}",
                hint="programs in memory may be forbidden here: sysctl vm.memfd_noexec",
            ) from err
        finally:
            theirs.close()
            os.close(program)
            os.close(given)
        for group in self._hierarchy.shared:
            (Path(group) / "cgroup.procs").write_text(str(self._pid), encoding="ascii")
        mine.setblocking(False)
        self._socket = mine

    def close(self) -> None:
        """End the server; monitors end with their containers."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._pid:
            with suppress(ChildProcessError):  # somebody waits for every child of this process
                os.waitpid(self._pid, 0)
            self._pid = 0


def _moved(fd: int) -> int:
    import fcntl

    return int(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE))


__all__ = ["Server"]
