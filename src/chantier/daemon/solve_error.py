# SPDX-License-Identifier: Apache-2.0
"""`errdefs.Solve`: which operation failed, and where in it, for clients that look into a failed build (protocol.md 4.8)."""

from __future__ import annotations

from typing import Any

from chantier.engine import EngineRef
from chantier.errors import ChantierError
from chantier.pb import ops_pb2
from chantier.wire import Detail, json_detail


def solve_detail(err: ChantierError, ref: EngineRef | None) -> Detail:
    """`{}` where nothing is known of the vertex. The value is protojson (lowerCamel, 64-bit numbers as text)."""
    value: dict[str, Any] = {}
    loaded = ref.graph.vertices.get(err.vertex) if ref is not None and err.vertex else None
    if loaded is not None:
        value["op"] = op_json(loaded.op)
        if loaded.metadata.description:
            value["description"] = dict(loaded.metadata.description)
        if err.subject is not None:
            kind, index = err.subject
            value[kind] = {"index": str(index)} if index else {}
    return json_detail("errdefs.Solve", value)


def op_json(op: ops_pb2.Op) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(op)
    return found


__all__ = ["op_json", "solve_detail"]
