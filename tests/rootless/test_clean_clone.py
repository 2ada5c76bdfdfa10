# SPDX-License-Identifier: Apache-2.0
"""As somebody who is not root gets it: a clone, `pip install .`, the example, and an image of a real distribution."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import RealRegistry, make_base, push_tree, run_ok, tree_of
from ..e2e.test_debian import debian
from .conftest import Somebody, make_somebody

__all__ = ["debian"]  # the fixture

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.network, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
CLONED = ("src", "examples", "pyproject.toml", "README.md", "LICENSE")
INSTALL = (
    "apt-get {0} update && apt-get {0} install -y --no-install-recommends less"
    " && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/*"
)
SEVERAL_OWNERS = f"""FROM debian
RUN {INSTALL.format("")}
RUN useradd -m someone && install -o someone -g mail -m 4750 /bin/true /home/someone/true && install -d -o www-data -m 2770 /srv/www
COPY --chown=33:8 Dockerfile /srv/www/
USER someone
RUN id -un > ~/name
"""


class Clone:
    """The user's virtual environment, with nothing but what `pip install` has put there."""

    def __init__(self, who: Somebody, registry: RealRegistry) -> None:
        self.who = who
        self.where = who.where
        for name in CLONED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, self.where / "clone" / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            elif source.exists():
                shutil.copy(source, self.where / "clone" / name)
        (self.where / "chantierd.toml").write_text(
            f'[registry."docker.io"]\nmirrors = ["{registry.host}"]\n[registry."{registry.host}"]\nhttp = true\n'
        )
        who.owns(self.where)
        self.run(who.python, "-m", "venv", "venv")
        # Where pip is told of other places than usual, the user is too.
        pip = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        self.run(str(self.where / "venv/bin/pip"), "install", "-q", "./clone", env=pip)

    def run(self, *argv: str, fails: bool = False, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        given = {"CHANTIER_CONFIG": str(self.where / "chantierd.toml"), "PYTHONPATH": "", **(env or {})}
        done = self.who.run([*argv], timeout=600, **given)
        assert (done.returncode != 0) == fails, done.stderr
        return done

    def build(self, text: str, *args: str, single: bool = False, fails: bool = False) -> subprocess.CompletedProcess[str]:
        context = self.where / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(text)
        self.who.owns(context)
        env = {"CHANTIER_ROOT": str(self.where / ("single" if single else "state"))}
        if single:
            env["PATH"] = str(self.who.narrow)
        program = str(self.where / "venv/bin/chantier")
        return self.run(program, "build", "--progress=plain", *args, str(context), fails=fails, env=env)


@pytest.fixture(scope="module")
def clone(registry: RealRegistry) -> Iterator[Clone]:
    with make_somebody() as who:
        yield Clone(who, registry)


def image_of(name: str, work: Path) -> tuple[Any, dict[str, Any]]:
    """Config and tree of a pushed image, by other tools; times left out."""
    work.mkdir()
    run_ok("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"oci:{work}/oci:x")
    run_ok("umoci", "raw", "unpack", "--image", f"{work}/oci:x", work / "root")
    config = json.loads(run_ok("skopeo", "inspect", "--config", f"oci:{work}/oci:x"))
    tree = {path: (*facts[:3], *facts[4:]) for path, facts in tree_of(work / "root").items()}
    return [config["config"], [step["created_by"] for step in config["history"][-5:]]], tree


def test_the_example(clone: Clone, registry: RealRegistry, tmp_path: Path) -> None:
    push_tree(make_base(tmp_path), f"{registry.host}/library/alpine:latest", tmp_path)
    name = f"{registry.host}/test/hello:1"
    python = str(clone.where / "venv/bin/python")
    done = clone.run(python, "clone/examples/build_image.py", name)
    assert "hello, from Python" in done.stdout
    assert "greeting.txt" in image_of(name, tmp_path / "out")[1]


def test_a_distributions_image_is_roots_image(clone: Clone, debian: str, registry: RealRegistry, tmp_path: Path) -> None:
    mine, roots = f"{registry.host}/test/mine:1", f"{registry.host}/test/roots:1"
    clone.build(SEVERAL_OWNERS, "-t", mine, "--push")
    env = {**os.environ, "CHANTIER_ROOT": str(tmp_path / "state"), "CHANTIER_CONFIG": str(clone.where / "chantierd.toml")}
    run_ok(sys.executable, "-m", "chantier", "build", "-t", roots, "--push", clone.where / "context", env=env)
    config, tree = image_of(mine, tmp_path / "mine")
    assert (config, tree) == image_of(roots, tmp_path / "roots")
    assert tree["home/someone/true"][:3] == (0o104750, 1000, 8)
    assert tree["srv/www/Dockerfile"][1:3] == (33, 8)
    assert "usr/bin/less" in tree


def test_a_distributions_image_with_one_id(clone: Clone, debian: str, registry: RealRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/test/one:1"
    text = f"FROM debian\nRUN {INSTALL.format('-o APT::Sandbox::User=root')}\n"
    said = clone.build(text, "-t", name, "--push", single=True).stderr.splitlines()
    assert said[0] == "WARNING: one user id only: newuidmap and newgidmap not found"
    assert "apt's _apt" in said[1]
    _, tree = image_of(name, tmp_path / "one")
    assert "usr/bin/less" in tree
    assert tree["etc/shadow"][2] == 42  # of the base, which is sent as it is
    failed = clone.build("FROM debian\nCOPY --chown=33:8 Dockerfile /\n", single=True, fails=True)
    assert "33" in failed.stderr
