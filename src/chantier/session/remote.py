# SPDX-License-Identifier: Apache-2.0
"""The session of a client behind Control.Session: the engine calls, inside the tunnel, what the client serves (protocol.md 2)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from chantier.errors import ChantierError, NotFoundError, SessionError, SessionLostError, UnsupportedError, UsageError
from chantier.kernel.trees import trees
from chantier.pb import (
    auth_pb2,
    content_pb2,
    daemon_pb2,
    directories_pb2,
    filesync_pb2,
    secrets_pb2,
    ssh_pb2,
    upload_pb2,
)
from chantier.wire import Channel, ClientCall, GrpcError, Metadata, Peer

from . import content
from .follow import Followed, differing, noting
from .fsutil import Intake, Outgo, Packet, Tree, receive, send
from .intake import BulkIntake, receive_bulk
from .location import LOCATE, Elsewhere, Proof
from .sync import Known, Receiver, look, pack, rows_of, unpack, unpack_rows
from .threads import in_thread
from .types import Credentials, FileSink, FilesRequest, SentTree, Stream
from .walk import Entry, walk

_log = logging.getLogger(__name__)

ID_KEY = "x-docker-expose-session-uuid"
SHARED_KEY = "x-docker-expose-session-sharedkey"
KNOWN_LAYERS = "/chantier.v1.Loading/KnownLayers"
METHOD_KEY = "x-docker-expose-session-grpc-method"
NAME_KEY = "x-docker-expose-session-name"
HEALTH_KEY = "x-buildkit-session-health-custom-timeout"

_OK, _CANCELLED, _DEADLINE, _NOT_FOUND, _EXISTS, _UNIMPLEMENTED, _UNAVAILABLE = 0, 1, 4, 5, 6, 12, 14
_FILES = "/moby.filesync.v1.FileSync/DiffCopy"
_SEND = "/moby.filesync.v1.FileSend/DiffCopy"
_CONTENT = f"/{content.NAME}"
_PIECE = 1 << 20  # clients take 4 MiB, stock daemons send 3
_QUICK_S = 60.0  # for questions that a client answers from memory, or asks its user's key store
_CLOSE_S = 60.0
MAX_SECRET = 512_000


class RemoteSession:
    """Implements `session.types.Session` for a client at the other end of a channel."""

    def __init__(
        self, channel: Channel, metadata: Metadata, *, salt: bytes = b"\0" * 32, peer: Peer | None = None, in_place: bool = False
    ) -> None:
        """`peer` is who holds the connection that the session came by; `in_place` allows to read its directories where they lie."""
        self.id = metadata.text(ID_KEY)
        self.shared_key = metadata.text(SHARED_KEY)
        self.name = metadata.text(NAME_KEY)
        self.methods = frozenset(method.lower() for method in metadata.texts(METHOD_KEY))
        self.channel = channel
        self._salt = salt
        self._peer = peer or Peer()
        self._in_place = in_place

    def __repr__(self) -> str:
        return f"RemoteSession({self.id!r})"

    def supports(self, path: str) -> bool:
        """Whether the client says it serves `/service/Method`; letters' case does not matter."""
        return path.lower() in self.methods

    async def call(self, path: str, request: Any, response: Any, *, timeout_s: float | None = _QUICK_S) -> Any:
        """Any unary method of the client's (exporters, policies). Raises GrpcError."""
        return await self.channel.unary(path, request, response, timeout_s=timeout_s)

    def _failed(self, err: GrpcError, *, what: str = "") -> ChantierError:
        """What a status of the client's means to a build."""
        if err.code == _NOT_FOUND:
            return NotFoundError(err.message)
        if err.code == _UNAVAILABLE:
            return SessionLostError(f"{what}{': ' if what else ''}{err.message}", hint="the client has gone away, or was cut off")
        if err.code == _UNIMPLEMENTED:
            return UnsupportedError(f"{what}{': ' if what else ''}the client does not offer this ({err.message})")
        return SessionError(err.go_text if not what else f"{what}: {err.go_text}")

    # -- files

    def _need_files(self) -> None:
        if not self.supports(_FILES):
            raise SessionError("no local sources enabled")

    async def locate(self, name: str) -> Path | None:
        """Where the client is on this machine and has proved that it may read whatever this process may. Raises SessionError if
        it offers no directories at all, NotFoundError if not this one.
        """
        self._need_files()
        try:
            path = await self._located(name)
        except Elsewhere as reason:
            _log.debug("session %s: directory %s comes over the session: %s", self.id, name, reason)
            return None
        _log.debug("session %s: directory %s is read in place: %s", self.id, name, path)
        return path

    async def _located(self, name: str) -> Path:
        if not self._in_place:
            raise Elsewhere("the config says readInPlace = false")
        if not self.supports(LOCATE):
            raise Elsewhere("the client does not tell where it lies")
        if self._peer.uid is None:
            raise Elsewhere("the client has not come by a unix socket")
        if self._peer.uid != os.geteuid():
            raise Elsewhere(f"the client is user {self._peer.uid}, this process is {os.geteuid()}")
        with Proof() as proof:
            request = directories_pb2.LocateRequest(name=name, pid=proof.pid, fd=proof.fd)
            try:
                answer = await self.call(LOCATE, request, directories_pb2.LocateResponse)
            except GrpcError as err:
                if err.code in (_NOT_FOUND, _UNAVAILABLE):
                    raise self._failed(err) from err
                raise Elsewhere(err.go_text) from err
            return await in_thread(proof.check, self.id, name, answer)

    async def receive(
        self,
        request: FilesRequest,
        into: Path,
        *,
        known: dict[str, bytes] | None = None,
        wants: Callable[[Entry], bool] | None = None,
        on_bytes: Callable[[int], None] = lambda _n: None,
        on_stat: Callable[[bytes], None] | None = None,
        on_file: Callable[[Entry, int, bytes], None] | None = None,
        changing: Callable[[], None] = lambda: None,
    ) -> Known:
        """`known` is what is there (see `sync.look`), if the caller knows; `wants` leaves contents out; `changing` is called before
        the first change. Gives what is there now.
        """
        self._need_files()
        if known is None:
            known = await in_thread(look, into)
        receiver = await in_thread(partial(Receiver, into, known, changing=changing))
        try:
            intake = Intake(receiver, wants=wants, on_bytes=on_bytes, on_stat=on_stat, on_file=on_file)
            async with self.channel.stream(_FILES, Packet, metadata=_files_metadata(request)) as call:
                now = await receive(call, intake)
                call.close_send()
                await _end(call)
                return now
        except GrpcError as err:
            raise self._failed(err) from err
        finally:
            receiver.__exit__(None, None, None)

    async def follow(
        self,
        request: FilesRequest,
        into: Path,
        index: bytes | None,
        *,
        digest: Callable[[int, bytes], bytes],
        changing: Callable[[], None],
        on_bytes: Callable[[int], None] = lambda _n: None,
    ) -> Followed:
        self._need_files()
        library = trees()
        if library is None:
            return await self._by_entry(request, into, index, digest, changing, on_bytes)

        def start() -> BulkIntake:
            before = unpack_rows(index)
            if before is None or library.compare(before, b"") is None:
                before = rows_of(look(into))
            return BulkIntake(library, into, before, digest=digest, changing=changing, on_bytes=on_bytes)

        intake = await in_thread(start)
        try:
            async with self.channel.stream(_FILES, Packet, metadata=_files_metadata(request)) as call:
                followed = await receive_bulk(call, intake)
                call.close_send()
                await _end(call)
                return followed
        except GrpcError as err:
            raise self._failed(err) from err
        finally:
            intake.close()

    async def _by_entry(
        self,
        request: FilesRequest,
        into: Path,
        index: bytes | None,
        digest: Callable[[int, bytes], bytes],
        changing: Callable[[], None],
        on_bytes: Callable[[int], None],
    ) -> Followed:
        known = unpack(index)
        if known is None:
            known = await in_thread(look, into)
        digests: dict[bytes, bytes] = {}
        changed = not known

        def begin() -> None:
            nonlocal changed
            changed = True
            changing()

        now = await self.receive(
            request, into, known=dict(known), on_bytes=on_bytes, on_file=noting(digests, digest), changing=begin
        )
        if not changed:
            return Followed(index=None, digests={})
        return Followed(index=pack(now), changed=differing(known, now), digests=digests)

    # -- secrets, credentials, agents

    async def _ask(self, path: str, request: Any, response: Any, *, what: str, absent: Sequence[int]) -> Any | None:
        """None where the client has no answer."""
        try:
            return await self.channel.unary(path, request, response, timeout_s=_QUICK_S)
        except GrpcError as err:
            if err.code in absent and self._alive:
                return None
            raise self._failed(err, what=what) from err

    @property
    def _alive(self) -> bool:
        endpoint = self.channel.current
        return endpoint is None or endpoint.usable

    async def secret(self, id: str) -> bytes | None:
        answer = await self._ask(
            "/moby.buildkit.secrets.v1.Secrets/GetSecret",
            secrets_pb2.GetSecretRequest(ID=id),
            secrets_pb2.GetSecretResponse,
            what=f"failed to get secret {id}",
            absent=(_NOT_FOUND, _UNIMPLEMENTED),
        )
        if answer is None:
            return None
        if len(answer.data) > MAX_SECRET:
            raise UsageError(f"invalid secret size {len(answer.data)} of {id}: at most {MAX_SECRET} bytes")
        return bytes(answer.data)

    async def credentials(self, host: str) -> Credentials | None:
        asked = "registry-1.docker.io" if host in ("docker.io", "index.docker.io") else host
        answer = await self._ask(
            "/moby.filesync.v1.Auth/Credentials",
            auth_pb2.CredentialsRequest(Host=asked),
            auth_pb2.CredentialsResponse,
            what=f"failed to get credentials for {host}",
            absent=(_UNIMPLEMENTED,),
        )
        if answer is None or not answer.Secret:
            return None
        return Credentials(username=answer.Username, secret=answer.Secret)

    async def token(self, host: str, realm: str, service: str, scopes: Sequence[str]) -> str | None:
        authority = await self._ask(
            "/moby.filesync.v1.Auth/GetTokenAuthority",
            auth_pb2.GetTokenAuthorityRequest(Host=host, Salt=self._salt),
            auth_pb2.GetTokenAuthorityResponse,
            what=f"failed to ask for a token authority for {host}",
            absent=(_UNAVAILABLE, _UNIMPLEMENTED),
        )
        if authority is None or not authority.PublicKey:
            return None
        answer = await self._ask(
            "/moby.filesync.v1.Auth/FetchToken",
            auth_pb2.FetchTokenRequest(ClientID="buildkit-client", Host=host, Realm=realm, Service=service, Scopes=list(scopes)),
            auth_pb2.FetchTokenResponse,
            what=f"failed to fetch a token for {host}",
            absent=(_UNIMPLEMENTED,),
        )
        return None if answer is None else str(answer.Token)

    async def has_agent(self, id: str) -> bool:
        answer = await self._ask(
            "/moby.sshforward.v1.SSH/CheckAgent",
            ssh_pb2.CheckAgentRequest(ID=id),
            ssh_pb2.CheckAgentResponse,
            what=f"failed to ask for ssh agent {id or 'default'}",
            absent=(_NOT_FOUND, _UNIMPLEMENTED, 2),  # stock clients say Unknown: "unset ssh forward key ID"
        )
        return answer is not None

    async def agent(self, id: str) -> Stream:
        call = self.channel.stream(
            "/moby.sshforward.v1.SSH/ForwardAgent", ssh_pb2.BytesMessage, metadata={"buildkit.ssh.id": id or "default"}
        )
        try:
            await call.__aenter__()
        except GrpcError as err:
            raise self._failed(err) from err
        return _AgentStream(self, call)

    # -- streams in

    async def upload(self, id: str) -> AsyncIterator[bytes]:
        call = self.channel.stream(
            "/moby.upload.v1.Upload/Pull",
            upload_pb2.BytesMessage,
            metadata={"urlpath": f"/{id.lstrip('/')}", "urlhost": "buildkit-session"},
        )
        return await self._chunks(call, None)

    async def blob(self, store: str, digest: str) -> AsyncIterator[bytes]:
        call = self.channel.stream(
            f"{_CONTENT}/Read", content_pb2.ReadContentResponse, metadata={content.STORE_KEY: store_id(store)}
        )
        return await self._chunks(call, content_pb2.ReadContentRequest(digest=digest))

    async def _chunks(self, call: ClientCall, request: Any) -> AsyncIterator[bytes]:
        """An answer's pieces; the first is awaited here, so that what is not there is known."""
        try:
            await call.__aenter__()
            if request is not None:
                call.send_nowait(request)
                call.close_send()
            first = await call.read()
        except GrpcError as err:
            await _leave(call)
            raise self._failed(err) from err
        except BaseException:
            await _leave(call)
            raise

        async def pieces() -> AsyncIterator[bytes]:
            try:
                message = first
                while message is not None:
                    if message.data:
                        yield message.data
                    message = await call.read()
            except GrpcError as err:
                raise self._failed(err) from err
            finally:
                await _leave(call)

        return pieces()

    # -- results out

    def _need_send(self) -> None:
        if not self.supports(_SEND):
            raise SessionError(f"method {_SEND.replace('DiffCopy', 'diffcopy')} not supported by the client")

    async def send_file(self, exporter: int, metadata: Mapping[str, str]) -> FileSink:
        self._need_send()
        headers = [("buildkit-attachable-exporter-id", str(exporter))]
        headers += [(f"exporter-md-{key}".lower(), value) for key, value in metadata.items()]
        call = self.channel.stream(_SEND, filesync_pb2.BytesMessage, metadata=headers)
        try:
            await call.__aenter__()
        except GrpcError as err:
            raise self._failed(err) from err
        return _RemoteSink(self, call)

    async def known_layers(self, exporter: int, metadata: Mapping[str, str], diff_ids: Sequence[str]) -> int:
        if not self.supports(KNOWN_LAYERS):
            return 0
        request = daemon_pb2.KnownLayersRequest(exporter=exporter, metadata=metadata, diff_ids=diff_ids)
        try:
            answer = await self.channel.unary(KNOWN_LAYERS, request, daemon_pb2.KnownLayersResponse, timeout_s=_QUICK_S)
        except GrpcError as err:
            raise self._failed(err) from err
        return min(int(answer.count), len(diff_ids))

    async def send_trees(self, exporter: int, trees: Sequence[SentTree], *, remove_others: bool = False) -> None:
        sent = [Tree(root=tree.root, entries=walk(tree.root), below=tree.below, epoch=tree.epoch) for tree in trees]
        if len({tree.below for tree in sent}) == len(sent):
            await self.send_directories(exporter, sent, remove_others=remove_others)
            return
        if remove_others:
            raise UsageError("mode=delete cannot be combined with platform-split=false for several platforms")
        for tree in sent:
            await self.send_directories(exporter, [tree])

    async def send_directories(self, exporter: int, trees: Sequence[Tree], *, remove_others: bool = False) -> None:
        """Several trees at once: what a client that removes others must get, as it removes what is not in the stream."""
        self._need_send()
        headers = [("buildkit-attachable-exporter-id", str(exporter))]
        if remove_others:
            # Clients refuse to delete unless they are told that all platforms come in this one stream.
            headers.append(("buildkit-exporter-multi-platform", "1"))
        outgo = Outgo(*trees)
        try:
            async with self.channel.stream(_SEND, Packet, metadata=headers) as call:
                await send(call, outgo)
                call.close_send()
                await _end(call)
        except GrpcError as err:
            raise self._failed(err) from err
        finally:
            outgo.close()

    # -- the client's content stores

    async def blob_size(self, store: str, digest: str) -> int | None:
        """None if the store has it not."""
        answer = await self._in_store(store, "Info", content_pb2.InfoRequest(digest=digest), content_pb2.InfoResponse)
        return None if answer is None else int(answer.info.size)

    async def _in_store(self, store: str, method: str, request: Any, response: Any) -> Any | None:
        try:
            return await self.channel.unary(
                f"{_CONTENT}/{method}",
                request,
                response,
                metadata={content.STORE_KEY: store_id(store)},
                timeout_s=_QUICK_S,
            )
        except GrpcError as err:
            if err.code == _NOT_FOUND and "content store" not in err.message:
                return None
            raise self._failed(err) from err

    async def write_blob(
        self, store: str, digest: str, size: int, chunks: AsyncIterator[bytes] | Iterable[bytes], *, ref: str = ""
    ) -> bool:
        """Put a blob into the client's content store; False if it was there. Raises SessionError."""
        async with self.channel.stream(
            f"{_CONTENT}/Write", content_pb2.WriteContentResponse, metadata={content.STORE_KEY: store_id(store)}
        ) as call:
            try:
                return await self._write(call, ref or digest, digest, size, chunks)
            except GrpcError as err:
                if err.code == _EXISTS:
                    return False
                raise self._failed(err, what=f"failed to write {digest} to {store}") from err

    async def _write(
        self, call: ClientCall, ref: str, digest: str, size: int, chunks: AsyncIterator[bytes] | Iterable[bytes]
    ) -> bool:
        first = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref=ref, total=size, expected=digest)
        offset = 0
        if await self._step(call, first) is None:
            return False
        async for chunk in _aiter(chunks):
            for at in range(0, len(chunk), _PIECE):
                piece = chunk[at : at + _PIECE]
                request = content_pb2.WriteContentRequest(
                    action=content_pb2.WRITE, ref=ref, total=size, expected=digest, offset=offset, data=piece
                )
                await self._step(call, request)
                offset += len(piece)
        commit = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref=ref, total=size, expected=digest, offset=offset)
        await self._step(call, commit)
        call.close_send()
        return True

    async def _step(self, call: ClientCall, request: Any) -> Any:
        await call.send(request)
        answer = await call.read()
        if answer is None:
            raise GrpcError(_UNAVAILABLE, "the client ended the write")
        return answer


