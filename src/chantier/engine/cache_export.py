# SPDX-License-Identifier: Apache-2.0
"""A build's cache goes to a registry, to a directory of the client, or into the image itself (protocol.md 3.7).

`mode=min` sends the layers of the result, and of earlier steps what is packed anyway; `mode=max` packs and sends all. It
happens after the image was exported and pushed. Trouble is a warning, unless the request says `ignore-error=false`. Blobs
that turn out damaged are left out with the records that need them, and the rest is sent.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

from chantier.cache import LayerBlob, Ref
from chantier.cache.remote import cache_manifest, inline_records, write_config
from chantier.cache.remote.manifest import layer_descriptor
from chantier.cache.remote.write import Result, Written
from chantier.errors import CancelledError_, ChantierError, IntegrityError, NotFoundError, UsageError
from chantier.export import ImageOptions, parse_bool
from chantier.export.options import Compression
from chantier.kernel.trace import point
from chantier.op.worker import run_all, threaded
from chantier.progress import Reporter, Step, Warning, step
from chantier.solver import Built, CacheRecord, ExportKey
from chantier.spec import CACHE_CONFIG, Descriptor, Reference, descriptor_to_json, digest_of, dumps
from chantier.store import BlobStore
from chantier.values import dataclass, field

from .cache_import import Options

if TYPE_CHECKING:
    from .engine import Engine

NAMES = {
    "registry": "exporting cache to registry",
    "local": "exporting cache to client directory",
    "s3": "exporting cache to Amazon S3",
    "inline": "exporting inline cache",
}
_AT_ONCE = 4
MANIFEST_KEY = "cache.manifest"


class Target(Protocol):
    """Where a cache goes. Async; may be called for several layers at once."""

    notes: bool  # the config itself has to say what its layers are

    async def layer(self, layer: LayerBlob, descriptor: Descriptor, step: Step) -> None:
        """See that the blob is there. Raises IntegrityError if it is damaged here, NotFoundError if it cannot be had."""

    async def documents(self, written: Written, export: CacheExport, step: Step) -> Mapping[str, str]:
        """Write config and manifest, once all layers are there; what the build answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheExport:
    """One `--cache-to`, checked."""

    type: str
    attrs: Mapping[str, str]
    all: bool = False  # mode=max
    warn: bool = True  # trouble is a warning
    image_manifest: bool = True
    oci: bool = True
    compression: Compression = field(default_factory=Compression)

    @classmethod
    def parse(cls, option: Options) -> CacheExport:
        """Raises UsageError."""
        attrs = option.attrs
        if option.type not in NAMES:
            raise UsageError(f'unknown cache exporter: "{option.type}"', hint="cache exporters are " + ", ".join(NAMES))
        for kind, key in (("registry", "ref"), ("local", "dest")):
            if option.type == kind and not attrs.get(key):
                raise UsageError(f"{key} is required for cache-to type={kind}", hint=f"type={kind},{key}=…")
        if option.type == "s3":
            from .cache_s3 import bucket_of

            bucket_of(attrs)

        def flag(key: str, *, default: bool) -> bool:
            return parse_bool(key, attrs[key]) if key in attrs else default

        oci = flag("oci-mediatypes", default=True)
        image_manifest = flag("image-manifest", default=oci)
        if image_manifest and not oci:
            raise UsageError(
                "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format",
                hint="drop oci-mediatypes=false, or say image-manifest=false",
            )
        return cls(
            type=option.type,
            attrs=attrs,
            all=attrs.get("mode") == "max",
            warn=flag("ignore-error", default=True),
            image_manifest=image_manifest,
            oci=oci,
            compression=ImageOptions.parse(attrs).compression,
        )


