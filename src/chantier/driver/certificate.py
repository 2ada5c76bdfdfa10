# SPDX-License-Identifier: Apache-2.0
"""Certificates of registries, checked before anything is made of them: there, readable, in time, of one pair, trusted."""

from __future__ import annotations

import base64
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from chantier.config import Config, KeyPair, RegistryConfig, dotted, line_of
from chantier.errors import ConfigError
from chantier.values import dataclass

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _UTC_TIME, _GENERAL_TIME = 0x30, 0x17, 0x18
_CONNECT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """When a certificate counts (RFC 5280, 4.1.2.5)."""

    begins: datetime
    ends: datetime


def validities(pem: bytes) -> list[Validity]:
    """Of each certificate of a PEM file, in order. Raises ValueError for what is no certificate."""
    found = [_validity(base64.b64decode(b"".join(block.split()))) for block in _PEM.findall(pem)]
    if not found:
        raise ValueError("no certificate in it")
    return found


def _validity(der: bytes) -> Validity:
    """Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { [0] version, serial, signature, issuer, validity, … } … }"""
    try:
        _, tbs, _ = _element(der)
        _, body, _ = _element(tbs)
        kinds: list[tuple[int, bytes]] = []
        while body and len(kinds) < 6:
            kind, value, body = _element(body)
            kinds.append((kind, value))
        if kinds[0][0] == 0xA0:  # the version is there unless it is 1
            kinds.pop(0)
        period = kinds[3][1]
        first, begins, rest = _element(period)
        second, ends, _ = _element(rest)
        return Validity(begins=_time(first, begins), ends=_time(second, ends))
    except (IndexError, ValueError) as err:
        raise ValueError("malformed certificate") from err


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag, value and what follows (X.690, 8.1)."""
    tag, length, at = data[0], data[1], 2
    if length & 0x80:
        count = length & 0x7F
        length, at = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if len(data) < at + length:
        raise ValueError("cut short")
    return tag, data[at : at + length], data[at + length :]


def _time(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag == _UTC_TIME:  # two digits: 1950 to 2049
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def check_config(
    config: Config, *, connect: bool = False, daemon: bool = False, now: datetime | None = None
) -> tuple[list[ConfigError], list[str]]:
    """Errors and warnings of all certificates of a config.

    `connect`: also ask the registries for theirs. `daemon`: the daemon runs on this machine, so its own certificate and the
    directories it reads are here too.
    """
    at = now or datetime.now(UTC)
    errors: list[ConfigError] = list(_check_daemon(config, at)) if daemon else []
    warnings: list[str] = []
    for index, path in enumerate(config.chantier.network.ca):
        errors += _check_file("ca of [chantier.network]", f"chantier.network.ca[{index}]", path, at, "CA")
    for host, registry in config.registries.items():
        wrong = list(_check(host, registry, at))
        errors += wrong
        if connect and not wrong and (registry.ca or registry.keypairs) and not registry.http:
            problem, fatal = _handshake(host, registry)
            if problem and fatal:
                errors.append(ConfigError(problem, key=dotted(("registry", host))))
            elif problem:
                warnings.append(problem)
    return errors, warnings


def _check_daemon(config: Config, at: datetime) -> Iterator[ConfigError]:
    tls = config.grpc.tls
    if tls.ca:
        yield from _check_file("ca of the daemon's clients", "grpc.tls.ca", tls.ca, at, "CA")
    if tls.cert or tls.key:
        yield from _check_pair("the daemon", "grpc.tls", KeyPair(cert=tls.cert, key=tls.key), at)
    for host, registry in config.registries.items():
        for index, path in enumerate(registry.tls_config_dir):
            if not Path(path).is_dir():
                key = dotted(("registry", host, "tlsconfigdir", index))
                yield ConfigError(f'the tlsconfigdir of registry "{host}" is no directory: {path}', key=key)


def _check(host: str, registry: RegistryConfig, at: datetime) -> Iterator[ConfigError]:
    for index, path in enumerate(registry.ca):
        yield from _check_file(f'ca of registry "{host}"', dotted(("registry", host, "ca", index)), path, at, "CA")
    for index, pair in enumerate(registry.keypairs):
        yield from _check_pair(f'registry "{host}"', dotted(("registry", host, "keypair", index)), pair, at)


def _check_pair(whose: str, key: str, pair: KeyPair, at: datetime) -> Iterator[ConfigError]:
    wrong = list(_check_file(f"certificate of {whose}", f"{key}.cert", pair.cert, at, "cert"))
    yield from wrong
    secret = pair.key or pair.cert
    try:
        Path(secret).read_bytes()
    except OSError as err:
        yield ConfigError(_unreadable("key", secret, err), key=f"{key}.key")
        return
    if not wrong and (problem := _mismatch(pair.cert, secret)):
        yield ConfigError(f"{whose}: {problem}", key=f"{key}.key")


def _check_file(what: str, key: str, path: str, at: datetime, kind: str) -> Iterator[ConfigError]:
    try:
        data = Path(path).read_bytes()
    except OSError as err:
        yield ConfigError(_unreadable(kind, path, err), key=key)
        return
    try:
        found = validities(data)
    except ValueError as err:
        yield ConfigError(f"the {what} cannot be used: {path}: {err}", key=key, hint="a PEM file is wanted")
        return
    for one in found[:1] if kind == "cert" else found:
        if one.ends < at and (kind == "cert" or len(found) == 1):
            yield ConfigError(f"the {what} has expired: {path}: on {one.ends:%Y-%m-%d}", key=key)
        elif one.begins > at:
            yield ConfigError(f"the {what} is not valid yet: {path}: from {one.begins:%Y-%m-%d}", key=key)


def _unreadable(kind: str, path: str, err: OSError) -> str:
    return f"failed to read {kind} file: open {path}: {(err.strerror or str(err)).lower()}"


def _mismatch(cert: str, key: str) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # An empty password: a key with one is refused instead of asked about.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except ssl.SSLError as err:
        if "KEY_VALUES_MISMATCH" in str(err) or err.reason == "KEY_VALUES_MISMATCH":
            return f"the key {key} is not that of the certificate {cert}"
        return f"the key {key} cannot be used: {(err.reason or str(err)).lower().replace('_', ' ')}"
    except (OSError, ValueError) as err:
        return f"the key {key} cannot be used: {err}"
    return ""


def _handshake(host: str, registry: RegistryConfig) -> tuple[str, bool]:
    """What is wrong with the registry's own certificate, and whether that is for sure."""
    name, _, port = host.partition("/")[0].partition(":")
    if "*" in name:
        return "", False
    context = ssl.create_default_context()
    for path in registry.ca:
        context.load_verify_locations(path)
    for pair in registry.keypairs:
        context.load_cert_chain(pair.cert, pair.key or None)
    if registry.insecure:
        return "", False
    try:
        with socket.create_connection((name, int(port or 443)), _CONNECT_S) as sock:
            with context.wrap_socket(sock, server_hostname=name) as tls:
                tls.settimeout(_CONNECT_S)
                # TLS 1.3 tells of a client certificate that is missing or wrong only with the first answer.
                tls.sendall(f"GET /v2/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                with suppress(TimeoutError):
                    tls.recv(1)
    except ssl.SSLCertVerificationError as err:
        return f"the certificate of registry {host} does not verify: {err.verify_message}", True
    except ssl.SSLError as err:
        return f"registry {host} refused the connection: {(err.reason or str(err)).lower().replace('_', ' ')}", True
    except OSError as err:
        return f"registry {host} could not be asked for its certificate: {(err.strerror or str(err)).lower()}", False
    return "", False


def place(errors: Sequence[ConfigError], text: str, file: str) -> list[ConfigError]:
    """The same errors by line, with FILE:LINE before each. `text` is that of the file."""
    placed = []
    for err in errors:
        line = line_of(err.key or "", text)
        at = f"{file}:{line}" if line else file
        placed.append(ConfigError(f"{at}: {err}", file=file, line=line or None, key=err.key, detail=err.detail, hint=err.hint))
    return sorted(placed, key=lambda e: e.line or 0)


def raise_all(errors: Sequence[ConfigError]) -> None:
    """One error that tells of all. Does nothing without any."""
    if not errors:
        return
    first = errors[0]
    more = [first.detail] if first.detail else []
    rest = "\n".join([*more, *(str(e) for e in errors[1:])])
    raise ConfigError(str(first), file=first.file, line=first.line, key=first.key, detail=rest or None, hint=first.hint)


__all__ = ["Validity", "check_config", "place", "raise_all", "validities"]
