# SPDX-License-Identifier: Apache-2.0
"""The embedded driver: an engine in this process. What a daemon would be asked over a socket is called directly."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from chantier import driver
from chantier.client import BuildResult, Prepared
from chantier.client.cache_dir import name_caches
from chantier.client.worker import GCRule, Usage, Version, Worker
from chantier.config import Config, find, gc_rules, load, state_root
from chantier.errors import ChantierError, SolveError
from chantier.progress import Reporter
from chantier.values import replace

from .offer import open_session
from .running import Converted, Running, result_of

if TYPE_CHECKING:
    from chantier.engine import Engine, SolveRequest
    from chantier.engine.history import History
    from chantier.engine.look import Checked, Plan
    from chantier.registry import Memory
    from chantier.store import UsageRecord


class Embedded(Running):
    """Opens an engine at the first build, closes it at the end."""

    heading = "building with the embedded engine"
    title = "embedded"
    config: Config

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | Config | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        """`config` is a file or a Config; None looks for the file where chantier and buildkit keep theirs."""
        super().__init__()
        if driver.is_command:
            from chantier.kernel import userns

            userns.execute_again()
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
        request = _request(prepared)
        with ExitStack() as stack:
            session = await asyncio.to_thread(open_session, prepared.offer, self._env, stack)
            engine = await self._open()
            try:
                result = await engine.solve(request, session, reporter)
            except ChantierError as err:
                raise SolveError(f"failed to solve: {err}", err) from err
        await asyncio.to_thread(name_caches, prepared, result.response)
        made = result_of(result.ref, dict(result.response), dict(result.metadata))
        return replace(made, provenance=result.provenance)

    async def aconvert(self, prepared: Prepared, reporter: Reporter) -> Converted:
        request = _request(prepared)
        with ExitStack() as stack:
            session = await asyncio.to_thread(open_session, prepared.offer, self._env, stack)
            engine = await self._open()
            try:
                async with engine.open(request, session, reporter) as build:
                    result = await build.drive()
            except ChantierError as err:
                raise SolveError(f"failed to solve: {err}", err) from err
        return Converted(definitions=result.definitions, metadata=result.metadata)

    async def client(self) -> EmbeddedClient:
        """Opens the engine. It is closed with this driver, not with the client."""
        return EmbeddedClient(await self._open())

    # Looking after the state, without an engine on it

    def fsck(self, *, mend: bool = False, deep: bool = False) -> Checked:
        from chantier.engine.look import fsck

        return fsck(self.root.absolute(), self.config, mend=mend, deep=deep)

    def gc_plan(self) -> Plan:
        from chantier.engine.look import explain_gc

        return explain_gc(self.root.absolute(), self.config)

    async def cache_mounts(self) -> list[dict[str, Any]]:
        from chantier.engine.cache_mounts import CacheMounts
        from chantier.values import asdict

        return [asdict(mount) for mount in await CacheMounts(await self._open()).list()]

    async def move_cache_mount(
        self, what: str, name: str, place: Mapping[str, str], stores: Mapping[str, Path], *, limit: int = 0
    ) -> dict[str, Any]:
        """See `cache_mounts.Mounts`."""
        from chantier.engine.cache_mounts import CacheMounts
        from chantier.session.local import LocalSession

        from .logins import credentials_of

        mounts = CacheMounts(await self._open())
        with LocalSession(credentials=credentials_of(self._env), layouts=stores) as session:
            if what == "import":
                return (await mounts.import_(name, place, session)).plain()
            return (await mounts.export(name, place, session, limit=limit)).plain()

    def history(self) -> History:
        from chantier.client.history import read_log
        from chantier.engine.history import History

        bounds = self.config.history
        history = History(self.root.absolute(), max_age_s=bounds.max_age_s, max_entries=bounds.max_entries)
        history.read_log = read_log
        return history

    async def _open(self) -> Engine:
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._engine is None:
                from chantier.engine import Engine

                self._engine = await Engine(self.root, self.config, history=True).__aenter__()
            return self._engine


def _request(prepared: Prepared) -> SolveRequest:
    from chantier.engine import CacheOptions, SolveRequest

    call = prepared.call.attested()
    return SolveRequest(
        ref=call.ref,
        frontend=call.frontend,
        attrs=call.attrs,
        exporters=call.exporters,
        cache_imports=tuple(CacheOptions(type=c.type, attrs=c.attrs) for c in call.cache_imports),
        cache_exports=tuple(CacheOptions(type=c.type, attrs=c.attrs) for c in call.cache_exports),
        entitlements=frozenset(call.entitlements),
        internal=call.internal,
        definition=call.definition,
        metadata=call.metadata,
        on_failure=prepared.on_failure,
    )


class EmbeddedClient:
    """The engine of this process, asked what a daemon is asked: the methods of `client.client.Client` that need no wire."""

    name = "embedded"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return

    async def version(self, *, timeout_s: float | None = None) -> Version:
        from chantier import __version__

        return Version(package="chantier", version=f"v{__version__}")

    async def workers(self, filters: Sequence[str] = (), *, timeout_s: float | None = None) -> tuple[Worker, ...]:
        import socket

        engine = self._engine
        labels = {"executor": "oci", "snapshotter": engine.snapshotter_name, "hostname": socket.gethostname()}
        rules = gc_rules(engine.config.worker_oci, engine.disk().total)
        return (
            Worker(
                id="embedded",
                labels={f"org.mobyproject.buildkit.worker.{k}": v for k, v in labels.items()},
                platforms=tuple(engine.platforms),
                gc=tuple(
                    GCRule(
                        all=rule.all,
                        filters=tuple(rule.filters),
                        keep_duration=int(rule.keep_duration_s * 1e9),
                        reserved_space=rule.reserved_bytes,
                        max_used_space=rule.max_used_bytes,
                        min_free_space=rule.min_free_bytes,
                    )
                    for rule in rules
                ),
            ),
        )

    async def usage(self, filters: Sequence[str] = ()) -> tuple[Usage, ...]:
        records = await asyncio.to_thread(self._engine.cache.usage, filters=tuple(filters))
        return tuple(_usage(record) for record in records)

    async def prune(
        self,
        filters: Sequence[str] = (),
        *,
        all: bool = False,
        keep_duration: int = 0,
        reserved_space: int = 0,
        max_used_space: int = 0,
        min_free_space: int = 0,
    ) -> AsyncIterator[Usage]:
        from chantier.store import Policy

        policy = Policy(
            all=all,
            filters=tuple(filters),
            keep_duration_ns=keep_duration,
            reserved_space=reserved_space,
            max_used_space=max_used_space,
            min_free_space=min_free_space,
        )
        for record in await self._engine.prune(policy):
            yield _usage(record)


def _usage(record: UsageRecord) -> Usage:
    return Usage(
        id=record.id,
        mutable=record.mutable,
        in_use=record.in_use,
        size=record.size,
        parents=tuple(record.parents),
        created_at=record.created_at,
        last_used_at=record.last_used_at,
        usage_count=record.usage_count,
        description=record.description,
        record_type=record.record_type,
        shared=record.shared,
    )


@contextmanager
def registry_notes(root: Path) -> Iterator[tuple[Memory | None, Callable[[str], Any]]]:
    """What the state under `root` knows of hosts and of references (`op.image.Seen`, or None), to be looked at only."""
    from chantier.engine.notes import ReadOnly, notes_of

    with notes_of(root) as notes:
        if notes is None:
            yield None, lambda _reference: None
        else:
            yield ReadOnly(notes), notes.find
