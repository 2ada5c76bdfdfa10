# SPDX-License-Identifier: Apache-2.0
"""A definition as provenance shows it: numbered steps in JSON, and which lines of the user's files they came from."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from chantier.llb.definition import raw_ops
from chantier.op.key_json import struct
from chantier.pb import ops_pb2 as pb
from chantier.spec import digest_of
from chantier.spec.purl import redacted
from chantier.values import dataclass

_HERE_ONLY = ("local.session", "local.unique")


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """`steps` in an order in which inputs come first; `numbers` are their places by the digests of the definition."""

    steps: tuple[dict[str, Any], ...] = ()
    numbers: Mapping[str, int]

    @property
    def mapping(self) -> dict[str, str]:
        return {digest: f"step{number}" for digest, number in sorted(self.numbers.items())}

    def config(self) -> dict[str, Any]:
        """`buildConfig` of the predicate."""
        return {"llbDefinition": list(self.steps), "digestMapping": self.mapping} if self.steps else {}


def steps_of(definition: pb.Definition | None) -> Steps:
    """The definition must have been loaded before: it is taken to be sound."""
    raws = {str(digest_of(raw)): raw for raw in raw_ops(definition)} if definition is not None else {}
    ops = {digest: pb.Op.FromString(raw) for digest, raw in raws.items()}
    numbers: dict[str, int] = {}
    stack = [(next(reversed(ops)), False)] if ops else []
    while stack:
        digest, ready = stack.pop()
        if digest in numbers or digest not in ops:
            continue
        if ready:
            numbers[digest] = len(numbers)
        else:
            stack.append((digest, True))
            stack += [(edge.digest, False) for edge in reversed(ops[digest].inputs)]
    steps = tuple(_step(number, ops[digest], numbers) for digest, number in numbers.items())
    return Steps(steps=steps, numbers=numbers)


def source_of(definition: pb.Definition, steps: Steps) -> dict[str, Any] | None:
    """`buildkit_metadata.source`: the files, and the places in them by step. None for a definition without a source map."""
    if not definition.HasField("Source") or not definition.Source.infos:
        return None
    locations = definition.Source.locations
    places = {f"step{number}": struct(locations[digest]) for digest, number in steps.numbers.items() if digest in locations}
    return {"locations": places, "infos": [_info(info) for info in definition.Source.infos]}


def _info(info: pb.SourceInfo) -> dict[str, Any]:
    made: dict[str, Any] = {"filename": info.filename}
    if info.language:
        made["language"] = info.language
    made["data"] = base64.b64encode(info.data).decode()
    return made | steps_of(info.definition if info.HasField("definition") else None).config()


def _step(number: int, op: pb.Op, numbers: Mapping[str, int]) -> dict[str, Any]:
    step: dict[str, Any] = {"id": f"step{number}", "op": op_json(op)}
    inputs = [f"step{numbers[edge.digest]}:{edge.index}" for edge in op.inputs if edge.digest in numbers]
    return step | ({"inputs": inputs} if inputs else {})


def op_json(op: pb.Op) -> dict[str, Any]:
    """An operation without its inputs, as Go writes pb.Op; addresses without passwords."""
    kind = op.WhichOneof("op")
    made: dict[str, Any] = {"Op": {}}
    if kind == "source":
        made["Op"]["source"] = _source(op.source)
    elif kind == "file":
        made["Op"]["file"] = {"actions": [_action(action) for action in op.file.actions]}
    elif kind is not None:
        made["Op"][kind] = struct(getattr(op, kind))
    if op.HasField("platform"):
        made["platform"] = struct(op.platform)
    if op.HasField("constraints"):
        made["constraints"] = struct(op.constraints)
    return made


def _source(source: pb.SourceOp) -> dict[str, Any]:
    attrs = {key: redacted(source.attrs[key]) for key in sorted(source.attrs) if key not in _HERE_ONLY}
    return {"identifier": redacted(source.identifier)} | ({"attrs": attrs} if attrs else {})


def _action(action: pb.FileAction) -> dict[str, Any]:
    kind = action.WhichOneof("action")
    return {
        "input": action.input,
        "secondaryInput": action.secondaryInput,
        "output": action.output,
        "Action": {kind: struct(getattr(action, kind))} if kind is not None else {},
    }


__all__ = ["Steps", "op_json", "source_of", "steps_of"]
