# SPDX-License-Identifier: Apache-2.0
"""A daemon that only keeps sessions, and a client that attaches one to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chantier.session.local import LocalSession
from chantier.session.remote import RemoteSession
from chantier.session.serve import Attached, Offered, attach
from chantier.session.sessions import Sessions
from chantier.wire import Channel, Server, Service

CONTROL = "moby.buildkit.v1.Control"


def run(made: Any, *, seconds: float = 120) -> Any:
    async def within() -> Any:
        async with asyncio.timeout(seconds):
            return await made

    return asyncio.run(within())


@asynccontextmanager
async def book(path: Path, **options: Any) -> AsyncIterator[tuple[Sessions, Server]]:
    sessions = Sessions(**options)
    server = Server([Service(CONTROL, {"Session": sessions.handle})])
    await server.listen(f"unix://{path}/daemon.sock")
    try:
        yield sessions, server
    finally:
        await server.close(0.2)


@asynccontextmanager
async def joined(
    path: Path, local: LocalSession, *, in_place: bool = False, **options: Any
) -> AsyncIterator[tuple[RemoteSession, Attached]]:
    """Both halves of one session. `in_place`: directories may be read where they lie."""
    async with book(path, in_place=lambda: in_place) as (sessions, _server):
        channel = Channel.unix(f"{path}/daemon.sock")
        async with attach(channel, Offered(local, **options)) as attached:
            yield await sessions.get(local.id, timeout_s=60), attached
        await channel.close()
    local.close()
