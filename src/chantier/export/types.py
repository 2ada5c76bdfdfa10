# SPDX-License-Identifier: Apache-2.0
"""What is exported, with what at hand, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from chantier.cache import Cache, LayerBlob, Ref
from chantier.progress import Reporter, Step
from chantier.session.types import Session
from chantier.spec import Descriptor, Platform, Reference
from chantier.store import BlobStore
from chantier.values import dataclass, field

if TYPE_CHECKING:
    from .attest import Attestation

Response = dict[str, str]
"""The exporter's part of the build's answer: `containerimage.digest`, `image.name` and so on (protocol.md 3.5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exportable:
    """The result of a build.

    `refs` maps platform ids to references (None: an empty tree). A build for one platform that was not asked to be a
    multi-platform result has the single key "". `metadata` is the frontend's: `containerimage.config[/ID]`,
    `refs.platforms`, `source.date.epoch[/ID]`, and exporter attributes it set. `attestations` have the keys of `refs`.
    """

    refs: Mapping[str, Ref | None]
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    attestations: Mapping[str, Sequence[Attestation]] = field(default_factory=dict)

    @property
    def is_multi(self) -> bool:
        return "" not in self.refs

    def platforms(self) -> list[tuple[str, Platform | None]]:
        """(id, platform) in the frontend's order; ids without a known platform parse as one."""
        raw = self.metadata.get("refs.platforms")
        listed: list[tuple[str, Platform | None]] = []
        if raw:
            for entry in json.loads(raw).get("Platforms") or ():
                listed.append((str(entry["ID"]), Platform.from_json(entry["Platform"])))
        if not self.is_multi:
            return [("", listed[0][1] if listed else None)]
        known = dict(listed)
        order = [p for p in known if p in self.refs] + sorted(p for p in self.refs if p not in known)
        return [(p, known.get(p) or Platform.parse(p)) for p in order]

    def value(self, key: str, platform: str) -> bytes | None:
        """Metadata of one platform: `key/ID`, else `key`."""
        if platform and (found := self.metadata.get(f"{key}/{platform}")) is not None:
            return found
        return self.metadata.get(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportContext:
    """What an exporter may use."""

    cache: Cache
    blobs: BlobStore
    registry: Any  # registry.Registry bound to the build's credentials
    session: Session | None
    sessions: Sequence[Session]
    reporter: Reporter
    number: int = 0  # index of the exporter in the request: names the output on the session
    scratch: Path  # for files and directories of the export's own, on the state's file system
    cancelled: Callable[[], bool] = lambda: False
    inline_cache: InlineCache | None = None  # what an image with these layers carries as its cache
    made: Callable[[Descriptor, Mapping[str, bytes]], None] = lambda *_: None  # told of each image: its root, documents by digest
    pushed: Callable[[Reference, Descriptor, bytes], None] = lambda *_: None  # told what a name means now: any thread


InlineCache = Callable[[str, Sequence[LayerBlob], Step], Awaitable[bytes | None]]
"""(platform id, the image's layers, the exporter's step) -> the value of the config's `moby.buildkit.cache.v0`."""

Finalize = Callable[[Step], Awaitable[None]]
"""What is left to do after all exporters have run: pushing."""


class Exporter(Protocol):
    name: str  # of its vertex: "exporting to image"

    async def export(self, what: Exportable, context: ExportContext, step: Step) -> tuple[Response, Finalize | None]:
        """Write the result. No partial output is ever named; raises on the first trouble."""
