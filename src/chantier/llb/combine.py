# SPDX-License-Identifier: Apache-2.0
"""Trees stacked on and subtracted from each other: MergeOp and DiffOp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from chantier.pb import ops_pb2 as pb
from chantier.values import dataclass

from . import caps as cap
from .constraints import Constraints, How, constraints
from .state import State
from .vertex import AnyOutput, Output, Writer, real


@dataclass(frozen=True, eq=False)
class MergeVertex:
    states: tuple[AnyOutput, ...]
    how: Constraints

    def inputs(self) -> Sequence[Output]:
        return tuple(out for out in map(real, self.states) if out is not None)

    def index(self, slot: object) -> int:
        return 0

    def write(self, op: pb.Op, writer: Writer) -> set[str]:
        op.ClearField("platform")
        for number, out in enumerate(self.inputs()):
            op.inputs.append(writer.input(out))
            op.merge.inputs.append(pb.MergeInput(input=number))
        return {cap.MERGE}


@dataclass(frozen=True, eq=False)
class DiffVertex:
    lower: AnyOutput | None
    upper: AnyOutput | None
    how: Constraints

    def inputs(self) -> Sequence[Output]:
        return tuple(out for out in (real(self.lower), real(self.upper)) if out is not None)

    def index(self, slot: object) -> int:
        return 0

    def write(self, op: pb.Op, writer: Writer) -> set[str]:
        op.ClearField("platform")
        op.diff.lower.input = op.diff.upper.input = -1
        lower, upper = real(self.lower), real(self.upper)
        if lower is not None:
            op.diff.lower.input = len(op.inputs)
            op.inputs.append(writer.input(lower))
        if upper is not None:
            op.diff.upper.input = len(op.inputs)
            op.inputs.append(writer.input(upper))
        return {cap.DIFF}


def merge(states: Sequence[State], **how: Unpack[How]) -> State:
    """All trees over one another, the last on top; empty ones are left out. Keeps the first one's environment."""
    full = [s for s in states if s.output is not None]
    if not full:
        return State()
    if len(full) == 1:
        return full[0]
    outputs = tuple(s.output for s in full if s.output is not None)
    return full[0].with_output(Output(MergeVertex(outputs, constraints(how))))


def diff(lower: State, upper: State, **how: Unpack[How]) -> State:
    """What `upper` has over `lower`, deletions included: to be merged on something else."""
    if lower.output is None:
        return upper if upper.output is not None else State()
    return lower.with_output(Output(DiffVertex(lower.output, upper.output, constraints(how))))


__all__ = ["DiffVertex", "MergeVertex", "diff", "merge"]
