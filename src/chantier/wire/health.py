# SPDX-License-Identifier: Apache-2.0
"""grpc.health.v1: whether a server and its services serve."""

from __future__ import annotations

import asyncio
from typing import Any

from chantier.pb import health_pb2 as pb

from .call import ServerCall
from .service import Service
from .status import NOT_FOUND, GrpcError

NAME = "grpc.health.v1.Health"
SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING


class Health:
    """Statuses by service name; the empty name is the server itself, and serves from the start."""

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {"": SERVING}
        self._watchers: set[asyncio.Event] = set()

    def set(self, status: Any, service: str = "") -> None:
        self._statuses[service] = status
        for watcher in self._watchers:
            watcher.set()

    def service(self) -> Service:
        return Service(NAME, {"Check": self._check, "List": self._list, "Watch": self._watch})

    async def _check(self, request: pb.HealthCheckRequest, call: ServerCall) -> pb.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            raise GrpcError(NOT_FOUND, "unknown service")
        return pb.HealthCheckResponse(status=status)

    async def _list(self, request: pb.HealthListRequest, call: ServerCall) -> pb.HealthListResponse:
        found = pb.HealthListResponse()
        for name, status in self._statuses.items():
            found.statuses[name].status = status
        return found

    async def _watch(self, request: pb.HealthCheckRequest, call: ServerCall) -> None:
        news = asyncio.Event()
        self._watchers.add(news)
        told: Any = None
        try:
            while True:
                status = self._statuses.get(request.service, pb.HealthCheckResponse.SERVICE_UNKNOWN)
                if status != told:
                    told = status
                    await call.send(pb.HealthCheckResponse(status=status))
                await news.wait()
                news.clear()
        finally:
            self._watchers.discard(news)


__all__ = ["NAME", "NOT_SERVING", "SERVING", "Health"]
