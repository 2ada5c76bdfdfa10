# SPDX-License-Identifier: Apache-2.0
"""An image goes to a registry: blobs in parallel, then manifests, children before parents (semantics.md 6.10)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from chantier.errors import RegistryError, UsageError
from chantier.kernel.trace import point
from chantier.op.worker import run_all, threaded
from chantier.progress import Step
from chantier.spec import Reference
from chantier.values import replace

if TYPE_CHECKING:
    from .image import Blob, Image
    from .options import ImageOptions
    from .types import ExportContext


async def push_image(image: Image, name: str, options: ImageOptions, context: ExportContext, step: Step) -> None:
    """Raises RegistryError `failed to push NAME: …`; a manifest is sent only after all it names has arrived."""
    ref = Reference.parse(name)
    if options.push_by_digest:
        if ref.tag:
            raise UsageError(f"can't push tagged ref {ref} by digest", hint="leave out the tag, or push-by-digest")
    else:
        ref = ref.with_default_tag()
    registry = context.registry.insecure() if options.insecure else context.registry
    try:
        with step.action("pushing layers"):
            documents = [b for b in image.blobs if b.data is not None and b.layer is None and _is_manifest(b)]
            await run_all([_push_blob(ref, blob, registry, context, step) for blob in image.blobs if blob not in documents])
        with step.action(f"pushing manifest for {_shown(ref, image)}"):
            for blob in documents:
                target = (
                    ref if blob.descriptor.digest == image.root.digest and not options.push_by_digest else replace(ref, tag="")
                )
                await asyncio.to_thread(registry.push_manifest, target, blob.data, blob.descriptor.media_type)
                point("push.manifest")
                if target is ref and blob.data is not None:
                    await asyncio.to_thread(context.pushed, ref, blob.descriptor, blob.data)
    except RegistryError as err:
        raise err.reworded(f"failed to push {ref}: {err.brief}") from err


async def _push_blob(ref: Reference, blob: Blob, registry: Any, context: ExportContext, step: Step) -> None:
    descriptor = blob.descriptor
    started = (
        step.status(f"pushing {descriptor.digest}", total=descriptor.size)
        if blob.layer is not None and descriptor.size > 1 << 20
        else None
    )

    def report(sent: int) -> None:
        if started is not None:
            step.status(f"pushing {descriptor.digest}", current=sent, total=descriptor.size, started=started)

    def send(cancelled: Callable[[], bool]) -> None:
        mount_from = _repositories(blob, ref.domain)
        if blob.data is not None:
            data = blob.data
            registry.push_blob(ref, descriptor, lambda: BytesIO(data), cancelled=cancelled)
            return
        if blob.ref is not None and blob.layer is not None and not blob.layer.local:
            # The base image's bytes were never needed here: the registry may have them, or take them over from a neighbour.
            if registry.exists(ref, descriptor, cancelled=cancelled):
                return
            if mount_from and registry.mount_blob(ref, descriptor, mount_from, cancelled=cancelled):
                return
            blob.ref.fetch_blobs(step=step, sessions=context.sessions, cancelled=cancelled)
        registry.push_blob(
            ref,
            descriptor,
            lambda: context.blobs.open(descriptor.digest),
            mount_from=mount_from,
            on_bytes=report,
            cancelled=cancelled,
        )

    await threaded(send)
    point("push.blob")
    if blob.layer is not None:
        await asyncio.to_thread(context.cache.add_source, descriptor.digest, f"registry:{ref.name}")
    if started is not None:
        step.status(f"pushing {descriptor.digest}", current=descriptor.size, total=descriptor.size, started=started, done=True)


def _is_manifest(blob: Blob) -> bool:
    from chantier.spec import is_index, is_manifest

    return is_index(blob.descriptor.media_type) or is_manifest(blob.descriptor.media_type)


def _repositories(blob: Blob, domain: str) -> list[str]:
    """Repositories on `domain` that are known to hold the blob: it can be mounted from them."""
    if blob.layer is None:
        return []
    names = (source.removeprefix("registry:") for source in blob.layer.sources if source.startswith("registry:"))
    return [name.removeprefix(domain + "/") for name in names if name.startswith(domain + "/")]


def _shown(ref: Reference, image: Image) -> str:
    return f"{ref.name}:{ref.tag}@{image.root.digest}" if ref.tag else f"{ref.name}@{image.root.digest}"
