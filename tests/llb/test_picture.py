# SPDX-License-Identifier: Apache-2.0
"""A graph as dot, JSON and SVG."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from xml.etree import ElementTree as ET

import pytest

from chantier import llb
from chantier.errors import UsageError
from chantier.llb.picture import draw, to_dot, to_json, to_svg
from chantier.spec import Platform

SVG = "{http://www.w3.org/2000/svg}"


def graph() -> llb.Graph:
    base = llb.image("alpine")
    ran = base.run('echo "<hi>" & exit', mounts=[llb.bind("/src", llb.local("ctx"), readonly=False)])
    made = llb.scratch().mkfile("/f", b"text").mkfile("/g", b"\xff")
    return llb.load(llb.merge([ran, made, ran.mount("/src")]).marshal(Platform("linux", "arm64")))


def test_json_holds_everything_in_order() -> None:
    found = json.loads(to_json(graph()))
    kinds = [v["kind"] for v in found["vertices"]]
    assert kinds == ["source", "source", "exec", "file", "file", "merge"]
    seen: set[str] = set()
    for vertex in found["vertices"]:
        assert all(i["digest"] in seen for i in vertex["inputs"])
        seen.add(vertex["digest"])
    assert found["result"] == {"digest": found["vertices"][-1]["digest"], "output": 0}
    execution = found["vertices"][2]
    assert execution["op"]["meta"]["args"][-1] == 'echo "<hi>" & exit'
    assert execution["platform"] == "linux/arm64"
    assert found["vertices"][3]["op"]["actions"][0]["mkfile"]["data"] == "text"
    assert found["vertices"][4]["op"]["actions"][0]["mkfile"]["data_base64"] == "/w=="


def test_dot_names_each_vertex_and_edge() -> None:
    text = to_dot(graph())
    assert text.count(" -> ") == 2 + 1 + 3
    assert '[label="/bin/sh -c echo \\"<hi>\\" & exit\\nlinux/arm64"' in text
    assert text.count("penwidth=3") == 1
    assert "[label=1]" in text  # what the step left in its second mount
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg"], input=text.encode(), check=True, capture_output=True)


def test_the_picture_shows_boxes_that_do_not_cover_each_other() -> None:
    root = ET.fromstring(to_svg(graph()))
    boxes = [tuple(int(r.attrib[k]) for k in ("x", "y", "width", "height")) for r in root.iterfind(f".//{SVG}g/{SVG}rect")]
    assert len(boxes) == 6
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= 0 and x + w <= int(root.attrib["width"]) and y + h <= int(root.attrib["height"])
        for x2, y2, _, _ in boxes[i + 1 :]:
            assert x + w < x2 or x2 + w < x or y + h < y2 or y2 + h < y
    titles = "".join(t.text or "" for t in root.iter(f"{SVG}title"))
    assert 'echo "<hi>" & exit' in titles
    # Every edge leads down.
    for path in root.iterfind(f"{SVG}path"):
        ys = [int(n) for n in re.findall(r" (\d+)(?= C| -|$|\b)", path.attrib["d"])]
        assert ys[0] < ys[-1]


def test_an_empty_result_is_drawn() -> None:
    empty = llb.load(llb.scratch().marshal())
    assert "empty result" in ET.tostring(ET.fromstring(to_svg(empty)), encoding="unicode")
    assert json.loads(to_json(empty)) == {"result": None, "vertices": []}
    assert to_dot(empty).startswith("digraph")


def test_a_long_graph_takes_linear_time() -> None:
    state = llb.image("alpine")
    for number in range(1500):
        state = state.run(f"step {number}")
    big = llb.load(state.marshal())
    start = time.process_time()
    for form in ("dot", "json", "svg"):
        draw(big, form)
    assert time.process_time() - start < 60


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown form of a graph 'png'"):
        draw(graph(), "png")


def test_a_state_does_not_print_its_whole_graph() -> None:
    state = llb.image("alpine")
    for _ in range(60):  # each step reached by two ways: written out it would never end
        state = state.run("x", mounts=[llb.bind("/m", state)])
    assert len(repr(state)) < 1000
    assert len(repr(state.output)) < 100
