# SPDX-License-Identifier: Apache-2.0
"""A rootfs of one static busybox, and a runtime that was probed once."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chantier.runtime import Container, Exit, Process, Runc, probe
from chantier.spec import new_id

BUSYBOX = "/bin/busybox"
APPLETS = """sh cat id ls true false echo sleep stat mount umount hostname dd df grep kill ps chroot mknod touch wc head yes nc ip setsid""".split()  # noqa: SIM905


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


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def using(state: Path) -> Iterator[Callable[[Callable[[Runc], Coroutine[Any, Any, Any]]], Any]]:
    """Call an async function with a probed runtime."""

    def call(work: Callable[[Runc], Coroutine[Any, Any, Any]]) -> Any:
        async def body() -> Any:
            runtime = await probe(state)
            try:
                return await work(runtime)
            finally:
                await runtime.close()

        return asyncio.run(body())

    yield call
    assert not list((state / "executor").iterdir())  # whatever the test did, nothing is left


@pytest.fixture
def sh(rootfs: Path, using: Any) -> Callable[..., Ran]:
    """Run a shell script, or a whole command line, in a container on the rootfs."""

    def call(script: str | tuple[str, ...], *, process: dict[str, Any] | None = None, **container: Any) -> Ran:
        pieces: list[tuple[int, bytes]] = []
        args = ("sh", "-c", script) if isinstance(script, str) else script
        described = Container(
            id=new_id(), rootfs=rootfs, process=Process(args=args, env=("PATH=/bin",), **(process or {})), **container
        )
        ended = using(lambda runtime: runtime.run(described, output=lambda stream, data: pieces.append((stream, data))))
        return Ran(ended, pieces)

    return call
