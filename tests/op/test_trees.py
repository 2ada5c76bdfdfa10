# SPDX-License-Identifier: Apache-2.0
"""Merge, diff, passthrough and build on real results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chantier.errors import NotFoundError, UnsupportedError, UsageError
from chantier.op.build import BuildOp
from chantier.op.diff import DiffOp
from chantier.op.merge import MergeOp
from chantier.op.passthrough import PassthroughOp
from chantier.pb import ops_pb2 as pb

if TYPE_CHECKING:
    from conftest import Bench, Job

pytestmark = pytest.mark.root


def writes(**files: str) -> Any:
    def fill(root: Path) -> None:
        for name, text in files.items():
            (root / name).write_text(text)

    return fill


def merge(bench: Bench, *order: int, inputs: int) -> MergeOp:
    op = pb.Op(merge=pb.MergeOp(inputs=[pb.MergeInput(input=i) for i in order]))
    return MergeOp(bench.vertex(op, inputs), bench.worker)


def diff(bench: Bench, lower: int, upper: int, *, inputs: int) -> DiffOp:
    op = pb.Op(diff=pb.DiffOp(lower=pb.LowerDiffInput(input=lower), upper=pb.UpperDiffInput(input=upper)))
    return DiffOp(bench.vertex(op, inputs), bench.worker)


def test_merge(bench: Bench) -> None:
    one, two = bench.tree(writes(a="1", b="1")), bench.tree(writes(b="2", c="2"))
    (ref,) = bench.run(merge(bench, 0, 1, inputs=2), [one, two])
    assert bench.files(ref) == {"a": "1", "b": "2", "c": "2"}
    (ref,) = bench.run(merge(bench, 1, 0, inputs=2), [one, two])
    assert bench.files(ref) == {"a": "1", "b": "1", "c": "2"}
    (ref,) = bench.run(merge(bench, 0, 1, inputs=2), [None, two])
    assert ref is not None
    assert ref.id == two.id
    assert bench.run(merge(bench, 0, inputs=1), [None]) == [None]
    with pytest.raises(UsageError, match="invalid input index 5"):
        bench.run(merge(bench, 5, inputs=1), [one])
    keys = {bench.map_of(merge(bench, *order, inputs=2)).digest for order in ((0, 1), (1, 0))}
    assert len(keys) == 2


def test_diff(bench: Bench) -> None:
    lower = bench.tree(writes(a="1", b="1"))
    made = bench.cache.new(lower)

    with made.mounted() as root:
        (root / "b").write_text("2")
        (root / "c").write_text("3")
    upper = made.commit()
    bench.keep.append(upper)
    (ref,) = bench.run(diff(bench, 0, 1, inputs=2), [lower, upper])
    assert bench.files(ref) == {"b": "2", "c": "3"}
    (ref,) = bench.run(diff(bench, -1, 0, inputs=1), [upper])
    assert ref is not None
    assert ref.id == upper.id
    assert bench.run(diff(bench, 0, 1, inputs=2), [lower, lower]) == [None]
    assert bench.run(diff(bench, -1, -1, inputs=0)) == [None]
    with pytest.raises(UsageError, match="invalid upper input index 3"):
        bench.run(diff(bench, -1, 3, inputs=4), [lower])


def test_passthrough(bench: Bench) -> None:
    def op(id: str, *outputs: int) -> PassthroughOp:
        made = pb.Op(passthrough=pb.PassthroughOp(id=id, outputs=outputs))
        return PassthroughOp(bench.vertex(made, 2), bench.worker)

    one = bench.tree(writes(a="1"))
    got = bench.run(op("x", 1, 0), [one, None])
    assert got[0] is None
    assert got[1] is not None
    assert got[1].id == one.id
    assert bench.map_of(op("x", 0)).digest != bench.map_of(op("y", 0)).digest
    with pytest.raises(UsageError, match="invalid outputs"):
        bench.run(op("x", 2), [one, None])


def test_build(bench: Bench, job: Job) -> None:
    def op(**attrs: str) -> BuildOp:
        made = pb.BuildOp(builder=-1, inputs={"buildkit.llb.definition": pb.BuildInput(input=0)})
        made.attrs.update({name.replace("_", "."): value for name, value in attrs.items()})
        return BuildOp(bench.vertex(pb.Op(build=made), 1), bench.worker)

    definition = pb.Definition(metadata={"x": pb.OpMetadata(ignore_cache=True)})
    raw = definition.SerializeToString()
    source = bench.tree(lambda root: (root / "buildkit.llb.definition").write_bytes(raw))  # type: ignore[arg-type,return-value]
    with pytest.raises(UnsupportedError):
        bench.run(op(), [source])
    result = bench.tree(writes(r="r"))
    asked: list[pb.Definition] = []

    async def solve(_job: Job, wanted: pb.Definition) -> Any:
        asked.append(wanted)
        return result.clone()

    bench.worker.extra["solve"] = solve
    (ref,) = bench.run(op(), [source], job=job)
    assert bench.files(ref) == {"r": "r"}
    assert asked == [definition]
    with pytest.raises(NotFoundError, match="failed to open other"):
        bench.run(op(llbbuild_filename="other"), [source])
    with pytest.raises(NotFoundError):
        bench.run(op(), [None])
