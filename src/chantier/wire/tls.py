# SPDX-License-Identifier: Apache-2.0
"""TLS contexts for HTTP/2, with client certificates where they are wanted."""

from __future__ import annotations

import ssl
from pathlib import Path

from chantier.errors import ConfigError


def server_context(cert: Path, key: Path, *, client_ca: Path | None = None) -> ssl.SSLContext:
    """With `client_ca` only clients with a certificate it signed may connect. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    _load(context, cert, key)
    if client_ca is not None:
        _trust(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(*, ca: Path | None = None, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """Trusts `ca`, or else what the system trusts. Raises ConfigError."""
    if (cert is None) != (key is None):
        raise ConfigError("a client certificate needs both a certificate and a key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if ca is not None:
        _trust(context, ca)
    else:
        context.load_default_certs()
    if cert is not None and key is not None:
        _load(context, cert, key)
    return context


def _load(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as err:
        raise ConfigError(f"failed to load certificate {cert} with key {key}: {(err.reason or str(err)).lower()}") from err
    except OSError as err:
        raise ConfigError(f"failed to read certificate {cert} or key {key}: {(err.strerror or str(err)).lower()}") from err


def _trust(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as err:
        raise ConfigError(f"failed to load certificates of {ca}: {(err.reason or str(err)).lower()}") from err
    except OSError as err:
        raise ConfigError(f"failed to read certificates of {ca}: {(err.strerror or str(err)).lower()}") from err


__all__ = ["client_context", "server_context"]