class Exports:
    """All cache exports of one build."""

    def __init__(
        self, engine: Engine, options: Iterable[Options], session: Any, sessions: Sequence[Any], reporter: Reporter
    ) -> None:
        self._engine = engine
        self._exports = [CacheExport.parse(option) for option in options]
        self._session = session
        self._sessions = tuple(sessions)
        self._reporter = reporter

    @property
    def inline(self) -> bool:
        return any(export.type == "inline" for export in self._exports)

    async def run(self, results: Sequence[Built]) -> dict[str, str]:
        """Send all, at the same time. Raises the first error that is not to be ignored, once all have ended."""
        answers: dict[str, str] = {}
        errors: list[ChantierError] = []

        async def one(number: int, export: CacheExport) -> None:
            digest = hashlib.sha256(f"{getattr(self._session, 'id', '')}-cache-{number}".encode()).hexdigest()
            try:
                with step(self._reporter, NAMES[export.type], digest=f"sha256:{digest}") as shown:
                    answers.update(await self._send(export, results, shown))
            except CancelledError_:
                raise
            except (ChantierError, OSError) as err:
                if not export.warn:
                    errors.append(err if isinstance(err, ChantierError) else ChantierError(str(err)))
                    return
                text = f"failed to export the cache, the build goes on without: {err}"
                self._reporter.emit(Warning(vertex=f"sha256:{digest}", level=1, short=text.encode("utf-8", "replace")))

        await run_all([one(number, export) for number, export in enumerate(self._exports) if export.type != "inline"])
        if errors:
            raise errors[0]
        return answers

    async def inline_cache(self, built: Built, layers: Sequence[LayerBlob], shown: Step) -> bytes | None:
        """What an image of these layers carries as its cache, base64 as its config has it."""
        with shown.action("preparing layers for inline cache"):
            nodes = await built.walk()
            found = await self._results(nodes, built, CacheExport(type="inline", attrs={}), roots=True)
            records = inline_records(write_config(nodes, found), layers)
        if records is None:
            text = b"failed to match any cache with layers: the image carries no inline cache"
            shown.warn(Warning(vertex=shown.digest, level=1, short=text))
            return None
        return base64.b64encode(records)

    async def _send(self, export: CacheExport, results: Sequence[Built], shown: Step) -> Mapping[str, str]:
        target = self._target(export)
        nodes: list[ExportKey] = []
        found: dict[str, Result] = {}
        with shown.action("preparing build cache for export"):
            for built in results:
                walked = await built.walk()
                nodes += walked
                found |= await self._results(walked, built, export)
            written = write_config(nodes, found, notes=target.notes)
        lost = await self._layers(written, target, export, shown)
        if lost:
            kept = {id: r for id, r in found.items() if not any(str(layer.descriptor.digest) in lost for layer in r.layers)}
            written = write_config(nodes, kept, notes=target.notes)
        if not written.layers:
            shown.warn(Warning(vertex=shown.digest, level=1, short=b"failed to match any cache with layers"))
            with shown.action("skipping cache export for empty result"):
                return {}
        point("cache-export.documents")
        answer = await target.documents(written, export, shown)
        point("cache-export.done")
        return answer

    def _target(self, export: CacheExport) -> Target:
        if export.type == "registry":
            return RegistryTarget(self._engine, export, self._sessions)
        if export.type == "s3":
            from .cache_s3 import S3Target

            return S3Target(self._engine, export, self._sessions)
        return SessionTarget(self._engine, export, self._session, self._sessions)

    async def _layers(self, written: Written, target: Target, export: CacheExport, shown: Step) -> set[str]:
        """Send the blobs; gives those that cannot be sent because they are damaged or gone."""
        lost: set[str] = set()
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(layer: LayerBlob) -> None:
            descriptor = layer_descriptor(layer, oci=export.oci)
            async with places:
                try:
                    with shown.action(f"writing layer {descriptor.digest}"):
                        await target.layer(layer, descriptor, shown)
                        point("cache-export.layer")
                except (IntegrityError, NotFoundError) as err:
                    lost.add(str(descriptor.digest))
                    text = f"layer {descriptor.digest} is left out of the cache: {err}"
                    shown.warn(Warning(vertex=shown.digest, level=1, short=text.encode("utf-8", "replace")))

        await run_all([one(layer) for layer in {layer.descriptor.digest: layer for layer in written.layers}.values()])
        return lost

    async def _results(
        self, nodes: Sequence[ExportKey], built: Built, export: CacheExport, *, roots: bool = False
    ) -> dict[str, Result]:
        """The layers of the results that are worth sending, by node."""
        found: dict[str, Result] = {}
        places = asyncio.Semaphore(_AT_ONCE)
        by_result: dict[tuple[str, int, bool], list[tuple[ExportKey, CacheRecord]]] = {}
        for node in nodes:
            wanted = bool(node.inputs) or roots if node.export_cache is None else node.export_cache
            if wanted:
                for record in node.records:
                    pack = export.all or node.final or node.export_cache is True
                    by_result.setdefault((record.result, record.source, pack), []).append((node, record))

        async def one(pack: bool, wanting: Sequence[tuple[ExportKey, CacheRecord]]) -> None:
            async with places:
                layers = await threaded(lambda cancelled: self._layers_of(wanting[0][1], pack, built, export, cancelled))
            for node, record in wanting if layers else ():
                if node.id not in found or found[node.id].created_at < record.created_at:
                    found[node.id] = Result(layers=layers or (), created_at=record.created_at)

        # The result itself first: what is packed for it, its parents then have without more work. Imports last.
        order: dict[bool, list[Any]] = {True: [], False: []}
        for (result, source, pack), some in by_result.items():
            if result:
                order[not source and any(node.final for node, _ in some)].append(one(pack, some))
        await run_all(order[True])
        await run_all(order[False])
        return found

    def _layers_of(
        self, record: CacheRecord, pack: bool, built: Built, export: CacheExport, cancelled: Callable[[], bool]
    ) -> tuple[LayerBlob, ...] | None:
        """None if the result is gone, or nothing of it may be packed and something would have to be."""
        value = built.value
        if value is not None and not record.source and value.id == record.result:
            ref: Ref | None = value.clone()
        else:
            try:
                ref = built.results_of(record).load(record.result)
            except (ChantierError, OSError):  # of an import: it is there and cannot be had
                return None
        if ref is None:
            return None
        with ref:
            if not pack:
                return ref.known_layers()
            packing = export.compression
            return ref.layers(
                compression=packing.kind,
                level=packing.level,
                force=packing.force,
                sessions=self._sessions,
                cancelled=cancelled,
            )


