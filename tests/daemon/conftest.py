# SPDX-License-Identifier: Apache-2.0
"""A chantierd process for each test that wants one, and a client of its API without any of our client code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chantier.pb import control_pb2, gateway_pb2, ops_pb2
from chantier.spec import new_id
from chantier.wire import Channel, GrpcError, Stub, dial

from ..conftest import RealRegistry, write_config

CONTROL = "moby.buildkit.v1.Control"
BRIDGE = "moby.buildkit.v1.frontend.LLBBridge"
CONTENT = "containerd.services.content.v1.Content"


@dataclass
class Chantierd:
    """One daemon process."""

    process: subprocess.Popen[bytes]
    address: str
    root: Path
    config: Path
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.log:
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no {text!r} in the log:\n{self.log}")
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def client(self) -> Channel:
        return dial(self.address)


Start = Callable[..., Chantierd]


def _starter(directory: Path, registry: RealRegistry) -> tuple[Start, list[Chantierd]]:
    started: list[Chantierd] = []

    def start(extra: str = "", *flags: str, name: str = "d", env: dict[str, str] | None = None) -> Chantierd:
        config = write_config(directory / f"{name}.toml", registry, extra)
        log = directory / f"{name}.log"
        address = f"unix://{directory}/{name}.sock"
        argv = [
            sys.executable, "-c", "from chantier.daemon import main; raise SystemExit(main())",
            "--config", str(config), "--root", str(directory / f"{name}-root"), "--addr", address, *flags,
        ]  # fmt: skip
        with log.open("wb") as out:
            process = subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, **(env or {})})
        found = Chantierd(process, address, directory / f"{name}-root", config, log)
        started.append(found)
        found.wait_for("running server on", 60)
        return found

    return start, started


def _stop_all(started: list[Chantierd]) -> None:
    for one in started:
        with contextlib.suppress(Exception):
            one.stop()
        if one.process.poll() is None:
            one.process.kill()


@pytest.fixture
def start_daemon(tmp_path: Path, registry: RealRegistry, base: str) -> Iterator[Start]:
    """`start_daemon("[chantier]\\nshutdown = 2", "--debug")`: daemons of this test's own."""
    start, started = _starter(tmp_path, registry)
    yield start
    _stop_all(started)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, registry: RealRegistry, base: str) -> Iterator[Chantierd]:
    """One for all tests of a file."""
    start, started = _starter(tmp_path_factory.mktemp("daemon"), registry)
    yield start("", "--debug")
    _stop_all(started)


@dataclass
class GatewayBuild:
    """A build that the test drives, as stock clients do."""

    ref: str
    bridge: Stub
    control: Stub
    solve: asyncio.Task[Any]
    status: asyncio.Task[list[Any]]
    messages: list[Any] = field(default_factory=list)

    async def returns(self, ref: str = "") -> Any:
        result = gateway_pb2.Result(ref=gateway_pb2.Ref(id=ref))
        await self.bridge.unary("Return", gateway_pb2.ReturnRequest(result=result))
        return await asyncio.wait_for(self.solve, 60)

    async def make(self, definition: ops_pb2.Definition, *, evaluate: bool = False) -> str:
        """A ref of the definition's result."""
        request = gateway_pb2.SolveRequest(
            Definition=definition, allowResultReturn=True, allowResultArrayRef=True, Evaluate=evaluate
        )
        answer = await self.bridge.unary("Solve", request, timeout_s=60)
        return str(answer.result.ref.id)


async def read_all(stub: Stub, method: str, request: Any) -> list[Any]:
    found = []
    async with stub.stream(method) as call:
        await call.send(request)
        call.close_send()
        async for message in call:
            found.append(message)
    return found


@asynccontextmanager
async def driven(daemon: Chantierd, **more: Any) -> AsyncIterator[GatewayBuild]:
    async with daemon.client() as channel:
        ref = new_id()
        control = Stub(channel, CONTROL)
        bridge = Stub(channel, BRIDGE, metadata={"buildkit-controlapi-buildid": ref})
        solve = asyncio.create_task(control.unary("Solve", control_pb2.SolveRequest(Ref=ref, **more)))
        status = asyncio.create_task(read_all(control, "Status", control_pb2.StatusRequest(Ref=ref)))
        try:
            yield GatewayBuild(ref, bridge, control, solve, status)
        finally:
            for task in (solve, status):
                task.cancel()
            await asyncio.gather(solve, status, return_exceptions=True)


def mark() -> str:
    """A command that ends by itself at no time that matters, and that no other process of this machine runs."""
    return f"sleep {random.randrange(10**7, 10**9)}"


def those_that_run(command: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                if Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")[:-1] == command.encode().split():
                    found.append(int(name))
    return found


async def until_gone(command: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while those_that_run(command):
        assert time.monotonic() < end, f"{command} still runs"
        await asyncio.sleep(0.05)


def end(command: str) -> None:
    for pid in those_that_run(command):
        os.kill(pid, signal.SIGTERM)


def definition_of(state: Any) -> ops_pb2.Definition:
    found: ops_pb2.Definition = state.marshal()
    return found


__all__ = [
    "BRIDGE",
    "CONTENT",
    "CONTROL",
    "Chantierd",
    "GatewayBuild",
    "GrpcError",
    "Start",
    "definition_of",
    "driven",
    "end",
    "mark",
    "read_all",
    "those_that_run",
    "until_gone",
]
