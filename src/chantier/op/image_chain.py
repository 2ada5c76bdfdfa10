# SPDX-License-Identifier: Apache-2.0
"""What vouches for an image: its index, the attestations of one of its images, and who signed them (protocol.md 1.5, AttestationChain).

Nothing is judged here: whoever asks gets the bytes, each checked against its digest.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from chantier.spec import DOCKER_INDEX, OCI_INDEX, Descriptor, Digest, Index, Manifest, parse_manifest
from chantier.values import dataclass

if TYPE_CHECKING:
    from chantier.registry import Registry

    from .image import ImageResolver, ResolvedImage

_REFERENCE_TYPE = "vnd.docker.reference.type"
_REFERENCE_DIGEST = "vnd.docker.reference.digest"
_PREDICATE = "in-toto.io/predicate-type"
_SIGNATURES = ("application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.cosign.artifact.sig.v1+json")
"""Artifact types of signatures; the first is taken where both are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    descriptor: Descriptor
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationChain:
    """Digests of an index and of what it leads to ("" for what is not there), and the blobs: all but the image's own manifest."""

    root: str
    image_manifest: str
    attestation_manifest: str = ""
    signature_manifests: tuple[str, ...] = ()
    blobs: tuple[Blob, ...] = ()


def attestation_chain(
    resolver: ImageResolver, registry: Registry, image: ResolvedImage, predicates: Collection[str]
) -> AttestationChain | None:
    """None for what is no OCI index. Statements of the wanted predicate types come too. Any thread. Raises as a registry does."""
    ref = image.reference

    def read(descriptor: Descriptor) -> Blob:
        data = resolver.document(registry, ref, descriptor)
        return Blob(descriptor=descriptor, data=data)

    root = read(Descriptor(media_type=OCI_INDEX, digest=image.digest, size=0))
    index = parse_manifest(root.data, "")
    if not isinstance(index, Index) or index.media_type == DOCKER_INDEX:
        return None
    root = Blob(descriptor=Descriptor(media_type=OCI_INDEX, digest=image.digest, size=len(root.data)), data=root.data)
    attestation = next((entry for entry in index.manifests if _attests(entry, image.manifest_digest)), None)
    if attestation is None:
        return AttestationChain(root=image.digest, image_manifest=image.manifest_digest, blobs=(root,))
    blobs = [root, read(attestation)]
    signed = registry.referrers(ref, attestation.digest)
    signatures = sorted((d for d in signed if d.artifact_type in _SIGNATURES), key=lambda d: _SIGNATURES.index(d.artifact_type))[
        :1
    ]
    for signature in signatures:
        blobs.append(read(signature))
        blobs += [read(layer) for layer in _layers(blobs[-1])]
    known = {blob.descriptor.digest for blob in blobs}
    for layer in _layers(blobs[1]):
        if layer.annotations.get(_PREDICATE) in predicates and layer.digest not in known:
            blobs.append(read(layer))
    return AttestationChain(
        root=image.digest,
        image_manifest=image.manifest_digest,
        attestation_manifest=attestation.digest,
        signature_manifests=tuple(signature.digest for signature in signatures),
        blobs=tuple(blobs),
    )


def _attests(entry: Descriptor, manifest: Digest) -> bool:
    said = entry.annotations
    return said.get(_REFERENCE_TYPE) == "attestation-manifest" and said.get(_REFERENCE_DIGEST) == manifest


def _layers(blob: Blob) -> tuple[Descriptor, ...]:
    document = parse_manifest(blob.data, blob.descriptor.media_type)
    return document.layers if isinstance(document, Manifest) else ()


__all__ = ["AttestationChain", "Blob", "attestation_chain"]
