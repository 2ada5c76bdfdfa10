# SPDX-License-Identifier: Apache-2.0
"""The user's half of a session: what a session offers, served to a daemon inside Control.Session (protocol.md 2).

    async with attach(channel, Offered(session)) as attached:
        ... Control.Solve with Session=session.id ...

Any BuildKit daemon will do. The daemon asks for health every few seconds; if it asks for nothing for long, it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote_plus

from chantier.errors import ChantierError, NotFoundError, SessionError, UsageError
from chantier.pb import auth_pb2, control_pb2, daemon_pb2, directories_pb2, secrets_pb2, ssh_pb2, upload_pb2
from chantier.wire import ByteStream, Channel, GrpcError, Health, Limits, Server, ServerCall, Service, Tunnel
from chantier.wire.server import serve_paths

from . import content, location
from .fsutil import Intake, Outgo, Packet, Tree, receive, send
from .remote import ID_KEY, METHOD_KEY, SHARED_KEY
from .sync import Receiver, look
from .threads import in_thread
from .types import Credentials, FileSink, FilesRequest, KnowingSink, Stream
from .walk import filter_of, walk

_UNAVAILABLE, _UNIMPLEMENTED, _NOT_FOUND, _EXISTS = 14, 12, 5, 6
_PIECE = 1 << 20
SILENCE_S = 30.0  # a daemon asks for health every 5
_SESSION = "/moby.buildkit.v1.Control/Session"


class Served(Protocol):
    """What of a session is served; `session.local.LocalSession` is one."""

    id: str
    shared_key: str

    def directory(self, name: str) -> Path | None: ...
    async def secret(self, id: str) -> bytes | None: ...
    async def credentials(self, host: str) -> Credentials | None: ...
    async def token(self, host: str, realm: str, service: str, scopes: Any) -> str | None: ...
    async def has_agent(self, id: str) -> bool: ...
    async def agent(self, id: str) -> Stream: ...
    async def upload(self, id: str) -> AsyncIterator[bytes]: ...
    async def send_file(self, exporter: int, metadata: Mapping[str, str]) -> FileSink: ...
    async def known_layers(self, exporter: int, metadata: Mapping[str, str], diff_ids: Sequence[str]) -> int: ...


class Offered:
    """A session as gRPC services."""

    def __init__(
        self,
        session: Served,
        *,
        directories: Mapping[int, Path] | None = None,
        delete: frozenset[int] = frozenset(),
        stores: Mapping[str, Path] | None = None,
    ) -> None:
        """`directories` are the outputs that are trees, by their number in the request; those of `delete` lose what the result
        has not. `stores` are OCI layouts by content store id: `oci:NAME`, `local:PATH`, `export`.
        """
        self.session = session
        self._directories = dict(directories or {})
        self._delete = delete
        self.services = [
            Service("moby.filesync.v1.FileSync", {"DiffCopy": self._files}),
            Service("moby.filesync.v1.FileSend", {"DiffCopy": self._result}),
            Service(
                "moby.filesync.v1.Auth",
                {"Credentials": self._credentials, "FetchToken": self._token, "GetTokenAuthority": self._authority},
            ),
            Service("moby.buildkit.secrets.v1.Secrets", {"GetSecret": self._secret}),
            Service("moby.sshforward.v1.SSH", {"CheckAgent": self._check_agent, "ForwardAgent": self._agent}),
            Service("moby.upload.v1.Upload", {"Pull": self._upload}),
            Service("chantier.v1.Loading", {"KnownLayers": self._known_layers}),
            Health().service(),
        ]
        if stores:
            self.services.append(content.service(stores))

    def beside(self) -> None:
        """The daemon may be on this machine: it may ask where directories lie."""
        if all(service.name != location.NAME for service in self.services):
            self.services.append(Service(location.NAME, {"Locate": self._locate}))

    def metadata(self) -> list[tuple[str, str]]:
        """What Control.Session, or an HTTP request to `/session`, says of the session."""
        named = [(ID_KEY, self.session.id), (SHARED_KEY, self.session.shared_key)]
        return named + [(METHOD_KEY, path) for path in serve_paths(self.services)]

    # -- files

    async def _files(self, call: ServerCall) -> None:
        metadata = call.metadata
        name = metadata.text("dir-name")
        request = FilesRequest(
            name=name,
            include=_patterns(call, "include-patterns"),
            exclude=_patterns(call, "exclude-patterns"),
            follow=_patterns(call, "followpaths"),
        )
        root = await in_thread(self.session.directory, name)
        if root is None:
            raise NotFoundError(f'no access allowed to dir "{name}"')
        call.reads(Packet)
        try:
            await in_thread(filter_of, root, request)  # a bad pattern is this call's status, not a packet
            outgo = Outgo(Tree(root=root, entries=walk(root, request)))
        except OSError as err:
            raise SessionError(f"failed to read {root}: {(err.strerror or '').lower()}") from err
        await send(call, outgo)

    async def _locate(self, request: directories_pb2.LocateRequest, call: ServerCall) -> directories_pb2.LocateResponse:
        directory = await in_thread(self.session.directory, request.name)
        if directory is None:
            raise NotFoundError(f'no access allowed to dir "{request.name}"')
        return await in_thread(location.tell, self.session.id, request, directory)

    async def _result(self, call: ServerCall) -> None:
        id = call.metadata.text("buildkit-attachable-exporter-id", "0")
        exporter = int(id) if id.isdigit() else 0
        if exporter in self._directories:
            await self._tree(call, exporter)
            return
        sink = await self.session.send_file(exporter, _exporter_metadata(call))
        try:
            known = isinstance(sink, KnowingSink) and await sink.has_it()
            if known:
                await sink.close()
        except BaseException:
            await sink.abort()
            raise
        if known:
            # Every daemon takes this for success, and sends no more (exporter/oci, AlreadyExists).
            raise GrpcError(_EXISTS, "the image is there already")
        try:
            async for message in call:
                await sink.write(message.data)
        except BaseException:
            await sink.abort()
            raise
        await sink.close()

    async def _known_layers(self, request: daemon_pb2.KnownLayersRequest, call: ServerCall) -> daemon_pb2.KnownLayersResponse:
        count = await self.session.known_layers(request.exporter, dict(request.metadata), list(request.diff_ids))
        return daemon_pb2.KnownLayersResponse(count=count)

    async def _tree(self, call: ServerCall, exporter: int) -> None:
        target = self._directories[exporter]
        remove = exporter in self._delete
        if remove and "buildkit-exporter-multi-platform" not in call.metadata:
            raise UsageError(f"refusing to delete what else is in {target}: the daemon does not support mode=delete")
        call.reads(Packet)
        receiver = await in_thread(_open_target, target, remove)
        try:
            await receive(call, Intake(receiver))
        finally:
            receiver.__exit__(None, None, None)

    # -- secrets, credentials, agents

    async def _secret(self, request: secrets_pb2.GetSecretRequest, call: ServerCall) -> secrets_pb2.GetSecretResponse:
        value = await self.session.secret(request.ID)
        if value is None:
            raise GrpcError(_NOT_FOUND, f"secret {request.ID}: not found")
        return secrets_pb2.GetSecretResponse(data=value)

    async def _credentials(self, request: auth_pb2.CredentialsRequest, call: ServerCall) -> auth_pb2.CredentialsResponse:
        host = "docker.io" if request.Host == "registry-1.docker.io" else request.Host
        found = await self.session.credentials(host)
        if found is None:
            return auth_pb2.CredentialsResponse()
        return auth_pb2.CredentialsResponse(Username=found.username, Secret=found.secret)

    async def _authority(
        self, request: auth_pb2.GetTokenAuthorityRequest, call: ServerCall
    ) -> auth_pb2.GetTokenAuthorityResponse:
        raise GrpcError(_UNAVAILABLE, "client side tokens disabled")  # the daemon then fetches tokens itself

    async def _token(self, request: auth_pb2.FetchTokenRequest, call: ServerCall) -> auth_pb2.FetchTokenResponse:
        found = await self.session.token(request.Host, request.Realm, request.Service, tuple(request.Scopes))
        if found is None:
            raise GrpcError(_UNIMPLEMENTED, "client side tokens disabled")
        return auth_pb2.FetchTokenResponse(Token=found)

    async def _check_agent(self, request: ssh_pb2.CheckAgentRequest, call: ServerCall) -> ssh_pb2.CheckAgentResponse:
        if not await self.session.has_agent(request.ID):
            raise GrpcError(_NOT_FOUND, f"unset ssh forward key {request.ID or 'default'}")
        return ssh_pb2.CheckAgentResponse()

    async def _agent(self, call: ServerCall) -> None:
        stream = await self.session.agent(call.metadata.text("buildkit.ssh.id", "default"))

        async def back() -> None:
            while data := await stream.read():
                await call.send(ssh_pb2.BytesMessage(data=data))

        answers = asyncio.create_task(back())
        forward = asyncio.create_task(self._forward(call, stream))
        try:
            await asyncio.wait((answers, forward), return_when=asyncio.FIRST_COMPLETED)
        finally:
            answers.cancel()
            forward.cancel()
            await asyncio.gather(answers, forward, return_exceptions=True)
            await stream.close()
        for task in (answers, forward):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    @staticmethod
    async def _forward(call: ServerCall, stream: Stream) -> None:
        async for message in call:
            await stream.write(message.data)

    async def _upload(self, call: ServerCall) -> None:
        id = call.metadata.text("urlpath").rpartition("/")[2]
        async for chunk in await self.session.upload(id):
            for at in range(0, len(chunk), _PIECE):
                await call.send(upload_pb2.BytesMessage(data=chunk[at : at + _PIECE]))


def _patterns(call: ServerCall, key: str) -> tuple[str, ...]:
    values = call.metadata.texts(key)
    if call.metadata.text(f"{key}-encoded") == "1":
        values = [unquote_plus(value, errors="surrogateescape") for value in values]
    return tuple(values)


def _exporter_metadata(call: ServerCall) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for key, value in call.metadata:
        if key.startswith("exporter-md-") and isinstance(value, str):
            found.setdefault(key.removeprefix("exporter-md-"), []).append(value)
    return {key: ",".join(values) for key, values in found.items()}


def _open_target(target: Path, remove: bool) -> Receiver:
    """As stock clients do: what is there stays unless it is to be removed, and everything belongs to who runs this."""
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Everything is written anew: of what is there only the names count.
        known = dict.fromkeys(look(target), b"") if remove else None
        return Receiver(target, known, owner=None, remove=remove)
    except OSError as err:
        raise ChantierError(f"failed to write {target}: {(err.strerror or '').lower()}") from err


# -- attaching -----------------------------------------------------------------------------------------------------------


class Attached:
    """A session that a daemon holds. `lost` is done, with the reason, once the daemon is gone."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._closing = False

    def _gone(self, reason: str) -> None:
        if not self._closing and not self.lost.done():
            self.lost.set_result(reason)

    async def watch(self, work: asyncio.Task[Any]) -> Any:
        """The result of `work`, which is cancelled if the daemon goes. Raises SessionError then."""
        await asyncio.wait((work, self.lost), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            # What was under way often fails by itself, and then says more.
            await asyncio.wait((work,), timeout=1)
        if not work.done():
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            raise SessionError(f"the session was lost: {self.lost.result()}")
        return work.result()


@asynccontextmanager
async def attach(
    channel: Channel,
    offered: Offered,
    *,
    silence_s: float | None = SILENCE_S,
    limits: Limits | None = None,
) -> AsyncIterator[Attached]:
    """Serve a session to the daemon behind `channel` while the block runs."""
    attached = Attached()
    if channel.is_unix:
        offered.beside()
    server = Server(offered.services, limits=limits)
    async with channel.stream(_SESSION, control_pb2.BytesMessage, metadata=offered.metadata()) as call:
        tunnel = Tunnel(call, lambda write, end: server.attach(write, end, name=channel.name), control_pb2.BytesMessage)

        async def carry() -> None:
            await tunnel.run()
            closed = tunnel.endpoint.conn.closed
            attached._gone(f"{channel.name}: {closed.reason if closed else 'closed'}")

        task = asyncio.create_task(carry())
        watch = asyncio.create_task(_watch_silence(tunnel, channel.name, silence_s)) if silence_s else None
        try:
            yield attached
        finally:
            attached._closing = True
            if watch is not None:
                watch.cancel()
            call.close_send()
            await asyncio.wait((task,), timeout=2)  # the daemon says goodbye
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.close(0)


@asynccontextmanager
async def attach_stream(
    stream: ByteStream, offered: Offered, *, name: str = "the daemon", limits: Limits | None = None
) -> AsyncIterator[Attached]:
    """Serve a session over a byte stream that was upgraded to one: dockerd's `/session`."""
    attached = Attached()
    server = Server(offered.services, limits=limits)

    async def carry() -> None:
        await server.serve_stream(stream, name=name)
        attached._gone(f"{name}: the connection ended")

    task = asyncio.create_task(carry())
    try:
        yield attached
    finally:
        attached._closing = True
        await server.close(0)
        await asyncio.wait((task,), timeout=2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _watch_silence(tunnel: Tunnel, name: str, silence_s: float) -> None:
    endpoint = tunnel.endpoint
    while True:
        silent = endpoint.loop.time() - endpoint.last_heard
        if silent >= silence_s:
            endpoint.fail(f"nothing was heard of {name} for {silent:.0f} s")
            return
        await asyncio.sleep(min(silence_s - silent + 0.01, silence_s))


__all__ = ["SILENCE_S", "Attached", "Offered", "Served", "attach", "attach_stream"]