def store_id(store: str) -> str:
    """Names of layouts get their prefix; `export` and `local:PATH` are ids as they are."""
    return store if store == "export" or store.startswith(("oci:", "local:")) else f"oci:{store}"


def _files_metadata(request: FilesRequest) -> list[tuple[str, str]]:
    out = [("dir-name", request.name)]
    for key, values in (
        ("include-patterns", request.include),
        ("exclude-patterns", request.exclude),
        ("followpaths", request.follow),
    ):
        if all(value.isascii() for value in values):
            out += [(key, value) for value in values]
        else:
            out.append((f"{key}-encoded", "1"))
            out += [(key, quote_plus(value.encode("utf-8", "surrogateescape"))) for value in values]
    return out


async def _aiter(chunks: AsyncIterator[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(chunks, AsyncIterator):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk


async def _end(call: ClientCall) -> None:
    """All is transferred: the client's end of the call is of interest only if it says that it failed."""
    try:
        async with asyncio.timeout(_CLOSE_S):
            await call.status()
    except TimeoutError as err:
        raise GrpcError(_DEADLINE, "the client does not end the transfer") from err


async def _leave(call: ClientCall) -> None:
    if hasattr(call, "stream"):  # it was opened
        await call.__aexit__(None, None, None)


class _RemoteSink:
    """A file at the client. It may say that it has it already: then the rest is not sent."""

    def __init__(self, session: RemoteSession, call: ClientCall) -> None:
        self._session = session
        self._call = call
        self._there = False

    async def write(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        for at in range(0, len(view), _PIECE):
            if self._there:
                return
            try:
                await self._call.send(filesync_pb2.BytesMessage(data=bytes(view[at : at + _PIECE])))
            except GrpcError as err:
                self._check(err)

    async def close(self) -> None:
        try:
            if not self._there:
                self._call.close_send()
                await self._call.status()
        except GrpcError as err:
            self._check(err)
        finally:
            await _leave(self._call)

    def _check(self, err: GrpcError) -> None:
        if err.code != _EXISTS:
            raise self._session._failed(err) from err
        self._there = True

    async def abort(self) -> None:
        await _leave(self._call)


class _AgentStream:
    def __init__(self, session: RemoteSession, call: ClientCall) -> None:
        self._session = session
        self._call = call

    async def read(self) -> bytes:
        try:
            while (message := await self._call.read()) is not None:
                if message.data:
                    return bytes(message.data)
        except GrpcError as err:
            raise self._session._failed(err) from err
        return b""

    async def write(self, data: bytes, /) -> None:
        try:
            for at in range(0, len(data), 32768):
                await self._call.send(ssh_pb2.BytesMessage(data=data[at : at + 32768]))
        except GrpcError as err:
            raise self._session._failed(err) from err

    async def close(self) -> None:
        await _leave(self._call)


__all__ = ["HEALTH_KEY", "ID_KEY", "METHOD_KEY", "NAME_KEY", "SHARED_KEY", "RemoteSession", "store_id"]
