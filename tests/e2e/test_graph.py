# SPDX-License-Identifier: Apache-2.0
"""Graphs from Python solved for real: the examples of docs/graph.md, the command `graph`, Dockerfiles turned into states."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import chantier as library
from chantier.errors import SolveError, UsageError
from chantier.llb import image, local, scratch

from ..conftest import Command

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]
DOCS = Path(__file__).parents[2] / "docs"


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page(chantier: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHANTIER_ROOT", str(chantier.root))
    monkeypatch.setenv("CHANTIER_CONFIG", str(chantier.config))
    (tmp_path / "app").mkdir()
    (tmp_path / "app/one.txt").write_text("1\n")
    (tmp_path / "app/two.txt").write_text("2\n")
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks("graph.md")):
        exec(compile(block, f"graph.md, block {number + 1}", "exec"), names)
    assert (tmp_path / "out/src/all").read_text() == "1\n2\n"
    assert names["text"].startswith("<svg")
    with tarfile.open(tmp_path / "app.tar") as tar:
        index = json.load(tar.extractfile("index.json"))  # type: ignore[arg-type]
    assert index["manifests"][0]["digest"] == names["result"].digest


def test_a_converted_dockerfile_builds_what_the_dockerfile_builds(chantier: Command, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "f").write_text("f")
    text = "FROM alpine AS a\nRUN echo one > /one\nFROM alpine\nENV X=y\nCOPY --from=a /one /\nCOPY f /\nRUN cat /one f > /both\n"
    with library.Builder(root=chantier.root, config=chantier.config) as builder:
        graph = builder.convert(context, dockerfile_text=text)
        assert graph.locals == {"context": context}
        assert json.loads(graph.image_config)["config"]["Env"][-1] == "X=y"
        epoch = {"SOURCE_DATE_EPOCH": "0"}
        built = builder.build(context, dockerfile_text=text, outputs=[f"type=oci,dest={tmp_path}/a.tar"], build_args=epoch)
        solved = builder.solve(graph, outputs=[f"type=oci,dest={tmp_path}/b.tar"])

    def layers(path: Path, digest: str) -> Any:
        with tarfile.open(path) as tar:
            return json.load(tar.extractfile(f"blobs/sha256/{digest.partition(':')[2]}"))["layers"]  # type: ignore[arg-type]

    assert layers(tmp_path / "a.tar", built.digest) == layers(tmp_path / "b.tar", solved.digest)


def test_several_platforms_are_several_graphs(chantier: Command, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several platforms are several graphs"):
        library.convert(
            tmp_path,
            dockerfile_text="FROM scratch\nCOPY . /\n",
            platforms=["linux/amd64,linux/arm64"],
            root=chantier.root,
            config=chantier.config,
        )


def test_failures_of_a_graph_are_those_of_a_build(chantier: Command) -> None:
    with pytest.raises(SolveError, match="exit code: 4"):
        library.solve(image("alpine").run("exit 4"), root=chantier.root, config=chantier.config)
    with pytest.raises(UsageError, match="the directory /nowhere of the local source 'x' does not exist"):
        library.solve(scratch().copy(local("x"), "/", "/"), locals={"x": "/nowhere"}, root=chantier.root, config=chantier.config)


def test_the_command(chantier: Command, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM alpine AS a\nRUN echo x\nFROM a AS b\nCOPY Dockerfile /\n")
    chantier("graph", "-o", str(tmp_path / "g.svg"), str(tmp_path)).ok()
    titles = [t.text or "" for t in ET.parse(tmp_path / "g.svg").getroot().iter("{http://www.w3.org/2000/svg}title")]
    assert any(t.startswith("[a 2/2] RUN echo x\n") for t in titles)
    assert any(t.startswith("[b 1/1] COPY Dockerfile /\n") for t in titles)
    found = json.loads(chantier("graph", "--format", "json", "--target", "a", str(tmp_path)).ok().out)
    assert [v["kind"] for v in found["vertices"]] == ["source", "exec"]
    assert found["result"]["digest"] == found["vertices"][-1]["digest"]
    definition = tmp_path / "d.pb"
    definition.write_bytes(image("alpine").run("x").marshal().SerializeToString())
    assert "/bin/sh -c x" in chantier("graph", "--llb", str(definition)).ok().out
    (tmp_path / "bad").write_bytes(b"\xff\xff")
    assert "is not a marshalled LLB definition" in chantier("graph", "--llb", str(tmp_path / "bad")).err
