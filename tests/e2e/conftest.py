# SPDX-License-Identifier: Apache-2.0
"""One Docker engine for all tests of builders, and in it the image that the project's own script builds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import RealRegistry
from .peers import Engine, start_engine

_SCRIPT = Path(__file__).parents[2] / "scripts/builder-image"
BUILDER_IMAGE = "chantier/builder:test"


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory: pytest.TempPathFactory, registry: RealRegistry) -> Iterator[Engine]:
    """For Docker Hub it asks the tests' registry."""
    with start_engine(tmp_path_factory.mktemp("docker"), {"registry-mirrors": [f"http://{registry.host}"]}) as found:
        yield found


@pytest.fixture(scope="session")
def builder_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `docker load` takes. CHANTIER_TEST_BUILDER names one, for whom the minute that building takes is too long."""
    if named := os.environ.get("CHANTIER_TEST_BUILDER"):
        return Path(named)
    work = tmp_path_factory.mktemp("builder")
    env = {**os.environ, "CHANTIER_ROOT": str(work / "state")}
    env.pop("CHANTIER_CONFIG", None)
    archive = work / "builder.tar"
    done = subprocess.run(
        [_SCRIPT, "--builder", "embedded", "--progress=plain", "-t", BUILDER_IMAGE, "-o", f"type=docker,dest={archive}"],
        env=env, capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return archive


@pytest.fixture(scope="session")
def builder_engine(docker_engine: Engine, builder_archive: Path) -> Engine:
    docker_engine.docker("load", "-i", str(builder_archive))
    return docker_engine
