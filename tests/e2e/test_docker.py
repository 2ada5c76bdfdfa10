# SPDX-License-Identifier: Apache-2.0
"""Images that we load are images to a real Docker engine."""

from __future__ import annotations

import time
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


def loads(docker: str) -> int:
    """How often this engine was sent an archive."""
    until = f"--until={time.time():.6f}"  # an age such as 0s is cut down to whole seconds
    seen = run_ok("docker", "-H", docker, "events", "--since=2020-01-01", until, "--filter=type=image", "--filter=event=load")
    return len(seen.splitlines())


def test_an_image_that_the_engine_has_is_not_sent_again(chantier: Command, docker: str) -> None:
    text = "FROM alpine\nRUN echo known > /f\n"
    env = {"DOCKER_HOST": docker}
    first = chantier.build(text, "-t", "known:1", "--load", env=env).ok()
    sent = loads(docker)
    assert sent > 0

    def id_of(name: str) -> str:
        return run_ok("docker", "-H", docker, "image", "inspect", "--format", "{{.Id}}", name).strip()

    id = id_of("known:1")
    again = chantier.build(text, "-t", "known:1", "-t", "other/known:2", "--load", env=env).ok()
    assert again.out == first.out
    assert loads(docker) == sent
    assert id_of("other/known:2") == id

    chantier.build(text + "RUN echo more > /g\n", "-t", "known:1", "--load", env=env).ok()
    assert loads(docker) == sent + 1
    assert id_of("known:1") != id
    chantier.build(text, "-t", "known:1", "--load", env=env).ok()  # the name goes back to the image that is still there
    assert loads(docker) == sent + 1
    assert id_of("known:1") == id

    run_ok("docker", "-H", docker, "rmi", "-f", id)
    chantier.build(text, "-t", "known:1", "--load", env=env).ok()  # it is gone: all of it is sent
    assert run_ok("docker", "-H", docker, "run", "--rm", "--network=none", "known:1", "cat", "/f") == "known\n"


def test_load_without_an_engine_names_what_was_tried(chantier: Command, tmp_path: Path) -> None:
    done = chantier.build("FROM alpine\n", "-t", "x:1", "--load", env={"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert done.code == 1
    assert "no engine to load the image into" in done.err
    assert f"{tmp_path}/none.sock" in done.err
    assert "-o type=oci" in done.err
