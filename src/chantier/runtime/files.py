# SPDX-License-Identifier: Apache-2.0
"""The two files every container is given: /etc/hosts and /etc/resolv.conf.

Files that several containers may share are written once per content and replaced by renaming, so that a running container
keeps the one it started with.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from chantier.snapshot.mount import Mount
from chantier.values import dataclass, field

from .types import Bind

DEFAULT_HOSTNAME = "buildkitsandbox"
_OPTIONS = ("rbind", "ro", "nosuid", "noexec", "nodev")
_DEFAULT_NAMESERVERS = ("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844")
_SYSTEMD_STUB = "127.0.0.53"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """`[dns]` of the configuration; an empty part leaves the machine's own."""

    nameservers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


@dataclass(kw_only=True, eq=False)
class Files:
    """Makes the files below `where`. Any thread. `otherwise` are nameservers for containers that can reach none of the machine's."""

    where: Path
    dns: Dns = field(default_factory=Dns)
    otherwise: tuple[str, ...] = ()
    source: Path = Path("/etc/resolv.conf")
    systemd: Path = Path("/run/systemd/resolve/resolv.conf")
    _written: dict[str, str] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def binds(
        self, *, own: Path, hostname: str = "", extra: Sequence[tuple[str, str]] = (), network: str = "host"
    ) -> tuple[Bind, ...]:
        """Both files as mounts. `extra` are (address, name); what belongs to this container alone goes into `own`."""
        return (
            Bind(target="/etc/resolv.conf", mount=Mount("bind", str(self.resolv_conf(network)), _OPTIONS)),
            Bind(target="/etc/hosts", mount=Mount("bind", str(self.hosts(own, hostname, extra)), _OPTIONS)),
        )

    def hosts(self, own: Path, hostname: str, extra: Sequence[tuple[str, str]]) -> Path:
        text = hosts_text(hostname or DEFAULT_HOSTNAME, extra)
        if hostname == DEFAULT_HOSTNAME and not extra:
            return self._shared("hosts", text)
        path = own / "hosts"
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        path.chmod(0o644)
        return path

    def resolv_conf(self, network: str) -> Path:
        """The file for a network mode: a container with a network of its own cannot reach servers on our loopback."""
        host = network == "host"
        text = _read(self.source)
        if not host and _nameservers(text) == [_SYSTEMD_STUB] and self.systemd.exists():
            text = _read(self.systemd)
        return self._shared(
            "resolv-host.conf" if host else "resolv.conf", resolv_text(text, self.dns, host=host, otherwise=self.otherwise)
        )

    def _shared(self, name: str, text: str) -> Path:
        path = self.where / name
        with self._lock:
            if self._written.get(name) != text or not path.exists():
                fresh = self.where / (name + ".new")
                fresh.write_text(text, encoding="utf-8", errors="surrogateescape")
                fresh.chmod(0o644)
                os.replace(fresh, path)
                self._written[name] = text
        return path


def hosts_text(hostname: str, extra: Sequence[tuple[str, str]]) -> str:
    lines = [f"127.0.0.1\tlocalhost {hostname}", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{address}\t{name}" for address, name in extra]
    return "\n".join(lines) + "\n"


def resolv_text(text: str, dns: Dns, *, host: bool, otherwise: Sequence[str] = ()) -> str:
    """resolv.conf for a container, made of the machine's and of the configuration (resolv.conf(5))."""
    servers = list(dns.nameservers) or _nameservers(text)
    usable = servers if host else [server for server in servers if not _is_loopback(server)]
    if host and servers and not any((dns.nameservers, dns.options, dns.search)):
        return text
    usable = usable or (list(otherwise) if not host else []) or list(_DEFAULT_NAMESERVERS)
    search = list(dns.search) or _words(text, "search")
    options = list(dns.options) or _words(text, "options")
    lines = [f"search {' '.join(search)}"] if search else []
    lines += [f"nameserver {server}" for server in usable]
    lines += [f"options {' '.join(options)}"] if options else []
    return "\n".join(lines) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""


def _nameservers(text: str) -> list[str]:
    return [fields[1] for fields in _fields(text) if fields[0] == "nameserver" and len(fields) > 1]


def _words(text: str, keyword: str) -> list[str]:
    """The last line of a kind counts for `search`, all of them for `options`."""
    lines = [fields[1:] for fields in _fields(text) if fields[0] == keyword]
    if keyword == "search":
        lines = lines[-1:]
    return [word for line in lines for word in line]


def _fields(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.split() and line[0] not in "#;"]


def _is_loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False


__all__ = ["DEFAULT_HOSTNAME", "Dns", "Files", "hosts_text", "resolv_text"]
