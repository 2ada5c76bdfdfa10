# SPDX-License-Identifier: Apache-2.0
"""An image as one tar: an OCI layout (image-spec, image-layout.md), with Docker's manifest.json for `docker load`.

Entries are sorted by name, owned by root and dated 1970, so equal images give equal tars (semantics.md 6.11).
"""

from __future__ import annotations

import asyncio
import logging
import tarfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from chantier.cache import Ref
from chantier.errors import CancelledError_, ChantierError, UsageError
from chantier.op.worker import threaded
from chantier.progress import Step
from chantier.session.types import FileSink, KnowingSink, Session
from chantier.spec import Descriptor, Digest, Reference, descriptor_to_json, dumps
from chantier.spec.times import rfc3339
from chantier.values import replace

from .image import Blob, Image, make_image
from .options import ImageOptions
from .types import Exportable, ExportContext, Finalize, Response

_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


class TarExporter:
    """`type=oci` and `type=docker`."""

    def __init__(self, options: ImageOptions, *, docker: bool) -> None:
        self.options = options
        self.docker = docker
        self.name = "exporting to docker image format" if docker else "exporting to oci image format"

    async def export(self, what: Exportable, context: ExportContext, step: Step) -> tuple[Response, Finalize | None]:
        if self.docker and what.is_multi:
            raise UsageError(
                "docker exporter does not currently support exporting manifest lists",
                hint="build one platform, or use -o type=oci",
            )
        image = await make_image(what, self.options, context, step)
        names = [str(Reference.parse(n).with_default_tag()) for n in self._names(what)]
        created = rfc3339((self.options.epoch.at if self.options.epoch.at is not None else int(time.time())) * 1_000_000_000)
        root = replace(image.root, annotations={"org.opencontainers.image.created": created, **image.root.annotations})
        if context.session is None:
            raise UsageError("could not export without session")
        metadata = image.response(names)
        left_out = (
            await _known(image, metadata, context.session, context.number) if self.docker and self.options.tar else frozenset()
        )
        await fetch_lazy(image, context, step, but=left_out)
        if self.options.tar:
            with step.action("sending tarball"):
                try:
                    await self._send(image, root, names, context, left_out)
                except CancelledError_:
                    raise
                except ChantierError as err:
                    if not left_out:
                        raise
                    _log.debug("the image is sent again with all its layers: %s", err)  # what was there is gone, perhaps
                    await fetch_lazy(image, context, step)
                    await self._send(image, root, names, context, frozenset())
        else:
            with step.action("sending content"):
                await _send_blobs(image, context)
        return replace(image, root=root).response(names), None

    async def _send(
        self, image: Image, root: Descriptor, names: Sequence[str], context: ExportContext, left_out: frozenset[Digest]
    ) -> None:
        assert context.session is not None
        sink = await context.session.send_file(context.number, image.response(names))
        try:
            if not (isinstance(sink, KnowingSink) and await sink.has_it()):
                await self._write(sink, image, root, names, context, left_out)
        except BaseException:
            await sink.abort()
            raise
        await sink.close()

    def _names(self, what: Exportable) -> Sequence[str]:
        if self.options.names == ("*",):
            return [n for n in what.metadata.get("image.name", b"").decode().split(",") if n]
        return self.options.names

    async def _write(
        self,
        sink: FileSink,
        image: Image,
        root: Descriptor,
        names: Sequence[str],
        context: ExportContext,
        left_out: frozenset[Digest],
    ) -> None:
        entries: dict[str, Blob | bytes | None] = {"blobs/": None, "blobs/sha256/": None}
        for blob in image.blobs:
            if blob.descriptor.digest in left_out:
                continue
            entries["blobs/" + blob.descriptor.digest.replace(":", "/")] = blob if blob.data is None else blob.data
        entries["index.json"] = _index(root, names)
        entries["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
        if self.docker:
            entries["manifest.json"] = _docker_manifest(image, names)
        for name, content in sorted(entries.items()):
            await _entry(sink, name, content, context)
        await sink.write(bytes(1024))


def _index(root: Descriptor, names: Sequence[str]) -> bytes:
    described = []
    for name in names or ("",):
        annotations = dict(root.annotations)
        if name:
            annotations["io.containerd.image.name"] = name
            annotations["org.opencontainers.image.ref.name"] = Reference.parse(name).tag
        described.append(descriptor_to_json(replace(root, annotations=annotations)))
    return dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": described})


async def _known(image: Image, metadata: Mapping[str, str], session: Session, number: int) -> frozenset[Digest]:
    """The blobs of layers that whoever loads the image has."""
    manifest, config = _documents(image)
    blobs = [Digest.parse(layer["digest"]) for layer in manifest["layers"]]
    count = await session.known_layers(number, metadata, config["rootfs"]["diff_ids"])
    return frozenset(blobs[:count]) - frozenset(blobs[count:])


def _documents(image: Image) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest of the one image, and its config."""
    import json

    documents = {b.descriptor.digest: json.loads(b.data) for b in image.blobs if b.data is not None}
    manifest = documents[image.root.digest]
    if image.config is None:  # an index of one image and of what is attested of it
        manifest = documents[manifest["manifests"][0]["digest"]]
    return manifest, documents[manifest["config"]["digest"]]


def _docker_manifest(image: Image, names: Sequence[str]) -> bytes:
    manifest, _ = _documents(image)
    layers = [layer["digest"] for layer in manifest["layers"]]
    document: dict[str, Any] = {
        "Config": "blobs/" + manifest["config"]["digest"].replace(":", "/"),
        "RepoTags": [Reference.parse(n).familiar() for n in names] or None,
        "Layers": ["blobs/" + digest.replace(":", "/") for digest in layers],
    }
    return dumps([document])


async def _entry(sink: FileSink, name: str, content: Blob | bytes | None, context: ExportContext) -> None:
    info = tarfile.TarInfo(name)
    if content is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        await sink.write(info.tobuf(tarfile.USTAR_FORMAT))
        return
    info.mode = 0o644 if not name.startswith("blobs/") else 0o444
    info.size = len(content) if isinstance(content, bytes) else content.descriptor.size
    await sink.write(info.tobuf(tarfile.PAX_FORMAT if info.size >= 8 << 30 else tarfile.USTAR_FORMAT))
    if isinstance(content, bytes):
        await sink.write(content)
    else:
        with context.blobs.open(content.descriptor.digest) as source:
            while chunk := await asyncio.to_thread(source.read, _CHUNK):
                await sink.write(chunk)
    if info.size % 512:
        await sink.write(bytes(512 - info.size % 512))


async def _send_blobs(image: Image, context: ExportContext) -> None:
    """`tar=false`: every blob into the client's content store `export`; the client writes the index itself."""
    if context.session is None:
        raise UsageError("could not export without session")
    for blob in image.blobs:
        if blob.data is not None:
            await context.session.write_blob("export", blob.descriptor.digest, blob.descriptor.size, [blob.data])
        else:
            with context.blobs.open(blob.descriptor.digest) as source:
                chunks = iter(lambda: source.read(_CHUNK), b"")
                await context.session.write_blob("export", blob.descriptor.digest, blob.descriptor.size, chunks)


async def fetch_lazy(image: Image, context: ExportContext, step: Step, *, but: frozenset[Digest] = frozenset()) -> None:
    """Bring the bytes of layers here that so far only a registry holds, but for those that nobody will read."""
    lazy = {
        b.ref.id: b.ref
        for b in image.blobs
        if b.layer is not None and b.ref is not None and not b.layer.local and b.descriptor.digest not in but
    }

    async def fetch(ref: Ref) -> None:
        await threaded(lambda cancelled: ref.fetch_blobs(but=but, step=step, sessions=context.sessions, cancelled=cancelled))

    await asyncio.gather(*(fetch(ref) for ref in lazy.values()))
