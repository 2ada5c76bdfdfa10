# SPDX-License-Identifier: Apache-2.0
"""One Dockerfile, three engines: embedded, our daemon, the BuildKit inside a stock dockerd. Config and files are the same."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from chantier.client import BuildRequest, Output, prepare
from chantier.client.graph import prepare_graph
from chantier.driver.embedded import Embedded
from chantier.driver.graph import convert
from chantier.driver.running import Running
from chantier.driver.select import open_builder
from chantier.driver.shell import calling
from chantier.errors import SolveError
from chantier.progress import Silent

from ..conftest import RealRegistry, tree_of, write_config
from ..daemon.conftest import _starter, _stop_all
from .peers import Engine

pytestmark = [
    pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.network, pytest.mark.docker, pytest.mark.slow,
]  # fmt: skip


@dataclass
class Three:
    embedded: Running
    daemon: Running
    docker: Running
    engine: Engine


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, registry: RealRegistry, base: str, docker_engine: Engine) -> Iterator[Three]:
    work = tmp_path_factory.mktemp("three")
    env = {"HOME": str(work), "BUILDX_CONFIG": str(work / "buildx"), "PATH": "/usr/bin:/bin"}
    start, started = _starter(work, registry)
    daemon = start()
    embedded = Embedded(root=work / "state", config=write_config(work / "embedded.toml", registry), env=env)
    ours = open_builder(daemon.address, env=env)
    theirs = open_builder("default", env={**env, "DOCKER_HOST": docker_engine.address})
    yield Three(embedded, ours, theirs, docker_engine)
    for driver in (embedded, ours, theirs):
        driver.close()
    _stop_all(started)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("context")
    (where / "a.txt").write_text("a\n")
    (where / "b.sh").write_text("#!/bin/sh\necho b\n")
    (where / "b.sh").chmod(0o755)
    (where / "dir/sub").mkdir(parents=True)
    (where / "dir/one").write_text("1")
    (where / "dir/sub/two").write_text("2")
    (where / "dir/link").symlink_to("sub/two")
    (where / "ignored.log").write_text("no")
    (where / ".dockerignore").write_text("*.log\n")
    with tarfile.open(where / "t.tar.gz", "w:gz") as tar:
        tar.add(where / "dir", "packed")
    return where


CASES = {
    "from": "FROM alpine\n",
    "scratch": "FROM scratch\nCOPY a.txt /\n",
    "copy-dir": "FROM scratch\nCOPY dir /x/\n",
    "copy-glob": "FROM scratch\nCOPY *.txt b.sh /d/\n",
    "copy-all": "FROM scratch\nCOPY . /\n",
    "chmod": "FROM scratch\nCOPY --chmod=640 a.txt /\n",
    "chown": "FROM alpine\nCOPY --chown=app:apps a.txt dir /o/\n",
    "add-tar": "FROM scratch\nADD t.tar.gz /t/\n",
    "run": "FROM alpine\nRUN echo hi > /f && chmod 600 /f\n",
    "run-user": "FROM alpine\nUSER app\nRUN id -u > /tmp/u\n",
    "run-remove": "FROM alpine\nRUN echo x > /gone\nRUN rm /gone && mkdir /kept\n",
    "workdir": "FROM alpine\nWORKDIR /w\nWORKDIR sub\nRUN pwd > here\n",
    "env": "FROM alpine\nENV A=1 B=\"two words\"\nENV C=$A-$B\nRUN echo $C > /c\n",
    "args": "ARG V=1\nFROM alpine\nARG V\nARG W=w\nRUN echo $V$W > /v\n",
    "stages": "FROM alpine AS one\nRUN echo 1 > /one\nFROM scratch\nCOPY --from=one /one /\n",
    "stage-chain": "FROM alpine AS a\nRUN echo a > /a\nFROM a AS b\nRUN echo b > /b\nFROM b\nCOPY --from=a /a /a2\n",
    "from-image": "FROM scratch\nCOPY --from=alpine /etc/passwd /p\n",
    "heredoc": "FROM alpine\nRUN <<E\necho 1 > /1\necho 2 > /2\nE\n",
    "copy-heredoc": "FROM scratch\nCOPY <<E /file\nhello\nE\n",
    "labels": "FROM scratch\nLABEL a=1 \"b c\"=2\nCOPY a.txt /\n",
    "metadata": "FROM scratch\nEXPOSE 80 53/udp\nVOLUME /data\nSTOPSIGNAL SIGINT\nUSER 1:2\nCMD [\"x\"]\nENTRYPOINT [\"/y\"]\nCOPY a.txt /\n",
    "health": "FROM alpine\nHEALTHCHECK --interval=5s --retries=2 CMD true\nSHELL [\"/bin/sh\", \"-e\", \"-c\"]\nCMD echo x\n",
    "onbuild": "FROM scratch\nONBUILD COPY . /src\nCOPY a.txt /\n",
    "mount-bind": "FROM alpine\nRUN --mount=type=bind,target=/src cp /src/a.txt /copied\n",
    "mount-cache": "FROM alpine\nRUN --mount=type=cache,target=/c echo 1 > /c/x && cp /c/x /x\n",
    "mount-tmpfs": "FROM alpine\nRUN --mount=type=tmpfs,target=/t echo 1 > /t/x && ls /t > /list\n",
    "link": "FROM alpine\nCOPY --link dir /l/\n",
    "links": "FROM alpine\nRUN echo x > /h1 && ln /h1 /h2 && ln -s h1 /s && mkfifo /p\n",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_config_and_files_are_the_same(name: str, three: Three, context: Path, tmp_path: Path) -> None:
    found = {}
    for kind in ("embedded", "daemon", "docker"):
        driver = getattr(three, kind)
        tree = tmp_path / kind
        _build(driver, CASES[name], context, Output(type="local", dest=str(tree)))
        archive = tmp_path / f"{kind}.tar"
        if kind == "docker":
            _build(driver, CASES[name], context, Output(type="image", attrs={"name": f"same/{name}:1"}))
            three.engine.docker("save", "-o", str(archive), f"same/{name}:1")
        else:
            _build(driver, CASES[name], context, Output(type="docker", dest=str(archive)))
        found[kind] = (_config(archive), _comparable(tree))
        shutil.rmtree(tree)
    assert found["embedded"][0] == found["docker"][0]
    assert found["daemon"][0] == found["docker"][0]
    assert found["embedded"][1] == found["docker"][1]
    assert found["daemon"][1] == found["docker"][1]


def _build(driver: Running, text: str, context: Path, output: Output) -> None:
    request = BuildRequest(context=str(context), dockerfile_text=text.encode(), outputs=(output,), network="none")
    driver.build(prepare(request), Silent())


def _config(archive: Path) -> Any:
    """The image's config without what differs between any two builds."""
    with tarfile.open(archive) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(tar.extractfile(manifest[0]["Config"]))  # type: ignore[arg-type]
    config["layers"] = len(config.pop("rootfs")["diff_ids"])
    config.pop("created", None)
    for entry in config["history"]:
        entry.pop("created", None)
        # BuildKit 0.13 worded these three otherwise than the BuildKit of today, whose words are ours.
        if entry.get("created_by", "").startswith(("ARG ", "EXPOSE ", "HEALTHCHECK ")):
            entry["created_by"] = entry["created_by"].split()[0]
    return config


