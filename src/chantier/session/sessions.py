# SPDX-License-Identifier: Apache-2.0
"""The daemon's book of sessions: takes the calls of Control.Session, watches their health, and gives out sessions by id."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator

from chantier.errors import SessionError
from chantier.pb import control_pb2, health_pb2
from chantier.wire import Channel, GrpcError, Limits, ServerCall, Tunnel, client_endpoint

from .remote import HEALTH_KEY, ID_KEY, RemoteSession

_log = logging.getLogger(__name__)
_EXISTS = 6


class Sessions:
    """The sessions of all clients that are connected."""

    def __init__(
        self,
        *,
        health_every_s: float = 5.0,
        health_timeout_s: float = 15.0,
        limits: Limits | None = None,
        in_place: Callable[[], bool] = lambda: False,
    ) -> None:
        """`in_place` says of each session that comes whether its directories may be read where they lie (docs/adr/0013)."""
        self._sessions: dict[str, RemoteSession] = {}
        self._waiters: dict[str, set[asyncio.Future[RemoteSession]]] = {}
        self._every_s = health_every_s
        self._timeout_s = health_timeout_s
        self._limits = limits
        self._salt = os.urandom(32)
        self._in_place = in_place

    def __iter__(self) -> Iterator[RemoteSession]:
        return iter(tuple(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, id: str) -> RemoteSession | None:
        """The session `id`, or of `prefix:id`."""
        return self._sessions.get(id.rpartition(":")[2])

    async def get(self, id: str, *, timeout_s: float = 5.0) -> RemoteSession:
        """Wait for a client to connect. Raises SessionError."""
        id = id.rpartition(":")[2]
        found = self._sessions.get(id)
        if found is not None:
            return found
        waiter: asyncio.Future[RemoteSession] = asyncio.get_running_loop().create_future()
        waiting = self._waiters.setdefault(id, set())
        waiting.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except TimeoutError as err:
            raise SessionError(f"no active session for {id}: context deadline exceeded") from err
        finally:
            waiting.discard(waiter)
            if not waiting:
                self._waiters.pop(id, None)

    async def handle(self, call: ServerCall) -> None:
        """The handler of Control.Session: returns when the session is over."""
        metadata = call.metadata
        id = metadata.text(ID_KEY)
        if not id:
            raise GrpcError(3, "session id is required")
        if id in self._sessions:
            raise GrpcError(_EXISTS, f"session {id} is connected already: only one connection allowed")
        call.send_initial_metadata()
        name = f"the client ({call.peer.address}), session {id},"
        tunnel = Tunnel(
            call, lambda write, end: client_endpoint(write, end, name=name, limits=self._limits), control_pb2.BytesMessage
        )
        session = RemoteSession(Channel.on(tunnel.endpoint), metadata, salt=self._salt, peer=call.peer, in_place=self._in_place())
        self._sessions[id] = session
        watch = asyncio.create_task(self._watch(session, tunnel, metadata.text(HEALTH_KEY)))
        for waiter in self._waiters.pop(id, ()):
            if not waiter.done():
                waiter.set_result(session)
        try:
            await tunnel.run()
        finally:
            watch.cancel()
            if self._sessions.get(id) is session:
                del self._sessions[id]

    async def _watch(self, session: RemoteSession, tunnel: Tunnel, custom: str) -> None:
        """Ask whether the client lives; end the session when it does not say so twice."""
        every, least, fatal = self._every_s, self._timeout_s, 2
        if custom.isdigit():
            every = least = max(int(custom), 1000) / 1000
            fatal = 1
        loop = asyncio.get_running_loop()
        last, failures = 0.0, 0
        while True:
            await asyncio.sleep(every)
            start = loop.time()
            timeout = max(least, last * 1.5)
            try:
                await session.channel.unary(
                    "/grpc.health.v1.Health/Check",
                    health_pb2.HealthCheckRequest(),
                    health_pb2.HealthCheckResponse,
                    timeout_s=timeout,
                )
                failures = 0
            except GrpcError as err:
                failures += 1
                _log.warning("session %s: healthcheck failed: %s", session.id, err)
                if failures >= fatal:
                    tunnel.endpoint.fail(f"session healthcheck failed fatally: {err.message}")
                    return
            last = loop.time() - start


__all__ = ["Sessions"]
