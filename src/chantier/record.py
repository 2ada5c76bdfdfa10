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


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One of them, by its media type. `annotations` say more where there are several of a type, as of attestations the
    predicate type."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

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
    "RUNNING",
    "Attachment",
    "BuildRecord",
    "StepRecord",
    "choose",
    "load_record",
]
