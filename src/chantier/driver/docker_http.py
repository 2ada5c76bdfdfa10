# SPDX-License-Identifier: Apache-2.0
"""Blocking HTTP to a Docker engine, over whatever its address says."""

from __future__ import annotations

import http.client
import socket
import subprocess
from collections.abc import Callable
from functools import partial

from chantier.errors import UsageError

from .context import Host, ssh_command


def connection(host: Host, timeout: float | None) -> http.client.HTTPConnection:
    """Not connected yet. `timeout` in seconds; None waits. Raises UsageError for an address that cannot be spoken to."""
    scheme, _, rest = host.address.partition("://")
    if scheme == "unix":
        return _SocketHTTP(partial(_unix_socket, rest), timeout)
    if scheme == "tcp":
        name, port = host.port()
        tls = host.tls()
        if tls is not None:
            return http.client.HTTPSConnection(name, port, timeout=timeout, context=tls)
        return http.client.HTTPConnection(name, port, timeout=timeout)
    if scheme == "ssh":
        return _SocketHTTP(partial(_command_socket, ssh_command(host.address)), timeout)
    raise UsageError(f"unsupported protocol scheme {scheme!r} in the Docker host {host.address}")


class _SocketHTTP(http.client.HTTPConnection):
    """HTTP on a socket that `open` makes."""

    def __init__(self, open: Callable[[float | None], socket.socket], timeout: float | None) -> None:
        super().__init__("docker", timeout=timeout)
        self._open = open

    def connect(self) -> None:
        self.sock = self._open(self.timeout)


def _unix_socket(path: str, timeout: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    sock.connect(path)
    return sock


def _command_socket(argv: list[str], timeout: float | None) -> socket.socket:
    """A socket whose other end is a program's standard streams; the program ends when it is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL, start_new_session=True)
    ours.settimeout(timeout)
    return ours


__all__ = ["connection"]
