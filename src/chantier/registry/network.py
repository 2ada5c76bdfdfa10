# SPDX-License-Identifier: Apache-2.0
"""Trust and proxies of all that the engine does on the network: registries, token servers, git, ADD, and steps if wanted.

Which hosts are reached directly is decided as Go's net/http does (golang.org/x/net/http/httpproxy), as users of BuildKit
expect: `below.test` means the name and all below it, `.below.test` only what is below, addresses and networks only match
addresses, `:port` narrows any of them, this machine itself is never reached through a proxy.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from chantier.config import NetworkConfig
from chantier.errors import ConfigError
from chantier.values import dataclass

DIRECT = "none"
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where distributions keep the authorities they trust, in one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """`[chantier.network]` as a value. Proxies that the config does not name are those of the environment, read when needed."""

    ca: tuple[str, ...] = ()
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: tuple[str, ...] = ()
    configured: bool = False  # the config names proxies: the environment's do not count
    inject_ca: bool = False
    inject_proxy: bool = False
    env: Mapping[str, str] | None = None  # None: that of the process

    def __hash__(self) -> int:
        return hash((self.ca, self.http_proxy, self.https_proxy, self.no_proxy, self.configured))

    @classmethod
    def of(cls, config: NetworkConfig) -> Network:
        proxies = (config.http_proxy or config.proxy, config.https_proxy or config.proxy)
        http, https = ("" if proxy == DIRECT else proxy for proxy in proxies)
        return cls(
            ca=config.ca,
            http_proxy=http,
            https_proxy=https,
            no_proxy=config.no_proxy,
            configured=any(proxies),
            inject_ca=config.inject_ca,
            inject_proxy=config.inject_proxy,
        )

    def proxy_for(self, url: str) -> str | None:
        """The proxy a URL is to be fetched through; None: directly."""
        parts = urlsplit(url)
        authority = parts.netloc.rpartition("@")[2]
        http, https, direct = self.proxies()
        proxy = https if parts.scheme == "https" else http
        if not proxy or goes_direct(authority, direct, default_port=443 if parts.scheme == "https" else 80):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    def proxies(self) -> tuple[str, str, tuple[str, ...]]:
        """(for http, for https, what is reached directly)."""
        env = os.environ if self.env is None else self.env
        lower = {name.lower(): value for name, value in env.items() if value and name.lower().endswith("_proxy")}
        lower |= {name: env[name] for name in lower if env.get(name)}  # lower case wins where both are set
        direct = self.no_proxy or tuple(lower.get("no_proxy", "").replace(",", " ").split())
        if self.configured:
            return self.http_proxy, self.https_proxy, direct
        everything = lower.get("all_proxy", "")
        # A CGI program's HTTP_PROXY is a header of its caller (httpoxy, CVE-2016-5385).
        http = "" if "REQUEST_METHOD" in env else lower.get("http_proxy", "")
        return http or everything, lower.get("https_proxy", "") or everything, direct

    def child_environment(self) -> dict[str, str]:
        """The proxies as variables of a program, in both spellings; those not set are not there."""
        http, https, direct = self.proxies()
        named = {"http_proxy": http, "https_proxy": https, "no_proxy": ",".join(direct) if http or https else ""}
        found = {name: value for name, value in named.items() if value}
        return found | {name.upper(): value for name, value in found.items()}

    def bundle(self, base: bytes | None = None) -> bytes:
        """PEM of all authorities: `base` or what this machine trusts, and those of the config. Raises ConfigError."""
        parts = [system_bundle() if base is None else base]
        for path in self.ca:
            parts.append(read_pem(path))
        return b"".join(part if part.endswith(b"\n") or not part else part + b"\n" for part in parts)


def system_bundle() -> bytes:
    """What this machine trusts, as PEM; nothing where no bundle is found."""
    for path in system_files():
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError:  # not this distribution's place
            continue
    return b""


def system_files() -> tuple[str, ...]:
    """Where the bundle of this machine may be, the right one first (SSL_CERT_FILE, OpenSSL's own, distributions')."""
    own = ssl.get_default_verify_paths()
    return tuple(dict.fromkeys(p for p in (os.environ.get(own.openssl_cafile_env), own.cafile, *_BUNDLES) if p))


def read_pem(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as err:
        raise ConfigError(f"failed to read CA file {path}: {os.strerror(err.errno or 0).lower()}", file=path) from err
    if b"-----BEGIN" not in data:
        raise ConfigError(f"failed to read CA file {path}: not a PEM file with the wanted content", file=path)
    return data


def goes_direct(authority: str, rules: Iterable[str], *, default_port: int = 443) -> bool:
    """Whether HOST[:PORT] is reached without a proxy."""
    host, port = _split(authority)
    port = port or default_port
    address = _address(host)
    if host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback):
        return True
    return any(_matches(rule.strip().lower(), host, port, address) for rule in rules)


def _matches(rule: str, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    if rule in ("", "*"):
        return rule == "*"
    if "/" in rule:
        try:
            return address is not None and address in ipaddress.ip_network(rule, strict=False)
        except ValueError:  # no network: it means nothing
            return False
    name, wanted = _split(rule)
    if wanted and wanted != port:
        return False
    own = _address(name)
    if own is not None or address is not None:
        return own == address
    if name.startswith("*."):
        name = name[1:]
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith("." + name)


def _split(authority: str) -> tuple[str, int]:
    """`[::1]:80`, `::1`, `name:80`; the port is 0 where there is none."""
    text = authority.lower()
    if text.startswith("["):
        name, _, tail = text[1:].partition("]")
        return name, int(tail[1:]) if tail[1:].isdecimal() else 0
    if text.count(":") > 1:
        return text, 0
    name, _, tail = text.partition(":")
    return name, int(tail) if tail.isdecimal() else 0


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:  # a name
        return None