class _Blobs:
    """Where the bytes of a layer come from."""

    def __init__(self, engine: Engine, sessions: Sequence[Any]) -> None:
        self.engine = engine
        self.store: BlobStore = engine.blobs
        self.sessions = sessions

    def bring(self, layer: LayerBlob, cancelled: Callable[[], bool]) -> None:
        """Make the bytes local. Raises NotFoundError, IntegrityError and what their sources say."""
        self.engine.cache.bring(layer.descriptor, sessions=self.sessions, cancelled=cancelled)

    def check(self, digest: str) -> None:
        """Read a blob that somebody refused. Raises IntegrityError if it is damaged; then it is deleted."""
        try:
            with self.store.verified(digest) as reader:
                while reader.read(1 << 20):
                    pass
        except IntegrityError:
            self.store.delete(digest)
            raise


class RegistryTarget:
    """`type=registry,ref=NAME`."""

    notes = False

    def __init__(self, engine: Engine, export: CacheExport, sessions: Sequence[Any]) -> None:
        attrs = export.attrs
        self._ref = Reference.parse(attrs["ref"]).with_default_tag()
        insecure = parse_bool("registry.insecure", attrs["registry.insecure"]) if "registry.insecure" in attrs else False
        registry = engine.registry_for(sessions)
        self._registry = registry.insecure() if insecure else registry
        self._blobs = _Blobs(engine, sessions)

    async def layer(self, layer: LayerBlob, descriptor: Descriptor, step: Step) -> None:
        await threaded(lambda cancelled: self._layer(layer, descriptor, cancelled))

    def _layer(self, layer: LayerBlob, descriptor: Descriptor, cancelled: Callable[[], bool]) -> None:
        domain = self._ref.domain + "/"
        names = (s.removeprefix("registry:") for s in layer.sources if s.startswith("registry:"))
        mount_from = [name.removeprefix(domain) for name in names if name.startswith(domain)]
        registry, ref = self._registry, self._ref
        if not layer.local:
            if registry.exists(ref, descriptor, cancelled=cancelled):
                return
            if mount_from and registry.mount_blob(ref, descriptor, mount_from, cancelled=cancelled):
                return
            self._blobs.bring(layer, cancelled)
        try:
            registry.push_blob(
                ref, descriptor, lambda: self._blobs.store.open(descriptor.digest), mount_from=mount_from, cancelled=cancelled
            )
        except CancelledError_:
            raise
        except ChantierError:
            self._blobs.check(descriptor.digest)
            raise

    async def documents(self, written: Written, export: CacheExport, step: Step) -> Mapping[str, str]:
        config, data, media_type = _documents(written, export)

        def send(cancelled: Callable[[], bool]) -> dict[str, str]:
            descriptor = _descriptor(config, CACHE_CONFIG)
            with step.action(f"writing config {descriptor.digest}"):
                self._registry.push_blob(self._ref, descriptor, lambda: BytesIO(config), cancelled=cancelled)
            with step.action(_manifest_line(export, data)):
                self._registry.push_manifest(self._ref, data, media_type, cancelled=cancelled)
            return _answer(data, media_type)

        return await threaded(send)


