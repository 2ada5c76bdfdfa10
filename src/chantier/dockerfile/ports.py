# SPDX-License-Identifier: Apache-2.0
"""EXPOSE: one word to ports."""

from __future__ import annotations

import ipaddress

from chantier.errors import DockerfileError
from chantier.values import dataclass

from .gotext import quote


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What one expanded EXPOSE word stands for."""

    exposed: tuple[str, ...]  # "80/tcp", in order
    proto_upper: bool = False  # rule ExposeProtoCasing applies
    mapped: bool = False  # an address or a host port was given: rule ExposeInvalidFormat applies


@dataclass(frozen=True, slots=True, kw_only=True)
class PortWord:
    """One word taken apart, before its numbers are checked: enough for the lint rules."""

    address: str
    host: str
    container: str
    proto: str  # as written; "tcp" where none is


def split_port(word: str) -> PortWord:
    """Take `[ip:][host:]port[-port][/proto]` apart; raises on a missing port or an unknown protocol."""
    parts = word.split(":")
    address, host = ":".join(parts[:-2]), parts[-2] if len(parts) > 1 else ""
    container, _, proto = parts[-1].partition("/")
    if not container:
        raise DockerfileError(f"invalid port: {quote(word)}: no port specified")
    if proto.lower() not in ("", "tcp", "udp", "sctp"):
        raise DockerfileError(f"invalid port: {quote(word)}: invalid proto: {proto}")
    return PortWord(address=address, host=host, container=container, proto=proto or "tcp")


def parse_port(word: str) -> Ports:
    """Read one word of EXPOSE after expansion; raises DockerfileError with stock texts.

    A caller that lints does so with split_port first: stock frontends warn about a word before they refuse it.
    """
    split = split_port(word)
    _check_address(split.address)
    first, last = _range(split.container, f"invalid containerPort: {split.container}")
    if split.host:
        host_first, host_last = _range(split.host, f"invalid hostPort: {split.host}")
        if last - first != host_last - host_first and first != last:
            raise DockerfileError(f"invalid ranges specified for container and host Ports: {split.container} and {split.host}")
    proto = split.proto.lower()
    return Ports(
        exposed=tuple(f"{n}/{proto}" for n in range(first, last + 1)),
        proto_upper=split.proto != proto,
        mapped=bool(split.address or split.host),
    )


def _check_address(address: str) -> None:
    if not address:
        return
    bare = address
    if address.startswith("["):
        if not address.endswith("]"):
            raise DockerfileError(f"invalid IP address {address}: address {address}:: missing ']' in address")
        bare = address[1:-1]
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        raise DockerfileError(f"invalid IP address: {bare}") from None


def _range(text: str, refusal: str) -> tuple[int, int]:
    start, dash, end = text.partition("-")
    first = _number(start, refusal)
    last = _number(end, refusal) if dash else first
    if last < first:
        raise DockerfileError(refusal)
    return first, last


def _number(text: str, refusal: str) -> int:
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or int(digits) > 65535:
        raise DockerfileError(refusal)
    return int(digits)


__all__ = ["PortWord", "Ports", "parse_port", "split_port"]
