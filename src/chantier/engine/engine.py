# SPDX-License-Identifier: Apache-2.0
"""`Engine`: everything that lives as long as a process builds, wired together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from chantier.cache import Cache, LayerBlob
from chantier.config import Config
from chantier.errors import ChantierError
from chantier.llb import caps
from chantier.op import Worker
from chantier.op.image import ImageResolver
from chantier.op.worker import threaded
from chantier.pb import ops_pb2 as pb
from chantier.progress import Reporter
from chantier.registry import Registries, Registry, Settings
from chantier.snapshot import Snapshotter, choose
from chantier.solver import Job, Solver
from chantier.spec import Platform, Reference, host_platform, new_id
from chantier.store import Db, Disk, Policy, Root, UsageRecord

from . import owners
from .ceiling import Ceiling
from .credentials import Credentials
from .devices import devices_of
from .environment import load_environment
from .explain import Explainer
from .fetch import RegistryFetcher
from .gc import collect
from .history import History
from .notes import Notes
from .ops import Ops
from .platforms import emulated
from .producers import Producers
from .recording import Recording
from .request import SolveRequest, SolveResult
from .results import Results

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from chantier.dockerfile.bridge import FrontendResult, SourceMeta
    from chantier.runtime import Networks, Same

    from .bridge import EngineBridge
    from .build import Build

    RunFrontendImage = Callable[["EngineBridge", str, Mapping[str, str], Mapping[str, pb.Definition]], Awaitable[FrontendResult]]


class Engine:
    """One engine on one root. Use it as an async context manager; it belongs to the event loop it was entered in.

    Other processes may use the same root at the same time. `allowed_entitlements` None allows what a build is granted by
    whoever asks: right where the user and the owner of the engine are one.
    """

    cache: Cache
    worker: Worker
    solver: Solver
    images: ImageResolver
    networks: Networks | Same
    snapshotter_name: str

    def __init__(
        self,
        root: Path,
        config: Config,
        *,
        allowed_entitlements: frozenset[str] | None = None,
        history: bool = False,
    ) -> None:
        """With `history` each build that `solve` runs is recorded below the root."""
        self.path = root.absolute()  # runtimes are started elsewhere
        self.config = config
        self.allowed_entitlements = allowed_entitlements
        self.platforms: list[Platform] = [host_platform(), *emulated()]
        self.caps = caps.ALL
        self.registries = Registries(config)
        self.environment = load_environment(config.provenance_env_dir)
        self.devices = devices_of(config.cdi)
        self.producers = Producers()
        self.history: History | None = None
        if history:
            bounds = config.history
            self.history = History(self.path, max_age_s=bounds.max_age_s, max_entries=bounds.max_entries)
        self.run_frontend_image: RunFrontendImage | None = None  # set by a door that can
        self._made = False
        self._opened = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        try:
            await threaded(lambda _cancelled: self._open())  # to its end, also when this is cancelled
            await self._find_runtime()
            ops = Ops(self.worker, self.images, self.layouts)
            explain = Explainer(self._keys, self.cache.listings)
            self.solver = Solver(ops.resolve, self._keys, Results(self.cache, self._layer_gone), describe=explain)
        except BaseException:
            if self._made:  # else `_open` failed, and cleaned up
                await self._leave()
            raise
        self._opened = True
        return self

    async def __aexit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        await self.solver.aclose()
        await self._leave()

    async def _leave(self) -> None:
        if self.worker.runtime is not None:
            await self.worker.runtime.close()
        await self.networks.close()
        await asyncio.to_thread(self._close)

    def _open(self) -> None:
        from chantier.cache.keys import SqliteKeyStore
        from chantier.op.layout import LayoutResolver
        from chantier.runtime import open_networks, recover, recover_networks

        recover(self.path / "executor")  # containers of dead processes hold mounts that the root would trip over
        recover_networks(self.path / "net")
        self._root = Root.open(self.path)
        try:
            owners.check(self.path)
            self.blobs = self._root.blobs
            self.snapshots = self._snapshotter()
            self.scratch = self._root.scratch()
            fetcher = self.fetcher = RegistryFetcher(self.registry_for)
            self.cache = Cache(self._root, self._root.db, self.blobs, self.snapshots, fetcher)
            self._keys = SqliteKeyStore(self._root.db)
            self.worker = Worker(
                root=self.path,
                cache=self.cache,
                config=self.config,
                platform=self.platforms[0],
                parallelism=self.config.worker_oci.max_parallelism,
                registries=self.registries,
                registry_for=self.registry_for,
                devices=self.devices,
            )
            self.ceiling = Ceiling(self._root, self.cache, self.config.chantier.max_bytes.of(self._root.disk().total))
            self.worker.room = self.ceiling.enter_step
            notes = Notes(self._root.db)
            self.registries.breakers.remember_in(notes)
            self.images = ImageResolver(self.worker, self.registry_for, notes)
            self.layouts = LayoutResolver(self.worker, self._loop)
            fetcher.layouts = self.layouts
            self.networks = self.worker.networks = open_networks(self.config.worker_oci, self.path / "net")
            self._made = True
        except BaseException:
            self._root.close()
            raise

    def _snapshotter(self) -> Snapshotter:
        """Overlays where the kernel has them for us; else what costs more, which is said."""
        choice = choose(self.config.worker_oci.snapshotter, self._root.snapshots_dir)
        self.snapshotter_name = choice.name
        if choice.note:
            _log.warning("%s (see chantier doctor)", choice.note)
        return choice.open(self.path, self._root.db)

    async def _find_runtime(self) -> None:
        from chantier.runtime import probe

        oci = self.config.worker_oci
        try:
            self.worker.runtime = await probe(
                self.path,
                binary=oci.binary,
                apparmor=oci.apparmor_profile,
                process_sandbox=not oci.no_process_sandbox,
            )
        except ChantierError as err:
            # Builds without RUN need no runtime: the step that does will say this.
            self.worker.no_runtime = str(err)

    def _close(self) -> None:
        self.worker.close()
        self._root.close()
        self.registries.close()

    @staticmethod
    def check(config: Config) -> None:
        """Raises ConfigError where `reconfigure` would; for a config whose engine is not open yet."""
        Settings.of(config).check()
        load_environment(config.provenance_env_dir)

    def reconfigure(self, config: Config) -> None:
        """Take over registries, limits, entitlements, what provenances add, and the rules of garbage collection. Running builds keep what they have.

        Raises ConfigError where a file that the config names cannot be used: then everything stays as it was.
        """
        environment = load_environment(config.provenance_env_dir)
        self.registries.reload(config)
        self.environment = environment
        self.config = self.worker.config = config
        self.devices = self.worker.devices = devices_of(config.cdi)
        self.worker.slots.resize(config.worker_oci.max_parallelism)
        self.networks.resize(config.worker_oci.cni_pool_size)
        self.ceiling.limit = config.chantier.max_bytes.of(self._root.disk().total)
        if self.history is not None:
            self.history.bound(max_age_s=config.history.max_age_s, max_entries=config.history.max_entries)
        if self.allowed_entitlements is not None:
            self.allowed_entitlements = frozenset(config.entitlements)

    @property
    def db(self) -> Db:
        return self._root.db

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop it was entered in: sessions live there."""
        return self._loop

    def disk(self) -> Disk:
        return self._root.disk()

    def new_file(self, suffix: str) -> Path:
        """A path for a file of this process's own, on the state's file system; gone some time after the process is."""
        return self.scratch / f"{new_id()}.{suffix}"

    async def prune(self, policy: Policy, on_removed: Callable[[UsageRecord], None] | None = None) -> list[UsageRecord]:
        """Delete what the policy says, now; each record that is gone is told of, in another thread."""
        return await threaded(lambda cancelled: self.cache.prune(policy, on_removed=on_removed, cancelled=cancelled))

    def registry_for(self, sessions: Sequence[Any]) -> Registry:
        """A registry client that uses the credentials of these sessions. To be called from any thread."""
        credentials = Credentials(self._loop, sessions)
        owner = str(getattr(sessions[0], "id", "")) if sessions else ""
        return self.registries.open(credentials=credentials.of_host, token=credentials.token, owner=owner)

    def _layer_gone(self, layer: LayerBlob) -> bool:
        """Whether every place that is known for a layer says that it has it not. Who cannot be asked may yet have it."""
        for source in layer.sources:
            kind, _, name = source.partition(":")
            if kind not in ("registry", "insecure"):
                continue
            registry = self.registry_for(())
            registry = registry.insecure() if kind == "insecure" else registry
            try:
                if registry.exists(Reference.parse(name), layer.descriptor):
                    return False
            except ChantierError:
                return False
        return True

    async def source_meta(self, source: pb.SourceOp, job: Job, *, return_object: bool) -> SourceMeta:
        from .meta import source_meta

        return await source_meta(self.worker, source, job.sessions, return_object=return_object, job=job)

    @asynccontextmanager
    async def open(self, request: SolveRequest, session: Any, reporter: Reporter) -> AsyncIterator[Build]:
        """A build for somebody to drive. On exit nothing runs for it any more."""
        from .build import Build

        try:
            with self._root.lease():  # manifests and configs that this build reads or writes stay until it ends
                async with self.ceiling.build(), Build(self, request, session, reporter) as build:
                    yield build
        finally:
            self._root.settler.soon()
            if not request.internal:
                await asyncio.to_thread(collect, self._root, self.cache, self.config)

    async def solve(self, request: SolveRequest, session: Any, reporter: Reporter) -> SolveResult:
        """Run one build. Raises what went wrong, with its vertex and source places; nothing half-exported is named.

        Cancelling the task cancels the build, and waits until it is gone.
        """
        if self.history is None or request.internal:
            return await self._solve(request, session, reporter, None)
        recording = await asyncio.to_thread(self.history.begin, request, reporter)
        try:
            result = await self._solve(request, session, recording, recording)
        except BaseException as err:
            recording.end(None, err)
            raise
        recording.end(result, None)
        return result

    async def _solve(self, request: SolveRequest, session: Any, reporter: Reporter, recording: Recording | None) -> SolveResult:
        async with self.open(request, session, reporter) as build:
            result: SolveResult | None = None
            try:
                result = await build.finish(await build.drive())
                return result
            except ChantierError as err:
                if request.on_failure is not None:
                    from .failed import look

                    await look(build, err)
                raise
            finally:
                if recording is not None:
                    self.note(recording, build, done=result is not None)

    @staticmethod
    def note(recording: Recording, build: Build, *, done: bool) -> None:
        """While a build's job lives: what its record tells of it."""
        recording.note(build.job.explain(), {} if done else build.attesting.of_failed())
