# SPDX-License-Identifier: Apache-2.0
"""What only the exporter knows of an SBOM: the layer that each file of it came with (protocol.md 8.4, "Post-processing")."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from chantier import __version__
from chantier.cache import LayerBlob, Ref
from chantier.errors import CancelledError_
from chantier.layer import TarReader, decompressor
from chantier.op.worker import threaded
from chantier.progress import Step
from chantier.spec import dumps
from chantier.values import replace

from .attest import SPDX, Attestation, predicate_of
from .types import ExportContext

_CHUNK = 1 << 20
_TOOL = f"Tool: chantier-{__version__}"


async def supplemented(
    attestation: Attestation, ref: Ref | None, layers: Sequence[LayerBlob], context: ExportContext, step: Step
) -> Attestation:
    """The SPDX document of the result itself, with its files' layers as comments. Anything else as it is."""
    if attestation.predicate_type != SPDX or not attestation.is_core or ref is None:
        return attestation
    document = await predicate_of(attestation, context)
    if not isinstance(document, dict) or not str(document.get("spdxVersion", "")).startswith("SPDX-"):
        return attestation
    files = [one for one in _files(document) if not one.get("comment")]
    if files:
        await threaded(lambda cancelled: ref.fetch_blobs(step=step, sessions=context.sessions, cancelled=cancelled))
        places = await threaded(lambda cancelled: _places(layers, context, cancelled))
        for one in files:
            layer = places.get(_inside(str(one.get("fileName", ""))))
            if layer is not None:
                one["comment"] = f"layerID: {layer}"
    creation = document.setdefault("creationInfo", {})
    if isinstance(creation, dict):
        creation["creators"] = [*(creation.get("creators") or ()), _TOOL]
    data = dumps(document)

    async def content() -> bytes:
        return data

    return replace(attestation, content=content, ref=None)


def _files(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for owner in (document, *(document.get("packages") or ())):
        found = owner.get("files") if isinstance(owner, dict) else None
        yield from (one for one in found or () if isinstance(one, dict))


def _places(layers: Sequence[LayerBlob], context: ExportContext, cancelled: Callable[[], bool]) -> dict[str, str]:
    """Of each path the uppermost layer that has it; what a layer deletes is where it was made."""
    places: dict[str, str] = {}
    for layer in layers:
        digest = str(layer.descriptor.digest)
        with context.blobs.open(layer.descriptor.digest) as blob:
            stream = decompressor(blob)
            for entry in TarReader(lambda stream=stream: stream.read(_CHUNK)):  # type: ignore[misc]
                if cancelled():
                    raise CancelledError_
                name = _inside(entry.name.decode("utf-8", "surrogateescape"))
                if not posixpath.basename(name).startswith(".wh."):
                    places[name] = digest
    return places


def _inside(name: str) -> str:
    return posixpath.normpath("/" + name.lstrip("/"))


__all__ = ["supplemented"]
