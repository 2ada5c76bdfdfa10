# SPDX-License-Identifier: Apache-2.0
"""Attestations beside an image in its index: a manifest of statements that names the image (protocol.md 8.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chantier.cache import LayerBlob, Ref
from chantier.errors import UsageError
from chantier.progress import Step
from chantier.spec import (
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_MANIFEST,
    Descriptor,
    Platform,
    Reference,
    descriptor_to_json,
    digest_of,
    dumps,
    dumps_indent,
)
from chantier.spec.media import IN_TOTO
from chantier.spec.purl import package_url
from chantier.values import dataclass

from .attest import statement, unbundle
from .sbom import supplemented

if TYPE_CHECKING:
    from .options import ImageOptions
    from .types import Exportable, ExportContext

ARTIFACT_TYPE = "application/vnd.docker.attestation.manifest.v1+json"
_UNKNOWN = Platform("unknown", "unknown")
_EMPTY = b"{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationManifest:
    """`descriptor` as the index lists it; `documents` are what it names and itself, children first."""

    descriptor: Descriptor
    documents: tuple[tuple[Descriptor, bytes], ...]


def wants_index(what: Exportable, options: ImageOptions, *, inline: bool) -> bool:
    """Whether there is something to attest, so that even one platform becomes an index. Raises UsageError where it cannot.

    `inline` is whether this exporter carries attestations that are for registries alone.
    """
    attestations = [one for some in what.attestations.values() for one in some]
    if not options.oci_media_types:
        if any(not one.inline_only for one in attestations):
            raise UsageError(
                'cannot export attestations with "oci-mediatypes=false"',
                hint="drop oci-mediatypes=false, or ask for no attestations: --provenance=false --sbom=false",
            )
        return what.is_multi
    return what.is_multi or any(inline or not one.inline_only for one in attestations)


async def attestation_manifest(
    what: Exportable,
    key: str,
    image: Descriptor,
    platform: Platform,
    layers: Sequence[LayerBlob],
    names: Sequence[str],
    options: ImageOptions,
    context: ExportContext,
    step: Step,
) -> AttestationManifest | None:
    """Of one image of the index; None if nothing was said of it. `key` is that of the result's references."""
    said = what.attestations.get(key, ()) if options.oci_media_types else ()
    if not said:
        return None
    ref: Ref | None = what.refs[key]
    subjects = [
        (package_url(Reference.parse(name), platform), {image.digest.algorithm: str(image.digest).partition(":")[2]})
        for name in names
    ]
    layered: list[tuple[Descriptor, bytes]] = []
    for one in await unbundle(said, context):
        one = await supplemented(one, ref, layers, context, step)
        data = dumps(await statement(one, subjects, context))
        annotations = {"in-toto.io/predicate-type": one.predicate_type}
        layered.append((Descriptor(media_type=IN_TOTO, digest=digest_of(data), size=len(data), annotations=annotations), data))
    config, raw = _config([descriptor for descriptor, _ in layered], options)
    manifest: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
    if options.oci_artifact:
        manifest["artifactType"] = ARTIFACT_TYPE
    manifest["config"] = descriptor_to_json(config) | ({"data": "e30="} if options.oci_artifact else {})
    manifest["layers"] = [descriptor_to_json(descriptor) for descriptor, _ in layered]
    if options.oci_artifact:
        manifest["subject"] = {"mediaType": image.media_type, "digest": str(image.digest), "size": image.size}
    data = dumps_indent(manifest)
    made = Descriptor(media_type=OCI_MANIFEST, digest=digest_of(data), size=len(data))
    with step.action(f"exporting attestation manifest {made.digest}"):
        listed = Descriptor(
            media_type=OCI_MANIFEST,
            digest=made.digest,
            size=made.size,
            platform=_UNKNOWN,
            annotations={
                "vnd.docker.reference.digest": str(image.digest),
                "vnd.docker.reference.type": "attestation-manifest",
            },
        )
    return AttestationManifest(descriptor=listed, documents=(*layered, (config, raw), (made, data)))


def _config(layers: Sequence[Descriptor], options: ImageOptions) -> tuple[Descriptor, bytes]:
    if options.oci_artifact:
        return Descriptor(media_type=OCI_EMPTY, digest=digest_of(_EMPTY), size=len(_EMPTY)), _EMPTY
    rootfs = {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]}
    data = dumps({"architecture": "unknown", "os": "unknown", "config": {}, "rootfs": rootfs})
    return Descriptor(media_type=OCI_CONFIG, digest=digest_of(data), size=len(data)), data


__all__ = ["ARTIFACT_TYPE", "AttestationManifest", "attestation_manifest", "wants_index"]
