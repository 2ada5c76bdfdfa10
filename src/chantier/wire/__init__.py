# SPDX-License-Identifier: Apache-2.0
"""gRPC over any byte stream: HTTP/2 and gRPC of our own, one engine for either end of a socket and of the session's tunnel.

Promises: it interoperates with grpc-go and C-core; a peer that breaks the protocol, floods or stalls costs bounded memory
and ends its own connection only; a lost peer is an error that names it; nothing here blocks the loop. Refuses: HTTP/1,
server push, codecs other than protobuf. Everything belongs to one event loop and is used from its thread.

Serve:

    async def info(request, call):                       # unary: return the answer
        return control_pb2.InfoResponse(...)

    async def status(request, call):                     # answers stream: send them; returning ends the call with OK
        await call.send(control_pb2.StatusResponse(...)) # waits while the client takes no more

    async def session(call):                             # the client streams (with or without answers): no request
        async for message in call: ...                   # or `await call.read()`, `await call.read_many()`

    control = Service("moby.buildkit.v1.Control", {"Info": info, "Status": status, "Session": session})
    server = Server([control, Health().service()])
    server_names = lambda: server.services
    for service in reflection.services(server_names): server.add(service)
    await server.listen("unix:///run/chantier/chantierd.sock", gid=..., mode=0o660)
    await server.listen("tcp://0.0.0.0:1234", tls=tls.server_context(cert, key, client_ca=ca))
    await server.listen("fd://")                         # a socket of the service manager
    await server.serve_stream(stream)                    # a process's standard streams: anything with read/write/close
    await server.close(grace_s=60)                       # GOAWAY, wait for calls in flight, cancel the rest

A handler sees `call.metadata` (`.text(key)`, `.texts(key)`, `.binary(key)`), `call.peer` (address, uid, pid, names of a
client certificate), `call.remaining_s`, `call.set_initial_metadata`, `call.set_trailing_metadata`. Its task is cancelled
when the client cancels or is lost, or its deadline passes. What it raises is the status: GrpcError as it is, a
ChantierError by its `grpc_code` with BuildKit's JSON details of its vertex, sources and exit status, any other exception
as Unknown. `Server(on_error=...)` may make a status of its own, with more details (`json_detail`).

Call:

    channel = dial("unix:///run/buildkit/buildkitd.sock")   # or Channel.tcp(..., tls=tls.client_context(...)), Channel.over(...)
    control = Stub(channel, "moby.buildkit.v1.Control")
    info = await control.unary("Info", control_pb2.InfoRequest(), timeout_s=5)
    async with control.stream("Status") as call:            # leaving the block early cancels the call
        await call.send(request)
        call.close_send()
        async for answer in call: ...                       # raises GrpcError unless the status is OK
        trailers = await call.status()

GrpcError has `code`, `message`, `details` (each `type_url`, `value`, `.name`, `.json()`), trailing `metadata`, `go_text`;
`error_of` makes the ChantierError of ours that it tells of, with sources, vertex, hint and exit status.

A tunnel (Control.Session) is `Tunnel(call, attach, BytesMessage)`: `attach` makes the inner endpoint, `Server.attach` for the
end that serves, `client_endpoint` for the end that calls, with `Channel.on(tunnel.endpoint)`. `await tunnel.run()` carries bytes.

Three names to know: `Server`, `Channel`, `GrpcError`.
"""

from .call import Call, ServerCall
from .channel import Channel, ClientCall, Stub, client_endpoint, dial
from .connection import Connection
from .endpoint import ByteStream, Endpoint, Keepalive, Peer
from .frames import Limits
from .headers import Metadata, MetadataLike
from .health import Health
from .listen import Listener, activated
from .server import Server
from .service import Handler, Method, Service, methods
from .status import Detail, GrpcError, code_name, error_of, json_detail, status_of
from .tunnel import Tunnel

__all__ = [
    "ByteStream",
    "Call",
    "Channel",
    "ClientCall",
    "Connection",
    "Detail",
    "Endpoint",
    "GrpcError",
    "Handler",
    "Health",
    "Keepalive",
    "Limits",
    "Listener",
    "Metadata",
    "MetadataLike",
    "Method",
    "Peer",
    "Server",
    "ServerCall",
    "Service",
    "Stub",
    "Tunnel",
    "activated",
    "client_endpoint",
    "code_name",
    "dial",
    "error_of",
    "json_detail",
    "methods",
    "status_of",
]
