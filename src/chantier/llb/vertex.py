# SPDX-License-Identifier: Apache-2.0
"""Nodes and edges of a graph that is still being written, and the walk that turns it into a Definition.

A vertex holds no bytes: it is written each time it is marshalled, since its digest depends on the defaults of that call
(the platform, the capabilities). Within one call each vertex is written once, so the cost is linear in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from chantier.errors import Source, SourceRange, UsageError
from chantier.pb import ops_pb2 as pb
from chantier.progress import Group
from chantier.spec import Platform, digest_of, host_platform, new_id
from chantier.values import dataclass, field

from . import caps as cap
from .constraints import Constraints, Location, Resources, SourceMap, merge_constraints, merge_metadata, metadata
from .definition import marshal_op, platform_to_pb, raw_ops

if TYPE_CHECKING:
    from .state import State


class Vertex(Protocol):
    """One operation. Compared by identity."""

    @property
    def how(self) -> Constraints: ...

    def inputs(self) -> Iterable[Output]:
        """The outputs it needs, each once."""

    def write(self, op: pb.Op, writer: Writer) -> set[str]:
        """Fill the operation and its inputs into `op` (platform and constraints are there); returns the caps it relies on."""

    def index(self, slot: object) -> int:
        """The number of the output that was handed out with `slot`."""


@dataclass(frozen=True, eq=False)
class Output:
    """One output of a vertex; what a State stands for."""

    vertex: Vertex
    slot: object = None
    platform: Platform | None = None

    def __repr__(self) -> str:  # not the graph below it, in which each vertex may be reached by many ways
        return f"<output of a {type(self.vertex).__name__}>"

    def real(self) -> Output | None:
        return self


@dataclass(eq=False)
class DeferredOutput:
    """An output decided when the graph is marshalled: a local directory whose used paths are known only at the end."""

    make: Callable[[], State] = field(repr=False)
    platform: Platform | None = None
    _made: tuple[Output | None] | None = field(default=None, repr=False)

    def real(self) -> Output | None:
        if self._made is None:
            out = self.make().output
            self._made = (out.real() if out is not None else None,)
        return self._made[0]


AnyOutput = Output | DeferredOutput


def real(output: AnyOutput | None) -> Output | None:
    return output.real() if output is not None else None


@dataclass
class Writer:
    """One marshalling. `base` are the defaults for every operation; `known` is None where nothing is known of the engine."""

    base: Constraints
    known: frozenset[str] | None = None
    unique_id: str = field(default_factory=new_id)
    ops: list[bytes] = field(default_factory=list)
    metadata: dict[str, pb.OpMetadata] = field(default_factory=dict)
    _digests: dict[int, str] = field(default_factory=dict)
    _kept: list[Vertex] = field(default_factory=list)  # so that ids in _digests stay unique
    _seen: set[str] = field(default_factory=set)
    _sources: list[SourceMap] = field(default_factory=list)
    _source_index: dict[int, int] = field(default_factory=dict)
    _locations: dict[str, list[Location]] = field(default_factory=dict)

    def input(self, output: Output) -> pb.Input:
        """The edge to `output`, whose vertex must have been written."""
        return pb.Input(digest=self._digests[id(output.vertex)], index=output.vertex.index(output.slot))

    def add_input(self, op: pb.Op, output: Output) -> int:
        """Number of the edge to `output` among those of `op`; equal edges are one."""
        wanted = self.input(output)
        for number, existing in enumerate(op.inputs):
            if existing.digest == wanted.digest and existing.index == wanted.index:
                return number
        op.inputs.append(wanted)
        return len(op.inputs) - 1

    def walk(self, root: Vertex) -> None:
        """Write `root` and everything below it, parents first. Not recursive: stages may be thousands deep."""
        stack: list[tuple[Vertex, bool]] = [(root, False)]
        while stack:
            vertex, ready = stack.pop()
            if id(vertex) in self._digests:
                continue
            if ready:
                self._write(vertex)
                continue
            stack.append((vertex, True))
            below = [out.vertex for out in vertex.inputs() if id(out.vertex) not in self._digests]
            stack.extend((v, False) for v in reversed(below))

    def _write(self, vertex: Vertex) -> None:
        how = merge_constraints(self.base, vertex.how)
        op = pb.Op(platform=platform_to_pb(how.platform or host_platform()))
        op.constraints.CopyFrom(pb.WorkerConstraints(filter=how.filters))
        try:
            caps = vertex.write(op, self)
            made = metadata(how, caps)
        except UnicodeEncodeError as err:
            raise _not_utf8(err, how) from None
        raw = marshal_op(op)
        digest = digest_of(raw)
        self._digests[id(vertex)] = digest
        self._kept.append(vertex)
        if digest in self.metadata:
            merge_metadata(self.metadata[digest], made)
        else:
            self.metadata[digest] = made
        self._locate(digest, vertex.how.locations)
        if digest not in self._seen:
            self._seen.add(digest)
            self.ops.append(raw)

    def _locate(self, digest: str, locations: tuple[Location, ...]) -> None:
        for location in locations:
            if id(location.source) not in self._source_index:
                self._source_index[id(location.source)] = self._find_source(location.source)
        self._locations.setdefault(digest, []).extend(locations)

    def _find_source(self, source: SourceMap) -> int:
        key = (source.filename, source.language, source.data)
        for number, known in enumerate(self._sources):
            if (known.filename, known.language, known.data) == key:
                return number
        self._sources.append(source)
        return len(self._sources) - 1

    def finish(self, root: Output) -> pb.Definition:
        terminal = pb.Op(inputs=[self.input(root)]).SerializeToString(deterministic=True)
        self.ops.append(terminal)
        caps = {cap.CONSTRAINTS, cap.PLATFORM}
        for made in self.metadata.values():
            if made.ignore_cache:
                caps.add(cap.META_IGNORE_CACHE)
            if made.description:
                caps.add(cap.META_DESCRIPTION)
            if made.HasField("export_cache"):
                caps.add(cap.META_EXPORT_CACHE)
        self.metadata[digest_of(terminal)] = pb.OpMetadata(caps=dict.fromkeys(caps, True))
        definition = pb.Definition(metadata=self.metadata, Source=self._source())
        getattr(definition, "def").extend(self.ops)
        return definition

    def _source(self) -> pb.Source:
        out = pb.Source()
        for source in self._sources:
            info = pb.SourceInfo(filename=source.filename, data=source.data, language=source.language)
            definition = source.definition
            if definition is None and source.state is not None:
                definition = marshal_output(source.state.output, self.base, self.known, self.unique_id)
            if definition is not None:
                info.definition.CopyFrom(definition)
            out.infos.append(info)
        for digest, locations in self._locations.items():
            out.locations[digest].CopyFrom(
                pb.Locations(
                    locations=[
                        pb.Location(sourceIndex=self._source_index[id(at.source)], ranges=[range_to_pb(r) for r in at.ranges])
                        for at in locations
                    ]
                )
            )
        return out


def _not_utf8(err: UnicodeEncodeError, how: Constraints) -> UsageError:
    """Texts of a graph are Unicode; a Dockerfile may hold other bytes, which are lone surrogates by now."""
    shown = err.object[max(0, err.start - 20) : err.end + 20].encode(errors="surrogateescape")
    found = UsageError(f"text that is not valid UTF-8 cannot be part of a build: {shown!r}", hint="save the file as UTF-8")
    for location in how.locations:
        found.at(Source(location.source.filename, location.source.data, location.ranges, location.source.language))
    return found


def range_to_pb(r: SourceRange) -> pb.Range:
    """A SourceRange as the wire has it."""
    return pb.Range(
        start=pb.Position(line=r.start, character=r.start_column),
        end=pb.Position(line=r.end, character=r.end_column),
    )


def marshal_output(
    output: AnyOutput | None, base: Constraints, known: frozenset[str] | None, unique_id: str | None = None
) -> pb.Definition:
    root = real(output)
    if root is None:
        return pb.Definition()
    writer = Writer(base, known)
    if unique_id is not None:
        writer.unique_id = unique_id
    writer.walk(root.vertex)
    return writer.finish(root)


@dataclass(frozen=True, eq=False)
class LoadedNode:
    """An operation of a foreign definition (a frontend's input), written out again as it was."""

    op: pb.Op
    edges: tuple[Output, ...]
    meta: pb.OpMetadata
    how: Constraints = field(default_factory=Constraints)

    def inputs(self) -> tuple[Output, ...]:
        return self.edges

    def index(self, slot: object) -> int:
        return slot if isinstance(slot, int) else 0

    def write(self, op: pb.Op, writer: Writer) -> set[str]:
        op.CopyFrom(self.op)
        del op.inputs[:]
        op.inputs.extend(writer.input(edge) for edge in self.edges)
        return set(self.meta.caps)


def output_of(definition: pb.Definition) -> Output | None:
    """The result of a definition as something further operations can be put on. Raises UsageError if it is no graph."""
    raws = raw_ops(definition)
    if not raws:
        return None
    nodes: dict[str, LoadedNode] = {}
    last: Output | None = None
    sources = _locations_of(definition)
    for raw in raws:
        op = pb.Op()
        op.ParseFromString(raw)
        try:
            edges = tuple(Output(nodes[i.digest], i.index) for i in op.inputs)
        except KeyError as err:
            raise UsageError(f"invalid missing input digest {err.args[0]}") from None
        digest = digest_of(raw)
        meta = definition.metadata[digest] if digest in definition.metadata else pb.OpMetadata()
        nodes[digest] = LoadedNode(op, edges, meta, _how_of(meta, sources.get(digest, ())))
        last = edges[0] if edges else None
    return last


def _how_of(meta: pb.OpMetadata, locations: tuple[Location, ...]) -> Constraints:
    group = meta.progress_group
    limits = meta.linux_resources
    return Constraints(
        ignore_cache=meta.ignore_cache,
        description=dict(meta.description),
        export_cache=meta.export_cache.Value if meta.HasField("export_cache") else None,
        group=Group(id=group.id, name=group.name, weak=group.weak) if meta.HasField("progress_group") else None,
        resources=Resources(
            memory=limits.memory,
            memory_swap=limits.memorySwap,
            cpu_shares=limits.cpuShares,
            cpu_period=limits.cpuPeriod,
            cpu_quota=limits.cpuQuota,
            cpuset_cpus=limits.cpusetCpus,
            cpuset_mems=limits.cpusetMems,
        )
        if meta.HasField("linux_resources")
        else None,
        locations=locations,
    )


def _locations_of(definition: pb.Definition) -> Mapping[str, tuple[Location, ...]]:
    if not definition.HasField("Source"):
        return {}
    maps = [
        SourceMap(
            filename=i.filename, data=i.data, language=i.language, definition=i.definition if i.HasField("definition") else None
        )
        for i in definition.Source.infos
    ]
    return {
        digest: tuple(
            maps[at.sourceIndex].at(
                *(SourceRange(r.start.line, r.end.line, r.start.character, r.end.character) for r in at.ranges)
            )
            for at in all_of.locations
            if 0 <= at.sourceIndex < len(maps)
        )
        for digest, all_of in definition.Source.locations.items()
    }


__all__ = [
    "AnyOutput",
    "DeferredOutput",
    "LoadedNode",
    "Output",
    "Vertex",
    "Writer",
    "marshal_output",
    "output_of",
    "range_to_pb",
    "real",
]
