# SPDX-License-Identifier: Apache-2.0
"""Which lines of the user's files an operation came from: the source map of a definition (protocol.md 1.4, `Source`)."""

from __future__ import annotations

from chantier.errors import ChantierError, Source, SourceRange
from chantier.llb.definition import Graph


def place(err: ChantierError, graph: Graph) -> ChantierError:
    """The error with the places of the vertex that failed, if the definition has a map and the error has none yet."""
    if err.sources or err.vertex is None or graph.source is None:
        return err
    loaded = graph.vertices.get(err.vertex)
    if loaded is None or loaded.original not in graph.source.locations:
        return err
    placed = err.reworded(err.brief)
    # The place that was named last comes first, as where clients unwrap errors.
    for location in reversed(graph.source.locations[loaded.original].locations):
        if not 0 <= location.sourceIndex < len(graph.source.infos):
            continue
        info = graph.source.infos[location.sourceIndex]
        ranges = tuple(SourceRange(r.start.line, r.end.line, r.start.character, r.end.character) for r in location.ranges)
        placed.sources.append(
            Source(info.filename, info.data, ranges, info.language, info.definition if info.HasField("definition") else None)
        )
    return placed
