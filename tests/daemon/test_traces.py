# SPDX-License-Identifier: Apache-2.0
"""Spans of clients reach a collector: one of grpcio, and one behind Python's HTTP server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import grpc
import pytest

from chantier.daemon.traces import TRACE_NAME, Traces, collector_of
from chantier.errors import ConfigError
from chantier.pb import trace_pb2
from chantier.wire import dial

from .conftest import Start

SPANS = trace_pb2.ExportTraceServiceRequest(resource_spans=[b"\x0a\x02hi", b"\x0a\x03you"])
Got = Queue[tuple[dict[str, str], bytes]]


@pytest.fixture
def by_grpc() -> Iterator[tuple[str, Got]]:
    got: Got = Queue()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            def export(raw: bytes, context: Any) -> bytes:
                got.put((dict(context.invocation_metadata()), raw))
                return b""

            return grpc.unary_unary_rpc_method_handler(export) if details.method == f"/{TRACE_NAME}/Export" else None

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", got
    server.stop(None)


@pytest.fixture
def by_http() -> Iterator[tuple[str, Got]]:
    got: Got = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.put(({":path": self.path, **{k.lower(): v for k, v in self.headers.items()}}, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


async def export(address: str) -> None:
    async with dial(address) as channel:
        await channel.unary(f"/{TRACE_NAME}/Export", SPANS, trace_pb2.ExportTraceServiceResponse, timeout_s=60)


def test_to_a_collector_of_grpc(start_daemon: Start, by_grpc: tuple[str, Got]) -> None:
    endpoint, got = by_grpc
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a%20b, x-other=2"}
    asyncio.run(export(start_daemon(env=env).address))
    metadata, raw = got.get(timeout=60)
    assert trace_pb2.ExportTraceServiceRequest.FromString(raw) == SPANS
    assert (metadata["x-tenant"], metadata["x-other"]) == ("a b", "2")


def test_to_a_collector_of_http(start_daemon: Start, by_http: tuple[str, Got]) -> None:
    endpoint, got = by_http
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    asyncio.run(export(start_daemon(env=env).address))
    headers, raw = got.get(timeout=60)
    assert (headers[":path"], headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
    assert trace_pb2.ExportTraceServiceRequest.FromString(raw) == SPANS


def test_a_collector_that_is_not_there_is_said_once(start_daemon: Start) -> None:
    daemon = start_daemon(env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    for _ in range(3):
        asyncio.run(export(daemon.address))
    daemon.wait_for("spans are dropped")
    assert daemon.log.count("spans are dropped") == 1


def test_without_an_endpoint_they_are_dropped() -> None:
    assert collector_of({}) is None
    assert collector_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_SDK_DISABLED": "true"}) is None


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "is no http:// or https:// URL"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "unsupported protocol 'http/json'",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_HEADERS": "secret"}, "no list of NAME=VALUE"),
    ],
)
def test_what_cannot_be_meant(env: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        Traces(env)
    assert "secret" not in str(caught.value)
