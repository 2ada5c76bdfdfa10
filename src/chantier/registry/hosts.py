# SPDX-License-Identifier: Apache-2.0
"""Which hosts serve a registry, in which order, and how each is spoken to. Pure: no file is opened, no name looked up."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Flag, auto
from urllib.parse import quote

from chantier.config import RegistryConfig, RegistryExtra

_DEFAULT = RegistryConfig()
_DEFAULT_EXTRA = RegistryExtra()
_DOCKER_HUB = "registry-1.docker.io"


class Capability(Flag):
    PULL = auto()
    RESOLVE = auto()
    PUSH = auto()
    REFERRERS = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """How to speak to a host: trust, client certificates, patience."""

    insecure: bool = False
    ca: tuple[str, ...] = ()
    keypairs: tuple[tuple[str, str], ...] = ()  # (cert, key)
    directories: tuple[str, ...] = ()  # *.crt are CAs, *.cert with *.key are client certificates
    connect_timeout_s: float = 30.0
    response_timeout_s: float = 0.0

    def for_stranger(self) -> Peer:
        """The same trust for a host one was redirected to, but none of our certificates."""
        return replace(self, keypairs=(), directories=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One server that may be asked for the images of a registry."""

    authority: str  # host[:port]: what is dialled, and whose credentials are asked for
    scheme: str = "https"
    prefix: str = ""  # of repository names: `proxy/` for a mirror `host/proxy`
    namespace: str = ""  # the registry it stands in for: sent as ?ns=
    capabilities: Capability = Capability.PULL | Capability.RESOLVE
    may_fall_back: bool = False  # to plain HTTP, where TLS is not spoken
    peer: Peer = Peer()

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
    """The hosts to ask for images of `domain`: its mirrors in order, then itself (semantics.md 7.1).

    `insecure` is the push option registry.insecure: TLS without verification, or none.
    """
    extras = extras or {}
    mirrors = tuple(_mirror(text, domain, registries, extras) for text in registries.get(domain, _DEFAULT).mirrors)
    capabilities = Capability.PULL | Capability.RESOLVE | Capability.PUSH
    if domain not in registries:
        capabilities |= Capability.REFERRERS
    own = _host(domain, registries, extras, insecure=insecure)
    authority = _DOCKER_HUB if domain == "docker.io" else domain
    return (*mirrors, replace(own, authority=authority, capabilities=capabilities))


def _mirror(text: str, domain: str, registries: Mapping[str, RegistryConfig], extras: Mapping[str, RegistryExtra]) -> Host:
    authority, _, path = text.partition("/")
    host = _host(authority, registries, extras)
    prefix = f"{path.strip('/')}/" if path.strip("/") else ""
    return replace(host, prefix=prefix, namespace="" if authority == domain else domain)


def _host(
    name: str, registries: Mapping[str, RegistryConfig], extras: Mapping[str, RegistryExtra], *, insecure: bool = False
) -> Host:
    config = registries.get(name, _DEFAULT)
    skip_verify = insecure or bool(config.insecure)
    plain = bool(config.http) if config.http is not None else is_local(name)
    fall_back = skip_verify and (plain or insecure)
    return Host(
        authority=name,
        scheme="http" if plain and not fall_back else "https",
        may_fall_back=fall_back,
        peer=_peer(config, extras.get(name, _DEFAULT_EXTRA), skip_verify=skip_verify),
    )


def _peer(config: RegistryConfig, extra: RegistryExtra, *, skip_verify: bool) -> Peer:
    return Peer(
        insecure=skip_verify,
        ca=config.ca,
        keypairs=tuple((pair.cert, pair.key) for pair in config.keypairs),
        directories=config.tls_config_dir,
        connect_timeout_s=extra.connect_timeout_s,
        response_timeout_s=extra.response_timeout_s,
    )


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
