# SPDX-License-Identifier: Apache-2.0
"""Definitions: LLB as bytes, to and from a checked graph.

The digest of an operation is that of its bytes as Go's deterministic marshalling writes them: map keys sorted, and for
`Op` the oneof member last (protocol.md 1.4.2). Python writes pure field order, so `marshal_op` writes the two parts apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from chantier.errors import UsageError
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform, digest_of, host_platform
from chantier.values import dataclass

_SUBJECTS = ("exec", "source", "file", "build", "merge", "diff", "passthrough")


def marshal_op(op: pb.Op) -> bytes:
    """The bytes Go gives for `op`: inputs, platform, constraints, then the operation itself."""
    subject = op.WhichOneof("op")
    if subject is None:
        return op.SerializeToString(deterministic=True)
    rest = pb.Op()
    rest.CopyFrom(op)
    rest.ClearField(subject)
    last = pb.Op()
    getattr(last, subject).CopyFrom(getattr(op, subject))
    return rest.SerializeToString(deterministic=True) + last.SerializeToString(deterministic=True)


def raw_ops(definition: pb.Definition) -> list[bytes]:
    """Definition.def, whose name is a Python keyword."""
    return list(getattr(definition, "def"))


@dataclass(frozen=True, eq=False)
class LoadedVertex:
    """One operation of a loaded graph. `inputs` are (digest, output index) of other vertices of the same graph."""

    digest: str
    op: pb.Op
    inputs: tuple[tuple[str, int], ...]
    metadata: pb.OpMetadata
    original: str  # the digest the client used; keys of Definition.Source are these

    @cached_property
    def name(self) -> str:
        return self.metadata.description.get("llb.customname") or default_name(self.op)


@dataclass(frozen=True, eq=False)
class Graph:
    """Vertices by digest, parents before children; `root` is (digest, output index), None for an empty result."""

    vertices: Mapping[str, LoadedVertex]
    root: tuple[str, int] | None
    source: pb.Source | None = None


def load(
    definition: pb.Definition | None,
    *,
    known_caps: frozenset[str] | None = None,
    sources: Mapping[str, pb.SourceOp] | None = None,
) -> Graph:
    """Check a definition and recompute its digests bottom-up; missing platforms stay missing in the digest.

    `sources` are used in place of those with these digests in the definition (source policies).

    Raises UsageError with BuildKit's texts for what cannot be a graph, and for a capability outside `known_caps`.
    """
    if definition is None:
        return Graph({}, None)
    raws = raw_ops(definition)
    if not raws:
        return Graph({}, None)
    if len(raws) < 2:
        raise UsageError(f"invalid LLB with {len(raws)} vertexes")
    ops: dict[str, pb.Op] = {}
    order: list[str] = []
    for raw in raws:
        op = pb.Op()
        try:
            op.ParseFromString(raw)
        except Exception as err:  # upb raises DecodeError, whose class differs between protobuf implementations
            raise UsageError("failed to parse llb proto op") from err
        digest = digest_of(raw)
        ops[digest] = op
        order.append(digest)
    terminal = ops[order[-1]]
    if terminal.WhichOneof("op") is not None or len(terminal.inputs) != 1:
        raise UsageError("invalid LLB: the last vertex must only name the result")
    renamed: dict[str, str] = {}
    vertices: dict[str, LoadedVertex] = {}
    for original in order[:-1]:
        if original in renamed:
            continue
        op = ops[original]
        inputs = []
        for edge in op.inputs:
            if edge.digest not in renamed:
                raise UsageError(f"invalid missing input digest {edge.digest}")
            if edge.index < 0:
                raise UsageError(f"invalid input {edge.digest} output index {edge.index}")
            edge.digest = renamed[edge.digest]
            inputs.append((edge.digest, edge.index))
        metadata = definition.metadata.get(original, pb.OpMetadata()) if original in definition.metadata else pb.OpMetadata()
        if known_caps is not None:
            for cap in metadata.caps:
                if cap not in known_caps:
                    raise UsageError(f"unknown API capability {cap}")
        if sources and original in sources:
            op.source.CopyFrom(sources[original])
        validate(op)
        digest = digest_of(marshal_op(op))
        renamed[original] = digest
        vertices[digest] = LoadedVertex(digest, op, tuple(inputs), metadata, original)
    edge = terminal.inputs[0]
    if edge.digest not in renamed:
        raise UsageError(f"invalid missing input digest {edge.digest}")
    if edge.index < 0:
        raise UsageError(f"invalid input {edge.digest} output index {edge.index}")
    return Graph(vertices, (renamed[edge.digest], edge.index), definition.Source if definition.HasField("Source") else None)


def rewritten(definition: pb.Definition, change: Callable[[pb.Op], None]) -> pb.Definition:
    """The definition with `change` made to every operation; digests, edges, metadata and places follow."""
    renamed: dict[str, str] = {}
    out = pb.Definition()
    for raw in raw_ops(definition):
        op = pb.Op.FromString(raw)
        for edge in op.inputs:
            edge.digest = renamed.get(edge.digest, edge.digest)
        change(op)
        new = marshal_op(op)
        renamed[digest_of(raw)] = digest_of(new)
        getattr(out, "def").append(new)
    for digest, metadata in definition.metadata.items():
        out.metadata[renamed.get(digest, digest)].CopyFrom(metadata)
    if definition.HasField("Source"):
        out.Source.infos.extend(definition.Source.infos)
        for digest, locations in definition.Source.locations.items():
            out.Source.locations[renamed.get(digest, digest)].CopyFrom(locations)
    return out


def validate(op: pb.Op) -> None:
    """BuildKit's opsutils.Validate: what an operation must have to be run. Raises UsageError."""
    kind = op.WhichOneof("op")
    if kind is None:
        raise UsageError("invalid empty op")
    if kind == "exec":
        if not op.exec.HasField("meta"):
            raise UsageError("invalid exec op with no meta")
        if not op.exec.meta.args:
            raise UsageError("invalid exec op with no args")
        if not op.exec.mounts:
            raise UsageError("invalid exec op with no mounts")
        if all(mount.dest != "/" for mount in op.exec.mounts):
            raise UsageError("invalid exec op with no rootfs")
    elif kind == "file":
        if not op.file.actions:
            raise UsageError("invalid file op with no actions")
    elif kind == "merge":
        pass
    elif kind == "diff":
        if not op.diff.HasField("lower"):
            raise UsageError("invalid diff op with no lower")
        if not op.diff.HasField("upper"):
            raise UsageError("invalid diff op with no upper")
        for side in (op.diff.lower.input, op.diff.upper.input):
            if side >= len(op.inputs):
                raise UsageError(f"invalid diff op: no input {side}")
    elif kind == "passthrough":
        if not op.passthrough.id:
            raise UsageError("invalid passthrough op with no id")
        if not op.passthrough.outputs or any(not 0 <= i < len(op.inputs) for i in op.passthrough.outputs):
            raise UsageError("invalid passthrough op with invalid outputs")
    elif kind == "build" and op.build.builder != -1:
        raise UsageError("invalid build op: only the LLB builder is supported")


