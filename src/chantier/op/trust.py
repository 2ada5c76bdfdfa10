# SPDX-License-Identifier: Apache-2.0
"""The config's trust and proxies where they leave the engine: for git, for the web, and for the steps of a build.

A step is given a bundle of authorities as a file that is mounted, and variables that name it; neither is part of its layer
or of its cache key: what a step makes must not depend on who vouches for its downloads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from chantier.kernel import open_in_root
from chantier.runtime import Bind
from chantier.snapshot.mount import Mount

from .worker import Worker

if TYPE_CHECKING:
    from chantier.registry import Network, Peer, Registries, Web

BUNDLE = "/dev/chantier-ca.pem"
"""Where a step finds the bundle. Every step's /dev is a file system in memory: no stub of the mount can get into a layer."""
VARIABLES = (
    "SSL_CERT_FILE",  # OpenSSL, Go, Ruby, Rust's native-certs
    "REQUESTS_CA_BUNDLE",  # Python requests
    "PIP_CERT",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
)
_IMAGE_BUNDLES = (
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
)
_MOST_BYTES = 4 << 20
_OPTIONS = ("rbind", "ro", "nosuid", "noexec", "nodev")


def owner_of(sessions: Sequence[Any]) -> str:
    """By which name the registries know a build."""
    return str(getattr(sessions[0], "id", "")) if sessions else ""


def registries_of(worker: Worker) -> Registries:
    """The engine's; a worker that was given none has its own, without config."""

    def made() -> Registries:
        from chantier.registry import Registries

        return Registries()

    return cast("Registries", worker.registries or worker.kept("registries", made))


def network_of(worker: Worker, sessions: Sequence[Any]) -> Network:
    return registries_of(worker).network(owner_of(sessions))


def web_of(worker: Worker, sessions: Sequence[Any]) -> Web:
    return registries_of(worker).web(owner_of(sessions))


# Git.


def git_settings(
    remote: str, worker: Worker, sessions: Sequence[Any], scratch: Path
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Environment and configuration for git and a remote: proxies, authorities, the host's own client certificate."""
    registries = registries_of(worker)
    owner = owner_of(sessions)
    network = registries.network(owner)
    env = network.child_environment() if network.configured else {}
    settings: list[tuple[str, str]] = []
    parts = urlsplit(remote) if "://" in remote else None
    if parts is None or parts.scheme not in ("http", "https"):
        return env, settings
    authority = parts.netloc.rpartition("@")[2].lower()
    peer: Peer = registries.settings(owner).web_peer(authority)
    if peer.ca:
        bundle = scratch / "ca.pem"
        bundle.write_bytes(_with_files(network.bundle(), peer.ca))
        env["GIT_SSL_CAINFO"] = str(bundle)
    # What is of this host alone is said of this host alone: submodules lead elsewhere.
    of_host = f"http.{parts.scheme}://{authority}/"
    if peer.insecure:
        settings.append((f"{of_host}.sslVerify", "false"))
    for cert, key in peer.keypairs[:1]:
        settings += [(f"{of_host}.sslCert", cert), (f"{of_host}.sslKey", key or cert)]
    if peer.proxy:
        settings.append((f"{of_host}.proxy", "" if peer.proxy == "none" else peer.proxy))
    return env, settings


def _with_files(data: bytes, paths: Sequence[str]) -> bytes:
    from chantier.registry.network import read_pem

    for path in paths:
        pem = read_pem(path)
        if pem.strip() not in data:
            data += b"\n" + pem
    return data


# Steps.


def step_environment(network: Network, given: Sequence[str]) -> list[str]:
    """Variables to add to a step's; what it sets itself stands."""
    names = {entry.partition("=")[0].lower() for entry in given}
    wanted: dict[str, str] = {}
    if network.inject_ca:
        wanted |= dict.fromkeys(VARIABLES, BUNDLE)
    if network.inject_proxy:
        wanted |= network.child_environment()
    return [f"{name}={value}" for name, value in wanted.items() if name.lower() not in names]


def step_bundle(network: Network, rootfs: Path, where: Path) -> Bind:
    """The bundle as a mount: what the image trusts (else this machine) and the authorities of the config.

    `where` is a directory of the engine's: equal bundles are one file there. Raises ConfigError for a file that cannot be read.
    """
    data = network.bundle(_image_bundle(rootfs))
    if not network.ca:
        data = _joined(data, network.bundle())
    path = where / f"ca-{hashlib.sha256(data).hexdigest()[:32]}.pem"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}")
        temporary.write_bytes(data)
        temporary.chmod(0o644)
        temporary.rename(path)
    return Bind(target=BUNDLE, mount=Mount("bind", str(path), _OPTIONS))


def _joined(image: bytes, machine: bytes) -> bytes:
    """Where the config names no authority, those that this machine was taught are meant."""
    return image if machine.strip() in image else image + b"\n" + machine


def _image_bundle(rootfs: Path) -> bytes | None:
    """The image's own bundle, read without following a link out of it."""
    for name in _IMAGE_BUNDLES:
        try:
            descriptor = open_in_root(rootfs, name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # this distribution has another place
            continue
        with open(descriptor, "rb") as file:
            try:
                data = file.read(_MOST_BYTES + 1)
            except OSError:  # a directory
                continue
        if b"-----BEGIN" in data and len(data) <= _MOST_BYTES:
            return data
    return None


__all__ = [
    "BUNDLE",
    "VARIABLES",
    "git_settings",
    "network_of",
    "owner_of",
    "registries_of",
    "step_bundle",
    "step_environment",
    "web_of",
]
