# SPDX-License-Identifier: Apache-2.0
"""Attributes of exporters, from strings to values (protocol.md 3.6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from chantier.errors import UsageError
from chantier.values import dataclass, field, replace

if TYPE_CHECKING:
    from .types import Exportable

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_COMPRESSIONS = ("uncompressed", "gzip", "zstd")
_ANNOTATION = re.compile(r"annotation(?:-(index|index-descriptor|manifest|manifest-descriptor))?(?:\[([^\]]*)\])?\.(.+)\Z")


def parse_bool(key: str, value: str, *, bare: bool = True) -> bool:
    """Go's ParseBool; an empty value is true where the attribute allows it."""
    if value == "" and bare:
        return True
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f'non-bool value specified for {key}: "{value}"', hint="use true or false")


@dataclass(frozen=True, slots=True)
class Epoch:
    """`source-date-epoch` of an output, in seconds. What the output says holds, even that there is none (an empty value); where it
    says nothing, the frontend's counts."""

    given: bool = False
    at: int | None = None

    @classmethod
    def of(cls, attrs: Mapping[str, str]) -> Epoch:
        """Raises UsageError for what is no number."""
        return cls("source-date-epoch" in attrs, parse_epoch(attrs.get("source-date-epoch")))

    def of_result(self, what: Exportable, platform: str) -> int | None:
        if self.given:
            return self.at
        raw = what.value("source.date.epoch", platform)
        return parse_epoch(raw.decode()) if raw else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    kind: str  # manifest, manifest-descriptor, index, index-descriptor
    platform: str  # "" for all
    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    kind: str = "gzip"
    level: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What the image, oci and docker exporters share."""

    names: tuple[str, ...] = ()
    compression: Compression = field(default_factory=Compression)
    oci_media_types: bool = True
    rewrite_timestamp: bool = False
    epoch: Epoch = Epoch()
    annotations: tuple[Annotation, ...] = ()
    push: bool = False
    push_by_digest: bool = False
    insecure: bool = False
    tar: bool = True
    name_canonical: bool = False
    oci_artifact: bool = True  # the form of attestation manifests
    attestation_inline: bool | None = None  # whether to carry attestations meant for registries alone; None: by exporter

    @classmethod
    def parse(cls, attrs: Mapping[str, str]) -> ImageOptions:
        """Raises UsageError on a value that cannot be meant. Unknown attributes are the frontend's and are ignored."""

        def flag(key: str, *, default: bool = False) -> bool:
            return parse_bool(key, attrs[key]) if key in attrs else default

        kind = attrs.get("compression", "") or "gzip"
        if kind not in _COMPRESSIONS:
            raise UsageError(f"unsupported layer compression type {kind}", hint="use one of " + ", ".join(_COMPRESSIONS))
        oci = flag("oci-mediatypes", default=True)
        artifact = flag("oci-artifact", default=oci)
        if artifact and not oci:
            raise UsageError('exporter option "oci-artifact=true" conflicts with "oci-mediatypes=false"')
        annotations = tuple(_annotations(attrs))
        if annotations and not oci:
            raise UsageError("annotations require OCI media types", hint="drop oci-mediatypes=false")
        return cls(
            names=tuple(n.strip() for n in attrs.get("name", "").split(",") if n.strip()),
            compression=Compression(
                kind=kind, level=_level(kind, attrs.get("compression-level")), force=flag("force-compression")
            ),
            oci_media_types=oci,
            rewrite_timestamp=flag("rewrite-timestamp"),
            epoch=Epoch.of(attrs),
            annotations=annotations,
            push=flag("push"),
            push_by_digest=flag("push-by-digest"),
            insecure=flag("registry.insecure"),
            tar=flag("tar", default=True),
            name_canonical=flag("name-canonical"),
            oci_artifact=artifact,
            attestation_inline=flag("attestation-inline") if "attestation-inline" in attrs else None,
        )

    def with_annotations(self, metadata: Mapping[str, bytes]) -> ImageOptions:
        """With those that the frontend set on its result; the output's own count before them. Docker's documents have none."""
        found = _annotations({key: value.decode() for key, value in metadata.items() if key.startswith("annotation")})
        mine = {(a.kind, a.platform, a.key) for a in self.annotations}
        more = tuple(a for a in found if (a.kind, a.platform, a.key) not in mine)
        return replace(self, annotations=(*more, *self.annotations)) if more and self.oci_media_types else self


def parse_epoch(value: str | None) -> int | None:
    if not value:
        return None
    try:
        return int(value)
    except ValueError as err:
        raise UsageError(f"invalid SOURCE_DATE_EPOCH: {value}", hint="give seconds since 1970 as an integer") from err


def _level(kind: str, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        level = int(value)
    except ValueError as err:
        raise UsageError(f"non-integer value {value} specified for compression-level") from err
    highest = 22 if kind == "zstd" else 9
    if not 0 <= level <= highest:
        raise UsageError(f"compression-level {level} is out of range for {kind}: want 0 to {highest}")
    return level


def _annotations(attrs: Mapping[str, str]) -> list[Annotation]:
    found = []
    for key, value in sorted(attrs.items()):
        match = _ANNOTATION.match(key)
        if match:
            found.append(Annotation(kind=match[1] or "manifest", platform=match[2] or "", key=match[3], value=value))
    return found
