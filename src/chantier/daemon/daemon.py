# SPDX-License-Identifier: Apache-2.0
"""`Daemon`: what lives as long as the process. It listens first and opens the engine then; calls wait for that."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from chantier.config import Config, is_rootless, state_root
from chantier.display.logfmt import install
from chantier.engine import Engine
from chantier.errors import CancelledError_, ChantierError, ConfigError, StoreError
from chantier.session.sessions import Sessions
from chantier.wire import GrpcError, Health, Keepalive, Server, ServerCall, reflection, status_of, tls
from chantier.wire.health import NOT_SERVING
from chantier.wire.status import UNAVAILABLE

from .bridge import Bridge
from .builds import Builds
from .clip import LogLimits
from .content import Content
from .control import Control
from .errors import build_status
from .extras import own
from .frontend_image import FrontendImages
from .history import History
from .reload import changes_that_need_a_restart
from .traces import Traces

if TYPE_CHECKING:
    import ssl

    from .debug import DebugServer
    from .flags import Settings

_log = logging.getLogger(__name__)
_NAME = "chantierd"
# A client behind TCP that has gone without a word is noticed within these together.
_KEEPALIVE = Keepalive(interval_s=5.0, timeout_s=10.0)


class Daemon:
    """An async context manager: inside, it serves. `wait` returns when it has been told to stop."""

    history: History

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.config: Config = settings.config
        self.root = state_root(self.config, settings.env)
        self.builds = Builds()
        self.sessions = Sessions(in_place=lambda: self.config.chantier.read_in_place)
        self.log_limits = LogLimits.from_env(settings.env)
        self.started_at = time.time()
        self.draining = False
        self.needs_restart: tuple[str, ...] = ()
        self.addresses: list[str] = []
        self._engine: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
        self._opening: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._lock = -1
        self._tls: ssl.SSLContext | None = None
        self._debug: DebugServer | None = None
        self.health = Health()
        self.traces = Traces(settings.env)
        self._server = Server(
            [
                Control(self).service(),
                Bridge(self).service(),
                Content(self).service(),
                self.health.service(),
                self.traces.service(),
                own(self),
            ],
            keepalive=_KEEPALIVE,
            on_error=self._on_error,
        )
        for service in reflection.services(lambda: self._server.services):
            self._server.add(service)

    # -- what handlers use

    async def engine(self) -> Engine:
        """The engine, once it is open. Raises why it cannot be."""
        return await asyncio.shield(self._engine)

    @property
    def is_open(self) -> bool:
        return self._engine.done() and not self._engine.cancelled() and self._engine.exception() is None

    @property
    def opened_engine(self) -> Engine:
        return self._engine.result()

    @property
    def connections(self) -> int:
        return self._server.connections

    @property
    def state(self) -> str:
        return "draining" if self.draining else "serving" if self.is_open else "starting"

    def _on_error(self, call: ServerCall, error: BaseException) -> GrpcError | None:
        """Every call that fails is logged; what nobody foresaw with where it happened."""
        building = call.method.startswith(("/moby.buildkit.v1.frontend.LLBBridge/", "/moby.buildkit.v1.Control/Solve"))
        status = build_status(error) if building else status_of(error)
        unforeseen = not isinstance(error, ChantierError | TimeoutError)
        _log.error("%s returned error: %s", call.method, status.go_text, exc_info=error if unforeseen else None)
        return status

    # -- life

    async def __aenter__(self) -> Self:
        self._take_lock()
        try:
            if self.config.grpc.debug_address:
                from .debug import DebugServer

                self._debug = await DebugServer(self, self.config.grpc.debug_address).__aenter__()
            await self._listen()
        except BaseException:
            await self._close()
            raise
        self._opening = asyncio.create_task(self._open())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        await self._close()

    def stop(self) -> None:
        """Begin to end. The first time builds may finish; told again, they are cancelled."""
        if self._stop.is_set():
            self.draining = True
            self._cancel_builds("the daemon was told twice to shut down")
            return
        self._stop.set()

    async def wait(self) -> None:
        """Until told to stop, or the engine could not be opened (which is raised)."""
        stopping = asyncio.create_task(self._stop.wait())
        assert self._opening is not None
        done, _ = await asyncio.wait((stopping, self._opening), return_when=asyncio.FIRST_COMPLETED)
        if self._opening in done:
            self._opening.result()
            await stopping

    async def drain(self) -> None:
        """Refuse new builds, let running ones end for a while, then cancel them."""
        self.draining = True
        self.health.set(NOT_SERVING)
        _log.info("stopping server")
        if not len(self.builds):
            return
        limit = self.config.chantier.shutdown_s
        _log.info("waiting up to %g s for %d builds", limit, len(self.builds))
        try:
            async with asyncio.timeout(limit):
                await self.builds.drained()
        except TimeoutError:
            self._cancel_builds(f"the daemon shut down: the build did not end within {limit:g} s")
            await self.builds.drained()

    def _cancel_builds(self, reason: str) -> None:
        for build in self.builds.all():
            _log.warning("build %s is cancelled: %s", build.ref, reason)
            build.fail(GrpcError(UNAVAILABLE, reason))

    async def _open(self) -> None:
        allowed = frozenset(self.config.entitlements)
        try:
            engine = await Engine(self.root, self.config, allowed_entitlements=allowed, history=True).__aenter__()
            engine.worker.session_by_id = _ById(self.sessions)
            engine.run_frontend_image = FrontendImages(lambda: self.config).run
            assert engine.history is not None
            self.history = History(engine.history)
        except BaseException as err:
            self._engine.set_exception(err if isinstance(err, Exception) else CancelledError_())
            self._engine.exception()
            raise
        self._engine.set_result(engine)
        self._say_what_was_found(engine)

    def _say_what_was_found(self, engine: Engine) -> None:
        from .workers import labels, worker_id

        id = worker_id(self.root)
        platforms = " ".join(str(platform) for platform in engine.platforms)
        _log.info('found worker "%s", labels=%s, platforms=[%s]', id, labels(engine), platforms)
        _log.info('found 1 workers, default="%s"', id)
        if engine.worker.no_runtime:
            _log.warning("no runtime: %s", engine.worker.no_runtime)

    async def _close(self) -> None:
        await self._server.close(grace_s=2.0)
        if self._opening is not None:
            if not self._opening.done():
                self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self.is_open:
            await self.opened_engine.__aexit__(None, None, None)
        await self.traces.close()
        if self._debug is not None:
            await self._debug.__aexit__(None, None, None)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        """One daemon for a state directory; commands may use it beside it."""
        path = self.root / f"{_NAME}.lock"
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise StoreError(f"could not lock {path}, another instance running?") from err
        except OSError as err:
            raise StoreError(f"could not lock {path}: {(err.strerror or str(err)).lower()}") from err

    # -- listening

    async def _listen(self) -> None:
        grpc = self.config.grpc
        addresses = grpc.address or (default_address(self.settings.env),)
        self._tls = _server_tls(self.config)
        for address in addresses:
            tcp = address.startswith("tcp://")
            if self._tls is not None and not tcp:
                _log.warning("TLS is not used for %s", address)
            elif self._tls is None and tcp:
                _log.warning("TLS is not enabled for %s. enabling mutual TLS authentication is highly recommended", address)
            listener = await self._server.listen(address, tls=self._tls if tcp else None, uid=grpc.uid, gid=grpc.gid, mode=0o660)
            self.addresses.append(listener.address)
            _log.info("running server on %s", listener.address)

    # -- a newer config

    def reload(self, config: Config) -> None:
        """Take over what can be without touching running builds; say what needs a restart. Raises ConfigError, changing nothing."""
        Engine.check(config)
        if self._tls is not None and config.grpc.tls.cert:
            fresh = _server_tls(config)  # a bad certificate is found here
            assert fresh is not None
            self._tls.load_cert_chain(config.grpc.tls.cert, config.grpc.tls.key)
        if self.is_open:
            self.opened_engine.reconfigure(config)
        install(config.log_level, config.log.format)
        self.needs_restart = changes_that_need_a_restart(self.settings.config, config)
        self.config = config
        _log.info("the config was loaded anew")
        for key in self.needs_restart:
            _log.warning("the change of %s takes effect after a restart", key)


class _ById(Mapping[str, Any]):
    """The book of sessions as the mapping that operations look ids up in."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def __getitem__(self, id: str) -> Any:
        found = self._sessions.find(id)
        if found is None:
            raise KeyError(id)
        return found

    def __iter__(self) -> Any:
        return (session.id for session in self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)


def default_address(env: Mapping[str, str]) -> str:
    """Where buildkitd listens too: clients look there without being told."""
    if is_rootless(env):
        return f"unix://{env.get('XDG_RUNTIME_DIR') or f'/run/user/{os.geteuid()}'}/buildkit/buildkitd.sock"
    return "unix:///run/buildkit/buildkitd.sock"


def _server_tls(config: Config) -> ssl.SSLContext | None:
    files = config.grpc.tls
    if not files.cert and not files.key and not files.ca:
        return None
    if not files.cert or not files.key:
        raise ConfigError("TLS needs both a certificate and a key", hint="give --tlscert and --tlskey")
    return tls.server_context(Path(files.cert), Path(files.key), client_ca=Path(files.ca) if files.ca else None)


__all__ = ["Daemon", "default_address"]
