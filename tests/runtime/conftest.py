# SPDX-License-Identifier: Apache-2.0
"""A rootfs of one static busybox, and a runtime of the kind a test asks for."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chantier.runtime import Container, Exit, Native, Process, Runc, probe
from chantier.runtime.places import cgroup_roots
from chantier.spec import new_id

BUSYBOX = "/bin/busybox"
APPLETS = """sh cat id ls true false echo sleep stat mount umount hostname dd df grep kill ps chroot mknod touch wc head yes nc ip setsid
chmod chown mkdir rm ln tty stty readlink env find sed test seq trap mv cp unshare insmod swapon date su umask losetup cut tr""".split()  # noqa: SIM905

Work = Callable[[Any], Coroutine[Any, Any, Any]]


def make_rootfs(where: Path) -> Path:
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "root", "home/app"):
        (where / name).mkdir(parents=True)
    where.chmod(0o755)
    (where / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, where / "bin/busybox")
    for applet in APPLETS:
        os.symlink("busybox", where / "bin" / applet)
    (where / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n")
    (where / "etc/group").write_text("root:x:0:\napps:x:1001:app\nstaff:x:50:app,web\n")
    return where


@dataclass
class Ran:
    exit: Exit
    pieces: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def code(self) -> int:
        return self.exit.code

    @property
    def out(self) -> str:
        return b"".join(data for stream, data in self.pieces if stream == 1).decode()

    @property
    def err(self) -> str:
        return b"".join(data for stream, data in self.pieces if stream == 2).decode()


async def open_runtime(kind: str, state: Path) -> Runc | Native:
    """`runc`, `crun`, `native` (the helper in C) or `native-python`."""
    if kind.startswith("native"):
        return await probe(state, binary="native", helper="python" if kind.endswith("python") else "c")
    return await probe(state, binary=kind)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Which runtime; tests for all of them parametrize it."""
    return str(getattr(request, "param", "runc"))


@pytest.fixture
def using(state: Path, kind: str) -> Iterator[Callable[[Work], Any]]:
    """Call an async function with a runtime that was probed."""

    def call(work: Work) -> Any:
        async def body() -> Any:
            runtime = await open_runtime(kind, state)
            try:
                return await work(runtime)
            finally:
                await runtime.close()

        return asyncio.run(body())

    places = state / "executor"
    before = set(places.iterdir()) if places.exists() else set()  # an earlier test has failed for these
    yield call
    assert not places.exists() or not set(places.iterdir()) - before  # whatever the test did, nothing is left


@pytest.fixture
def sh(rootfs: Path, using: Any) -> Callable[..., Ran]:
    """Run a shell script, or a whole command line, in a container on the rootfs."""

    def call(script: str | tuple[str, ...], *, process: dict[str, Any] | None = None, stdin: Any = None, **container: Any) -> Ran:
        pieces: list[tuple[int, bytes]] = []
        args = ("sh", "-c", script) if isinstance(script, str) else script
        given = {"env": ("PATH=/bin",), **(process or {})}
        described = Container(id=new_id(), rootfs=rootfs, process=Process(args=args, **given), **container)
        output = lambda stream, data: pieces.append((stream, data))  # noqa: E731
        ended = using(lambda runtime: runtime.run(described, output=output, stdin=stdin))
        return Ran(ended, pieces)

    return call


@pytest.fixture(scope="session")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the attacks with")
    program = tmp_path_factory.mktemp("attack") / "attack"
    source = Path(__file__).with_name("attack.c")
    subprocess.run([compiler, "-static", "-O1", "-w", "-o", str(program), str(source)], check=True)
    return program


@pytest.fixture
def armed(rootfs: Path, attack: Path) -> Path:
    shutil.copy(attack, rootfs / "bin/attack")
    return rootfs


def processes_with(mark: str) -> list[int]:
    """Processes of the machine whose environment holds the mark."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if mark.encode() in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
    return found


def eventually(condition: Any, within_s: float = 60) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


def cgroups_of(id: str) -> list[Path]:
    return [root / "buildkit" / id for root in cgroup_roots() if (root / "buildkit" / id).exists()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first case of an ordinary user's waits for all of them."""
    from .rootless import LIMIT_S, SUFFIX

    for item in items:
        kind = item.callspec.params.get("kind", "") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
        if str(kind).endswith(SUFFIX):
            item.add_marker(pytest.mark.timeout(LIMIT_S + 60))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A case of an ordinary user's has been run elsewhere: see rootless.py."""
    from .rootless import SUFFIX, look_up

    wanted = pyfuncitem.callspec.params.get("kind", "") if hasattr(pyfuncitem, "callspec") else ""
    if not str(wanted).endswith(SUFFIX):
        return None
    look_up(pyfuncitem, wanted)
    return True
