# SPDX-License-Identifier: Apache-2.0
"""One build as it is remembered: what was asked for, how it ended, why its steps ran, what is kept with it. Values, and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import NotFoundError, UsageError
from .progress import now
from .values import dataclass, field, fields

RUNNING, COMPLETED, ERROR, CANCELED, INTERRUPTED = "running", "completed", "error", "canceled", "interrupted"
LOG_TYPE = "application/vnd.buildkit.status.v0"
"""Of the attachment that is the log, as BuildKit keeps it: lengths (uint32, little endian) and StatusResponse messages."""
ERROR_TYPE = "application/vnd.googeapis.google.rpc.status+proto"  # the wire's own spelling
ATTESTATION_TYPE = "application/vnd.in-toto+json"
TRACE_TYPE = "application/vnd.buildkit.otlp.json.v0"
"""Of the attachment that says what the build did when: spans in JSON, one after the other."""
PREDICATE = "in-toto.io/predicate-type"
"""The annotation of an attestation that says of which kind it is."""
PLATFORM = "chantier.platform"
"""The annotation that says which of several results an attachment is of."""
OF_IMAGE = "chantier.image"
"""The annotation of what is the exported image's own, and not the record's: the digest of the index or manifest it hangs from."""
_KINDS = {
    "index": ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"),
    "manifest": ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"),
    "image": ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"),
}
_PREDICATES = {"provenance": "https://slsa.dev/provenance/", "sbom": "https://spdx.dev/Document"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One of them, by its media type. `annotations` say more where there are several of a type, as of attestations the
    predicate type."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """What people look for: the predicate type of an attestation, else the media type."""
        return self.annotations.get(PREDICATE) or self.media_type

    @property
    def platform(self) -> str:
        """ "" where there is one result alone."""
        return self.annotations.get(PLATFORM, "")

    def is_a(self, kind: str) -> bool:
        """Of a kind (index, manifest, image, provenance, sbom), or of a media type or predicate type."""
        if kind in _KINDS:
            return self.media_type in _KINDS[kind]
        if kind in _PREDICATES:
            return self.type.startswith(_PREDICATES[kind])
        return kind in (self.type, self.media_type)

    @classmethod
    def load(cls, value: Mapping[str, Any]) -> Attachment:
        return cls(
            media_type=str(value["media_type"]),
            digest=str(value["digest"]),
            size=int(value["size"]),
            annotations=dict(value.get("annotations") or {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step: whether it was cached, and why it ran."""

    vertex: str
    name: str
    outcome: str
    reason: str
    nearest: str = ""
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecord:
    """One build. Times are nanoseconds since the epoch; `completed` 0 while it runs."""

    ref: str
    status: str = RUNNING
    started: int = 0
    completed: int = 0
    frontend: str = ""
    attrs: Mapping[str, str] = field(default_factory=dict)
    exporters: tuple[tuple[str, Mapping[str, str]], ...] = ()
    cache_imports: tuple[tuple[str, Mapping[str, str]], ...] = ()
    cache_exports: tuple[tuple[str, Mapping[str, str]], ...] = ()
    response: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    total: int = 0
    done: int = 0
    cached: int = 0
    warnings: int = 0
    steps: tuple[StepRecord, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)  # an SLSA v1 predicate: of the first result
    provenances: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by platform, where there are several
    pinned: bool = False
    code: int = 0  # of the error, as gRPC counts them; 0 where nobody asked over it
    metadata: Mapping[str, str] = field(default_factory=dict)  # of the result, as far as it is text
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # descriptors by number of the exporter
    attachments: tuple[Attachment, ...] = ()
    generation: int = 1

    def attached(self, media_type: str) -> Attachment | None:
        """The first of a type."""
        return next((one for one in self.attachments if one.media_type == media_type), None)

    def shown_attachments(self) -> tuple[Attachment, ...]:
        """What the build made and says of it; not the log, the trace and the error, which are shown otherwise.

        Of an engine that keeps no documents of images, their descriptors alone.
        """
        found = [one for one in self.attachments if one.media_type not in (LOG_TYPE, TRACE_TYPE, ERROR_TYPE)]
        known = {one.digest for one in found}
        for value in self.results.values():
            if value.get("digest") and value["digest"] not in known:
                found.append(
                    Attachment(media_type=str(value.get("mediaType", "")), digest=str(value["digest"]), size=value.get("size", 0))
                )
        return tuple(found)

    @property
    def name(self) -> str:
        """What people call it: its target or tag, else the context."""
        for _, attrs in self.exporters:
            if attrs.get("name"):
                return attrs["name"].split(",")[0]
        context = self.attrs.get("context", "") or self.attrs.get("vcs:source", "") or self.attrs.get("filename", "")
        target = self.attrs.get("target", "")
        return " ".join(part for part in (context, f"({target})" if target else "") if part) or self.frontend or "graph"

    @property
    def duration_ns(self) -> int:
        return max((self.completed or now()) - self.started, 0)


def load_record(document: Mapping[str, Any]) -> BuildRecord | None:
    known = {one.name for one in fields(BuildRecord)}
    values = {key: value for key, value in document.items() if key in known}
    try:
        values["attachments"] = tuple(Attachment.load(one) for one in values.get("attachments", ()))
        for key in ("exporters", "cache_imports", "cache_exports"):
            values[key] = tuple((kind, attrs) for kind, attrs in values.get(key, ()))
        steps = {one.name for one in fields(StepRecord)}
        values["steps"] = tuple(
            StepRecord(**({k: v for k, v in step.items() if k in steps} | {"differences": tuple(step.get("differences", ()))}))
            for step in values.get("steps", ())
        )
        return BuildRecord(**values)
    except (TypeError, ValueError, KeyError):  # written by another version
        return None


def choose(records: Sequence[BuildRecord], ref: str = "") -> BuildRecord:
    """Of records, newest first: by reference, by its unique beginning, by `^N` (the N-th before the newest), "" for the newest.

    Raises NotFoundError, UsageError.
    """
    if not ref or ref.startswith("^"):
        if ref[1:] and not ref[1:].isdecimal():
            raise UsageError(f"invalid build reference {ref!r}", hint="^0 is the newest build, ^1 the one before")
        number = int(ref[1:] or 0)
        if number >= len(records):
            raise NotFoundError("no build found" if not ref else f"no build {ref}: only {len(records)} are kept")
        return records[number]
    ref = ref.rpartition("/")[2]
    found = [record for record in records if record.ref == ref] or [r for r in records if r.ref.startswith(ref)]
    if not found:
        raise NotFoundError(f"no record found for ref {ref!r}")
    if len(found) > 1:
        raise UsageError(f"{ref!r} is the beginning of {len(found)} builds", hint="give more of it")
    return found[0]


__all__ = [
    "ATTESTATION_TYPE",
    "CANCELED",
    "COMPLETED",
    "ERROR",
    "ERROR_TYPE",
    "INTERRUPTED",
    "LOG_TYPE",
    "OF_IMAGE",
    "PLATFORM",
    "PREDICATE",
    "RUNNING",
    "TRACE_TYPE",
    "Attachment",
    "BuildRecord",
    "StepRecord",
    "choose",
    "load_record",
]
