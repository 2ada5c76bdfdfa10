# SPDX-License-Identifier: Apache-2.0
"""Frontends that are images: `gateway.v0`, `# syntax=`, and who may be run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import chantier
from chantier.llb import scratch
from chantier.pb import control_pb2 as pb
from chantier.spec import new_id
from chantier.wire import GrpcError, Stub

from ..conftest import Command, RealRegistry, push_tree, run_ok
from .conftest import CONTROL, Chantierd, Start, _starter, _stop_all

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]


@pytest.fixture(scope="session")
def frontend(registry: RealRegistry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with this Python, this package and frontend.py; the name it has in the registry."""
    work = tmp_path_factory.mktemp("frontend")
    root = work / "root"
    python = Path(sys.base_prefix)
    library = Path(sysconfig.get_paths()["stdlib"])
    skip = shutil.ignore_patterns(
        "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "site-packages", "__pycache__", "config-*"
    )
    shutil.copytree(library, root / library.relative_to("/"), ignore=skip, symlinks=True)
    program = Path(os.path.realpath(sys.executable))
    (root / "usr/bin").mkdir(parents=True)
    shutil.copy(program, root / "usr/bin/frontend-python")
    packages = root / "packages"
    shutil.copytree(Path(chantier.__file__).parent, packages / "chantier", ignore=shutil.ignore_patterns("__pycache__"))
    site = Path(sysconfig.get_paths()["purelib"])
    for name in ("google", "hpack"):
        shutil.copytree(site / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    extensions = [*(root / library.relative_to("/")).rglob("*.so"), *packages.rglob("*.so")]
    needed = subprocess.run(["ldd", str(program), *map(str, extensions)], capture_output=True, text=True, check=False).stdout
    for word in set(needed.split()):
        if word.startswith("/") and not word.endswith(":") and os.path.exists(word):
            target = root / word.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(word, target)
    shutil.copy(Path(__file__).with_name("frontend.py"), root / "frontend.py")
    name = f"{registry.host}/test/frontend:1"
    push_tree(root, name, work)
    layout = work / "oci"
    run_ok(
        "umoci", "config", "--image", f"{layout}:b", "--config.entrypoint", "/usr/bin/frontend-python", "--config.entrypoint", "/frontend.py",
        "--config.env", f"PYTHONHOME={python}", "--config.env", "PYTHONPATH=/packages",
        "--config.label", "moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs,moby.buildkit.frontend.contexts",
    )  # fmt: skip
    run_ok("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:b", f"docker://{name}")
    return name


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, registry: RealRegistry, base: str) -> Iterator[Chantierd]:
    start, started = _starter(tmp_path_factory.mktemp("daemon"), registry)
    yield start()
    _stop_all(started)


async def solve(daemon: Chantierd, source: str, **more: str) -> Any:
    """With an input, so that no session is needed; the result goes to the cache."""
    async with daemon.client() as channel:
        request = pb.SolveRequest(
            Ref=new_id(),
            Frontend="gateway.v0",
            FrontendAttrs={"source": source, **more},
            FrontendInputs={"input": scratch().mkfile("/given", b"x").marshal()},
        )
        return await Stub(channel, CONTROL).unary("Solve", request, timeout_s=90)


def test_a_frontend_image_answers_and_fails(daemon: Chantierd, frontend: str) -> None:
    async def run() -> None:
        await solve(daemon, frontend)
        with pytest.raises(GrpcError, match="the frontend does not like it"):
            await solve(daemon, frontend, **{"build-arg:MODE": "fail"})
        with pytest.raises(GrpcError, match="exit code: 5"):
            await solve(daemon, frontend, **{"build-arg:MODE": "exit"})
        daemon.wait_for("frontend: giving up")
        with pytest.raises(GrpcError) as caught:
            await solve(daemon, frontend, **{"frontend.caps": "moby.buildkit.frontend.subrequests"})
        assert caught.value.code == 12
        assert {d.name: d.json() for d in caught.value.details}["errdefs.FrontendCap"] == {
            "name": "moby.buildkit.frontend.subrequests"
        }

    asyncio.run(run())


def test_a_syntax_line_runs_its_image(daemon: Chantierd, frontend: str, chantier: Command, tmp_path: Path) -> None:
    text = f"# syntax={frontend} and words\nanything at all\n"
    flags = ["--builder", daemon.address, "-o", str(tmp_path / "out"), "--build-arg", "A=1"]
    done = chantier.build(text, *flags)
    if done.code and "builder" in done.err:
        pytest.skip("the command has no --builder ADDRESS yet")
    done.ok()
    told = (tmp_path / "out/told").read_text()
    assert "build-arg:A=1" in told
    assert "argv=['and', 'words']" in told
    assert (tmp_path / "out/Dockerfile").read_text() == text
    assert int((tmp_path / "out/own").read_text()) > 10


def test_who_may_be_run(start_daemon: Start, frontend: str) -> None:
    listed = json.dumps([frontend.rpartition(":")[0]])
    daemon = start_daemon(f'[frontend."gateway.v0"]\nallowedRepositories = {listed}')

    async def run() -> None:
        await solve(daemon, frontend)
        with pytest.raises(GrpcError, match="'other/image' is not an allowed gateway source"):
            await solve(daemon, "other/image")
        with pytest.raises(GrpcError, match="no source specified for gateway"):
            await solve(daemon, "")

    asyncio.run(run())
