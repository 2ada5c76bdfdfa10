# SPDX-License-Identifier: Apache-2.0
"""Builds that are killed anywhere: the next start succeeds, the state is clean, cached builds are right, nothing finished is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from chantier.kernel.trace import POINTS

from ..conftest import Command, RealRegistry

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]

ROUNDS = int(os.environ.get("CHANTIER_CRASHES", "6"))
"""Random moments to kill at; 500 in the nightly run."""

TEXT = """FROM alpine AS one
RUN --mount=type=cache,target=/c echo {n} > /c/{n} && echo {n} > /one
FROM alpine AS two
COPY file /file
RUN cat /file > /two
FROM alpine
COPY --from=one /one /one
COPY --link --from=two /two /two
RUN cat /one /two > /both
"""
FINISHED = "FROM alpine\nRUN echo finished > /finished\nRUN cat /finished\n"
NAMED = [point for point in POINTS if point.split(".")[0] in ("blob", "record", "realise", "layer", "image", "compose")]


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "ctx"
    root.mkdir()
    (root / "file").write_text("from the context\n")
    return root


def begin(
    command: Command, number: int, context: Path, crash_at: str = "", extra: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    dockerfile = context.parent / f"Dockerfile.{number}"
    dockerfile.write_text(TEXT.format(n=number))
    env = command.environment({"CHANTIER_CRASH_AT": crash_at} if crash_at else {})
    argv = command.argv("build", "--progress=quiet", "-f", str(dockerfile), *extra, str(context))
    return subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started, from one moment to the next."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def sound(command: Command, number: int, context: Path, where: str) -> None:
    done = command("fsck", "--deep")
    assert (done.code, done.out) == (0, "clean\n"), f"{where}: {done.out}{done.err}"
    done = command.build(FINISHED).ok()
    assert done.step("RUN cat /finished").endswith("CACHED"), f"{where}: a finished build was lost"
    out = context.parent / "out"
    command.build(TEXT.format(n=number), "-o", f"type=local,dest={out}", context=context).ok()
    assert (out / "both").read_text() == f"{number}\nfrom the context\n", where


@pytest.mark.parametrize("point", NAMED)
def test_killed_at_each_named_step(chantier: Command, context: Path, registry: RealRegistry, point: str) -> None:
    if os.environ.get("CHANTIER_CRASHES") is None and NAMED.index(point) % 4:
        pytest.skip("every fourth, but for CHANTIER_CRASHES")
    chantier.build(FINISHED).ok()
    push = ("-t", f"{registry.host}/crash/named:1", "--push")
    process = begin(chantier, 1, context, f"{point}:{random.Random(point).randint(1, 2)}", push)
    assert process.wait(60) in (0, -signal.SIGKILL)
    sound(chantier, 1, context, point)


def test_killed_at_random_moments(chantier: Command, context: Path) -> None:
    chantier.build(FINISHED).ok()
    choose = random.Random(7)
    for number in range(ROUNDS):
        others = [begin(chantier, number * 3 + n, context) for n in range(choose.randint(1, 2))]
        time.sleep(choose.uniform(0.2, 2.5))
        for process in others:
            kill(process)
        if number % 3 == 2 or number == ROUNDS - 1:
            sound(chantier, number * 3, context, f"round {number}")
