# SPDX-License-Identifier: Apache-2.0
"""A daemon that is killed anywhere, on a disk of its own: it starts again, its state is clean, cached builds are right, and
nothing that had finished is lost: neither a result, nor what history tells of it.

CHANTIER_CRASHES=500 is the long form: so many random moments, and every named step at several times.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import chantier
from chantier.client.client import Client
from chantier.config import Config
from chantier.engine.look import fsck
from chantier.errors import ChantierError
from chantier.kernel.trace import BUILD_POINTS, MOUNT_POINTS, STORE_POINTS, USER_POINTS
from chantier.pb import control_pb2 as pb
from chantier.progress import Event, Vertex
from chantier.wire import dial

from ..conftest import Command, RealRegistry, write_config

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]

LONG = os.environ.get("CHANTIER_CRASHES") is not None
ROUNDS = int(os.environ.get("CHANTIER_CRASHES", "8"))
TIMES = (1, 2, 4) if LONG else (1,)
# What a daemon never comes by: a damaged database is set aside in tests/cache, events and imports are those of commands.
NAMED = [point for point in (*STORE_POINTS, *BUILD_POINTS) if point not in ("db.set-aside", "history.logged", "history.imported")]
EVERY = 1 if LONG else 6

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


class Forks:
    """Starts daemons."""

    def __init__(self) -> None:
        program = [sys.executable, "-m", "tests.e2e.daemon_forks"]
        here = Path(__file__).parents[2]
        self._server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=here)

    def start(self, args: list[str], log: Path, crash_at: str) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"args": args, "log": str(log), "crash_at": crash_at}) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Finished:
    """A build whose end was answered."""

    number: int
    ref: str


@dataclass
class World:
    forks: Forks
    directory: Path
    root: Path
    config: Path
    registry: RealRegistry
    pid: int = 0
    finished: list[Finished] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        return f"unix://{self.directory}/d.sock"

    def start(self, crash_at: str = "") -> None:
        args = ["--config", str(self.config), "--root", str(self.root), "--addr", self.address]
        self.pid = self.forks.start(args, self.directory / "log", crash_at)

    def wait(self, seconds: float = 120) -> bool:
        """Until the engine is open; False if the daemon died before."""

        async def ask() -> None:
            async with dial(self.address) as channel:
                await Client(channel).workers(timeout_s=60)

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not alive(self.pid):
                return False
            try:
                asyncio.run(ask())
                return True
            except (ChantierError, OSError):
                time.sleep(0.02)
        raise AssertionError(f"chantierd does not come up:\n{(self.directory / 'log').read_text()[-3000:]}")

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.gone()

    def dies(self, seconds: float = 5) -> bool:
        """Whether it is dead, or is just dying: what killed it may have been the last thing that was asked for."""
        end = time.monotonic() + seconds
        while alive(self.pid) and time.monotonic() < end:
            time.sleep(0.01)
        return not alive(self.pid)

    def gone(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while alive(self.pid):
            assert time.monotonic() < end, "chantierd does not die"
            time.sleep(0.005)

    def build(self, number: int, *, text: str = TEXT, **options: Any) -> dict[str, str]:
        """What became of each step. Noted as finished once it is answered. Raises ChantierError."""
        said: dict[str, str] = {}

        def take(event: Event) -> None:
            if isinstance(event, Vertex) and event.started:
                said[event.name] = "CACHED" if event.cached else "RAN"

        with chantier.Builder(builder=self.address) as builder:
            made = builder.build(
                self.directory / "context", dockerfile_text=text.format(n=number).encode(), on_event=take, **options
            )
        with self.lock:
            self.finished.append(Finished(number, made.ref))
        return said

    def try_build(self, number: int, **options: Any) -> None:
        try:
            self.build(number, **options)
        except (ChantierError, OSError):
            pass  # its daemon is killed

    def control(self, ask: Callable[[Client], Any]) -> Any:
        async def main() -> Any:
            async with dial(self.address) as channel:
                return await ask(Client(channel))

        return asyncio.run(main())

    def history(self) -> dict[str, Any]:
        async def ask(client: Client) -> dict[str, Any]:
            found = {}
            async with client.stub("moby.buildkit.v1.Control").stream("ListenBuildHistory") as call:
                await call.send(pb.BuildHistoryRequest(EarlyExit=True))
                call.close_send()
                async for event in call:
                    found[event.record.Ref] = event.record
            return found

        found: dict[str, Any] = self.control(ask)
        return found

    def log(self, ref: str) -> list[Any]:
        async def ask(client: Client) -> list[Any]:
            found = []
            async with client.stub("moby.buildkit.v1.Control").stream("Status") as call:
                await call.send(pb.StatusRequest(Ref=ref))
                call.close_send()
                async for message in call:
                    found.append(message)
            return found

        found: list[Any] = self.control(ask)
        return found

    def prune(self) -> None:
        async def ask(client: Client) -> None:
            async for _ in client.prune(all=True):
                pass

        try:
            self.control(ask)
        except (ChantierError, OSError):
            pass

    def forget(self, ref: str) -> None:
        async def ask(client: Client) -> None:
            await client.stub("moby.buildkit.v1.Control").unary(
                "UpdateBuildHistory", pb.UpdateBuildHistoryRequest(Ref=ref, Delete=True)
            )

        try:
            self.control(ask)
        except (ChantierError, OSError):
            pass

    def clean(self, where: str) -> None:
        checked = fsck(self.root, Config(), deep=True)
        assert [str(problem) for problem in checked.found] == [], where
        assert checked.warnings == (), where

    def sound(self, where: str, *, pruned: bool = False) -> None:
        """The daemon runs: what had finished is cached and right, and history knows it."""
        records = self.history()
        for one in self.finished[-5:]:
            record = records.get(one.ref)
            assert record is not None, f"{where}: history has lost build {one.ref}"
            assert record.HasField("CompletedAt") and not record.HasField("error"), f"{where}: {record}"
        last = self.finished[-1]
        log = self.log(last.ref)
        names = {vertex.name for message in log for vertex in message.vertexes if vertex.HasField("completed")}
        assert any("RUN cat /one /two" in name for name in names), f"{where}: the log of {last.ref} is not whole: {names}"
        out = self.directory / "out"
        shutil.rmtree(out, ignore_errors=True)
        said = self.build(last.number, outputs=[f"type=local,dest={out}"])
        assert (out / "both").read_text() == f"{last.number}\nfrom the context\n", where
        steps = {name: how for name, how in said.items() if "RUN" in name or "COPY" in name}
        if not pruned:
            assert set(steps.values()) == {"CACHED"}, f"{where}: a finished build was lost: {steps}"
        # A build whose daemon was killed is not said to run.
        running = [ref for ref, record in self.history().items() if not record.HasField("CompletedAt")]
        assert running == [], where


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system of its own, in a file."""
    image, where = tmp_path / "disk.img", tmp_path / "disk"
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(2 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-N", "400000", str(image)], check=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(where)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-R", "-l", str(where)], check=False)


