# SPDX-License-Identifier: Apache-2.0
"""Addresses of daemons and how each is reached (protocol.md 6.1, builders.md 2.8).

unix:///PATH                         a socket
tcp://HOST:PORT                      TCP, with TLS where certificates are given
ssh://[USER@]HOST[:PORT][/SOCKET]    ssh … buildctl [--addr unix:///SOCKET] dial-stdio
docker-container://NAME[?context=C]  docker exec -i NAME buildctl dial-stdio; also podman-container, nerdctl-container
kube-pod://POD[?context=&namespace=&container=]   kubectl exec -i POD -- buildctl dial-stdio
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, urlsplit

from chantier.errors import ChantierError, UsageError
from chantier.values import dataclass
from chantier.wire import ByteStream, Channel, Keepalive, dial
from chantier.wire.tls import client_context

from .context import SocketStream
from .pipe import Pipe

SCHEMES = ("docker-container", "kube-pod", "nerdctl-container", "podman-container", "ssh", "tcp", "unix")
Argv = Callable[[SplitResult], list[str]]
_KUBE_NAME = re.compile(r"[-a-z0-9.]+\Z")
# A daemon asks a session for health every 5 s: silence is a sign.
KEEPALIVE = Keepalive(interval_s=10, timeout_s=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What a TLS connection is made with. `server_name` replaces the host of the address."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def __bool__(self) -> bool:
        return bool(self.ca or self.cert or self.key or self.server_name)


NO_CERTIFICATES = Certificates()


def is_address(text: str) -> bool:
    return text.partition("://")[0] in SCHEMES and "://" in text


def check_address(address: str) -> None:
    """Raises UsageError for an address that cannot be one."""
    scheme, colon, _ = address.partition("://")
    if not colon or scheme not in SCHEMES:
        raise UsageError(
            f"unrecognized url scheme {scheme}" if colon else f"invalid address {address!r}: it has no scheme",
            hint="addresses begin with " + ", ".join(f"{s}://" for s in SCHEMES),
        )
    if scheme in _COMMANDS:
        _COMMANDS[scheme](urlsplit(address))


def channel_to(
    address: str,
    *,
    certificates: Certificates = NO_CERTIFICATES,
    env: Mapping[str, str] = os.environ,
) -> Channel:
    """A channel; nothing is connected yet, certificates are read. Raises UsageError, ConfigError."""
    check_address(address)
    scheme = address.partition("://")[0]
    if scheme == "unix":
        if certificates:
            raise UsageError("certificates are for tcp:// addresses")
        return dial(address, keepalive=None)
    if scheme == "tcp":
        tls = client_context(ca=certificates.ca, cert=certificates.cert, key=certificates.key) if certificates else None
        return dial(address, tls=tls, server_name=certificates.server_name or None, keepalive=KEEPALIVE)
    argv = _COMMANDS[scheme](urlsplit(address))

    async def connect() -> ByteStream:
        return await Pipe.start(argv, env)

    return Channel.over(connect, name=address, keepalive=KEEPALIVE)


async def stream_to(
    address: str, *, certificates: Certificates = NO_CERTIFICATES, env: Mapping[str, str] = os.environ
) -> ByteStream:
    """A connection as bare bytes. Raises ChantierError."""
    check_address(address)
    scheme, _, rest = address.partition("://")
    try:
        if scheme == "unix":
            return SocketStream(*await asyncio.open_unix_connection(rest))
        if scheme == "tcp":
            url = urlsplit(address)
            tls = client_context(ca=certificates.ca, cert=certificates.cert, key=certificates.key) if certificates else None
            name = certificates.server_name or url.hostname
            found = await asyncio.open_connection(url.hostname, url.port, ssl=tls, server_hostname=name if tls else None)
            return SocketStream(*found)
    except OSError as err:
        raise ChantierError(f"failed to connect to {address}: {(err.strerror or str(err)).lower()}") from err
    return await Pipe.start(command_of(address), env)


def _ssh(url: SplitResult) -> list[str]:
    if url.password is not None:
        raise UsageError("ssh address must not have a password")
    if url.query or url.fragment:
        raise UsageError(f"invalid ssh address {url.geturl()!r}: extra query or fragment")
    if not url.hostname:
        raise UsageError("no host specified in ssh address")
    argv = ["ssh"]
    if url.username:
        argv += ["-l", url.username]
    if url.port:
        argv += ["-p", str(url.port)]
    argv += ["--", url.hostname, "buildctl"]
    if url.path.rstrip("/"):
        argv += ["--addr", shlex.quote(f"unix://{url.path}")]  # a shell on the other side reads it
    return [*argv, "dial-stdio"]


def _container(program: str, option: str) -> Argv:
    def argv(url: SplitResult) -> list[str]:
        if not url.netloc:
            raise UsageError(f"invalid address {url.geturl()!r}: it names no container")
        chosen = parse_qs(url.query).get(option, [""])[0]
        options = [f"--{option}={chosen}"] if chosen else []
        where = ["exec", *options] if option == "namespace" else [*options, "exec"]
        return [program, *where, "-i", url.netloc, "buildctl", "dial-stdio"]

    return argv


def _kube(url: SplitResult) -> list[str]:
    query = parse_qs(url.query)
    values = {name: query.get(name, [""])[0] for name in ("context", "namespace", "container")}
    for name, value in [("pod", url.netloc), ("namespace", values["namespace"]), ("container", values["container"])]:
        if (value or name == "pod") and not _KUBE_NAME.match(value):
            raise UsageError(f"unsupported {name} name {value!r} in {url.geturl()}")
    # kubectl takes empty options for none.
    return [
        "kubectl", f"--context={values['context']}", f"--namespace={values['namespace']}", "exec",
        f"--container={values['container']}", "-i", url.netloc, "--", "buildctl", "dial-stdio",
    ]  # fmt: skip


_COMMANDS: dict[str, Argv] = {
    "ssh": _ssh,
    "docker-container": _container("docker", "context"),
    "podman-container": _container("podman", "context"),
    "nerdctl-container": _container("nerdctl", "namespace"),
    "kube-pod": _kube,
}


def command_of(address: str) -> Sequence[str]:
    """The command that reaches an address of the kinds that need one."""
    return _COMMANDS[address.partition("://")[0]](urlsplit(address))


__all__ = [
    "KEEPALIVE",
    "NO_CERTIFICATES",
    "SCHEMES",
    "Certificates",
    "channel_to",
    "check_address",
    "command_of",
    "is_address",
    "stream_to",
]
