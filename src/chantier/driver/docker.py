# SPDX-License-Identifier: Apache-2.0
"""Builds on the BuildKit of a Docker engine, in the engine's own image store."""

from __future__ import annotations

import os
from collections.abc import Mapping

from chantier.client import BuildResult, Prepared
from chantier.client.client import Client
from chantier.progress import Reporter

from .context import Contexts
from .dockerd import client_of
from .remote import build_on
from .running import Running


class Docker(Running):
    """`name` is a docker context, or an engine's address."""

    def __init__(self, name: str, *, env: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self.heading = f'building with "{name}" instance using docker driver'
        self.title = f"docker:{name}"
        self.place = f"{name}/{name}"
        self._host = Contexts(env).resolve(name)
        self._env = env
        self._client: Client | None = None

    async def client(self) -> Client:
        if self._client is None:
            self._client = client_of(self._host)
        return self._client

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def abuild(self, prepared: Prepared, reporter: Reporter) -> BuildResult:
        return await build_on(await self.client(), prepared, reporter, self._env)


__all__ = ["Docker"]
