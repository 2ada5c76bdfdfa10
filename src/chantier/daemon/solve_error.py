# SPDX-License-Identifier: Apache-2.0
"""`errdefs.Solve`: which operation failed, and where in it, for clients that look into a failed build (protocol.md 4.8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chantier.engine import EngineRef, ReadableRef
from chantier.errors import ChantierError
from chantier.pb import ops_pb2
from chantier.wire import Detail, json_detail


def solve_detail(err: ChantierError, ref: ReadableRef | None, kept: Mapping[str, list[str]]) -> Detail:
    """`{}` where nothing is known of the vertex. The value is protojson (lowerCamel, 64-bit numbers as text)."""
    value: dict[str, Any] = dict(kept)
    loaded = ref.graph.vertices.get(err.vertex) if isinstance(ref, EngineRef) and err.vertex else None
    if loaded is not None:
        value["op"] = op_json(loaded.op)
        if loaded.metadata.description:
            value["description"] = dict(loaded.metadata.description)
        if err.subject is not None:
            kind, index = err.subject
            value[kind] = {"index": str(index)} if index else {}
    return json_detail("errdefs.Solve", value)


def failed_trees(err: BaseException | None) -> Any | None:
    """What is kept of the operation that an error tells of (op.FailedTrees)."""
    while err is not None:
        if isinstance(err, ChantierError) and err.failed is not None:
            return err.failed
        err = err.__cause__
    return None


def op_json(op: ops_pb2.Op) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(op)
    return found


__all__ = ["failed_trees", "op_json", "solve_detail"]
