# SPDX-License-Identifier: Apache-2.0
"""From a checked LLB graph to the solver's vertices; entitlements are checked on the way (semantics.md 1.9, protocol.md 3.8)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from chantier.errors import PolicyError, UsageError
from chantier.llb.definition import Graph, LoadedVertex
from chantier.pb import ops_pb2 as pb
from chantier.progress import Group
from chantier.solver.types import Edge, Vertex
from chantier.values import replace

from .devices import allowed

if TYPE_CHECKING:
    from chantier.runtime.cdi import Devices


def to_edge(graph: Graph, entitlements: Collection[str], devices: Devices | None) -> Edge | None:
    """The edge that the graph's result stands for; None for an empty graph.

    Raises PolicyError `failed to load LLB: network.host is not allowed` where an operation needs what was not granted,
    UsageError for what cannot be granted at all.
    """
    if graph.root is None:
        return None
    made: dict[str, Vertex] = {}
    for digest, loaded in graph.vertices.items():
        _check_entitlements(loaded.op, entitlements)
        if loaded.op.exec.cdiDevices:
            loaded = _with_devices(loaded, allowed(loaded.op.exec, devices, entitlements))
        made[digest] = to_vertex(loaded, tuple(Edge(made[parent], index) for parent, index in loaded.inputs))
    return Edge(made[graph.root[0]], graph.root[1])


def to_vertex(loaded: LoadedVertex, inputs: tuple[Edge, ...]) -> Vertex:
    metadata = loaded.metadata
    group = None
    if metadata.HasField("progress_group"):
        group = Group(id=metadata.progress_group.id, name=metadata.progress_group.name, weak=metadata.progress_group.weak)
    return Vertex(
        digest=loaded.digest,
        name=loaded.name,
        inputs=inputs,
        sys=loaded,
        ignore_cache=metadata.ignore_cache,
        export_cache=metadata.export_cache.Value if metadata.HasField("export_cache") else None,
        group=group,
        description=dict(metadata.description),
    )


def _with_devices(loaded: LoadedVertex, devices: Sequence[pb.CDIDevice]) -> LoadedVertex:
    """The same operation (its digest is what the client asked for) with the devices that it gets."""
    op = pb.Op()
    op.CopyFrom(loaded.op)
    del op.exec.cdiDevices[:]
    op.exec.cdiDevices.extend(devices)
    return replace(loaded, op=op)


def _check_entitlements(op: pb.Op, granted: Collection[str]) -> None:
    if op.WhichOneof("op") != "exec":
        return
    if op.exec.security not in (pb.SecurityMode.SANDBOX, pb.SecurityMode.INSECURE):
        raise UsageError(f"failed to load LLB: invalid security mode {op.exec.security}")
    if op.exec.network == pb.NetMode.HOST and "network.host" not in granted:
        raise PolicyError(
            "failed to load LLB: network.host is not allowed", hint="grant it with --allow network.host, if the builder allows it"
        )
    if op.exec.security == pb.SecurityMode.INSECURE and "security.insecure" not in granted:
        raise PolicyError(
            "failed to load LLB: security.insecure is not allowed",
            hint="grant it with --allow security.insecure, if the builder allows it",
        )
