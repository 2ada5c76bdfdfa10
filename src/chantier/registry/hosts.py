# SPDX-License-Identifier: Apache-2.0
"""Which hosts serve a registry, in which order, and how each is spoken to. Pure: no file is opened, no name looked up."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from enum import Flag, auto
from urllib.parse import quote

from chantier.config import RegistryConfig, RegistryExtra
from chantier.values import dataclass, replace

from .network import DIRECT, Network
from .tables import HUB, Table, Tables

_DOCKER_HUB = "registry-1.docker.io"
CONNECT_S = 30.0
COOLDOWN_S = 30.0


class Capability(Flag):
    PULL = auto()
    RESOLVE = auto()
    PUSH = auto()
    REFERRERS = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """How to speak to a host: trust, client certificates, the way there, patience."""

    insecure: bool = False
    ca: tuple[str, ...] = ()
    keypairs: tuple[tuple[str, str], ...] = ()  # (cert, key)
    directories: tuple[str, ...] = ()  # *.crt are CAs, *.cert with *.key are client certificates
    nameless: bool = False  # it gets no client certificate, whatever lies in the directories
    connect_timeout_s: float = CONNECT_S
    response_timeout_s: float = 0.0
    proxy: str | None = None  # for this host alone; DIRECT: none
    network: Network | None = None

    def for_stranger(self) -> Peer:
        """The same trust for a host one was redirected to, but none of our certificates, nor its own proxy."""
        return replace(self, keypairs=(), nameless=True, proxy=None)

    def proxy_for(self, url: str, otherwise: Network) -> str | None:
        if self.proxy:
            return None if self.proxy == DIRECT else self.proxy
        return (self.network or otherwise).proxy_for(url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One server that may be asked for the images of a registry."""

    authority: str  # host[:port]: what is dialled, and whose credentials are asked for
    scheme: str = "https"
    prefix: str = ""  # of repository names: `proxy/` for a mirror `host/proxy`
    namespace: str = ""  # the registry it stands in for: sent as ?ns=
    capabilities: Capability = Capability.PULL | Capability.RESOLVE
    may_fall_back: bool = False  # to plain HTTP, where TLS is not spoken
    mirror: bool = False
    peer: Peer = Peer()
    breaker: bool = True
    cooldown_s: float = COOLDOWN_S
    tables: tuple[str, ...] = ()  # of the config that had a say in this

    @property
    def name(self) -> str:
        """As the config writes it: `mirror.test:5000/proxy`."""
        return f"{self.authority}/{self.prefix}".rstrip("/")

    def url(self, repository: str, path: str, query: Mapping[str, str] | None = None) -> str:
        pairs = dict(query or {})
        if self.namespace:
            pairs["ns"] = self.namespace
        tail = "&".join(f"{k}={quote(v, safe='/:')}" for k, v in pairs.items())
        return f"{self.scheme}://{self.authority}/v2/{self.prefix}{repository}/{path}" + (f"?{tail}" if tail else "")


def hosts_for(
    domain: str,
    registries: Mapping[str, RegistryConfig],
    extras: Mapping[str, RegistryExtra] | None = None,
    *,
    insecure: bool = False,
) -> tuple[Host, ...]:
    """`hosts_of` for tables given apart."""
    return hosts_of(domain, Tables(registries=registries, extras=extras or {}), insecure=insecure)


def hosts_of(domain: str, tables: Tables, *, insecure: bool = False) -> tuple[Host, ...]:
    """The hosts to ask for images of `domain`: its mirrors in order, then itself (semantics.md 7.1).

    `insecure` is the push option registry.insecure: TLS without verification, or none.
    """
    table = tables.of(domain)
    mirrors = tuple(_mirror(text, domain, tables) for text in _mirrors(domain, table, tables))
    capabilities = Capability.PULL | Capability.RESOLVE | Capability.PUSH
    if domain not in tables.registries:
        capabilities |= Capability.REFERRERS
    if table.extra.only:
        capabilities &= ~(Capability.PULL | Capability.RESOLVE | Capability.REFERRERS)
    own = _host(domain, table, tables, capabilities, insecure=insecure)
    authority = _DOCKER_HUB if domain == HUB else domain
    return (*mirrors, replace(own, authority=authority))


