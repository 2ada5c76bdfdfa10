# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from chantier.engine.producers import Producers, head
from chantier.llb import scratch

ONE, TWO = scratch().mkfile("/a", b"1").marshal(), scratch().mkfile("/a", b"2").marshal()


def made(target: str, **more: Any) -> dict[str, Any]:
    return {"configSource": {}, "request": {"frontend": "dockerfile.v0", "args": {"target": target}, **more}}


def test_requests_are_known_as_long_as_their_build() -> None:
    known, first, second = Producers(), object(), object()
    known.add(first, ONE, made("a", root={"request": {}}))
    known.add(second, ONE, made("a"))
    assert known.of({"in": ONE, "other": TWO}) == {"in": made("a")}
    known.forget(first)
    assert known.of({"in": ONE}) == {"in": made("a")}
    known.forget(second)
    assert known.of({"in": ONE}) == {}


def test_a_graph_that_several_requests_made_is_nobodys() -> None:
    known = Producers()
    known.add(object(), ONE, made("a"))
    known.add(object(), ONE, made("b"))
    assert known.of({"in": ONE}) == {}


def test_an_empty_graph_has_no_maker() -> None:
    empty = scratch().marshal()
    known = Producers()
    known.add(object(), empty, made("a"))
    assert head(empty) == ""
    assert known.of({"in": empty}) == {}
