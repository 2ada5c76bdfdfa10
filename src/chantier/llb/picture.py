# SPDX-License-Identifier: Apache-2.0
"""A graph for people and their programs: dot for Graphviz, JSON, and a picture (SVG) drawn without help.

    print(to_svg(load(state.marshal())))

Sources stand at the top and what is made of them below; the result has a thick frame. Costs time about linear in the graph.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape as xml

from chantier.errors import UsageError
from chantier.spec import Platform
from chantier.values import dataclass, field

from .definition import Graph, LoadedVertex

if TYPE_CHECKING:
    from google.protobuf.message import Message

_COLOURS = {
    "source": "#dbeafe",
    "exec": "#fde68a",
    "file": "#d1fae5",
    "merge": "#ede9fe",
    "diff": "#fce7f3",
    "build": "#fee2e2",
    "passthrough": "#e5e7eb",
}
_DIGEST = re.compile(r"sha256:([0-9a-f]{12})[0-9a-f]{52}")
_NAME = 46  # characters of a name in a box
_BOX = (360, 46)
_GAP = (28, 54)
_MARGIN = 20
_SWEEPS = 4  # passes that put the boxes of a row near what they are joined to


def kind_of(vertex: LoadedVertex) -> str:
    """source, exec, file, merge, diff, build or passthrough."""
    return vertex.op.WhichOneof("op") or "unknown"


def to_json(graph: Graph) -> str:
    """One JSON object: `result` (digest and output), and `vertices` in order, parents first, with all of each operation."""
    from google.protobuf.json_format import MessageToDict

    def whole(message: Message) -> dict[str, Any]:
        made: dict[str, Any] = _texts(MessageToDict(message, preserving_proto_field_name=True))
        return made

    vertices = [
        {
            "digest": vertex.digest,
            "name": vertex.name,
            "kind": kind_of(vertex),
            "inputs": [{"digest": digest, "output": index} for digest, index in vertex.inputs],
            **({"platform": shown} if (shown := _platform(vertex)) else {}),
            "op": whole(vertex.op).get(kind_of(vertex), {}),
            "metadata": whole(vertex.metadata),
        }
        for vertex in graph.vertices.values()
    ]
    result = None if graph.root is None else {"digest": graph.root[0], "output": graph.root[1]}
    return _dumps({"result": result, "vertices": vertices})


def _dumps(value: object) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False)


def _texts(value: Any) -> Any:
    """Data of mkfile as text where it is text: protobuf's JSON writes bytes in base64."""
    if isinstance(value, list):
        return [_texts(item) for item in value]
    if not isinstance(value, dict):
        return value
    out = {key: _texts(item) for key, item in value.items()}
    if isinstance(data := out.get("data"), str):
        try:
            out["data"] = base64.b64decode(data, validate=True).decode()
        except ValueError:  # not text: it stays base64, under another name
            out["data_base64"] = out.pop("data")
    return out


def to_dot(graph: Graph) -> str:
    """For Graphviz: `dot -Tpng`. Edges are labelled with the output where it is not the first."""
    ids = {digest: f"v{number}" for number, digest in enumerate(graph.vertices)}
    lines = ["digraph build {", '  node [shape=box style="rounded,filled" fontname="sans-serif" fontsize=10];']
    for digest, vertex in graph.vertices.items():
        thick = " penwidth=3" if graph.root is not None and graph.root[0] == digest else ""
        colour = _COLOURS.get(kind_of(vertex), "#ffffff")
        label = "\n".join(filter(None, (_short(vertex), _platform(vertex))))
        lines.append(f'  {ids[digest]} [label={_dot(label)} tooltip={_dot(digest)} fillcolor="{colour}"{thick}];')
    for digest, vertex in graph.vertices.items():
        for parent, index in vertex.inputs:
            label = f" [label={index}]" if index else ""
            lines.append(f"  {ids[parent]} -> {ids[digest]}{label};")
    return "\n".join([*lines, "}"]) + "\n"


def _short(vertex: LoadedVertex) -> str:
    """Its name with digests cut short: what a merge is called is all digests."""
    return _DIGEST.sub(r"\1", vertex.name)


def _dot(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "")
    return f'"{_clean(escaped)}"'


def to_svg(graph: Graph) -> str:
    """A picture that stands alone. Hovering over a box shows its whole name and digest."""
    drawing = _Layout.of(graph)
    width, height = drawing.size()
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12">',
        '<defs><marker id="to" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">',
        '<path d="M0 0 8 4 0 8z" fill="#64748b"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    if not graph.vertices:
        out.append(f'<text x="{_MARGIN}" y="{_MARGIN + 12}">empty result</text>')
    for digest, vertex in graph.vertices.items():
        out += [_edge(drawing.at[parent], drawing.at[digest], index) for parent, index in vertex.inputs]
    for digest, vertex in graph.vertices.items():
        out.append(_box(vertex, drawing.at[digest], result=graph.root is not None and graph.root[0] == digest))
    return "\n".join([*out, "</svg>"]) + "\n"