def _mirrors(domain: str, table: Table, tables: Tables) -> tuple[str, ...]:
    """A table with a star may name a mirror for all hosts: that mirror has none itself."""
    own = tables.registries.get(domain)
    if own is not None and own.mirrors:
        return own.mirrors
    return () if any(_authority(text) == domain for text in table.config.mirrors) else table.config.mirrors


def _authority(mirror: str) -> str:
    return mirror.partition("/")[0]


def _mirror(text: str, domain: str, tables: Tables) -> Host:
    authority, _, path = text.partition("/")
    host = _host(authority, tables.of(authority), tables, Capability.PULL | Capability.RESOLVE)
    prefix = f"{path.strip('/')}/" if path.strip("/") else ""
    return replace(host, prefix=prefix, namespace="" if authority == domain else domain, mirror=True)


def _host(name: str, table: Table, tables: Tables, capabilities: Capability, *, insecure: bool = False) -> Host:
    config, extra = table.config, table.extra
    skip_verify = insecure or bool(config.insecure)
    plain = bool(config.http) if config.http is not None else is_local(name)
    fall_back = skip_verify and (plain or insecure)
    return Host(
        authority=name,
        scheme="http" if plain and not fall_back else "https",
        capabilities=_allowed(capabilities, extra.capabilities),
        may_fall_back=fall_back,
        peer=peer_of(table, tables.network, skip_verify=skip_verify),
        breaker=extra.breaker is not False,
        cooldown_s=COOLDOWN_S if extra.breaker_cooldown_s is None else extra.breaker_cooldown_s,
        tables=table.names,
    )


def _allowed(capabilities: Capability, named: tuple[str, ...]) -> Capability:
    if not named:
        return capabilities
    wanted = {
        "pull": Capability.PULL | Capability.REFERRERS,
        "resolve": Capability.RESOLVE,
        "push": Capability.PUSH,
    }
    allowed = Capability(0)
    for name in named:
        allowed |= wanted[name]
    return capabilities & allowed


def peer_of(table: Table, network: Network, *, skip_verify: bool | None = None) -> Peer:
    config, extra = table.config, table.extra
    return Peer(
        insecure=bool(config.insecure) if skip_verify is None else skip_verify,
        ca=tuple(dict.fromkeys((*config.ca, *network.ca))),
        keypairs=tuple((pair.cert, pair.key) for pair in config.keypairs),
        directories=config.tls_config_dir,
        connect_timeout_s=CONNECT_S if extra.connect_timeout_s is None else extra.connect_timeout_s,
        response_timeout_s=extra.response_timeout_s or 0.0,
        proxy=extra.proxy or None,
        network=network,
    )


def peer_for(authority: str, tables: Tables) -> Peer | None:
    """How the config wants a host spoken to that no reference named: a redirect, a token server; None: it does not name it."""
    table = tables.of(authority)
    return peer_of(table, tables.network) if any(name != "*" for name in table.names) else None


def web_peer(authority: str, tables: Tables) -> Peer:
    """How to speak to a git server or a web site: as its tables say. What `*` has of client certificates is not shown to it."""
    return peer_for(authority, tables) or replace(peer_of(tables.of(authority), tables.network), keypairs=(), nameless=True)


def is_local(authority: str) -> bool:
    """`localhost`, 127.0.0.0/8 or ::1, with or without a port: spoken to over plain HTTP unless told otherwise."""
    name = split_port(authority)[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:  # a name, not an address
        return False


def split_port(authority: str) -> tuple[str, int | None]:
    """`[::1]:5000` is (`::1`, 5000)."""
    if authority.startswith("["):
        name, _, port = authority[1:].partition("]")
        return name, int(port[1:]) if port[1:].isdecimal() else None
    name, colon, port = authority.partition(":")
    return name, int(port) if colon and port.isdecimal() else None
