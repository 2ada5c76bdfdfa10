# SPDX-License-Identifier: Apache-2.0
"""The BuildKit inside a Docker engine: HTTP/2 on a connection that was upgraded at `/grpc`, sessions at `/session`.

POST /grpc HTTP/1.1         Connection: Upgrade, Upgrade: h2c        -> 101, then gRPC (builders.md 2.6)
POST /session HTTP/1.1      the same, and the session's metadata     -> 101, then HTTP/2 with the engine as the client
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from chantier.errors import ChantierError
from chantier.session.serve import Attached, Offered, attach_stream
from chantier.wire import ByteStream, Channel

from .context import Host

if TYPE_CHECKING:
    from chantier.client.client import Client

_HEAD_LIMIT = 1 << 16
_ANSWER_S = 20.0


class Upgraded:
    """The connection after its 101. Implements wire.ByteStream."""

    def __init__(self, stream: ByteStream, rest: bytes) -> None:
        self._stream = stream
        self._rest = rest  # came with the answer's head
        self.write = stream.write
        self.close = stream.close

    async def read(self) -> bytes:
        if self._rest:
            rest, self._rest = self._rest, b""
            return rest
        return await self._stream.read()


async def upgrade(
    host: Host, path: str, headers: Iterable[tuple[str, str]] = (), *, protocol: str = "h2c", body: bytes = b""
) -> Upgraded:
    """POST `path` and take the connection over. Raises ChantierError if the engine is not there or will not."""
    try:
        stream = await host.connect()
    except OSError as err:
        raise _unreachable(host, err.strerror or str(err)) from err
    lines = [f"POST {path} HTTP/1.1", f"Host: {host.authority}", "Connection: Upgrade", f"Upgrade: {protocol}"]
    lines += [f"{name}: {value}" for name, value in headers]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
    try:
        async with asyncio.timeout(_ANSWER_S):
            await stream.write(head + body)
            answer = await _read_head(stream)
    except (OSError, TimeoutError) as err:
        await stream.close()
        raise _unreachable(host, f"no answer to {path}") from err
    except BaseException:
        await stream.close()
        raise
    head, _, rest = answer.partition(b"\r\n\r\n")
    first = head.split(b"\r\n", 1)[0].decode("latin-1")
    if first.split(" ")[1:2] != ["101"]:
        await stream.close()
        detail = _message(rest)
        raise ChantierError(
            f"the Docker engine at {host.address} answered {path} with {first}" + (f": {detail}" if detail else "")
        )
    return Upgraded(stream, rest)


async def _read_head(stream: ByteStream) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _HEAD_LIMIT:
        data = await stream.read()
        if not data:
            raise ConnectionResetError("the connection ended")
        answer += data
    return answer


def _message(body: bytes) -> str:
    """What the engine says of an error; its bodies are {"message": …}."""
    with suppress(ValueError, AttributeError):
        return str(json.loads(body).get("message", ""))
    return ""


def _unreachable(host: Host, why: str) -> ChantierError:
    err = ChantierError(f"failed to connect to the Docker engine at {host.address}: {why.lower()}", hint="is it running?")
    err.transient = True
    return err


def client_of(host: Host) -> Client:
    """A client of the engine's BuildKit."""
    from chantier.client.client import Client

    async def connect() -> Upgraded:
        return await upgrade(host, "/grpc")

    @asynccontextmanager
    async def attach(offered: Offered) -> AsyncIterator[Attached]:
        stream = await upgrade(host, "/session", offered.metadata())
        async with attach_stream(stream, offered, name=host.address) as attached:
            yield attached

    return Client(Channel.over(connect, name=host.address), attach=attach)


__all__ = ["Upgraded", "client_of", "upgrade"]
