# SPDX-License-Identifier: Apache-2.0
"""The embedded driver: an engine in this process. What a daemon would be asked over a socket is called directly."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from chantier.client import BuildResult, Offer, Prepared
from chantier.config import Config, find, load, state_root
from chantier.errors import ChantierError, SolveError
from chantier.progress import Reporter
from chantier.session.local import LocalSession, SecretSource, Target
from chantier.session.types import Credentials

from .load import EngineSink, find_engine

if TYPE_CHECKING:
    from chantier.engine import Engine


class Embedded:
    """Opens an engine at the first build, closes it at the end. Not for several threads at once; builds may overlap in one loop."""

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | Config | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        """`config` is a file or a Config; None looks for the file where chantier and buildkit keep theirs."""
        if isinstance(config, Config):
            self.config = config
        else:
            found = Path(config) if config is not None else find(env)
            self.config = load(found) if found is not None else Config()
        self.root = Path(root) if root is not None else state_root(self.config, env)
        self._env = env
        self._engine: Engine | None = None
        self._opening: asyncio.Lock | None = None
        self._runner: asyncio.Runner | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends what `build` opened; after `abuild`, await `aclose` instead."""
        if self._runner is not None:
            self._runner.run(self.aclose())
            self._runner.close()
            self._runner = None

    async def aclose(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.__aexit__(None, None, None)

    def build(self, prepared: Prepared, reporter: Reporter) -> BuildResult:
        """Run one build to its end; blocks. Interrupting it cancels the build and waits until its steps are gone."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(self.abuild(prepared, reporter))

    async def abuild(self, prepared: Prepared, reporter: Reporter) -> BuildResult:
        """Run one build in the running loop; several may run at once."""
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
        names = tuple(n for n in result.response.get("image.name", "").split(",") if n)
        return BuildResult(
            ref=result.ref,
            digest=result.response.get("containerimage.digest", ""),
            config_digest=result.response.get("containerimage.config.digest", ""),
            image_names=names,
            response=result.response,
            calls={k: v for k, v in result.metadata.items() if k.startswith("result.") or k == "version"},
        )

    async def _open(self) -> Engine:
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._engine is None:
                from chantier.engine import Engine

                self._engine = await Engine(self.root, self.config).__aenter__()
            return self._engine


def open_session(offer: Offer, env: Mapping[str, str], stack: ExitStack) -> LocalSession:
    """The session of a build in this process: it reads the user's directories in place. Closed with the stack."""
    from chantier.registry import AuthFile

    from .ssh import agent_for

    outputs: list[Target] = []
    for output in offer.outputs:
        if output.load:
            name, address = find_engine(env)
            outputs.append(partial(_loading, name, address))
        elif output.dest == "-":
            outputs.append(sys.stdout.buffer)
        else:
            outputs.append(Path(output.dest) if output.dest else None)
    logins = AuthFile(env)

    def credentials(host: str) -> Credentials | None:
        login = logins.credentials(host)
        return Credentials(username=login.username, secret=login.secret) if login is not None else None

    uploads = {}
    if offer.context.upload is not None:
        id, stream, head = offer.context.upload
        uploads[id] = (stream, head)
    session = LocalSession(
        directories=offer.context.directories,
        files=offer.context.files,
        secrets={s.id: SecretSource(file=Path(s.file) if s.file else None, env=s.env, value=s.value) for s in offer.secrets},
        agents={s.id: stack.enter_context(agent_for(s.id, s.paths)) for s in offer.ssh},
        credentials=credentials,
        outputs=outputs,
        uploads=uploads,
        layouts=offer.layouts,
        shared_base=offer.context.shared_base,
        allow_delete=offer.allow_delete,
        env=env,
    )
    return stack.enter_context(session)


def _loading(name: str, address: str, metadata: Mapping[str, str]) -> EngineSink:
    return EngineSink(name, address)
