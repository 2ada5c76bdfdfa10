# SPDX-License-Identifier: Apache-2.0
"""moby.buildkit.v1.Control (protocol.md 1.2): builds, their status, sessions, the worker, the cache, history."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from chantier.engine import Build, CacheOptions, FrontendResult, Policy, SolveRequest, SolveResult, UsageRecord
from chantier.errors import CancelledError_, ChantierError, SessionError
from chantier.pb import control_pb2 as pb
from chantier.progress import now
from chantier.session.remote import RemoteSession
from chantier.values import replace
from chantier.wire import GrpcError, ServerCall, Service
from chantier.wire.status import CANCELLED, UNAVAILABLE, UNKNOWN

from .builds import LATE_S, Running
from .clip import Clip
from .errors import build_status
from .gateway import Gateway
from .policy import SourcePolicy
from .progress import Progress, replay
from .session_exporters import SessionExporters
from .workers import version, worker_record

if TYPE_CHECKING:
    from chantier.engine import Engine
    from chantier.engine.recording import Recording

    from .daemon import Daemon

_log = logging.getLogger(__name__)
NAME = "moby.buildkit.v1.Control"


class Control:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def service(self) -> Service:
        return Service(
            NAME,
            {
                "Solve": self.solve,
                "Status": self.status,
                "Session": self.session,
                "ListWorkers": self.list_workers,
                "Info": self.info,
                "DiskUsage": self.disk_usage,
                "Prune": self.prune,
                "ListenBuildHistory": self.listen_build_history,
                "UpdateBuildHistory": self.update_build_history,
            },
        )

    # -- builds

    async def solve(self, request: pb.SolveRequest, call: ServerCall) -> pb.SolveResponse:
        daemon = self._daemon
        if daemon.draining:
            raise GrpcError(UNAVAILABLE, "the daemon is shutting down: no new builds are taken")
        if request.ProxyNetwork:  # a promise about what steps can reach must not be broken in silence
            raise GrpcError(UNKNOWN, "networks behind a proxy of the engine's are not supported by this engine")
        engine = await daemon.engine()
        build = Running(
            ref=request.Ref,
            request=request,
            progress=Progress(engine.new_file("status")),
            client=call.peer.address,
            task=asyncio.current_task(),
        )
        daemon.builds.add(build)
        _log.debug("build started", extra={"fields": {"build": build.ref, "client": build.client, "session": request.Session}})
        recording = None if request.Internal else await self._record(engine, build)
        outcome: SolveResult | BaseException | None = None
        try:
            outcome = await self._run(build, recording)
            return pb.SolveResponse(ExporterResponse=dict(outcome.response))
        except asyncio.CancelledError as err:
            outcome = build.failure or err
            if build.failure is not None:
                raise build.failure from None
            raise
        except Exception as err:  # whatever it is, the record tells of it
            outcome = err
            raise
        finally:
            build.progress.close()
            gateway = build.opened.result() if build.opened.done() and build.opened.exception() is None else None
            if gateway is not None:
                gateway.fail(CancelledError_())
            if not build.opened.done():
                build.opened.set_exception(GrpcError(UNKNOWN, f"the build {build.ref} has ended"))
                build.opened.exception()
            daemon.builds.remove(build)
            took = f"{(now() - build.started_at) / 1e9:.3f}s"
            _log.debug("build finished", extra={"fields": {"build": build.ref, "took": took}})
            if recording is None:
                asyncio.get_running_loop().call_later(LATE_S, self._forget, build)
            else:
                try:
                    await asyncio.shield(self._remember(recording, outcome))
                finally:
                    daemon.builds.forget(build)

    def _forget(self, build: Running) -> None:
        self._daemon.builds.forget(build)
        build.progress.path.unlink(missing_ok=True)

    async def _record(self, engine: Engine, build: Running) -> Recording | None:
        """None if the build cannot be recorded: it is not to fail for that."""
        assert engine.history is not None
        try:
            recording = await asyncio.to_thread(
                engine.history.begin, _engine_request(build.request, None), build.progress, events=False
            )
            build.progress.move(recording.log)
        except (OSError, ChantierError) as err:
            _log.error("build %s is not recorded: %s", build.ref, err)
            return None
        self._daemon.history.started(recording.record)
        return recording

    async def _run(self, build: Running, recording: Recording | None) -> SolveResult:
        daemon, request = self._daemon, build.request
        engine = await daemon.engine()
        session = await self._session(request.Session)
        policy = await self._policy(request)
        solve = _engine_request(request, policy)
        more = SessionExporters(session) if request.EnableSessionExporter and session is not None else None
        if more is not None:
            solve = replace(solve, find_exporters=more.find, exported=more.finish)
        async with engine.open(solve, session, recording or build.progress) as opened:
            gateway = Gateway(opened.bridge, dict(request.FrontendInputs))
            if more is not None:
                more.name_of = gateway.name_of
            # Who drives a build may look into a step that failed.
            opened.job.keep_failed = not request.Frontend and not request.HasField("Definition")
            if policy is not None:
                policy.resolve = partial(gateway.source_meta, unchecked=True)
            build.opened.set_result(gateway)
            result: SolveResult | None = None
            try:
                result = await opened.finish(await self._result(opened, gateway, request))
                return result
            finally:
                if recording is not None:
                    engine.note(recording, opened, done=result is not None)

    async def _session(self, id: str) -> RemoteSession | None:
        """None if no client has come under that id: a build that asks nothing of it does not miss it."""
        if not id:
            return None
        try:
            return await self._daemon.sessions.get(id)
        except SessionError:
            return None

    async def _policy(self, request: pb.SolveRequest) -> SourcePolicy | None:
        rules = [request.SourcePolicy] if request.HasField("SourcePolicy") and request.SourcePolicy.rules else []
        if not rules and not request.SourcePolicySession:
            return None
        verifier = await self._daemon.sessions.get(request.SourcePolicySession) if request.SourcePolicySession else None
        return SourcePolicy(rules, verifier)

    async def _result(self, opened: Build, gateway: Gateway, request: pb.SolveRequest) -> FrontendResult:
        if request.Frontend or request.HasField("Definition"):
            return await opened.drive()
        return await gateway.returned

    async def _remember(self, recording: Recording, outcome: SolveResult | BaseException | None) -> None:
        if isinstance(outcome, SolveResult):
            await self._daemon.history.finish(recording, outcome, None, None)
            return
        error = outcome or asyncio.CancelledError()
        await self._daemon.history.finish(recording, None, error, _status(outcome))

    async def status(self, request: pb.StatusRequest, call: ServerCall) -> None:
        call.send_initial_metadata(_timestamp())
        messages = await self._messages(request.Ref)
        clip = Clip(self._daemon.log_limits)
        async for message in messages:
            await call.send(clip.apply(message))

    async def _messages(self, ref: str) -> AsyncIterator[pb.StatusResponse]:
        """A running build's, from its start; a finished one's from history."""
        daemon = self._daemon
        await daemon.engine()
        progress = daemon.builds.progress(ref)
        if progress is None and (log := await daemon.history.log_of(ref)) is not None:
            return replay(log)
        if progress is None:
            progress = await daemon.builds.wait_progress(ref)
        return progress.follow()

    async def session(self, call: ServerCall) -> None:
        await self._daemon.sessions.handle(call)

    # -- the worker

    async def list_workers(self, request: pb.ListWorkersRequest, call: ServerCall) -> pb.ListWorkersResponse:
        engine = await self._daemon.engine()
        record = await asyncio.to_thread(worker_record, engine)
        fields = {"id": record.ID} | {f"labels.{key}": value for key, value in record.Labels.items()}
        from .filters import matches

        return pb.ListWorkersResponse(record=[record] if matches(list(request.filter), fields) else [])

    async def info(self, request: pb.InfoRequest, call: ServerCall) -> pb.InfoResponse:
        return pb.InfoResponse(buildkitVersion=version())

    # -- the cache

    async def disk_usage(self, request: pb.DiskUsageRequest, call: ServerCall) -> pb.DiskUsageResponse:
        engine = await self._daemon.engine()
        records = await asyncio.to_thread(engine.cache.usage, filters=tuple(request.filter), age_limit_ns=request.ageLimit)
        return pb.DiskUsageResponse(record=[usage_message(record) for record in records])

    async def prune(self, request: pb.PruneRequest, call: ServerCall) -> None:
        engine = await self._daemon.engine()
        policy = Policy(
            filters=tuple(request.filter),
            all=request.all,
            keep_duration_ns=request.keepDuration,
            reserved_space=request.reservedSpace,
            max_used_space=request.maxUsedSpace,
            min_free_space=request.minFreeSpace,
        )
        queue: asyncio.Queue[UsageRecord | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(record: UsageRecord) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, record)

        task = asyncio.ensure_future(engine.prune(policy, tell))
        task.add_done_callback(lambda _: queue.put_nowait(None))
        while (record := await queue.get()) is not None:
            await call.send(usage_message(record))
        await task

    # -- history

    async def listen_build_history(self, request: pb.BuildHistoryRequest, call: ServerCall) -> None:
        call.send_initial_metadata(_timestamp())
        await self._daemon.engine()
        async for event in self._daemon.history.listen(request):
            await call.send(event)

    async def update_build_history(
        self, request: pb.UpdateBuildHistoryRequest, call: ServerCall
    ) -> pb.UpdateBuildHistoryResponse:
        await self._daemon.engine()
        history = self._daemon.history
        if request.Delete:
            await history.delete(request.Ref)
        elif request.Finalize:
            await history.finalize(request.Ref)
        else:
            await history.pin(request.Ref, request.Pinned)
        return pb.UpdateBuildHistoryResponse()


def usage_message(record: UsageRecord) -> pb.UsageRecord:
    made = pb.UsageRecord(
        ID=record.id,
        Mutable=record.mutable,
        InUse=record.in_use,
        Size=record.size,
        UsageCount=record.usage_count,
        Description=record.description,
        RecordType=record.record_type,
        Shared=record.shared,
        Parents=list(record.parents),
    )
    made.CreatedAt.FromNanoseconds(record.created_at)
    if record.last_used_at is not None:
        made.LastUsedAt.FromNanoseconds(record.last_used_at)
    return made


def _engine_request(request: pb.SolveRequest, policy: SourcePolicy | None) -> SolveRequest:
    exporters = [(e.Type, dict(e.Attrs)) for e in request.Exporters]
    if not exporters and request.ExporterDeprecated:
        exporters = [(request.ExporterDeprecated, dict(request.ExporterAttrsDeprecated))]
    return SolveRequest(
        ref=request.Ref,
        frontend=request.Frontend,
        attrs=dict(request.FrontendAttrs),
        inputs=dict(request.FrontendInputs),
        definition=request.Definition if request.HasField("Definition") else None,
        exporters=tuple(exporters),
        cache_imports=_cache_imports(request.Cache),
        cache_exports=_cache_exports(request.Cache),
        entitlements=frozenset(request.Entitlements),
        internal=request.Internal,
        check_source=policy,
    )


def _cache_imports(options: pb.CacheOptions) -> tuple[CacheOptions, ...]:
    old = [CacheOptions(type="registry", attrs={"ref": ref}) for ref in options.ImportRefsDeprecated]
    return (*old, *(CacheOptions(type=entry.Type, attrs=dict(entry.Attrs)) for entry in options.Imports))


def _cache_exports(options: pb.CacheOptions) -> tuple[CacheOptions, ...]:
    found = [CacheOptions(type=entry.Type, attrs=dict(entry.Attrs)) for entry in options.Exports]
    if options.ExportRefDeprecated:
        found.append(CacheOptions(type="registry", attrs={**options.ExportAttrsDeprecated, "ref": options.ExportRefDeprecated}))
    return tuple(found)


def _status(outcome: BaseException | None) -> GrpcError:
    if outcome is None or isinstance(outcome, asyncio.CancelledError):
        return GrpcError(CANCELLED, "context canceled")
    return build_status(outcome)


def _timestamp() -> dict[str, str]:
    return {"buildkit-current-timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


__all__ = ["NAME", "Control", "usage_message"]
