# SPDX-License-Identifier: Apache-2.0
"""The driver `docker`: the BuildKit of a Docker engine, which builds into the engine's own image store (builders.md 2.6)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from chantier.errors import ChantierError, UsageError
from chantier.progress import Reporter
from chantier.wire import ByteStream

from .context import Contexts
from .dockerd import client_of, request, upgrade
from .group import Node
from .node import (
    CACHE_EXPORT,
    DEFAULT_LOAD,
    DIRECT_PUSH,
    DOCKER_EXPORTER,
    INACTIVE,
    MULTI_PLATFORM,
    OCI_EXPORTER,
    PREFER_DIGEST,
    RUNNING,
    Driver,
)

if TYPE_CHECKING:
    from chantier.client.client import Client

_SNAPSHOTTER = "org.mobyproject.buildkit.worker.snapshotter"
HOST_GATEWAY = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"


class Docker(Driver):
    """A node whose endpoint is a docker context or an engine's address."""

    KIND = "docker"

    def __init__(self, builder: str, node: Node, *, env: Mapping[str, str] = os.environ) -> None:
        super().__init__(builder, node, env=env)
        if node.files:
            raise UsageError("setting config file is not supported for docker driver, use dockerd configuration file")
        self.host = Contexts(env).resolve(node.endpoint)
        self._features: dict[str, bool] | None = None
        self._gateway: str | None = None

    @property
    def default_load(self) -> bool:
        return True

    async def features(self) -> Mapping[str, bool]:
        """With the containerd image store an engine can do all, with the old one next to nothing."""
        if self._features is None:
            async with await self.client() as client:
                workers = await client.workers()
            modern = any(_SNAPSHOTTER in w.labels for w in workers)
            self._gateway = next((w.labels[HOST_GATEWAY] for w in workers if w.labels.get(HOST_GATEWAY)), None)
            able = (OCI_EXPORTER, DOCKER_EXPORTER, CACHE_EXPORT, MULTI_PLATFORM, DIRECT_PUSH, PREFER_DIGEST)
            self._features = {**dict.fromkeys(able, modern), DEFAULT_LOAD: True}
        return self._features

    async def gateway(self) -> str | None:
        """The address that `host-gateway` stands for in --add-host."""
        await self.features()
        return self._gateway

    async def status(self) -> str:
        try:
            await request(self.host, "GET", "/version")
        except ChantierError as err:
            if err.transient:
                return INACTIVE
            raise
        return RUNNING

    async def boot(self, reporter: Reporter) -> None:
        """It is dockerd's business; this only says that it is not there. Raises ChantierError."""
        await request(self.host, "GET", "/version")

    async def client(self, *, sticky: str = "") -> Client:
        return client_of(self.host)

    async def stream(self, *, sticky: str = "") -> ByteStream:
        return await upgrade(self.host, "/grpc")

    async def version(self) -> str:
        body = json.loads(await request(self.host, "GET", "/version"))
        return str(body.get("Version", "")).removesuffix("-moby")


__all__ = ["HOST_GATEWAY", "Docker"]
