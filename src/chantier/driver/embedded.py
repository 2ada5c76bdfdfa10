# SPDX-License-Identifier: Apache-2.0
"""The embedded driver: an engine in this process. What a daemon would be asked over a socket is called directly."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from chantier.client import BuildResult, Prepared
from chantier.client.cache_dir import name_caches
from chantier.config import Config, find, load, state_root
from chantier.errors import ChantierError, SolveError
from chantier.progress import Reporter

from .offer import open_session
from .running import Running, result_of

if TYPE_CHECKING:
    from chantier.engine import Engine


class Embedded(Running):
    """Opens an engine at the first build, closes it at the end."""

    heading = "building with the embedded engine"
    title = "embedded"

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | Config | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        """`config` is a file or a Config; None looks for the file where chantier and buildkit keep theirs."""
        super().__init__()
        if isinstance(config, Config):
            self.config = config
        else:
            found = Path(config) if config is not None else find(env)
            self.config = load(found) if found is not None else Config()
        self.root = Path(root) if root is not None else state_root(self.config, env)
        self._env = env
        self._engine: Engine | None = None
        self._opening: asyncio.Lock | None = None

    async def aclose(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.__aexit__(None, None, None)

    async def abuild(self, prepared: Prepared, reporter: Reporter) -> BuildResult:
        from chantier.engine import CacheOptions, SolveRequest

        call = prepared.call
        request = SolveRequest(
            ref=call.ref,
            frontend=call.frontend,
            attrs=call.attrs,
            exporters=call.exporters,
            cache_imports=tuple(CacheOptions(type=c.type, attrs=c.attrs) for c in call.cache_imports),
            cache_exports=tuple(CacheOptions(type=c.type, attrs=c.attrs) for c in call.cache_exports),
            entitlements=frozenset(call.entitlements),
            internal=call.internal,
        )
        with ExitStack() as stack:
            session = await asyncio.to_thread(open_session, prepared.offer, self._env, stack)
            engine = await self._open()
            try:
                result = await engine.solve(request, session, reporter)
            except ChantierError as err:
                raise SolveError(f"failed to solve: {err}", err) from err
        await asyncio.to_thread(name_caches, prepared, result.response)
        return result_of(result.ref, dict(result.response), dict(result.metadata))

    async def _open(self) -> Engine:
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._engine is None:
                from chantier.engine import Engine

                self._engine = await Engine(self.root, self.config).__aenter__()
            return self._engine