def default_name(op: pb.Op) -> str:
    """What a vertex is called when the client gave it no name (protocol.md 4.2)."""
    kind = op.WhichOneof("op")
    if kind == "source":
        return op.source.identifier
    if kind == "exec":
        return " ".join(op.exec.meta.args)
    if kind == "file":
        return ", ".join(_action_name(action) for action in op.file.actions)
    if kind == "build":
        return "build"
    if kind == "merge":
        return "merge (" + ", ".join(i.digest for i in op.inputs) + ")"
    if kind == "diff":
        lower = op.inputs[op.diff.lower.input].digest if op.diff.lower.input >= 0 else "scratch"
        upper = op.inputs[op.diff.upper.input].digest if op.diff.upper.input >= 0 else "scratch"
        return f"diff ({lower}) -> ({upper})"
    if kind == "passthrough":
        return f"passthrough {op.passthrough.id}"
    return "unknown"


def _action_name(action: pb.FileAction) -> str:
    kind = action.WhichOneof("action")
    if kind == "mkdir":
        return f"mkdir {action.mkdir.path}"
    if kind == "mkfile":
        return f"mkfile {action.mkfile.path}"
    if kind == "symlink":
        return f"symlink {action.symlink.newpath} -> {action.symlink.oldpath}"
    if kind == "rm":
        return f"rm {action.rm.path}"
    if kind == "copy":
        return f"copy {action.copy.src} {action.copy.dest}"
    return "unknown"


def platform_of(op: pb.Op) -> Platform:
    """The platform of an operation, the host's where it says none, normalised."""
    if not op.HasField("platform"):
        return host_platform()
    p = op.platform
    return Platform(p.OS, p.Architecture, p.Variant, p.OSVersion, tuple(p.OSFeatures)).normalise()


def platform_to_pb(platform: Platform) -> pb.Platform:
    return pb.Platform(
        OS=platform.os,
        Architecture=platform.architecture,
        Variant=platform.variant,
        OSVersion=platform.os_version,
        OSFeatures=platform.os_features,
    )


__all__ = [
    "Graph",
    "LoadedVertex",
    "default_name",
    "load",
    "marshal_op",
    "platform_of",
    "platform_to_pb",
    "raw_ops",
    "rewritten",
    "validate",
]
