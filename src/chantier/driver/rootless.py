# SPDX-License-Identifier: Apache-2.0
"""An engine for an ordinary user: it must be root of a user namespace, which only a process without threads can make.

A command executes itself again in one (`kernel.userns.execute_again`): the same process, terminal and standard streams. The
library cannot, it lives in somebody else's process: it starts an engine there and speaks to it over a socket
(`RootlessBuilder`), so that the files, logins and agents of a build are still read by the user's own process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.config import Config, dump, find, load
from chantier.errors import ChantierError, UnsupportedError
from chantier.kernel import userns
from chantier.kernel.temporary import TemporaryDirectory
from chantier.progress import Reporter, step
from chantier.wire import ByteStream, dial

from .builder import Builder
from .context import SocketStream
from .group import Group, Node
from .node import INACTIVE, RUNNING, Driver, NotRunning

if TYPE_CHECKING:
    from chantier.client.client import Client

    from .embedded import Embedded

_START_S = 60.0
_STOP_S = 20.0
_SAID = 4096
_NAME = "embedded"


class Rootless(Driver):
    """The engine in the namespace, as a node. `close` ends it."""

    KIND = "rootless"

    def __init__(self, builder: str, node: Node, *, env: Mapping[str, str] = os.environ) -> None:
        super().__init__(builder, node, env=env)
        self.root = ""
        self.config: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._life = -1
        self._place: TemporaryDirectory | None = None
        self._starting: asyncio.Lock | None = None

    @property
    def _address(self) -> str:
        assert self._place is not None
        return f"{self._place.name}/engine.sock"

    async def status(self) -> str:
        return RUNNING if self._process is not None and self._process.poll() is None else INACTIVE

    async def boot(self, reporter: Reporter) -> None:
        """Start it, and say what will not work. Raises UnsupportedError with the reason if there can be no namespace."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if await self.status() == RUNNING:
                return
            notes = await asyncio.to_thread(self._start)
            if notes:
                with step(reporter, "[internal] an engine without root") as told:
                    told.log(notes, 2)
            await self._wait()

    def _start(self) -> bytes:
        """Start it. Returns what it says will not work, a line each."""
        self._place = TemporaryDirectory("engine", base=self.env.get("XDG_RUNTIME_DIR") or None)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        ends, self._life = os.pipe()
        notes, say = os.pipe()
        try:
            listening.bind(self._address)
            listening.listen(128)
            more = ["--config", str(self.config)] if self.config is not None else []
            more += ["--root", self.root] if self.root else []
            argv = [sys.executable, "-m", "chantier.daemon.inner", str(listening.fileno()), str(ends), *more]
            self._process = subprocess.Popen(
                userns.command(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(listening.fileno(), ends, say),
                start_new_session=True,
                env={**self.env, "CHANTIER_NOTES": str(say)},
            )
        finally:
            listening.close()
            os.close(ends)
            os.close(say)
        with open(notes, "rb") as file:  # it closes its end once it is in the namespace, or dies
            return file.read()

    async def _wait(self) -> None:
        from chantier.client.client import Client

        assert self._process is not None
        ended = asyncio.ensure_future(asyncio.to_thread(self._read_errors))
        async with Client(dial(f"unix://{self._address}", keepalive=None)) as client:
            asking = asyncio.ensure_future(client.workers(timeout_s=_START_S))
            await asyncio.wait((ended, asking), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                raise _failed(ended.result())
            asking.result()

    def _read_errors(self) -> str:
        """In a thread, until the engine ends: the last of what it says on its standard error."""
        assert self._process is not None and self._process.stderr is not None
        said = b""
        while piece := os.read(self._process.stderr.fileno(), _SAID):
            said = (said + piece)[-_SAID:]
        return said.decode(errors="replace")

    async def client(self, *, sticky: str = "") -> Client:
        from chantier.client.client import Client

        if await self.status() != RUNNING:
            raise NotRunning("the engine in the user namespace does not run")
        return Client(dial(f"unix://{self._address}", keepalive=None))

    async def stream(self, *, sticky: str = "") -> ByteStream:
        return SocketStream(*await asyncio.open_unix_connection(self._address))

    async def close(self) -> None:
        """End the engine: it sees the end of a pipe, as it does if this process is killed."""
        process, self._process = self._process, None
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        if process is not None:
            await asyncio.to_thread(_reap, process)
        if self._place is not None:
            self._place.cleanup()
            self._place = None


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _failed(said: str) -> ChantierError:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    cause = lines[0] if lines else "it ended without a word"
    hint = lines[1] if len(lines) == 2 else "`chantier doctor` says what this machine can do"
    return UnsupportedError(f"cannot start an engine without root: {cause}", detail="\n".join(lines[1:]) or None, hint=hint)


class RootlessBuilder(Builder):
    """What `Embedded` is to root: an engine that lives as long as this object."""

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | Config | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        node = Node(name=f"{_NAME}0")
        super().__init__(Group(name=_NAME, driver="rootless", nodes=(node,)), env=env, implicit=True)
        self.heading = "building with the embedded engine"
        self.title = _NAME
        self.without_output = ""
        self._kept: TemporaryDirectory | None = None
        (driver,) = self.drivers
        assert isinstance(driver, Rootless)
        driver.root = os.fspath(root) if root is not None else ""
        if isinstance(config, Config):
            self._kept = TemporaryDirectory("config")
            driver.config = Path(self._kept.name) / "chantierd.toml"
            driver.config.write_text(dump(config), encoding="utf-8")
            self.config = config
        else:
            found = Path(config) if config is not None else find(env)
            driver.config = found
            self.config = load(found) if found is not None else Config()

    def _remember(self, driver: Driver, prepared: Any) -> None:
        return

    async def aclose(self) -> None:
        await super().aclose()
        if self._kept is not None:
            self._kept.cleanup()
            self._kept = None


def open_embedded(
    *,
    root: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | Config | None = None,
    env: Mapping[str, str] = os.environ,
) -> Embedded | RootlessBuilder:
    """For the library: an engine in this process, or for an ordinary user one in a process of its own."""
    if userns.needs_namespace():
        return RootlessBuilder(root=root, config=config, env=env)
    from .embedded import Embedded

    return Embedded(root=root, config=config, env=env)


__all__ = ["Rootless", "RootlessBuilder", "open_embedded"]
