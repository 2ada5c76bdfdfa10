# SPDX-License-Identifier: Apache-2.0
"""LLBBridge on the daemon's sockets: each call goes to the build that its metadata names (protocol.md 1.5.1)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from chantier.errors import ChantierError
from chantier.pb import gateway_pb2  # noqa: F401  # describes the service
from chantier.wire import GrpcError, ServerCall, Service
from chantier.wire.status import NOT_FOUND, UNKNOWN

from .gateway import METHODS, Gateway

if TYPE_CHECKING:
    from .daemon import Daemon

NAME = "moby.buildkit.v1.frontend.LLBBridge"
BUILD_ID = "buildkit-controlapi-buildid"


class Bridge:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def service(self) -> Service:
        handlers: dict[str, Any] = {method: partial(self._unary, method) for method in METHODS}
        return Service(NAME, handlers | {"ExecProcess": self._exec_process})

    async def _unary(self, method: str, request: Any, call: ServerCall) -> Any:
        gateway = await self._gateway(method, call)
        return await gateway.handle(method, request, call)

    async def _exec_process(self, call: ServerCall) -> None:
        gateway = await self._gateway("ExecProcess", call)
        await gateway.exec_process(call)

    async def _gateway(self, method: str, call: ServerCall) -> Gateway:
        id = call.metadata.text(BUILD_ID)
        if not id:
            raise GrpcError(UNKNOWN, f"forwarding {method}: no buildid found in context")
        await self._daemon.engine()  # Solve waits for it too
        try:
            running = await self._daemon.builds.wait(id)
        except ChantierError as err:
            raise GrpcError(NOT_FOUND, f"forwarding {method}: {err}") from err
        return await running.gateway()


def serve(gateway: Gateway) -> Service:
    """The same for one build, to whoever holds the connection: a frontend in a container."""

    async def unary(method: str, request: Any, call: ServerCall) -> Any:
        return await gateway.handle(method, request, call)

    handlers: dict[str, Any] = {method: partial(unary, method) for method in METHODS}
    return Service(NAME, handlers | {"ExecProcess": gateway.exec_process})


__all__ = ["BUILD_ID", "NAME", "Bridge", "serve"]
