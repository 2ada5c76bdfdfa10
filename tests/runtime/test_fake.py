# SPDX-License-Identifier: Apache-2.0
"""What is promised of every runtime, asked of the fake and of the real ones."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from chantier.errors import NotFoundError
from chantier.runtime import Container, Exit, Process, Runtime
from chantier.spec import new_id
from chantier.testing.runtime import Call, FakeRuntime

from .conftest import open_runtime

pytestmark = [pytest.mark.root, pytest.mark.runc]


async def _sleep(call: Call) -> int:
    await asyncio.sleep(600)
    return 0


def _three(call: Call) -> int:
    call.write("out\n")
    call.write("err\n", 2)
    call.path("/made").write_text("x\n")
    return 3


THREE = "echo out; echo err >&2; echo x > /made; exit 3"
PROGRAMS: dict[str, Any] = {f"sh -c {THREE}": _three, "sleep": _sleep, "true": lambda call: None}


@pytest.fixture(params=["fake", "runc", "native", "native-python"])
def using(request: pytest.FixtureRequest, state: Path) -> Callable[[Callable[[Runtime], Awaitable[Any]]], Any]:
    def call(work: Callable[[Runtime], Awaitable[Any]]) -> Any:
        async def body() -> Any:
            runtime: Runtime = (
                FakeRuntime(programs=PROGRAMS) if request.param == "fake" else await open_runtime(request.param, state)
            )
            try:
                return await work(runtime)
            finally:
                await runtime.close()

        return asyncio.run(body())

    return call


def container(rootfs: Path, *args: str) -> Container:
    return Container(id=new_id(), rootfs=rootfs, process=Process(args=args, env=("PATH=/bin",)))


def test_code_output_and_files(using: Any, rootfs: Path) -> None:
    pieces: list[tuple[int, bytes]] = []
    what = container(rootfs, "sh", "-c", THREE)
    ended = using(lambda runtime: runtime.run(what, output=lambda stream, data: pieces.append((stream, data))))
    assert ended == Exit(code=3)
    assert sorted(pieces) == [(1, b"out\n"), (2, b"err\n")]
    assert (rootfs / "made").read_text() == "x\n"


def test_an_unknown_program(using: Any, rootfs: Path) -> None:
    ended = using(lambda runtime: runtime.run(container(rootfs, "nope"), output=lambda *_: None))
    assert ended.code == 1
    assert 'exec: "nope": executable file not found in $PATH' in ended.message


def test_cancelled_and_killed(using: Any, rootfs: Path) -> None:
    async def work(runtime: Runtime) -> int:
        for _ in range(2):
            begun = asyncio.Event()
            what = container(rootfs, "sleep", "600")
            running = asyncio.create_task(runtime.run(what, output=lambda *_: None, started=begun.set))
            await begun.wait()
            if _ == 0:
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
                continue
            assert (await runtime.exec(what.id, Process(args=("true",), env=("PATH=/bin",)), output=lambda *_: None)).code == 0
            await runtime.signal(what.id, signal.SIGKILL)
            ended = await running
            with pytest.raises(NotFoundError, match="has stopped"):
                await runtime.signal(what.id, signal.SIGKILL)
        return ended.code

    assert using(work) == 137
