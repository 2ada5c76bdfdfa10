# SPDX-License-Identifier: Apache-2.0
"""Images as sources: from a reference to a pinned manifest, a config, and a lazy result (semantics.md 3.14, 7.2).

Nothing but documents is fetched here: layers come when something must mount or send them. Manifests and configs are kept
in the blob store, so a reference with a digest that was seen before asks no registry.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

from chantier.cache import LayerSource, Ref
from chantier.errors import IntegrityError, NotFoundError, RegistryError, UsageError
from chantier.llb.definition import LoadedVertex, platform_of
from chantier.solver.types import CacheMap, JobContext
from chantier.spec import (
    Descriptor,
    Digest,
    Index,
    Manifest,
    Platform,
    Reference,
    digest_of,
    dumps,
    is_index,
    is_manifest,
    parse_manifest,
)
from chantier.values import dataclass, replace

from .worker import Worker, threaded

if TYPE_CHECKING:
    from .image_chain import AttestationChain

_MAX_CONFIG_BYTES = 8 << 20
_FROM_MEMORY = ("local", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a reference meant when a registry was last asked; `at` in seconds since the epoch."""

    digest: Digest
    media_type: str
    host: str
    at: float

    def age(self) -> str:
        """`3 days ago`, for people."""
        seconds = max(0.0, time.time() - self.at)
        for name, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
            if seconds >= size:
                count = int(seconds // size)
                return f"{count} {name}{'s' if count > 1 else ''} ago"
        return "just now"


class Known(Protocol):
    """The engine's memory of references and of the documents they lead to. A miss is None; writing never fails a build."""

    def find(self, reference: str) -> Seen | None: ...
    def saw(self, reference: str, digest: str, media_type: str, host: str) -> None: ...
    def document(self, digest: str) -> bytes | None: ...
    def keep(self, digest: str, media_type: str, data: bytes) -> None: ...


class _Forgetful:
    def find(self, reference: str) -> Seen | None:
        return None

    def saw(self, reference: str, digest: str, media_type: str, host: str) -> None:
        return None

    def document(self, digest: str) -> bytes | None:
        return None

    def keep(self, digest: str, media_type: str, data: bytes) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """One platform's image behind a reference.

    `digest` is what the reference names (an index or a manifest): that pins it. `manifest` and `config` are the platform's.
    """

    reference: Reference
    digest: Digest
    manifest_digest: Digest
    manifest: Manifest
    config: bytes
    seen: Seen | None = None  # from memory: no registry was asked what the reference means

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        raw = json.loads(self.config)
        return tuple(Digest.parse(d) for d in (raw.get("rootfs") or {}).get("diff_ids") or ())


class ImageResolver:
    """Resolves references for one engine. Equal questions asked by one build at the same time are asked once.

    Modes: `default` and `pull` ask a registry what a tag means; `local` (--pull=missing) takes what is remembered and asks
    for the rest; `never` asks nobody.
    """

    def __init__(self, worker: Worker, registry_for: Callable[[Sequence[Any]], Any], known: Known | None = None) -> None:
        self._worker = worker
        self._registry_for = registry_for
        self._known: Known = known or _Forgetful()
        self._running: dict[tuple[str, Platform, str, str], asyncio.Task[ResolvedImage]] = {}

    async def resolve(
        self, ref: Reference, platform: Platform, *, mode: str = "default", sessions: Sequence[Any] = ()
    ) -> ResolvedImage:
        """Raises NotFoundError `no match for platform in manifest: not found`, RegistryError and its kin."""
        # Another build may have another login, or none.
        key = (str(ref), platform, mode, str(getattr(sessions[0], "id", "")) if sessions else "")
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(threaded(lambda cancelled: self._resolve(ref, platform, mode, sessions)))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def chain(
        self, ref: Reference, platform: Platform, *, mode: str, sessions: Sequence[Any], predicates: Collection[str]
    ) -> AttestationChain | None:
        """What vouches for an image, with the statements of these predicate types. Raises as `resolve`."""
        from .image_chain import attestation_chain

        image = await self.resolve(ref, platform, mode=mode, sessions=sessions)
        registry = self._registry_for(sessions)
        return await threaded(lambda _: attestation_chain(self, registry, image, predicates))

    def pushed(self, ref: Reference, descriptor: Descriptor, data: bytes) -> None:
        """A name has a meaning that was given it here: what was remembered of it is no longer so."""
        self._known.keep(descriptor.digest, descriptor.media_type, data)
        self._saw(ref, descriptor, ref.domain)

    def _saw(self, ref: Reference, descriptor: Descriptor, host: str) -> None:
        for name in {str(ref), _by_digest(ref, descriptor.digest)}:
            self._known.saw(name, descriptor.digest, descriptor.media_type, host)

    def _resolve(self, ref: Reference, platform: Platform, mode: str, sessions: Sequence[Any]) -> ResolvedImage:
        registry = _Nobody(ref) if mode == "never" else self._registry_for(sessions)
        seen: Seen | None = None
        if ref.digest and (kept := self._kept_of(ref)) is not None:
            digest, data, media_type = Digest.parse(ref.digest), kept, ""
        elif mode in _FROM_MEMORY and (remembered := self._remembered(ref)) is not None:
            seen, data = remembered
            digest, media_type = seen.digest, seen.media_type
        else:
            digest, data, media_type = self._asked(registry, ref)
        document = parse_manifest(data, media_type)
        manifest_digest = digest
        if isinstance(document, Index):
            chosen = self._choose(registry, ref, document, platform)
            manifest_digest = chosen.digest
            document = parse_manifest(self.document(registry, ref, chosen), chosen.media_type)
            if not isinstance(document, Manifest):
                raise IntegrityError(f"{ref}: an index inside an index is not an image")
        config = self.document(registry, ref, document.config)
        return ResolvedImage(
            reference=ref, digest=digest, manifest_digest=manifest_digest, manifest=document, config=config, seen=seen
        )

    def _kept_of(self, ref: Reference) -> bytes | None:
        """What a digest names, if it is here and this repository is known to have it: a digest alone opens no other's images."""
        if self._known.find(_by_digest(ref, ref.digest)) is None:
            return None
        return self._kept(Digest.parse(ref.digest))

    def _remembered(self, ref: Reference) -> tuple[Seen, bytes] | None:
        seen = self._known.find(str(ref))
        data = self._kept(seen.digest) if seen is not None else None
        return (seen, data) if seen is not None and data is not None else None

    def _asked(self, registry: Any, ref: Reference) -> tuple[Digest, bytes, str]:
        try:
            found = registry.resolve(ref)
        except RegistryError as err:
            if err.transient and (remembered := self._remembered(ref)) is not None:
                seen = remembered[0]
                hint = f"{ref.familiar()} was {seen.digest} {seen.age()}: build with --pull=missing to use that"
                err.hint = f"{err.hint}; {hint}" if err.hint else hint
            raise
        descriptor = found.descriptor
        if found.data is not None:
            self._known.keep(descriptor.digest, descriptor.media_type, found.data)
        data = found.data or self.document(registry, ref, descriptor)
        self._saw(ref, descriptor, found.host)
        return descriptor.digest, data, descriptor.media_type

    def _choose(self, registry: Any, ref: Reference, index: Index, platform: Platform) -> Descriptor:
        usable = []
        for descriptor in index.manifests:
            if descriptor.annotations.get("vnd.docker.reference.type") == "attestation-manifest":
                continue
            if not is_manifest(descriptor.media_type) and not is_index(descriptor.media_type):
                continue
            usable.append((self._platform(registry, ref, descriptor), descriptor))
        return choose_manifest(usable, platform, ref)

    def _platform(self, registry: Any, ref: Reference, descriptor: Descriptor) -> Platform | None:
        """From the descriptor, else from the config of the manifest it names."""
        if descriptor.platform is not None:
            return descriptor.platform
        document = parse_manifest(self.document(registry, ref, descriptor), descriptor.media_type)
        if isinstance(document, Index):
            return None
        raw = json.loads(self.document(registry, ref, document.config))
        return Platform.from_json(raw) if raw.get("os") else None

    def document(self, registry: Any, ref: Reference, descriptor: Descriptor) -> bytes:
        """A manifest, a config or another small blob: from the store, else from the registry, and then kept. Any thread."""
        kept = self._kept(descriptor.digest)
        if kept is not None:
            return kept
        if descriptor.size > _MAX_CONFIG_BYTES:
            raise IntegrityError(
                f"{ref}: {descriptor.media_type} of {descriptor.size} bytes is too large, at most {_MAX_CONFIG_BYTES}"
            )
        store = self._worker.cache.blobs
        if is_manifest(descriptor.media_type) or is_index(descriptor.media_type):
            data, _ = registry.manifest(ref, descriptor.digest)
            with store.writer() as writer:
                writer.write(data)
                writer.commit(descriptor.digest, len(data))
            self._known.keep(descriptor.digest, descriptor.media_type, bytes(data))
            return bytes(data)
        with store.writer() as writer:
            registry.fetch_blob(ref, descriptor, writer)
            writer.commit(descriptor.digest, descriptor.size)
        data = self._kept(descriptor.digest) or b""
        self._known.keep(descriptor.digest, descriptor.media_type, data)
        return data

    def _kept(self, digest: Digest) -> bytes | None:
        store = self._worker.cache.blobs
        info = store.stat(digest)
        if info is None or info.size > _MAX_CONFIG_BYTES:
            return self._known.document(digest)
        with store.open(digest) as file:
            data = file.read()
        return data if digest_of(data) == digest or digest.algorithm != "sha256" else None


def _by_digest(ref: Reference, digest: str) -> str:
    return f"{ref.name}@{digest}"


class _Nobody:
    """Stands where a registry would be asked, and must not be."""

    def __init__(self, ref: Reference) -> None:
        self._ref = ref

    def resolve(self, ref: Reference) -> Any:
        raise NotFoundError(
            f"{ref}: not known here, and pull mode never forbids to ask a registry",
            hint="build once with --pull=missing, or give the image as an OCI layout: --build-context NAME=oci-layout://DIR",
        )

    def manifest(self, ref: Reference, digest: str) -> Any:
        raise NotFoundError(f"{ref}: {digest} is not here, and pull mode never forbids to ask a registry")

    def fetch_blob(self, ref: Reference, descriptor: Descriptor, writer: Any) -> Any:
        self.manifest(ref, descriptor.digest)


def choose_manifest(offered: Sequence[tuple[Platform | None, Descriptor]], platform: Platform, ref: Reference) -> Descriptor:
    """The first manifest of an index that runs on the platform, better matches first (containerd `Only`)."""
    for candidate in platform.candidates():
        for found, descriptor in offered:
            if found is not None and candidate.matches(found) and platform.os_version in ("", found.os_version):
                return descriptor
    raise NotFoundError("no match for platform in manifest: not found", hint=f"{ref.familiar()} is not made for {platform}")


class ImageOp:
    """`docker-image://REF`: an operation without inputs. Keys: the manifest and platform, then the chain of its layers."""

    def __init__(self, vertex: LoadedVertex, worker: Worker, images: ImageResolver) -> None:
        self.vertex = vertex
        self.worker = worker
        self._images = images
        source = vertex.op.source
        self._ref = Reference.parse(source.identifier.removeprefix("docker-image://")).with_default_tag()
        self._attrs = dict(source.attrs)
        self._platform = platform_of(vertex.op)
        self._limit = _limit(self._attrs.get("image.layerlimit", ""))
        self.pin = ""  # what the reference named, once that is known

    async def _resolve(self, job: JobContext) -> ResolvedImage:
        mode = self._attrs.get("image.resolvemode", "default")
        image = await self._images.resolve(self._ref, self._platform, mode=mode, sessions=job.sessions)
        checksum = self._attrs.get("image.checksum")
        if checksum and checksum != image.digest:
            raise IntegrityError(f"image digest {image.digest} for {self._ref} does not match expected checksum {checksum}")
        self.pin = str(image.digest)
        return image

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        image = await self._resolve(job)
        if index == 0:
            return manifest_key(image, self._platform, self._limit), not image.diff_ids
        return chain_key(image, self._limit), True

    async def run(self, job: JobContext, inputs: Sequence[Ref]) -> Sequence[Ref | None]:
        image = await self._resolve(job)
        layers = layer_sources(image, f"registry:{self._ref.name}", self._limit)
        record_type = self._attrs.get("image.recordtype", "regular")
        description = f"pulled from {replace(self._ref, digest=str(image.digest))}"
        return (await threaded(lambda _: self.worker.cache.image(layers, description=description, record_type=record_type)),)

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return self.worker.slot()


def layer_sources(image: ResolvedImage, source: str, limit: int | None = None) -> list[LayerSource]:
    """The layers of an image, bottom first, with where their bytes can be had.

    Raises IntegrityError if manifest and config disagree on their number.
    """
    diff_ids = image.diff_ids
    layers = image.manifest.layers
    if len(diff_ids) != len(layers):
        raise IntegrityError(f"{image.reference}: the manifest has {len(layers)} layers, the config {len(diff_ids)} diff ids")
    if limit is not None and limit > len(layers):
        raise UsageError(f"layer limit {limit} is greater than the number of layers in the image {len(layers)}")
    history = [h for h in json.loads(image.config).get("history") or () if not h.get("empty_layer")]
    sources = []
    for number, (descriptor, diff_id) in enumerate(zip(layers, diff_ids, strict=True)):
        entry = history[number] if number < len(history) else {}
        sources.append(
            LayerSource(
                descriptor=descriptor,
                diff_id=diff_id,
                sources=(source,),
                created_at=_created(entry.get("created")),
                description=str(entry.get("created_by") or ""),
            )
        )
    return sources[:limit]


def chain_id(diff_ids: Sequence[str]) -> str:
    """image-spec config.md, "Layer ChainID": of the whole sequence; "" for none."""
    chain = ""
    for diff_id in diff_ids:
        chain = "sha256:" + hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest() if chain else str(diff_id)
    return chain


def manifest_key(image: ResolvedImage, platform: Platform, limit: int | None = None) -> CacheMap:
    """The key of an image's manifest for one platform."""
    key: dict[str, Any] = {"Digest": str(image.manifest_digest), "OS": platform.os, "Arch": platform.architecture}
    if platform.variant:
        key["Variant"] = platform.variant
    if platform.os_version:
        key["OSVersion"] = platform.os_version
    if platform.os_features:
        key["OSFeatures"] = list(platform.os_features)
    if limit is not None:
        key["Limit"] = limit
    detail = dumps(key)
    return CacheMap(digest=source_key(str(digest_of(detail))), detail=detail)


def chain_key(image: ResolvedImage, limit: int | None = None) -> CacheMap:
    """The key of an image's layers, whichever manifest names them."""
    chain = chain_id(image.diff_ids[:limit])
    return CacheMap(digest=source_key(chain), detail=chain.encode())


def source_key(text: str) -> str:
    """What a source calls itself as a digest of BuildKit's kind."""
    return str(digest_of(f"buildkit.source.v0:{text}".encode()))


def _limit(text: str) -> int | None:
    if not text:
        return None
    try:
        limit = int(text)
    except ValueError as err:
        raise UsageError(f"invalid layer limit {text}") from err
    if limit <= 0:
        raise UsageError(f"invalid layer limit {text}")
    return limit


def _created(text: str | None) -> int | None:
    if not text:
        return None
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None  # a config we did not write: a wrong time is no reason to refuse its image
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e9) if moment.tzinfo else None
