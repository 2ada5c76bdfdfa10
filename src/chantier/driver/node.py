# SPDX-License-Identifier: Apache-2.0
"""One engine of a builder: is it there, start it, reach it, stop it, take it away.

Implementations: `remote`, `docker`, `container`, `kubernetes`, `local` (the engine of this process). `client` never starts
anything; `boot` may be called again; `status` never raises for an engine that is only not there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from chantier.errors import ChantierError, UsageError
from chantier.progress import Reporter
from chantier.values import dataclass
from chantier.wire import ByteStream

from .group import Node

if TYPE_CHECKING:
    from chantier.client.client import Client

INACTIVE, STARTING, RUNNING, STOPPING, STOPPED = "inactive", "starting", "running", "stopping", "stopped"
BOOLS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}

OCI_EXPORTER = "OCI exporter"
DOCKER_EXPORTER = "Docker exporter"
CACHE_EXPORT = "Cache export"
MULTI_PLATFORM = "Multi-platform build"
DIRECT_PUSH = "Direct push"
PREFER_DIGEST = "Prefer image digest"
DEFAULT_LOAD = "Automatically load images to the Docker Engine image store"
_ALL = dict.fromkeys((OCI_EXPORTER, DOCKER_EXPORTER, CACHE_EXPORT, MULTI_PLATFORM, DIRECT_PUSH), True)


class NotRunning(ChantierError):
    """There is no engine to reach: it must be booted first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What `inspect` and `ls` say of a node that was asked. `error` alone if it could not be."""

    status: str = INACTIVE
    version: str = ""
    workers: tuple[object, ...] = ()
    error: str = ""


class Driver:
    """Base of them. `KIND` is the name that is stored."""

    KIND = ""

    def __init__(self, builder: str, node: Node, *, env: Mapping[str, str] = os.environ) -> None:
        self.builder = builder
        self.node = node
        self.env = env

    @property
    def default_load(self) -> bool:
        """Whether a build without an output is loaded into the Docker engine."""
        return as_bool("default-load", self.node.opts.get("default-load", "false"))

    async def features(self) -> Mapping[str, bool]:
        return {**_ALL, DEFAULT_LOAD: self.default_load}

    async def status(self) -> str:
        raise NotImplementedError

    async def boot(self, reporter: Reporter) -> None:
        """Start it if it is not running, and wait until it answers. Raises ChantierError."""
        raise NotImplementedError

    async def client(self, *, sticky: str = "") -> Client:
        """A new connection, the caller's to close. `sticky`: what builds have in common that should meet the same engine."""
        raise NotImplementedError

    async def stream(self, *, sticky: str = "") -> ByteStream:
        """The same as bare bytes: gRPC goes over it."""
        raise NotImplementedError

    async def explain(self, err: ChantierError) -> ChantierError:
        """The error of a build, or a better one if the engine itself was lost."""
        return err

    async def version(self) -> str:
        """Of daemons too old to say it themselves; "" if nobody knows."""
        return ""

    async def deliver(self, node: Node, *, reload: bool) -> None:
        """Give a running daemon the files of `node`; `reload`: it can take them over as it runs. Raises ChantierError."""
        raise UsageError(f"the {self.KIND} driver delivers no config")

    async def stop(self) -> None:
        return

    async def remove(self, *, keep_state: bool = False) -> None:
        return

    async def close(self) -> None:
        """Let go of what this object holds; the engine goes on."""
        return


def as_bool(name: str, text: str) -> bool:
    """As Go's ParseBool. Raises UsageError."""
    if text not in BOOLS:
        raise UsageError(f"invalid value {text!r} of {name}: expected true or false")
    return BOOLS[text]


def check_opts(
    kind: str,
    opts: Mapping[str, str],
    known: Sequence[str],
    *,
    prefixes: Sequence[str] = (),
    message: str = "invalid driver option {} for {} driver",
) -> None:
    """Raises UsageError for an option the driver does not have."""
    import difflib

    for name, value in opts.items():
        if name in known:
            continue
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is not None and len(name) > len(prefix):
            continue
        if prefix is not None:
            raise UsageError(f'invalid {prefix.rstrip(".")} option "{name}={value}", expecting {prefix}FOO=bar')
        near = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            message.format(name, kind),
            hint=f"did you mean {near[0]}?" if near else "options are " + ", ".join([*known, *(f"{p}NAME" for p in prefixes)]),
        )


def unsupported(feature: str, kind: str) -> ChantierError:
    """What a build wants and the docker driver cannot do."""
    page = {
        CACHE_EXPORT: "build-cache-backends",
        OCI_EXPORTER: "build-exporters",
        DOCKER_EXPORTER: "build-exporters",
        MULTI_PLATFORM: "build-multi-platform",
    }.get(feature, "attestations")
    return UsageError(
        f"{feature} is not supported for the {kind} driver.\n"
        "Switch to a different driver, or turn on the containerd image store, and try again.\n"
        f"Learn more at https://docs.docker.com/go/{page}/"
    )


__all__ = [
    "CACHE_EXPORT",
    "DEFAULT_LOAD",
    "DIRECT_PUSH",
    "DOCKER_EXPORTER",
    "INACTIVE",
    "MULTI_PLATFORM",
    "OCI_EXPORTER",
    "PREFER_DIGEST",
    "RUNNING",
    "STARTING",
    "STOPPED",
    "STOPPING",
    "Driver",
    "Facts",
    "NotRunning",
    "as_bool",
    "check_opts",
    "unsupported",
]
