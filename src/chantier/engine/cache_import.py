# SPDX-License-Identifier: Apache-2.0
"""Caches that a build may look into beside its own: from registries, and from directories of the client.

An import is a vertex of its own, begun when the first solve asks for it. Trouble with it is a warning: the build goes on
without. Layers stay where they are until something needs them, except those of directories, which are there only as long as
their client is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from chantier.cache import LayerSource, Ref
from chantier.cache.remote import CacheConfig, Imported, inline_config, read_config, read_manifest
from chantier.errors import CancelledError_, ChantierError, IntegrityError, NotFoundError, RegistryError, UsageError
from chantier.export import parse_bool
from chantier.kernel.trace import point
from chantier.op.worker import threaded
from chantier.progress import Reporter, Step, Warning, step
from chantier.registry import MemoryWriter
from chantier.solver import KeySource
from chantier.spec import Descriptor, Index, Reference, parse_manifest
from chantier.values import dataclass

if TYPE_CHECKING:
    from chantier.solver import Job

    from .engine import Engine

MANIFEST_LIMIT = 4 << 20
CONFIG_LIMIT = 64 << 20
_MAX_MANIFESTS = 64
_log_name = "importing cache manifest from {}"


class Options(Protocol):
    """engine.CacheOptions, dockerfile.CacheImport."""

    @property
    def type(self) -> str: ...
    @property
    def attrs(self) -> Mapping[str, str]: ...


class Blobs(Protocol):
    """Where blobs of a cache lie. Called from worker threads."""

    source: str  # what the fetcher calls it
    keeps: bool  # blobs can be fetched later, by other builds too

    def has(self, descriptor: Descriptor) -> bool: ...


@runtime_checkable
class ConfigPlace(Blobs, Protocol):
    """A place without manifests: the cache config itself says what its layers are."""

    def config(self) -> bytes: ...


class Place(Blobs, Protocol):
    """A place where a manifest names the config and the layers."""

    def manifest(self) -> tuple[bytes, str]: ...
    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """A blob or a manifest, verified."""


@dataclass(frozen=True, slots=True)
class _Cache:
    imported: Imported
    media_type: str


class Imports:
    """The imports of one build, each begun once."""

    def __init__(self, engine: Engine, job: Job, sessions: Sequence[Any], reporter: Reporter) -> None:
        self._engine = engine
        self._job = job
        self._sessions = tuple(sessions)
        self._reporter = reporter
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ready(self, options: Sequence[Options]) -> None:
        """Begin those that are new, and wait until all of these can be used or have failed."""
        tasks = []
        for option in options:
            key = json.dumps([option.type, sorted(option.attrs.items())])
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._begin(option))
            tasks.append(self._tasks[key])
        if tasks:
            await asyncio.gather(*(asyncio.shield(task) for task in tasks))

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _begin(self, option: Options) -> None:
        shown = name_of(option)
        vertex = ""
        try:
            with step(self._reporter, _log_name.format(shown)) as made:
                vertex = made.digest
                place = place_of(self._engine, option, self._sessions)
                for found in await threaded(lambda cancelled: _load(place, made)):
                    self._job.add_import(self._source(found, place, shown, vertex))
                    point("cache-import.read")
        except CancelledError_:
            raise
        except (ChantierError, OSError) as err:
            self._warn(vertex, f"cache from {shown} is not used: {err}")

    def _warn(self, vertex: str, text: str) -> None:
        self._reporter.emit(Warning(vertex=vertex, level=1, short=text.encode("utf-8", "replace")))

    def _source(self, found: Imported, place: Blobs, name: str, vertex: str) -> KeySource:
        known: dict[str, bool] = {}
        store = self._engine.blobs
        sessions = self._sessions

        def available(layers: Sequence[LayerSource]) -> bool:
            for layer in layers:
                digest = str(layer.descriptor.digest)
                if digest not in known:
                    known[digest] = store.exists(digest) or place.has(layer.descriptor)
                    if not known[digest]:
                        self._warn(vertex, f"layer {digest} is not in the cache {name} any more: steps that need it run again")
                if not known[digest]:
                    return False
            return True

        def fetch(ref: Ref) -> None:
            try:
                ref.fetch_blobs(sessions=sessions)
            except CancelledError_:
                raise
            except (ChantierError, OSError) as err:
                self._warn(vertex, f"a result in the cache {name} cannot be used, so that its step runs again: {err}")
                raise

        results = found.results(self._engine.cache, available=available, fetch=None if place.keeps else fetch)
        return KeySource(keys=found.keys, results=results, name=name)


def name_of(option: Options) -> str:
    """How an import is shown: its reference, else its type and a short digest of the rest."""
    if option.type == "registry" and option.attrs.get("ref"):
        return option.attrs["ref"]
    text = json.dumps(sorted(option.attrs.items()))
    return f"{option.type}:{int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)}"


def place_of(engine: Engine, option: Options, sessions: Sequence[Any]) -> Place | ConfigPlace:
    """Raises UsageError."""
    if option.type == "registry":
        return RegistryPlace(engine, option.attrs, sessions)
    if option.type == "local":
        return SessionPlace(engine, option.attrs, sessions)
    if option.type == "s3":
        from .cache_s3 import S3Place

        return S3Place(engine, option.attrs)
    raise UsageError(f"unknown cache importer: {option.type}", hint="cache importers are registry, local and s3")


def _load(place: Place | ConfigPlace, shown: Step) -> list[Imported]:
    if isinstance(place, ConfigPlace):
        config = CacheConfig.parse(place.config())
        noted = {layer.blob: made for layer in config.layers if (made := _noted(layer, place.source)) is not None}
        return [read_config(config, noted)]
    data, media_type = place.manifest()
    found = read_manifest(data, media_type, place.source)
    with shown.action(f"inferred cache manifest type: {found.media_type}"):
        pass
    if found.config is not None:
        config = CacheConfig.parse(place.read(found.config, CONFIG_LIMIT))
        layers = found.layers or {
            layer.blob: made for layer in config.layers if (made := _noted(layer, place.source)) is not None
        }
        return [read_config(config, layers)]
    return _inline(place, data, media_type)


def _noted(layer: Any, source: str) -> LayerSource | None:
    """A layer that the config itself describes."""
    from chantier.spec import Digest

    note = layer.note
    if note is None or not note.diff_id:
        return None
    return LayerSource(
        descriptor=Descriptor(media_type=note.media_type, digest=Digest(layer.blob), size=note.size),
        diff_id=Digest.parse(note.diff_id),
        sources=(source,),
        created_at=note.created_at or None,
    )


def _inline(place: Place, data: bytes, media_type: str) -> list[Imported]:
    """The caches that the images of a manifest or an index carry."""
    todo = [(data, media_type)]
    found = []
    seen = 0
    while todo:
        document = parse_manifest(*todo.pop())
        seen += 1
        if isinstance(document, Index):
            for child in document.manifests[:_MAX_MANIFESTS]:
                if child.annotations.get("vnd.docker.reference.type") != "attestation-manifest" and seen < _MAX_MANIFESTS:
                    todo.append((place.read(child, MANIFEST_LIMIT), child.media_type))
            continue
        carried = inline_config(place.read(document.config, MANIFEST_LIMIT), document, place.source)
        if carried is not None:
            config, layers = carried
            found.append(read_config(config, {str(layer.descriptor.digest): layer for layer in layers}))
    return found


class RegistryPlace:
    """`type=registry,ref=NAME`."""

    keeps = True

    def __init__(self, engine: Engine, attrs: Mapping[str, str], sessions: Sequence[Any]) -> None:
        if not attrs.get("ref"):
            raise UsageError("ref is required for a registry cache", hint="type=registry,ref=HOST/NAME:TAG")
        self.ref = Reference.parse(attrs["ref"]).with_default_tag()
        insecure = parse_bool("registry.insecure", attrs["registry.insecure"]) if "registry.insecure" in attrs else False
        registry = engine.registry_for(sessions)
        self.registry = registry.insecure() if insecure else registry
        self.source = f"{'insecure' if insecure else 'registry'}:{self.ref.name}"

    def manifest(self) -> tuple[bytes, str]:
        found = self.registry.resolve(self.ref)
        if found.data is not None:
            return found.data, found.descriptor.media_type
        return self.registry.manifest(self.ref, found.descriptor)

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        from chantier.spec import is_index, is_manifest

        _check(descriptor, limit)
        if is_manifest(descriptor.media_type) or is_index(descriptor.media_type):
            data, _ = self.registry.manifest(self.ref, descriptor)
            return bytes(data)
        writer = MemoryWriter()
        self.registry.fetch_blob(self.ref, descriptor, writer)
        return bytes(writer.data)

    def has(self, descriptor: Descriptor) -> bool:
        try:
            return bool(self.registry.exists(self.ref, descriptor))
        except RegistryError:  # nobody to ask: then nobody to fetch it from either
            return False


class SessionPlace:
    """`type=local,src=DIR`: an OCI layout of the client, which says by `digest` which of its manifests is meant."""

    keeps = False

    def __init__(self, engine: Engine, attrs: Mapping[str, str], sessions: Sequence[Any]) -> None:
        if not attrs.get("src"):
            raise UsageError("local cache importer requires src", hint="type=local,src=DIR")
        if not attrs.get("digest"):
            raise UsageError("local cache importer requires either explicit digest, “latest” tag or custom tag on index.json")
        self.store = f"local:{attrs['src']}"
        self.digest = attrs["digest"]
        self.source = f"session:{self.store}"
        self._sessions = tuple(sessions)
        self._loop = engine.loop

    def manifest(self) -> tuple[bytes, str]:
        from chantier.spec import Digest

        descriptor = Descriptor(media_type="", digest=Digest.parse(self.digest), size=-1)
        return self._read(descriptor, MANIFEST_LIMIT), ""

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        _check(descriptor, limit)
        return self._read(descriptor, limit)

    def has(self, descriptor: Descriptor) -> bool:
        async def ask() -> bool:
            for session in self._sessions:
                if await session.blob_size(self.store, descriptor.digest) == descriptor.size:
                    return True
            return False

        try:
            return asyncio.run_coroutine_threadsafe(ask(), self._loop).result()
        except ChantierError:
            return False

    def _read(self, descriptor: Descriptor, limit: int) -> bytes:
        async def copy() -> bytes:
            missing: Exception | None = None
            for session in self._sessions:
                data = bytearray()
                try:
                    async for chunk in await session.blob(self.store, descriptor.digest):
                        data += chunk
                        if len(data) > limit:
                            raise IntegrityError(f"blob {descriptor.digest} is too large ({len(data)} > {limit})")
                    return bytes(data)
                except NotFoundError as err:
                    missing = err
            raise NotFoundError(f"{descriptor.digest}: not found in the cache directory") from missing

        data = asyncio.run_coroutine_threadsafe(copy(), self._loop).result()
        verify(data, descriptor.digest)
        return data


def verify(data: bytes, digest: str) -> None:
    """Raises IntegrityError."""
    algorithm, _, wanted = digest.partition(":")
    if hashlib.new(algorithm, data).hexdigest() != wanted:
        raise IntegrityError(f"blob has other content than its digest {digest}")


def _check(descriptor: Descriptor, limit: int) -> None:
    if descriptor.size > limit:
        raise IntegrityError(f"blob {descriptor.digest} is too large ({descriptor.size} > {limit})")


Available = Callable[[Sequence[LayerSource]], bool]

__all__ = [
    "CONFIG_LIMIT",
    "MANIFEST_LIMIT",
    "Imports",
    "Options",
    "Place",
    "RegistryPlace",
    "SessionPlace",
    "name_of",
    "place_of",
]
