# SPDX-License-Identifier: Apache-2.0
"""Sockets to listen on: files with an owner, ports, and those a service manager hands over."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress

from chantier.errors import ChantierError, UsageError
from chantier.values import dataclass

_FIRST_FD = 3  # sd_listen_fds(3)
_MAX_PATH = 107  # unix(7)


@dataclass(frozen=True, slots=True)
class Bound:
    sock: socket.socket
    address: str
    path: str | None = None
    inode: int = 0


class Listener:
    """A socket that is listened on. `close` takes no more connections and removes the socket's file if it is still ours."""

    def __init__(self, address: str, path: str | None, inode: int) -> None:
        self.address = address
        self.server: asyncio.AbstractServer | None = None
        self._path = path
        self._inode = inode

    def close(self) -> None:
        if self._path is not None:
            with suppress(FileNotFoundError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)
            self._path = None
        if self.server is not None:
            self.server.close()

    async def wait_closed(self) -> None:
        self.close()


def bind(address: str | socket.socket, *, uid: int | None = None, gid: int | None = None, mode: int = 0o660) -> Bound:
    """A bound socket. Raises ChantierError."""
    if isinstance(address, socket.socket):
        address.setblocking(False)
        return Bound(address, _name(address))
    scheme, colon, rest = address.partition("://")
    if not colon:
        raise UsageError(f"invalid address {address!r}: expected unix://PATH, tcp://HOST:PORT or fd://N")
    try:
        if scheme == "unix":
            return _bind_unix(rest, uid, gid, mode)
        if scheme == "tcp":
            return _bind_tcp(rest)
        if scheme == "fd":
            return _adopt(rest)
    except OSError as err:
        raise ChantierError(f"failed to listen on {address}: {(err.strerror or str(err)).lower()}") from err
    raise UsageError(f"invalid address {address!r}: unknown scheme {scheme!r}")


def _bind_unix(path: str, uid: int | None, gid: int | None, mode: int) -> Bound:
    if not path.startswith("/"):
        raise UsageError(f"invalid address unix://{path}: the path is not absolute")
    temporary = f"{path}.{os.getpid()}"
    if len(os.fsencode(temporary)) > _MAX_PATH:
        raise UsageError(f"the socket path {path} is too long: at most {_MAX_PATH - 8} bytes")
    if _somebody_listens(path):
        raise ChantierError(f"failed to listen on unix://{path}: another process listens there")
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        # Nobody can connect before it has its owner and mode: it listens and gets its name only then.
        sock.bind(temporary)
        os.chmod(temporary, mode)
        if uid is not None or gid is not None:
            os.chown(temporary, -1 if uid is None else uid, -1 if gid is None else gid)
        sock.listen(1024)
        inode = os.stat(temporary).st_ino
        os.rename(temporary, path)
    except BaseException:
        sock.close()
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return Bound(sock, f"unix://{path}", path, inode)


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except TimeoutError:  # its backlog is full
            return True
        except OSError:
            return False
    return True


def _bind_tcp(rest: str) -> Bound:
    host, port = split_host(rest)
    family = socket.AF_INET6 if ":" in host or not host else socket.AF_INET
    if host and ":" not in host:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    try:
        sock = socket.create_server(
            (host, port), family=family, backlog=1024, dualstack_ipv6=not host and socket.has_dualstack_ipv6()
        )
    except OSError:
        if host:
            raise
        sock = socket.create_server((host, port), backlog=1024)  # no IPv6 here
    sock.setblocking(False)
    return Bound(sock, _name(sock))


def _adopt(text: str) -> Bound:
    """A socket that was inherited: its number, or its name among those a service manager handed over."""
    fds = activated(os.environ)
    if not text:
        if not fds:
            raise UsageError("fd:// needs a socket from the service manager (LISTEN_FDS is not set)")
        fd = next(iter(fds.values()))
    elif text.isdigit():
        fd = int(text)
    elif text in fds:
        fd = fds[text]
    else:
        raise UsageError(f"no socket named {text!r} was handed over")
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    os.set_inheritable(fd, False)
    return Bound(sock, _name(sock))


def activated(env: Mapping[str, str]) -> dict[str, int]:
    """Descriptors handed over by a service manager, by name (sd_listen_fds_with_names(3))."""
    if env.get("LISTEN_PID") != str(os.getpid()) or not env.get("LISTEN_FDS", "").isdigit():
        return {}
    count = int(env["LISTEN_FDS"])
    names = env.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, int] = {}
    for i in range(count):
        name = names[i] if i < len(names) and names[i] and names[i] not in found else str(_FIRST_FD + i)
        found[name] = _FIRST_FD + i
    return found


def split_host(text: str) -> tuple[str, int]:
    """HOST:PORT, with IPv6 in brackets. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"invalid address {text!r}: expected HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix://{os.fsdecode(name)}"
    host = f"[{name[0]}]" if ":" in str(name[0]) else str(name[0])
    return f"tcp://{host}:{name[1]}"


__all__ = ["Bound", "Listener", "activated", "bind", "split_host"]