@pytest.fixture
def world(forks: Forks, disk: Path, tmp_path: Path, registry: RealRegistry, base: str) -> Iterator[World]:
    (tmp_path / "context").mkdir()
    (tmp_path / "context/file").write_text("from the context\n")
    config = write_config(tmp_path / "d.toml", registry, "[worker.oci]\ngc = false\n[history]\nmaxAge = 1\nmaxEntries = 80\n")
    made = World(forks, tmp_path, disk / "state", config, registry)
    yield made
    if made.pid:
        made.kill()


def day(world: World) -> None:
    """All that a daemon writes. Any of it may meet its end."""
    cache = f"type=registry,ref={world.registry.host}/crash/cache:1"
    options: dict[str, Any] = {"tags": [f"{world.registry.host}/crash/daemon:1"], "push": True}
    world.try_build(101, **options, cache_to=[f"{cache},mode=max", f"type=local,dest={world.directory}/cache,mode=max"])
    # What stands on a local source makes it a record for good.
    world.try_build(
        102, text="FROM here\nCOPY --from=alpine / /\nRUN true\n", build_contexts={"here": str(world.directory / "context")}
    )
    world.finished = [one for one in world.finished if one.number != 102]
    known = [one.ref for one in world.finished if one.number == 101]
    world.prune()
    world.try_build(101, cache_from=[cache], outputs=[f"type=local,dest={world.directory}/day"])
    for ref in known:
        world.forget(ref)
        world.finished = [one for one in world.finished if one.ref != ref]


@pytest.mark.timeout(600 * len(TIMES))
@pytest.mark.parametrize("point", NAMED)
def test_killed_at_each_named_step(world: World, point: str) -> None:
    if NAMED.index(point) % EVERY:
        pytest.skip(f"every {EVERY}th, but for CHANTIER_CRASHES")
    if point == "gc.begun":
        world.config.write_text(world.config.read_text().replace("gc = false", "gc = true"))
    for times in TIMES:
        world.start()
        assert world.wait()
        world.build(1)
        world.kill()
        (world.root / "gc.stamp").unlink(missing_ok=True)  # else the GC had its turn just now
        world.start(f"{point}:{times}")
        if world.wait():
            day(world)
        if not world.dies(60 if times == 1 else 5):
            assert times > 1, f"{point} was never reached"
            world.kill()
        world.clean(point)
        world.start()
        assert world.wait(), point
        world.sound(point, pruned=True)
        world.kill()
        world.clean(f"{point}, after all")
        world.finished.clear()


