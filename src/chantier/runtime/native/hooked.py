# SPDX-License-Identifier: Apache-2.0
"""A container with hooks: those that run beside it, at the moments of its life at which they are due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from chantier.errors import UnsupportedError
from chantier.runtime import hooks
from chantier.runtime.types import Container

from .sandbox import Sandbox

_log = logging.getLogger(__name__)


class Hooked:
    """`bundle` is the container's directory, with its config.json."""

    def __init__(self, container: Container, bundle: Path) -> None:
        self.bundle = bundle
        self._container = container
        self._pid = 0

    async def create(self, pid: int) -> None:
        """While the container is made, before its root is entered. Raises UnsupportedError."""
        self._pid = pid
        for name in ("prestart", "createRuntime"):
            await self._run(name, "creating")

    @asynccontextmanager
    async def watching(self, sandbox: Sandbox) -> AsyncIterator[None]:
        """While it runs, and after it."""
        starting = asyncio.create_task(self._started(sandbox))
        try:
            yield
            await starting
        finally:
            starting.cancel()
            if self._pid:
                try:
                    await self._run("poststop", "stopped")
                except UnsupportedError as err:  # the container is gone: nothing else can be done about it
                    _log.warning("%s: %s", self._container.id, err)

    async def _started(self, sandbox: Sandbox) -> None:
        await sandbox.begun.wait()
        if not sandbox.pid:
            return
        try:
            await self._run("poststart", "running")
        except UnsupportedError as err:
            sandbox.fail(str(err))

    async def _run(self, name: str, status: str) -> None:
        pid = 0 if status == "stopped" else self._pid
        container = self._container
        await hooks.run(container.hooks, name, id=container.id, bundle=self.bundle, status=status, pid=pid)


__all__ = ["Hooked"]
