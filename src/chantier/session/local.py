# SPDX-License-Identifier: Apache-2.0
"""The session of a build in this very process: the user's directories are read in place, results are written in place."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets as random
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from chantier.errors import ChantierError, NotFoundError, SessionError, UsageError
from chantier.kernel import write_all
from chantier.kernel.temporary import NewFile, TemporaryDirectory
from chantier.kernel.trace import point
from chantier.spec import Digest, new_id
from chantier.values import dataclass

from .follow import follow
from .sync import Receiver, look, sync
from .threads import in_thread
from .types import Credentials, FileSink, FilesRequest, Followed, KnowingSink, SentTree, Stream

MAX_SECRET = 512_000
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSource:
    """Where a secret is: exactly one of these."""

    file: Path | None = None
    env: str = ""
    value: bytes | None = None

    def __repr__(self) -> str:  # never the value
        return f"SecretSource(file={self.file!r}, env={self.env!r})"


class OpenSink(Protocol):
    """How to begin writing an output: given what the exporter says of it."""

    def __call__(self, metadata: Mapping[str, str], /) -> FileSink: ...


Target = Path | BinaryIO | OpenSink | None
"""Where output number n of the build goes: a path, an open stream (standard output), or something that makes a sink."""


class LocalSession:
    """Implements `session.types.Session`. Use it as a context manager, or call `close`: it owns temporary files."""

    def __init__(
        self,
        *,
        directories: Mapping[str, Path] | None = None,
        files: Mapping[str, Mapping[str, bytes]] | None = None,
        secrets: Mapping[str, SecretSource] | None = None,
        agents: Mapping[str, Path] | None = None,
        credentials: Callable[[str], Credentials | None] = lambda _host: None,
        outputs: Sequence[Target] = (),
        uploads: Mapping[str, tuple[BinaryIO, bytes]] | None = None,
        layouts: Mapping[str, Path] | None = None,
        shared_base: str = "",
        allow_delete: bool = False,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        """`files` are directories held in memory; `agents` sockets by id; `credentials` by registry host; `uploads` a
        stream by id, with what was read of it already; `layouts` OCI layouts by content store id.
        """
        self.id = new_id()
        self._directories = {name: Path(os.path.abspath(path)) for name, path in (directories or {}).items()}
        self._files = dict(files or {})
        self._secrets = dict(secrets or {})
        self._agents = dict(agents or {})
        self._credentials = credentials
        self._outputs = tuple(outputs)
        self._uploads = dict(uploads or {})
        self._layouts = dict(layouts or {})
        self._allow_delete = allow_delete
        self._env = env
        self._scratch: TemporaryDirectory | None = None
        self.shared_key = self._shared_key(shared_base)

    def _shared_key(self, base: str) -> str:
        """Two builds of one directory by one user on one machine share their local sources."""
        context = self._directories.get("context")
        if context is None and not base:
            return random.token_hex(16)
        return hashlib.sha256(f"{os.geteuid()}:{base}:{context or ''}".encode("utf-8", "surrogateescape")).hexdigest()

    def __enter__(self) -> LocalSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    # -- files

    def directory(self, name: str) -> Path | None:
        """Raises NotFoundError for a name that is not offered: another session may have it."""
        if name in self._directories:
            return self._directories[name]
        if name in self._files:
            return self._materialise(name)
        raise NotFoundError(f'no access allowed to dir "{name}"')

    async def locate(self, name: str) -> Path | None:
        return self.directory(name)

    def _materialise(self, name: str) -> Path:
        if self._scratch is None:
            self._scratch = TemporaryDirectory("session")
        root = Path(self._scratch.name) / hashlib.sha256(name.encode()).hexdigest()[:16]
        if not root.exists():
            root.mkdir()
            for path, data in self._files[name].items():
                place = root / path
                if root not in place.resolve().parents:
                    raise UsageError(f"invalid path {path!r} in {name}")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
                place.chmod(0o644)
                os.utime(place, (0, 0))
        return root

    async def receive(
        self,
        request: FilesRequest,
        into: Path,
        *,
        known: dict[str, bytes] | None = None,
        wants: Callable[[Any], bool] | None = None,
        on_bytes: Callable[[int], None] = lambda _n: None,
        on_stat: Callable[[bytes], None] | None = None,
        on_file: Callable[[Any, int, bytes], None] | None = None,
    ) -> dict[str, bytes]:
        source = self.directory(request.name)
        assert source is not None

        def work() -> dict[str, bytes]:
            with Receiver(into, known if known is not None else look(into)) as receiver:
                # Signatures without inodes and change times: that is all `look` can tell.
                return sync(source, request, receiver, on_bytes=on_bytes, compare_inodes=False)

        return await asyncio.to_thread(work)

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
        source = self.directory(request.name)
        assert source is not None
        return await in_thread(
            partial(
                follow,
                source,
                request,
                into,
                index,
                digest=digest,
                changing=changing,
                on_bytes=on_bytes,
                cancelled=lambda: False,
            )
        )

    # -- secrets, credentials, agents

    async def secret(self, id: str) -> bytes | None:
        source = self._secrets.get(id)
        if source is None:
            return None
        if source.value is not None:
            value: bytes | None = source.value
        elif source.env:
            text = self._env.get(source.env)
            value = None if text is None else text.encode("utf-8", "surrogateescape")
        else:
            value = await asyncio.to_thread(_read_secret, id, source.file)
        if value is not None and len(value) > MAX_SECRET:
            raise UsageError(f"invalid secret size {len(value)} of {id}: at most {MAX_SECRET} bytes")
        return value

    async def credentials(self, host: str) -> Credentials | None:
        return await asyncio.to_thread(self._credentials, host)

    async def token(self, host: str, realm: str, service: str, scopes: Sequence[str]) -> str | None:
        return None  # the engine is on this machine: it fetches tokens itself

    async def has_agent(self, id: str) -> bool:
        return (id or "default") in self._agents

    async def agent(self, id: str) -> Stream:
        path = self._agents.get(id or "default")
        if path is None:
            raise NotFoundError(f"unset ssh forward key {id or 'default'}")
        try:
            reader, writer = await asyncio.open_unix_connection(str(path))
        except OSError as err:
            raise SessionError(f"failed to connect to the ssh agent at {path}: {(err.strerror or '').lower()}") from err
        return _SocketStream(reader, writer)

    # -- streams in

    async def upload(self, id: str) -> AsyncIterator[bytes]:
        found = self._uploads.pop(id, None)  # a stream can be read once
        if found is None:
            raise NotFoundError(f"no such upload: {id}")
        stream, head = found
        return _chunks(stream, head)

    async def blob(self, store: str, digest: str) -> AsyncIterator[bytes]:
        layout = self._layout(store)
        parsed = Digest.parse(digest)
        path = layout / "blobs" / parsed.algorithm / parsed.hex
        try:
            file = open(path, "rb")
        except FileNotFoundError as err:
            raise NotFoundError(f"content {digest} not found in {layout}") from err
        except OSError as err:
            raise SessionError(f"failed to read {path}: {(err.strerror or '').lower()}") from err
        return _chunks(file, b"", close=True)

    async def blob_size(self, store: str, digest: str) -> int | None:
        """None if the store has it not."""
        from .content import LayoutStore

        layout = LayoutStore(self._layout(store))
        try:
            return await asyncio.to_thread(layout.size, digest)
        except NotFoundError:
            return None

    async def write_blob(
        self, store: str, digest: str, size: int, chunks: AsyncIterator[bytes] | Iterable[bytes], *, ref: str = ""
    ) -> bool:
        """Put a blob into a store; False if it was there. Raises IntegrityError, SessionError; then it is not there."""
        from chantier.wire import GrpcError

        from .content import LayoutStore

        layout = LayoutStore(self._layout(store))
        if await self.blob_size(store, digest) is not None:
            return False
        ref = ref or f"{digest} {new_id()}"
        try:
            offset = 0
            if isinstance(chunks, AsyncIterator):
                async for chunk in chunks:
                    offset = await asyncio.to_thread(layout.write, ref, offset, chunk)
            else:
                for chunk in chunks:
                    offset = await asyncio.to_thread(layout.write, ref, offset, chunk)
            await asyncio.to_thread(layout.commit, ref, size, digest)
        except GrpcError:
            return False  # somebody else wrote it meanwhile
        except OSError as err:
            raise SessionError(f"failed to write {digest} to {layout.root}: {(err.strerror or str(err)).lower()}") from err
        finally:
            await asyncio.to_thread(layout.abort, ref)
        return True

    def _layout(self, store: str) -> Path:
        layout = self._layouts.get(store) or self._layouts.get(store.removeprefix("oci:"))
        if layout is None:
            raise NotFoundError(f"unknown content store {store}")
        return layout

    # -- results out

    def _target(self, exporter: int) -> Path | BinaryIO | OpenSink:
        target = self._outputs[exporter] if 0 <= exporter < len(self._outputs) else None
        if target is None:
            raise NotFoundError(f"exporter {exporter} not found")
        return target

    async def send_file(self, exporter: int, metadata: Mapping[str, str]) -> FileSink:
        target = self._target(exporter)
        if isinstance(target, Path):
            return await asyncio.to_thread(_PathSink, target)
        if callable(target):
            return target(metadata)
        return _StreamSink(target)

    async def known_layers(self, exporter: int, metadata: Mapping[str, str], diff_ids: Sequence[str]) -> int:
        target = self._target(exporter)
        if isinstance(target, Path) or not callable(target):
            return 0
        sink = target(metadata)
        try:
            return await sink.has_layers(diff_ids) if isinstance(sink, KnowingSink) else 0
        finally:
            await sink.abort()

    async def send_trees(self, exporter: int, trees: Sequence[SentTree], *, remove_others: bool = False) -> None:
        target = self._target(exporter)
        if not isinstance(target, Path):
            raise UsageError("the output is no directory")
        if remove_others and not self._allow_delete:
            raise UsageError(
                f"refusing to delete what else is in {target}", hint="mode=delete has to be allowed by who asks for it"
            )
        await asyncio.to_thread(_write_trees, trees, target, remove_others)


def _write_trees(trees: Sequence[SentTree], target: Path, remove_others: bool) -> None:
    keep = {tree.below for tree in trees}
    if remove_others and "" not in keep and target.is_dir():
        for name in os.listdir(target):
            if name not in keep:
                path = target / name
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for number, tree in enumerate(trees):
        # Trees that share a folder: only the first may clear it.
        first = all(other.below != tree.below for other in trees[:number])
        _write_tree(tree.root, target / tree.below, remove_others and first, tree.epoch)


def _write_tree(root: Path, target: Path, remove_others: bool, epoch: int | None) -> None:
    """As stock clients do: merged into what is there, owned by the user who runs this; all times are `epoch` if there is one."""
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = look(target) if remove_others else None
        if known is not None:
            known = dict.fromkeys(known, b"")  # everything is written, only names count
        with Receiver(target, known, owner=None, remove=remove_others) as receiver:
            sync(root, None, receiver, mtime_ns=None if epoch is None else epoch * 1_000_000_000)
    except OSError as err:
        raise ChantierError(f"failed to write {target}: {(err.strerror or '').lower()}") from err


def _read_secret(id: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read(MAX_SECRET + 1)
            size = os.fstat(file.fileno()).st_size
            if size > MAX_SECRET:
                raise UsageError(f"invalid secret size {size} of {id}: at most {MAX_SECRET} bytes")
            return file.read(MAX_SECRET + 1)
    except OSError as err:
        raise SessionError(f"failed to read secret {id} from {path}: {(err.strerror or '').lower()}") from err


async def _chunks(stream: BinaryIO, head: bytes, *, close: bool = False) -> AsyncIterator[bytes]:
    try:
        if head:
            yield head
        while data := await asyncio.to_thread(stream.read, _CHUNK):
            yield data
    finally:
        if close:
            stream.close()


class _SocketStream:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(32768)

    async def write(self, data: bytes, /) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as err:
            raise SessionError(f"the ssh agent is gone: {(err.strerror or '').lower()}") from err

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class _PathSink:
    """Writes a file that takes the destination's place at the end."""

    def __init__(self, target: Path) -> None:
        self._target = target
        if target.is_dir():
            raise UsageError(f"destination file {target} is a directory")
        # A device or a pipe cannot be replaced: it is written to.
        special = target.exists() and not target.is_file()
        self._file: NewFile | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if special:
                self._fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
            else:
                self._file = NewFile(target)
                self._fd = self._file.fd
        except OSError as err:
            raise ChantierError(f"failed to write {target}: {(err.strerror or '').lower()}") from err

    async def write(self, data: bytes | memoryview, /) -> None:
        await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            write_all(self._fd, data)
        except OSError as err:
            raise ChantierError(f"failed to write {self._target}: {(err.strerror or '').lower()}") from err

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._file is not None:
            point("output.written")
            self._file.take()
            point("output.named")
        else:
            os.close(self._fd)

    async def abort(self) -> None:
        if self._file is not None:
            self._file.drop()
        else:
            with suppress(OSError):
                os.close(self._fd)


class _StreamSink:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    async def write(self, data: bytes | memoryview, /) -> None:
        await asyncio.to_thread(self._stream.write, data)

    async def close(self) -> None:
        await asyncio.to_thread(self._stream.flush)

    async def abort(self) -> None:
        with suppress(OSError):
            self._stream.flush()


__all__ = ["LocalSession", "SecretSource", "Target"]