def _comparable(tree: Path) -> dict[str, object]:
    """Without times: steps that make files ran at different ones."""
    return {path: (*facts[:3], *facts[4:]) for path, facts in tree_of(tree).items()}


GRAPH = """FROM alpine AS a
RUN echo one > /one && ln /one /hard
FROM alpine
ENV X=y
COPY --from=a /one /hard /
COPY dir /dir/
RUN cat /one /dir/one > /both
"""


def test_graphs_cross_over(three: Three, context: Path, tmp_path: Path) -> None:
    """Each engine tells the graph of a Dockerfile, and each solves what the others told."""
    request = BuildRequest(context=str(context), dockerfile_text=GRAPH.encode(), network="none")
    trees = {}
    for asked in ("embedded", "daemon", "docker"):
        graph = convert(getattr(three, asked), prepare(request), Silent())
        assert graph.locals == {"context": context}
        assert json.loads(graph.image_config)["config"]["Env"][-1] == "X=y"
        for solving in ("embedded", "daemon", "docker"):
            tree = tmp_path / f"{asked}-{solving}"
            output = Output(type="local", dest=str(tree))
            prepared = prepare_graph(graph.state, locals=graph.locals, image_config=graph.image_config, outputs=[output])
            getattr(three, solving).build(prepared, Silent())
            trees[asked, solving] = _comparable(tree)
            shutil.rmtree(tree)
    first = trees["docker", "docker"]
    assert {"one", "hard", "both", "dir/sub/two"} <= {path.lstrip("./") for path in first}
    assert all(tree == first for tree in trees.values())


def test_a_failed_step_is_looked_into(three: Three, context: Path) -> None:
    text = "FROM alpine\nENV WHO=me\nWORKDIR /w\nRUN --mount=type=bind,target=/src cp /src/a.txt . && exit 3\n"
    request = BuildRequest(context=str(context), dockerfile_text=text.encode(), network="none")
    seen: dict[str, Any] = {}

    for kind in ("embedded", "daemon", "docker"):

        def look(failed: Any, kind: str = kind) -> None:
            done = failed.run(["sh", "-c", "cat a.txt /src/b.sh; pwd; echo $WHO; cat; exit 9"], input=b"typed")
            seen[kind] = (failed.argv, done.code, done.out)

        with pytest.raises(SolveError, match="exit code: 3"):
            getattr(three, kind).build(replace(prepare(request), on_failure=calling(look)), Silent())
    assert seen["docker"] == (
        ("/bin/sh", "-c", "cp /src/a.txt . && exit 3"), 9, b"a\n#!/bin/sh\necho b\n/w\nme\ntyped",
    )  # fmt: skip
    assert seen["embedded"] == seen["daemon"] == seen["docker"]
