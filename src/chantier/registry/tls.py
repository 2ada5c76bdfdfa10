# SPDX-License-Identifier: Apache-2.0
"""TLS contexts from the files a config names."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator

from chantier.errors import ConfigError

from .hosts import Peer
from .network import system_files

Signature = tuple[tuple[str, int, int], ...]


def context_for(peer: Peer) -> ssl.SSLContext:
    """Raises ConfigError for a file that cannot be read or used, naming it."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if peer.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for path in _authorities(peer):
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as err:
            raise ConfigError(f"failed to read CA file {path}: {_cause(err)}", file=path) from err
    for cert, key in _keypairs(peer):
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as err:
            raise ConfigError(f"failed to load key pair {cert} and {key}: {_cause(err)}", file=cert) from err
    return context


def signature(peer: Peer) -> Signature:
    """Changes when a file changes: a new connection then reads it anew (certificates rotate)."""
    own = () if peer.insecure else system_files()[:1]
    return tuple(_state(path) for path in (*own, *_authorities(peer), *(p for pair in _keypairs(peer) for p in pair)))


def _state(path: str) -> tuple[str, int, int]:
    try:
        state = os.stat(path)
    except OSError:  # context_for says so in words
        return path, -1, -1
    return path, state.st_mtime_ns, state.st_size


def _authorities(peer: Peer) -> Iterator[str]:
    yield from peer.ca
    for directory in peer.directories:
        yield from (path for path in _listing(directory) if path.endswith(".crt"))


def _keypairs(peer: Peer) -> Iterator[tuple[str, str]]:
    for cert, key in peer.keypairs:
        yield cert, key or cert
    for directory in peer.directories if not peer.nameless else ():
        yield from ((p, p.removesuffix(".cert") + ".key") for p in _listing(directory) if p.endswith(".cert"))


def _listing(directory: str) -> list[str]:
    try:
        return sorted(os.path.join(directory, name) for name in os.listdir(directory))
    except FileNotFoundError:  # upstream ignores a directory that is not there
        return []
    except OSError as err:
        raise ConfigError(f"failed to read tlsconfigdir {directory}: {_cause(err)}", file=directory) from err


def _cause(err: OSError) -> str:
    if isinstance(err, ssl.SSLError):
        reason = {"KEY_VALUES_MISMATCH": "the key does not belong to the certificate"}.get(err.reason or "", "")
        return reason or "not a PEM file with the wanted content"
    return os.strerror(err.errno or 0).lower()
