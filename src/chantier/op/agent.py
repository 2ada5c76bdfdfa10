# SPDX-License-Identifier: Apache-2.0
"""The client's ssh agent as a socket that a step can be given: each connection to it becomes one to the client's agent."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from chantier.errors import ChantierError

if TYPE_CHECKING:
    from chantier.session.types import Session, Stream

_PIECE = 1 << 15


@asynccontextmanager
async def agent_socket(session: Session, id: str, path: Path, *, uid: int, gid: int, mode: int) -> AsyncIterator[Path]:
    """Listen at `path` for the block; connections open when it ends are closed."""
    listening = _bind(path)
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await _join(session, id, reader, writer)
        finally:
            connections.discard(task)

    os.chown(path, uid, gid)
    os.chmod(path, mode)
    server = await asyncio.start_unix_server(connected, sock=listening)
    try:
        yield path
    finally:
        server.close()
        for task in tuple(connections):
            task.cancel()
        if connections:
            await asyncio.wait(tuple(connections))
        with suppress(FileNotFoundError):
            path.unlink()


def _bind(path: Path) -> socket.socket:
    """A listening socket; sun_path holds 107 bytes (unix(7)), so the directory is named by its descriptor."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        made.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
    made.setblocking(False)
    return made


async def _join(session: Session, id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        stream = await session.agent(id)
    except ChantierError:  # the agent or the client is gone: the step sees a closed connection, as from a dead agent
        writer.close()
        return
    up = asyncio.create_task(_upwards(reader, stream))
    down = asyncio.create_task(_downwards(stream, writer))
    try:
        # When the agent is done the step's end is closed; when the step is done there is nobody to answer to.
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        writer.close()
        await stream.close()


async def _upwards(reader: asyncio.StreamReader, stream: Stream) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(_PIECE):
            await stream.write(data)


async def _downwards(stream: Stream, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await stream.read():
            writer.write(data)
            await writer.drain()


__all__ = ["agent_socket"]
