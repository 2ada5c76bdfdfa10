# SPDX-License-Identifier: Apache-2.0
"""The values of the store: what is known of a blob, what a record of the cache weighs, how long things are kept."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from chantier.spec import Digest
from chantier.values import dataclass, field

_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobInfo:
    digest: Digest
    size: int
    media_type: str = ""
    created: int = 0  # nanoseconds
    labels: Mapping[str, str] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One record of the cache, with the fields of BuildKit's UsageRecord. Times are nanoseconds since the epoch."""

    id: str
    mutable: bool = False
    in_use: bool = False
    size: int = 0
    created_at: int = 0
    last_used_at: int | None = None
    usage_count: int = 0
    description: str = ""
    record_type: str = "regular"
    shared: bool = False
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One rule of the garbage collector; the meaning of each field is BuildKit's. Zero is "no limit".

    `all` includes internal and frontend records. A record is a candidate if any of `filters` matches it (none: all match).
    """

    all: bool = False
    filters: tuple[str, ...] = ()
    keep_duration_ns: int = 0
    reserved_space: int = 0
    max_used_space: int = 0
    min_free_space: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system a root lies on, in bytes; `free` is what may still be written."""

    total: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    id: str
    reason: str
    size: int = 0


__all__ = ["BlobInfo", "Disk", "Eviction", "Policy", "UsageRecord"]
