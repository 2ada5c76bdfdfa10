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
    wanted = [("Connection", "Upgrade"), ("Upgrade", protocol), *headers]
    if body:
        wanted.append(("Content-Type", "application/json"))
    stream, answer = await _exchange(host, "POST", path, wanted, body)
    head, _, rest = answer.partition(b"\r\n\r\n")
    first = head.split(b"\r\n", 1)[0].decode("latin-1")
    if first.split(" ")[1:2] != ["101"]:
        await stream.close()
        raise _refused(host, path, first, rest)
    return Upgraded(stream, rest)


async def request(host: Host, method: str, path: str) -> bytes:
    """A small request with a small answer. Raises ChantierError; `transient` if the engine is not there."""
    stream, answer = await _exchange(host, method, path, [("Connection", "close")], b"")
    try:
        async with asyncio.timeout(_ANSWER_S):
            while data := await stream.read():
                answer += data
    except (OSError, TimeoutError) as err:
        raise _unreachable(host, f"no answer to {path}") from err
    finally:
        await stream.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    first = head.split(b"\r\n", 1)[0].decode("latin-1")
    if b"\ntransfer-encoding: chunked" in head.lower():
        rest = _unchunk(rest)
    if not first.split(" ")[1:2][0].startswith("2"):
        raise _refused(host, path, first, rest)
    return rest


async def _exchange(
    host: Host, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes
) -> tuple[ByteStream, bytes]:
    """The connection, and what came of the answer, its head at the least."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            stream = await host.connect()
    except (OSError, TimeoutError) as err:
        raise _unreachable(host, getattr(err, "strerror", None) or str(err) or "no answer") from err
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host.authority}", *(f"{name}: {value}" for name, value in headers)]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
    try:
        async with asyncio.timeout(_ANSWER_S):
            await stream.write(head + body)
            return stream, await _read_head(stream)
    except (OSError, TimeoutError) as err:
        await stream.close()
        raise _unreachable(host, f"no answer to {path}") from err
    except BaseException:
        await stream.close()
        raise


def _refused(host: Host, path: str, first: str, body: bytes) -> ChantierError:
    detail = _message(body)
    return ChantierError(f"the Docker engine at {host.address} answered {path} with {first}" + (f": {detail}" if detail else ""))


def _unchunk(body: bytes) -> bytes:
    out = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0] or b"0", 16)
        if not length:
            break
        out, body = out + body[:length], body[length + 2 :]
    return out


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


__all__ = ["Upgraded", "client_of", "request", "upgrade"]
