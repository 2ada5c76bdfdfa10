# SPDX-License-Identifier: Apache-2.0
"""Images in OCI layouts of the client (`oci-layout://STORE@DIGEST`), read through its session (semantics.md 3.14)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from chantier.cache import Ref
from chantier.errors import IntegrityError, NotFoundError, SessionError
from chantier.llb.definition import LoadedVertex, platform_of
from chantier.solver.types import CacheMap, JobContext
from chantier.spec import Descriptor, Digest, Index, Manifest, Platform, Reference, digest_of, parse_manifest
from chantier.store import Writer

from .image import ResolvedImage, chain_key, choose_manifest, layer_sources, manifest_key
from .worker import Worker, threaded

_MAX_DOCUMENT_BYTES = 8 << 20


class LayoutResolver:
    """Reads documents and layers of content stores that sessions offer."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        self._worker = worker
        self._loop = loop

    async def resolve(self, ref: Reference, platform: Platform, store: str, sessions: Sequence[Any]) -> ResolvedImage:
        """Raises NotFoundError where no session has the store or the blob."""
        digest = Digest.parse(ref.digest)
        document = parse_manifest(await self._document(store, digest, sessions))
        manifest_digest = digest
        if isinstance(document, Index):
            offered = [(d.platform, d) for d in document.manifests]
            chosen = choose_manifest(offered, platform, ref)
            manifest_digest = chosen.digest
            document = parse_manifest(await self._document(store, chosen.digest, sessions), chosen.media_type)
        if not isinstance(document, Manifest):
            raise IntegrityError(f"{ref}: an index inside an index is not an image")
        config = await self._document(store, document.config.digest, sessions)
        return ResolvedImage(reference=ref, digest=digest, manifest_digest=manifest_digest, manifest=document, config=config)

    async def _document(self, store: str, digest: Digest, sessions: Sequence[Any]) -> bytes:
        data = bytearray()
        async for chunk in await self._blob(store, digest, sessions):
            data += chunk
            if len(data) > _MAX_DOCUMENT_BYTES:
                raise IntegrityError(f"{digest} in the OCI layout is too large for a manifest or a config")
        if digest.algorithm == "sha256" and digest_of(bytes(data)) != digest:
            raise IntegrityError(f"{digest} in the OCI layout has other content: {digest_of(bytes(data))}")
        return bytes(data)

    async def _blob(self, store: str, digest: str, sessions: Sequence[Any]) -> Any:
        missing: Exception | None = None
        for session in sessions:
            try:
                return await session.blob(store, digest)
            except (NotFoundError, SessionError) as err:
                missing = err
        raise NotFoundError(f"{digest}: not found in the content store {store}") from missing

    def fetch(self, store: str, descriptor: Descriptor, writer: Writer, sessions: Sequence[Any]) -> None:
        """Write a layer's bytes; to be called from a worker thread."""

        async def copy() -> None:
            skip = writer.offset
            async for chunk in await self._blob(store, descriptor.digest, sessions):
                piece = chunk[skip:]
                skip -= len(chunk) - len(piece)
                if piece:
                    await asyncio.to_thread(writer.write, piece)

        asyncio.run_coroutine_threadsafe(copy(), self._loop).result()


class LayoutOp:
    """`oci-layout://…`: as ImageOp, with the client's store in place of a registry."""

    def __init__(self, vertex: LoadedVertex, worker: Worker, layouts: LayoutResolver) -> None:
        self.vertex = vertex
        self.worker = worker
        self._layouts = layouts
        source = vertex.op.source
        self._ref = Reference.parse(source.identifier.removeprefix("oci-layout://"))
        self._store = source.attrs.get("oci.store", "") or self._ref.familiar().split("@")[0]
        self._session = source.attrs.get("oci.session", "")
        self._platform = platform_of(vertex.op)
        self.pin = ""  # what the reference named, once that is known

    async def _resolve(self, job: JobContext) -> ResolvedImage:
        sessions = self.worker.sessions_of(self._session, job.sessions)
        image = await self._layouts.resolve(self._ref, self._platform, self._store, sessions)
        self.pin = str(image.digest)
        return image

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        image = await self._resolve(job)
        if index == 0:
            return manifest_key(image, self._platform), not image.diff_ids
        return chain_key(image), True

    async def run(self, job: JobContext, inputs: Sequence[Ref]) -> Sequence[Ref | None]:
        image = await self._resolve(job)
        layers = layer_sources(image, f"session:{self._store}")
        ref = await threaded(lambda _: self.worker.cache.image(layers, description=f"loaded from {self._ref}"))
        if ref is not None:
            # The client may be gone when the bytes are needed: take them while it is there.
            sessions = self.worker.sessions_of(self._session, job.sessions)
            await threaded(lambda cancelled: ref.realise(step=job.step, sessions=sessions, cancelled=cancelled))
        return (ref,)

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return self.worker.slot()
