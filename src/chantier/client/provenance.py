# SPDX-License-Identifier: Apache-2.0
"""The provenance of a build that is over: asked of a daemon's history, and as metadata files have it (builders.md 5.11)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chantier.errors import ChantierError
from chantier.pb import control_pb2 as pb
from chantier.spec.media import IN_TOTO
from chantier.spec.slsa import PROVENANCE, brief, is_v02, to_v02
from chantier.wire import GrpcError, Stub, error_of

if TYPE_CHECKING:
    from chantier.wire import Channel

_CONTENT = "containerd.services.content.v1.Content"
_CONTROL = "moby.buildkit.v1.Control"
_UNIMPLEMENTED = 12
_MOST_BYTES = 64 << 20
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


async def fetch_provenance(channel: Channel, ref: str) -> dict[str, dict[str, Any]]:
    """Predicates by platform, "" for a build with one result. Empty where the daemon keeps no history, or has none of this."""
    found: dict[str, dict[str, Any]] = {}
    try:
        async with Stub(channel, _CONTROL).stream("ListenBuildHistory") as call:
            await call.send(pb.BuildHistoryRequest(Ref=ref, EarlyExit=True))
            call.close_send()
            async for event in call:
                results = dict(event.record.Results) or {"": event.record.Result}
                for platform, result in results.items():
                    for one in result.Attestations:
                        if one.media_type == IN_TOTO and one.annotations["in-toto.io/predicate-type"].startswith(PROVENANCE):
                            found[platform] = await _read(channel, one.digest, one.size)
    except GrpcError as err:
        if err.code == _UNIMPLEMENTED:
            return {}
        raise error_of(err) from err
    return found


async def _read(channel: Channel, digest: str, size: int) -> dict[str, Any]:
    if size > _MOST_BYTES:
        raise ChantierError(f"failed to load provenance {digest}: {size} bytes are too many")
    from chantier.pb import content_pb2

    data = bytearray()
    async with Stub(channel, _CONTENT).stream("Read") as call:
        await call.send(content_pb2.ReadContentRequest(digest=digest))
        call.close_send()
        async for piece in call:
            data += piece.data
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ChantierError(f"failed to load provenance {digest}: not a JSON object")
    return document


def metadata_mode(env: Mapping[str, str]) -> str:
    """BUILDX_METADATA_PROVENANCE: `min` (also for what it does not know), `max` or `disabled`."""
    mode = env.get("BUILDX_METADATA_PROVENANCE", "")
    if mode in ("max", "disabled"):
        return mode
    return "disabled" if mode in _FALSE else "min"


def metadata_values(provenance: Mapping[str, Mapping[str, Any]], mode: str) -> dict[str, str]:
    """`buildx.build.provenance[/PLATFORM]`: v0.2 predicates, base64 as exporters answer."""
    if mode == "disabled":
        return {}
    values = {}
    for platform, predicate in provenance.items():
        old = dict(predicate) if is_v02(predicate) else to_v02(predicate)
        made = old if mode == "max" else brief(old)
        key = "buildx.build.provenance" + (f"/{platform}" if platform else "")
        values[key] = base64.b64encode(json.dumps(made, separators=(",", ":")).encode()).decode()
    return values


__all__ = ["fetch_provenance", "metadata_mode", "metadata_values"]