class SessionTarget:
    """`type=local,dest=DIR`: an OCI layout of the client, who names the manifest in index.json once the build is done."""

    notes = False

    def __init__(self, engine: Engine, export: CacheExport, session: Any, sessions: Sequence[Any]) -> None:
        if session is None:
            raise UsageError("cannot export a cache to a directory without a session")
        self._session = session
        self._store = f"local:{export.attrs['dest']}"
        self._blobs = _Blobs(engine, sessions)

    async def layer(self, layer: LayerBlob, descriptor: Descriptor, step: Step) -> None:
        if await self._session.blob_size(self._store, descriptor.digest) == descriptor.size:
            return
        if not layer.local:
            await threaded(lambda cancelled: self._blobs.bring(layer, cancelled))
        file = await asyncio.to_thread(self._blobs.store.verified, descriptor.digest)

        async def chunks() -> Any:
            while chunk := await asyncio.to_thread(file.read, 1 << 20):
                yield chunk

        try:
            await self._session.write_blob(self._store, descriptor.digest, descriptor.size, chunks())
        except IntegrityError:
            await asyncio.to_thread(self._blobs.check, descriptor.digest)
            raise
        finally:
            file.close()

    async def documents(self, written: Written, export: CacheExport, step: Step) -> Mapping[str, str]:
        config, data, media_type = _documents(written, export)
        digest = str(digest_of(config))
        with step.action(f"writing config {digest}"):
            await self._session.write_blob(self._store, digest, len(config), [config])
        with step.action(_manifest_line(export, data)):
            await self._session.write_blob(self._store, str(digest_of(data)), len(data), [data])
        return _answer(data, media_type)


def _documents(written: Written, export: CacheExport) -> tuple[bytes, bytes, str]:
    config = written.config.dump()
    descriptor = _descriptor(config, CACHE_CONFIG)
    data, media_type = cache_manifest(written.layers, descriptor, image_manifest=export.image_manifest, oci=export.oci)
    return config, data, media_type


def _descriptor(data: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def _manifest_line(export: CacheExport, data: bytes) -> str:
    return f"writing cache {'image ' if export.image_manifest else ''}manifest {digest_of(data)}"


def _answer(data: bytes, media_type: str) -> dict[str, str]:
    return {MANIFEST_KEY: dumps(descriptor_to_json(_descriptor(data, media_type))).decode()}


__all__ = ["MANIFEST_KEY", "NAMES", "CacheExport", "Exports", "RegistryTarget", "SessionTarget", "Target"]
