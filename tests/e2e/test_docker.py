# SPDX-License-Identifier: Apache-2.0
"""Images that we load are images to a real Docker engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import Command, run_ok, start_docker

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.docker, pytest.mark.slow]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a dockerd of our own."""
    with start_docker(tmp_path_factory.mktemp("docker")) as address:
        yield address


def test_load_and_run(chantier: Command, docker: str) -> None:
    text = 'FROM alpine\nRUN echo built > /f\nENV WHO=docker\nCMD cat /f; echo "hello $WHO"\n'
    done = chantier.build(text, "-t", "loaded:1", "--load", env={"DOCKER_HOST": docker}).ok()
    assert done.out.startswith("sha256:")
    out = run_ok("docker", "-H", docker, "run", "--rm", "--network=none", "loaded:1")
    assert out == "built\nhello docker\n"
    inspected = run_ok("docker", "-H", docker, "image", "inspect", "--format", "{{.Config.Env}} {{.Os}}", "loaded:1")
    assert "WHO=docker" in inspected


def test_load_without_an_engine_names_what_was_tried(chantier: Command, tmp_path: Path) -> None:
    done = chantier.build("FROM alpine\n", "-t", "x:1", "--load", env={"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert done.code == 1
    assert "no engine to load the image into" in done.err
    assert f"{tmp_path}/none.sock" in done.err
    assert "-o type=oci" in done.err
