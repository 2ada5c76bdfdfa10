# SPDX-License-Identifier: Apache-2.0
"""Spans of clients, passed on to a collector: OTLP as its specification and OpenTelemetry's environment variables say.

Clients send their spans when they end. OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or OTEL_EXPORTER_OTLP_ENDPOINT, says where they go
on to: by gRPC, or with OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf as POST requests (the general endpoint then gets /v1/traces).
OTEL_EXPORTER_OTLP_HEADERS are sent along, OTEL_EXPORTER_OTLP_CERTIFICATE is the collector's authority. Without an endpoint
spans are dropped. No build ever waits for a collector: what it does not take in time is dropped, and said once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from chantier.errors import ConfigError
from chantier.pb import trace_pb2
from chantier.wire import Channel, ServerCall, Service
from chantier.wire.tls import client_context

if TYPE_CHECKING:
    import ssl

TRACE_NAME = "opentelemetry.proto.collector.trace.v1.TraceService"
_WAITING = 256  # requests kept for a slow collector
_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)
Request = trace_pb2.ExportTraceServiceRequest


class Collector(Protocol):
    """Where spans go. `send` raises whatever goes wrong."""

    async def send(self, request: Request, /) -> None: ...
    async def close(self) -> None: ...


class Traces:
    """The service that takes spans; `close` drops what still waits."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Raises ConfigError for variables that cannot be meant."""
        self._collector = collector_of(env)
        self._waiting: asyncio.Queue[Request] = asyncio.Queue(_WAITING)
        self._sending: asyncio.Task[None] | None = None
        self._failing = False

    def service(self) -> Service:
        return Service(TRACE_NAME, {"Export": self._export})

    async def _export(self, request: Request, call: ServerCall) -> trace_pb2.ExportTraceServiceResponse:
        if self._collector is not None:
            if self._sending is None:
                self._sending = asyncio.create_task(self._send(self._collector))
            try:
                self._waiting.put_nowait(request)
            except asyncio.QueueFull:
                self._failed("the collector is too slow")
        return trace_pb2.ExportTraceServiceResponse()

    async def _send(self, collector: Collector) -> None:
        while True:
            request = await self._waiting.get()
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await collector.send(request)
            except Exception as err:
                self._failed(str(err) or type(err).__name__)
            else:
                self._failing = False

    def _failed(self, why: str) -> None:
        """Said once, until the collector takes something again."""
        if not self._failing:
            _log.warning("spans are dropped: %s", why)
        self._failing = True

    async def close(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        if self._collector is not None:
            await self._collector.close()


class _Grpc:
    def __init__(self, channel: Channel, headers: list[tuple[str, str]]) -> None:
        self._channel = channel
        self._headers = headers

    async def send(self, request: Request, /) -> None:
        await self._channel.unary(
            f"/{TRACE_NAME}/Export", request, trace_pb2.ExportTraceServiceResponse, metadata=self._headers, timeout_s=_TIMEOUT_S
        )

    async def close(self) -> None:
        await self._channel.close()


class _Http:
    def __init__(self, url: str, headers: list[tuple[str, str]], tls: ssl.SSLContext | None) -> None:
        import urllib3

        self._url = url
        self._headers = {**dict(headers), "content-type": "application/x-protobuf"}
        self._pool = urllib3.PoolManager(ssl_context=tls, timeout=_TIMEOUT_S, retries=False)

    async def send(self, request: Request, /) -> None:
        body = request.SerializeToString()
        answer = await asyncio.to_thread(self._pool.request, "POST", self._url, body=body, headers=self._headers)
        if answer.status >= 300:
            raise OSError(f"{self._url} answered with status {answer.status}")

    async def close(self) -> None:
        self._pool.clear()


def collector_of(env: Mapping[str, str]) -> Collector | None:
    """What the environment says; None where it names no endpoint. Raises ConfigError."""

    def said(name: str) -> str:
        return env.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or env.get(f"OTEL_EXPORTER_OTLP_{name}") or ""

    endpoint = said("ENDPOINT")
    if not endpoint or env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = said("PROTOCOL") or "grpc"
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {endpoint!r} is no http:// or https:// URL")
    ca = said("CERTIFICATE")
    tls = client_context(ca=Path(ca) if ca else None) if url.scheme == "https" else None
    headers = [(name.strip().lower(), unquote(value.strip())) for name, value in _pairs(said("HEADERS"))]
    if protocol == "grpc":
        port = url.port or (443 if tls else 4317)
        return _Grpc(Channel.tcp(url.hostname, port, tls=tls), headers)
    if protocol == "http/protobuf":
        whole = endpoint if env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") else endpoint.rstrip("/") + "/v1/traces"
        return _Http(whole, headers, tls)
    raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL: unsupported protocol {protocol!r}", hint="use grpc or http/protobuf")


def _pairs(text: str) -> list[tuple[str, str]]:
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise ConfigError("OTEL_EXPORTER_OTLP_HEADERS is no list of NAME=VALUE", hint="separate headers by commas")
        found.append((name, value))
    return found


__all__ = ["TRACE_NAME", "Traces", "collector_of"]
