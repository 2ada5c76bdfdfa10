# SPDX-License-Identifier: Apache-2.0
"""Builds on one daemon that runs already, reached by an address."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import ExitStack

from chantier.client import BuildResult, Prepared
from chantier.client.client import Client
from chantier.errors import CancelledError_, ChantierError, SolveError
from chantier.progress import Reporter

from .dial import NO_CERTIFICATES, Certificates, channel_to
from .offer import offered, open_session
from .running import Running, result_of


class Remote(Running):
    """`address` is one of `dial`'s. Connects at the first build."""

    def __init__(
        self,
        address: str,
        *,
        certificates: Certificates = NO_CERTIFICATES,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__()
        self.address = address
        self.heading = f'building with "{address}" instance using remote driver'
        self.title = f"remote:{address}"
        self.place = "remote/remote0"
        self._certificates = certificates
        self._env = env
        self._client: Client | None = None

    async def client(self) -> Client:
        if self._client is None:
            self._client = Client(channel_to(self.address, certificates=self._certificates, env=self._env))
        return self._client

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def abuild(self, prepared: Prepared, reporter: Reporter) -> BuildResult:
        return await build_on(await self.client(), prepared, reporter, self._env)


async def build_on(client: Client, prepared: Prepared, reporter: Reporter, env: Mapping[str, str]) -> BuildResult:
    """One build on one daemon. Raises SolveError."""
    with ExitStack() as stack:
        session = await asyncio.to_thread(open_session, prepared.offer, env, stack)
        try:
            answer = await client.solve(prepared.call, offered(prepared.offer, session), reporter)
        except CancelledError_:
            raise
        except ChantierError as err:
            raise SolveError(f"failed to solve: {err}", err) from err
    return result_of(prepared.call.ref, dict(answer.response), dict(answer.metadata))


__all__ = ["Remote", "build_on"]