@pytest.mark.timeout(0 if LONG else 900)
def test_killed_at_random_moments(world: World) -> None:
    choose = random.Random(int(os.environ.get("CHANTIER_SEED", "7")))
    world.start()
    assert world.wait()
    world.build(0)
    began = time.monotonic()
    for number in range(1, ROUNDS + 1):
        options: list[dict[str, Any]] = [
            {},
            {"tags": [f"{world.registry.host}/crash/random:{number}"], "push": True},
            {"cache_to": [f"type=registry,ref={world.registry.host}/crash/random-cache:{number},mode=max"]},
            {"cache_to": [f"type=local,dest={world.directory}/cache{number % 3},mode=max"]},
        ]
        load = [
            threading.Thread(target=world.try_build, args=(number * 10 + n,), kwargs=choose.choice(options))
            for n in range(choose.randint(1, 3))
        ]
        for thread in load:
            thread.start()
        time.sleep(choose.choice((0.3, 1.5, 4.0)) * choose.random())
        world.kill()
        for thread in load:
            thread.join(60)
            assert not thread.is_alive(), f"round {number}: a client does not notice that its daemon is gone"
        if number % 2:
            world.clean(f"round {number}")
        world.start()
        assert world.wait(), f"round {number}"
        if not number % 2:
            world.clean(f"round {number}, beside the daemon")
        world.sound(f"round {number}")
        if number % 50 == 0:
            print(f"{number} kills, {len(world.finished)} builds finished, {time.monotonic() - began:.0f} s", flush=True)


@pytest.mark.parametrize("point", MOUNT_POINTS)
def test_a_cache_mount_is_killed_on_its_way(world: World, point: str) -> None:
    world.start()
    assert world.wait()
    world.build(1)
    command = Command(root=world.root, config=world.config)
    place = world.directory / "place"
    command("cache-mount", "export", "/c", "--to", f"type=local,dest={place}").ok()
    world.build(2)
    env = {"CHANTIER_CRASH_AT": f"{point}:1"}
    out = command("cache-mount", "export", "/c", "--to", f"type=local,dest={place}", env=env)
    back = command("cache-mount", "import", "other", "--from", f"type=local,src={place}", env=env)
    assert -signal.SIGKILL in (out.code, back.code), out.err + back.err
    world.kill()
    world.clean(point)
    done = command("cache-mount", "import", "again", "--from", f"type=local,src={place}").ok()
    assert done.out.startswith(("imported 1 files", "imported 2 files")), done.out
    command("cache-mount", "export", "/c", "--to", f"type=local,dest={place}").ok()
    assert command("cache-mount", "import", "again", "--from", f"type=local,src={place}").ok().out.startswith("imported 2 files")
    world.clean(f"{point}, after all")


@pytest.mark.parametrize("point", USER_POINTS)
def test_a_client_is_killed(world: World, point: str) -> None:
    world.start()
    assert world.wait()
    home = world.directory / "home"
    command = Command(root=world.directory / "none", config=world.config, env={"BUILDX_CONFIG": str(home)})
    (world.directory / "Dockerfile").write_text(TEXT.format(n=1))
    make = ("create", "--name", "b", "--use", world.address)
    build = (
        "build", "--builder", world.address, "-f", str(world.directory / "Dockerfile"),
        "--cache-to", f"type=local,dest={world.directory}/cache", "-o", f"type=oci,dest={world.directory}/out/image.tar",
        str(world.directory / "context"),
    )  # fmt: skip
    argv = make if point.startswith("builder.") else build
    done = command(*argv, env={"CHANTIER_CRASH_AT": f"{point}:2" if point.startswith("content.") else point})
    assert done.code == -signal.SIGKILL, done.err
    if argv is make:
        command("ls").ok()
        command("rm", "b")
        command(*make).ok()
        assert "b" in command("ls", "--format", "{{.Name}}").ok().out
        return
    if point.startswith("output."):
        assert os.listdir(world.directory / "out") == ["image.tar"][: point == "output.named"]
    command(*build).ok()
    assert os.listdir(world.directory / "out") == ["image.tar"]
    said = world.directory / "said"
    shutil.rmtree(said, ignore_errors=True)
    layout = world.directory / "cache"
    index = json.loads((layout / "index.json").read_text())
    digest = index["manifests"][-1]["digest"].partition(":")[2]
    manifest = json.loads((layout / "blobs/sha256" / digest).read_text())
    for layer in [manifest["config"], *manifest["layers"]]:
        blob = layout / "blobs/sha256" / layer["digest"].partition(":")[2]
        assert blob.stat().st_size == layer["size"], layer
