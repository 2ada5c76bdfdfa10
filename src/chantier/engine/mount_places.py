# SPDX-License-Identifier: Apache-2.0
"""Where exports of cache mounts lie: a repository of a registry, or a directory of the client's in the layout of OCI images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

from chantier.errors import CancelledError_, IntegrityError, NotFoundError, UsageError
from chantier.registry import Registry
from chantier.session.types import Session
from chantier.spec import OCI_MANIFEST, Descriptor, Digest, Reference, digest_of
from chantier.store import Writer

if TYPE_CHECKING:
    from .engine import Engine

ARTIFACT = "application/vnd.chantier.cache-mount.v1"
_LIMIT = 64 << 20
_LOOK_S = 0.2
T = TypeVar("T")


class Place(Protocol):
    """Where an export lies. Sync."""

    where: str
    """As users know it."""

    def manifest(self) -> bytes | None: ...
    def read(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified."""

    def fetch(self, descriptor: Descriptor, writer: Writer) -> None:
        """A blob's bytes; the caller commits and so verifies them."""

    def has(self, descriptor: Descriptor) -> bool: ...
    def put(self, descriptor: Descriptor, open: Callable[[], BinaryIO]) -> None: ...
    def commit(self, manifest: bytes) -> None:
        """Let this manifest be the export from now on, all or nothing."""


class RegistryPlace:
    def __init__(self, registry: Registry, name: str) -> None:
        self._registry = registry
        self._ref = Reference.parse(name).with_default_tag()
        self.where = str(self._ref)

    def manifest(self) -> bytes | None:
        try:
            found = self._registry.resolve(self._ref)
        except NotFoundError:
            return None
        return found.data if found.data is not None else self._registry.manifest(self._ref, found.descriptor)[0]

    def read(self, descriptor: Descriptor) -> bytes:
        return self._registry.read_blob(self._ref, descriptor)

    def fetch(self, descriptor: Descriptor, writer: Writer) -> None:
        self._registry.fetch_blob(self._ref, descriptor, writer)

    def has(self, descriptor: Descriptor) -> bool:
        return self._registry.exists(self._ref, descriptor)

    def put(self, descriptor: Descriptor, open: Callable[[], BinaryIO]) -> None:
        self._registry.push_blob(self._ref, descriptor, open)

    def commit(self, manifest: bytes) -> None:
        self._registry.push_manifest(self._ref, manifest, OCI_MANIFEST)


class SessionPlace:
    """An OCI layout of the client's, through the content store that its session offers as `local:DIRECTORY`.

    Which manifest is the export now, and which one from then on, is for the client to know: it keeps the layout's index.
    """

    def __init__(
        self, session: Session, directory: str, digest: str, loop: asyncio.AbstractEventLoop, cancelled: Callable[[], bool]
    ) -> None:
        """`digest` is that of the last export's manifest, "" if there is none; `loop` is the session's."""
        self._session = session
        self._cancelled = cancelled
        self.where = directory
        self._store = f"local:{directory}"
        self._digest = digest
        self._loop = loop

    def manifest(self) -> bytes | None:
        return self._read(Digest.parse(self._digest)) if self._digest else None

    def read(self, descriptor: Descriptor) -> bytes:
        return self._read(descriptor.digest)

    def fetch(self, descriptor: Descriptor, writer: Writer) -> None:
        async def copy() -> None:
            async for chunk in await self._session.blob(self._store, descriptor.digest):
                await asyncio.to_thread(writer.write, chunk)

        writer.restart()
        self._wait(copy())

    def has(self, descriptor: Descriptor) -> bool:
        return self._wait(self._session.blob_size(self._store, descriptor.digest)) == descriptor.size

    def put(self, descriptor: Descriptor, open: Callable[[], BinaryIO]) -> None:
        async def chunks(source: BinaryIO) -> AsyncIterator[bytes]:
            while chunk := await asyncio.to_thread(source.read, 1 << 20):
                yield chunk

        with open() as source:
            self._wait(self._session.write_blob(self._store, descriptor.digest, descriptor.size, chunks(source)))

    def commit(self, manifest: bytes) -> None:
        descriptor = Descriptor(media_type=OCI_MANIFEST, digest=digest_of(manifest), size=len(manifest))
        self.put(descriptor, lambda: BytesIO(manifest))

    def _read(self, digest: Digest) -> bytes:
        async def copy() -> bytes:
            data = bytearray()
            async for chunk in await self._session.blob(self._store, digest):
                data += chunk
                if len(data) > _LIMIT:
                    raise IntegrityError(f"blob {digest} is too large")
            return bytes(data)

        data = self._wait(copy())
        if digest_of(data) != digest:
            raise IntegrityError(f"blob {digest} in {self.where} is damaged")
        return data

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            try:
                return waiting.result(timeout=_LOOK_S)
            except TimeoutError:
                if waiting.done():
                    raise
                if self._cancelled():
                    waiting.cancel()
                    raise CancelledError_("context canceled") from None


def place_of(attrs: Mapping[str, str], engine: Engine, session: Session | None, cancelled: Callable[[], bool]) -> Place:
    """From `type=registry,ref=NAME`, or `type=local,dest=DIR` (or src=DIR) with the `digest` of the last export's manifest.

    Raises UsageError.
    """
    kind = attrs.get("type", "")
    directory = attrs.get("dest") or attrs.get("src")
    if kind == "registry" and attrs.get("ref"):
        registry = engine.registry_for([session] if session is not None else [])
        return RegistryPlace(registry.insecure() if attrs.get("registry.insecure") == "true" else registry, attrs["ref"])
    if kind == "local" and directory and session is not None:
        return SessionPlace(session, directory, attrs.get("digest", ""), engine.loop, cancelled)
    raise UsageError(f"cannot keep a cache mount in {dict(attrs)}", hint="type=registry,ref=NAME or type=local,dest=DIR")


__all__ = ["ARTIFACT", "Place", "RegistryPlace", "SessionPlace", "place_of"]
