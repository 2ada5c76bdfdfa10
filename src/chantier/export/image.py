# SPDX-License-Identifier: Apache-2.0
"""A result becomes an image: layers, config, manifest, and an index where there are several platforms (semantics.md 6.6-6.8)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from chantier.cache import LayerBlob, Ref
from chantier.errors import UsageError
from chantier.op.worker import threaded
from chantier.progress import Step, Warning
from chantier.spec import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Platform,
    descriptor_to_json,
    digest_of,
    dumps_indent,
    to_docker,
)
from chantier.values import dataclass, replace

from .attestation_manifest import attestation_manifest, wants_index
from .config import default_config, patch_config
from .options import ImageOptions
from .push import push_image
from .rewrite import rewrite_layers
from .types import Exportable, ExportContext, Finalize, Response

_STRIPPED = ("containerd.io/uncompressed", "buildkit/createdat", "containerd.io/distribution.source.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One blob of an image that was made: its bytes if they are small documents, else the layer and the ref that has it."""

    descriptor: Descriptor
    data: bytes | None = None
    layer: LayerBlob | None = None
    ref: Ref | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A whole image: `root` names a manifest or an index; `blobs` holds everything below it, children before parents, once each."""

    root: Descriptor
    blobs: tuple[Blob, ...]
    config: Descriptor | None  # None for an index

    def response(self, names: Sequence[str]) -> Response:
        import base64
        import json

        out: Response = {"containerimage.digest": str(self.root.digest)}
        if self.config is not None:
            out["containerimage.config.digest"] = str(self.config.digest)
        document = json.dumps(descriptor_to_json(self.root), separators=(",", ":")).encode()
        out["containerimage.descriptor"] = base64.b64encode(document).decode()
        if names:
            out["image.name"] = ",".join(names)
        return out


async def make_image(
    what: Exportable, options: ImageOptions, context: ExportContext, step: Step, *, inline: bool = False
) -> Image:
    """Compute every document of the image and make sure that every new layer's blob exists in the store.

    `inline` is whether attestations that are for registries alone make an index of it. Base layers that were never needed stay where they are: `Blob.layer.local` is false for them.
    """
    options = options.with_annotations(what.metadata)
    inline = options.attestation_inline if options.attestation_inline is not None else inline
    indexed = wants_index(what, options, inline=inline)
    with step.action("exporting layers"):
        platforms = what.platforms()
        made = await asyncio.gather(*(_layers(what.refs[p], options, context, step) for p, _ in platforms))
        epochs = [options.epoch.of_result(what, platform) for platform, _ in platforms]
    if options.rewrite_timestamp:
        made = [
            await _rewritten(layers, epoch, _base_layers(what, p), options, context, step)
            for (p, _), layers, epoch in zip(platforms, made, epochs, strict=True)
        ]
    blobs: dict[Digest, Blob] = {}
    manifests: list[Descriptor] = []
    said: list[Descriptor] = []
    config_descriptor: Descriptor | None = None
    for (platform_id, platform), layers, epoch in zip(platforms, made, epochs, strict=True):
        ref = what.refs[platform_id]
        config = what.value("containerimage.config", platform_id) or default_config(platform)
        config = patch_config(
            config,
            diff_ids=[layer.diff_id for layer in layers],
            created_at=[layer.created_at for layer in layers],
            descriptions=[layer.description for layer in layers],
            epoch=epoch,
            base_history=_base_history(what, platform_id),
            extra=await _inline_cache(platform_id, layers, context, step),
        )
        config_descriptor = _document(config, OCI_CONFIG, options)
        manifest = _manifest(config_descriptor, layers, options, platform_id)
        descriptor = _document(manifest, OCI_MANIFEST, options)
        with step.action(f"exporting manifest {descriptor.digest}"):
            for layer in layers:
                blobs.setdefault(
                    layer.descriptor.digest, Blob(descriptor=_clean(layer.descriptor, options), layer=layer, ref=ref)
                )
        with step.action(f"exporting config {config_descriptor.digest}"):
            blobs[config_descriptor.digest] = Blob(descriptor=config_descriptor, data=config)
        blobs[descriptor.digest] = Blob(descriptor=descriptor, data=manifest)
        annotations = {
            a.key: a.value for a in options.annotations if a.kind == "manifest-descriptor" and a.platform in ("", platform_id)
        }
        platform = _platform_of(config, platform)
        manifests.append(replace(descriptor, platform=platform, annotations=annotations))
        if indexed:
            attested = await attestation_manifest(
                what, platform_id, descriptor, platform, layers, _names(options, what), options, context, step
            )
            if attested is not None:
                said.append(attested.descriptor)
                blobs |= {one.digest: Blob(descriptor=one, data=data) for one, data in attested.documents}
    if not indexed:
        if any(a.kind.startswith("index") for a in options.annotations):
            raise UsageError("index annotations not supported for single platform export")
        return _told(
            Image(root=replace(manifests[0], platform=None), blobs=tuple(blobs.values()), config=config_descriptor), context
        )
    index = _index([*manifests, *said], options)
    descriptor = _document(index, OCI_INDEX, options)
    with step.action(f"exporting manifest list {descriptor.digest}"):
        blobs[descriptor.digest] = Blob(descriptor=descriptor, data=index)
    said_of = {a.key: a.value for a in options.annotations if a.kind == "index-descriptor"}
    image = Image(root=replace(descriptor, annotations=said_of), blobs=tuple(blobs.values()), config=None)
    return _told(image, context)


def _told(image: Image, context: ExportContext) -> Image:
    context.made(image.root, {str(blob.descriptor.digest): blob.data for blob in image.blobs if blob.data is not None})
    return image


class ImageExporter:
    """`type=image`: into the content store, and to registries with push=true."""

    name = "exporting to image"

    def __init__(self, options: ImageOptions) -> None:
        if options.push and not options.names:
            raise UsageError("tag is needed when pushing to registry", hint="give a name with -t NAME or name=NAME")
        self.options = options

    async def export(self, what: Exportable, context: ExportContext, step: Step) -> tuple[Response, Finalize | None]:
        names = _names(self.options, what)
        image = await make_image(what, self.options, context, step, inline=True)
        await asyncio.to_thread(store_documents, image, context)
        for name in names:
            with step.action(f"naming to {name}"):
                continue  # there is no image store to name it in: the name matters when it is pushed
        response = image.response(names)
        if not self.options.push:
            return response, None

        async def finalize(step: Step) -> None:
            for name in names:
                await push_image(image, name, self.options, context, step)

        return response, finalize


def store_documents(image: Image, context: ExportContext) -> None:
    """Write configs and manifests into the blob store (layers are there, or lazy)."""
    for blob in image.blobs:
        if blob.data is not None:
            context.blobs.put(blob.data, media_type=blob.descriptor.media_type)


async def _inline_cache(platform: str, layers: Sequence[LayerBlob], context: ExportContext, step: Step) -> dict[str, Any] | None:
    if context.inline_cache is None:
        return None
    value = await context.inline_cache(platform, layers, step)
    return {"moby.buildkit.cache.v0": value.decode()} if value is not None else None


async def _rewritten(
    layers: Sequence[LayerBlob],
    epoch: int | None,
    base: Sequence[str],
    options: ImageOptions,
    context: ExportContext,
    step: Step,
) -> Sequence[LayerBlob]:
    if epoch is None:
        step.warn(
            Warning(vertex=step.digest, level=1, short=b"rewrite-timestamp is specified, but no source-date-epoch was found")
        )
        return layers
    with step.action(f"rewriting layers with source-date-epoch {epoch}"):
        return await threaded(lambda cancelled: rewrite_layers(layers, epoch, base, options.compression, context, cancelled))


async def _layers(ref: Ref | None, options: ImageOptions, context: ExportContext, step: Step) -> Sequence[LayerBlob]:
    if ref is None:
        return ()
    return await threaded(
        lambda cancelled: ref.layers(
            compression=options.compression.kind,
            level=options.compression.level,
            force=options.compression.force,
            step=step,
            sessions=context.sessions,
            cancelled=cancelled,
        )
    )


def _names(options: ImageOptions, what: Exportable) -> tuple[str, ...]:
    if options.names == ("*",):
        return tuple(n for n in what.metadata.get("image.name", b"").decode().split(",") if n)
    return options.names


def _base_document(what: Exportable, platform: str) -> dict[str, Any]:
    import json

    raw = what.value("containerimage.base.config", platform)
    return json.loads(raw) if raw else {}


def _base_history(what: Exportable, platform: str) -> int:
    return len(_base_document(what, platform).get("history") or ())


def _base_layers(what: Exportable, platform: str) -> list[str]:
    return list((_base_document(what, platform).get("rootfs") or {}).get("diff_ids") or ())


def _document(data: bytes, media_type: str, options: ImageOptions) -> Descriptor:
    return Descriptor(media_type=_type(media_type, options), digest=digest_of(data), size=len(data))


def _type(media_type: str, options: ImageOptions) -> str:
    return media_type if options.oci_media_types else to_docker(media_type)


def _clean(descriptor: Descriptor, options: ImageOptions) -> Descriptor:
    kept = {k: v for k, v in descriptor.annotations.items() if not k.startswith(_STRIPPED)} if options.oci_media_types else {}
    return replace(descriptor, media_type=_type(descriptor.media_type, options), annotations=kept)


def _manifest(config: Descriptor, layers: Sequence[LayerBlob], options: ImageOptions, platform: str) -> bytes:
    annotations = {a.key: a.value for a in options.annotations if a.kind == "manifest" and a.platform in ("", platform)}
    raw: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": _type(OCI_MANIFEST, options),
        "config": descriptor_to_json(config),
        "layers": [descriptor_to_json(_clean(layer.descriptor, options)) for layer in layers],
    }
    if annotations:
        raw["annotations"] = dict(sorted(annotations.items()))
    return dumps_indent(raw)


def _index(manifests: Sequence[Descriptor], options: ImageOptions) -> bytes:
    annotations = {a.key: a.value for a in options.annotations if a.kind == "index"}
    raw: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": _type(OCI_INDEX, options),
        "manifests": [descriptor_to_json(m) for m in manifests],
    }
    if annotations:
        raw["annotations"] = dict(sorted(annotations.items()))
    return dumps_indent(raw)


def _platform_of(config: bytes, wanted: Platform | None) -> Platform:
    import json

    return wanted if wanted is not None else Platform.from_json(json.loads(config))
