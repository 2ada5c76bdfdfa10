# SPDX-License-Identifier: Apache-2.0
"""The document around a cache config: an image manifest (config and layers), or an index of blobs with the config last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chantier.cache.types import LayerBlob, LayerSource
from chantier.errors import IntegrityError, ReferenceError_
from chantier.spec import (
    CACHE_CONFIG,
    DOCKER_INDEX,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    descriptor_to_json,
    dumps,
    parse_manifest,
    to_docker,
    to_oci,
)
from chantier.spec.times import parse_rfc3339, rfc3339
from chantier.values import dataclass, replace

DIFF_ID = "containerd.io/uncompressed"
CREATED = "buildkit/createdat"
_DESCRIPTION = "buildkit/description"


def cache_manifest(
    layers: Sequence[LayerBlob], config: Descriptor, *, image_manifest: bool = True, oci: bool = True
) -> tuple[bytes, str]:
    """The bytes and the media type. Raises IntegrityError for an image manifest without OCI media types, as BuildKit does."""
    if image_manifest and not oci:
        raise IntegrityError(
            "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format"
        )
    blobs = [descriptor_to_json(layer_descriptor(layer, oci=oci)) for layer in layers]
    if image_manifest:
        kind = OCI_MANIFEST
        body: dict[str, Any] = {"config": descriptor_to_json(config), "layers": blobs}
    else:
        kind = OCI_INDEX if oci else DOCKER_INDEX
        body = {"manifests": [*blobs, descriptor_to_json(config)]}
    return dumps({"schemaVersion": 2, "mediaType": kind} | body), kind


def layer_descriptor(layer: LayerBlob, *, oci: bool = True) -> Descriptor:
    """A layer as a cache manifest names it: with its diff id and the time it was made."""
    convert = to_oci if oci else to_docker
    annotations = {key: value for key, value in layer.descriptor.annotations.items() if not key.startswith("containerd.io/dist")}
    annotations |= {DIFF_ID: str(layer.diff_id), CREATED: rfc3339(layer.created_at)}
    return replace(layer.descriptor, media_type=convert(layer.descriptor.media_type), annotations=annotations)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCache:
    """What a cache manifest names. Without `config` it is an image, or an index of images, that may carry a cache inline."""

    document: Manifest | Index
    media_type: str
    config: Descriptor | None
    layers: dict[str, LayerSource]


def read_manifest(data: bytes, media_type: str, source: str) -> FoundCache:
    """Raises IntegrityError. Layers without a diff id are left out: their content could not be checked."""
    document = parse_manifest(data, media_type)
    if isinstance(document, Index):
        found = [d for d in document.manifests if d.media_type == CACHE_CONFIG]
        blobs: Sequence[Descriptor] = [d for d in document.manifests if d.media_type != CACHE_CONFIG]
    else:
        found = [document.config] if document.config.media_type == CACHE_CONFIG else []
        blobs = document.layers
    layers = {str(d.digest): layer for d in blobs if (layer := _layer(d, source)) is not None} if found else {}
    return FoundCache(document=document, media_type=document.media_type, config=found[-1] if found else None, layers=layers)


def _layer(descriptor: Descriptor, source: str) -> LayerSource | None:
    try:
        diff_id = Digest.parse(descriptor.annotations.get(DIFF_ID, ""))
    except ReferenceError_:
        return None
    try:
        created = parse_rfc3339(descriptor.annotations.get(CREATED, ""))
    except ValueError:
        created = 0
    return LayerSource(
        descriptor=replace(descriptor, media_type=to_oci(descriptor.media_type), annotations={}, platform=None),
        diff_id=diff_id,
        sources=(source,),
        created_at=created or None,
        description=descriptor.annotations.get(_DESCRIPTION, ""),
    )


__all__ = ["CREATED", "DIFF_ID", "FoundCache", "cache_manifest", "layer_descriptor", "read_manifest"]