def _edge(start: tuple[int, int], end: tuple[int, int], index: int) -> str:
    x1, y1 = start[0] + _BOX[0] // 2, start[1] + _BOX[1]
    x2, y2 = end[0] + _BOX[0] // 2, end[1]
    half = (y2 - y1) // 2
    line = (
        f'<path d="M{x1} {y1} C{x1} {y1 + half} {x2} {y2 - half} {x2} {y2}" fill="none" stroke="#64748b" marker-end="url(#to)"/>'
    )
    return line + (f'<text x="{x1 + 6}" y="{y1 + 14}" font-size="10" fill="#64748b">output {index}</text>' if index else "")


def _box(vertex: LoadedVertex, at: tuple[int, int], *, result: bool) -> str:
    x, y = at
    name = _short(vertex)
    name = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
    below = " · ".join(filter(None, (kind_of(vertex), _platform(vertex), vertex.digest.partition(":")[2][:12])))
    colour = _COLOURS.get(kind_of(vertex), "#ffffff")
    return (
        f"<g><title>{_xml(vertex.name)}\n{_xml(vertex.digest)}</title>"
        f'<rect x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="6" fill="{colour}" stroke="#334155" '
        f'stroke-width="{3 if result else 1}"/>'
        f'<text x="{x + 10}" y="{y + 19}">{_xml(name)}</text>'
        f'<text x="{x + 10}" y="{y + 36}" font-size="10" fill="#475569">{_xml(below)}</text></g>'
    )


def _xml(text: str) -> str:
    return xml(_clean(text))


def _clean(text: str) -> str:
    """What neither XML nor a terminal can show, as the replacement character."""
    return "".join(c if (c.isprintable() and not "\ud800" <= c <= "\udfff") or c in " \n\t" else "\ufffd" for c in text)


def _platform(vertex: LoadedVertex) -> str:
    if not vertex.op.HasField("platform"):
        return ""
    p = vertex.op.platform
    return str(Platform(p.OS, p.Architecture, p.Variant))


@dataclass(slots=True)
class _Layout:
    """Where each box stands: one row for each distance from the sources."""

    rows: list[list[str]] = field(default_factory=list)
    at: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> _Layout:
        depth: dict[str, int] = {}
        for digest, vertex in graph.vertices.items():
            depth[digest] = max((depth[parent] + 1 for parent, _ in vertex.inputs), default=0)
        # A source stands just above what needs it first, not at the top of a long graph.
        users: dict[str, list[str]] = {}
        for digest, vertex in graph.vertices.items():
            for parent, _ in vertex.inputs:
                users.setdefault(parent, []).append(digest)
        for digest, vertex in reversed(list(graph.vertices.items())):
            if not vertex.inputs and digest in users:
                depth[digest] = min(depth[user] for user in users[digest]) - 1
        made = cls([[] for _ in range(max(depth.values(), default=-1) + 1)])
        for digest in graph.vertices:
            made.rows[depth[digest]].append(digest)
        made._order(graph, users)
        made._place()
        return made

    def _order(self, graph: Graph, users: Mapping[str, Sequence[str]]) -> None:
        parents = {digest: [p for p, _ in v.inputs] for digest, v in graph.vertices.items()}
        for sweep in range(_SWEEPS):
            down = sweep % 2 == 0
            joined: Mapping[str, Sequence[str]] = parents if down else users
            rank = {digest: number - len(row) / 2 for row in self.rows for number, digest in enumerate(row)}
            for row in self.rows if down else reversed(self.rows):
                row.sort(key=_middle(joined, rank))
                rank.update((digest, number - len(row) / 2) for number, digest in enumerate(row))

    def _place(self) -> None:
        widest = max((len(row) for row in self.rows), default=0)
        for y, row in enumerate(self.rows):
            left = (widest - len(row)) * (_BOX[0] + _GAP[0]) // 2
            for x, digest in enumerate(row):
                self.at[digest] = (_MARGIN + left + x * (_BOX[0] + _GAP[0]), _MARGIN + y * (_BOX[1] + _GAP[1]))

    def size(self) -> tuple[int, int]:
        wide = max((x for x, _ in self.at.values()), default=0) + _BOX[0] + _MARGIN
        high = max((y for _, y in self.at.values()), default=0) + _BOX[1] + _MARGIN
        return wide, high


def _middle(joined: Mapping[str, Sequence[str]], rank: Mapping[str, float]) -> Callable[[str], float]:
    def key(digest: str) -> float:
        near = [rank[other] for other in joined.get(digest, ())]
        return sum(near) / len(near) if near else rank[digest]

    return key


FORMS: Mapping[str, Callable[[Graph], str]] = {"dot": to_dot, "json": to_json, "svg": to_svg}


def draw(graph: Graph, form: str) -> str:
    """The graph as `dot`, `json` or `svg`. Raises UsageError for another form."""
    if form not in FORMS:
        raise UsageError(f"unknown form of a graph {form!r}", hint="forms are " + ", ".join(FORMS))
    return FORMS[form](graph)


__all__ = ["FORMS", "draw", "kind_of", "to_dot", "to_json", "to_svg"]
