# SPDX-License-Identifier: Apache-2.0
"""Descriptors, manifests and indexes (image-spec: descriptor.md, manifest.md, image-index.md).

Parsing checks types and digests and ignores unknown keys. Bytes that came from outside are never re-serialised: keep them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from chantier.errors import IntegrityError
from chantier.values import dataclass, field

from .digest import Digest
from .media import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from .platform import Platform

_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What one blob is: its media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    platform: Platform | None = None
    artifact_type: str = ""
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = OCI_MANIFEST
    annotations: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    artifact_type: str = ""
    subject: Descriptor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    manifests: tuple[Descriptor, ...]
    media_type: str = OCI_INDEX
    annotations: Mapping[str, str] = field(default_factory=lambda: _EMPTY)


def descriptor_from_json(raw: Any) -> Descriptor:
    """Raises IntegrityError if `raw` is not a descriptor."""
    if not isinstance(raw, dict):
        raise IntegrityError(f"invalid descriptor: want an object, got {type(raw).__name__}")
    size = raw.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise IntegrityError(f"invalid descriptor: size {size!r}")
    platform = raw.get("platform")
    return Descriptor(
        media_type=str(raw.get("mediaType", "")),
        digest=Digest.parse(str(raw.get("digest", ""))),
        size=size,
        annotations=MappingProxyType({str(k): str(v) for k, v in (raw.get("annotations") or {}).items()}),
        platform=Platform.from_json(platform) if isinstance(platform, dict) else None,
        artifact_type=str(raw.get("artifactType", "")),
        urls=tuple(str(u) for u in raw.get("urls") or ()),
    )


def descriptor_to_json(desc: Descriptor) -> dict[str, Any]:
    """Key order is that of the Go struct in image-spec, so that digests of documents agree."""
    out: dict[str, Any] = {"mediaType": desc.media_type, "digest": str(desc.digest), "size": desc.size}
    if desc.urls:
        out["urls"] = list(desc.urls)
    if desc.annotations:
        out["annotations"] = dict(sorted(desc.annotations.items()))
    if desc.platform is not None:
        out["platform"] = desc.platform.to_json()
    if desc.artifact_type:
        out["artifactType"] = desc.artifact_type
    return out


def parse_manifest(data: bytes, media_type: str = "") -> Manifest | Index:
    """Decode a manifest or an index. The document's own mediaType wins; without one `media_type`, then its shape, decides.

    Raises IntegrityError for anything else, among it Docker schema 1, which nobody should be served any more.
    """
    try:
        raw = json.loads(data)
    except ValueError as err:
        raise IntegrityError(f"invalid manifest: not JSON: {err}") from err
    if not isinstance(raw, dict):
        raise IntegrityError("invalid manifest: want a JSON object")
    if raw.get("schemaVersion") == 1:
        raise IntegrityError("unsupported manifest: Docker schema 1", hint="push the image again with a current client")
    kind = str(raw.get("mediaType") or media_type)
    annotations = MappingProxyType({str(k): str(v) for k, v in (raw.get("annotations") or {}).items()})
    if kind in (OCI_INDEX, DOCKER_INDEX) or (kind not in (OCI_MANIFEST, DOCKER_MANIFEST) and "manifests" in raw):
        return Index(
            manifests=tuple(descriptor_from_json(m) for m in raw.get("manifests") or ()),
            media_type=kind or OCI_INDEX,
            annotations=annotations,
        )
    if "config" not in raw:
        raise IntegrityError(f"invalid manifest: no config (media type {kind or 'unknown'!r})")
    subject = raw.get("subject")
    return Manifest(
        config=descriptor_from_json(raw["config"]),
        layers=tuple(descriptor_from_json(x) for x in raw.get("layers") or ()),
        media_type=kind or OCI_MANIFEST,
        annotations=annotations,
        artifact_type=str(raw.get("artifactType", "")),
        subject=descriptor_from_json(subject) if subject else None,
    )
