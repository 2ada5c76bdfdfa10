# SPDX-License-Identifier: Apache-2.0
"""One build on a daemon, as stock clients ask for it (protocol.md 0.1, 3.1).

Control.Solve is sent without a frontend; this client then drives the build through LLBBridge, and what it returns there
becomes the build's result. Solve, Status and the bridge run at once:

    Control.Solve   waits for Return, exports, answers     its error is the build's
    Control.Status  events until the build is over         outlives Solve: the last events count
    LLBBridge       Ping, Solve(dockerfile.v0), Return     Return exactly once, also of a failure
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from chantier.errors import UnsupportedError
from chantier.pb import control_pb2 as control_pb
from chantier.pb import gateway_pb2 as pb
from chantier.pb import ops_pb2
from chantier.progress import Reporter
from chantier.session.serve import Attached, Offered
from chantier.values import dataclass, field
from chantier.wire import Channel, GrpcError, Stub

from .attest import DEFAULT_PROVENANCE
from .call import SolveCall
from .events import events_of

if TYPE_CHECKING:
    from .failed import Failed

_log = logging.getLogger(__name__)
_PING_S = 15.0
_QUIET_S = 5.0  # stock clients wait that long for more events once Solve is over
_SETTLED_S, _SETTLED_MOST_S = 0.2, 2.0
_BUILD_ID = "buildkit-controlapi-buildid"
_UNKNOWN = 2
CONTROL = "moby.buildkit.v1.Control"
BRIDGE = "moby.buildkit.v1.frontend.LLBBridge"


class Attach(Protocol):
    """How a session reaches the daemon: inside Control.Session, or on a connection of its own (dockerd)."""

    def __call__(self, offered: Offered, /) -> AbstractAsyncContextManager[Attached]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`response` is the exporters' answer, `metadata` the frontend's (calls answer there).

    `definitions` are the graphs that the frontend made, by platform ("" where there is one); of a conversion only.
    """

    response: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    definitions: Mapping[str, ops_pb2.Definition] = field(default_factory=dict)


class Solving:
    """A build while it runs. Used once, by `Client.solve`."""

    def __init__(
        self,
        channel: Channel,
        call: SolveCall,
        session_id: str,
        reporter: Reporter,
        *,
        convert: bool = False,
        on_failure: Callable[[Failed], Awaitable[None]] | None = None,
    ) -> None:
        """`convert` asks for the graphs and runs nothing. `on_failure` is called with a step that failed, while the daemon
        still keeps its state."""
        self._call = call
        self._convert = convert
        self._definitions: dict[str, ops_pb2.Definition] = {}
        self._on_failure = on_failure
        self._looked: BaseException | None = None  # the error that was looked into, or what came of looking
        self._session_id = session_id
        self._reporter = reporter
        self._control = Stub(channel, CONTROL)
        self._bridge = Stub(channel, BRIDGE, metadata=[(_BUILD_ID, call.ref)])
        self._metadata: dict[str, bytes] = {}
        self._heard_at = 0.0

    async def run(self) -> Answer:
        """Cancelling it cancels the build, and waits a moment for what the daemon says of that."""
        solve = asyncio.create_task(self._solve(), name="Control.Solve")
        status = asyncio.create_task(self._follow(), name="Control.Status")
        drive = asyncio.create_task(self._drive(), name="LLBBridge")
        try:
            await asyncio.wait((solve, drive), return_when=asyncio.FIRST_COMPLETED)
            if not solve.done():
                # The bridge is done, well or badly: it was returned, and Solve ends with it.
                await asyncio.wait((solve,))
            if self._looked is not None:
                # Daemons before v0.13 end such a build with the last error of the processes that looked into it.
                raise self._looked
            response = solve.result()
            await drive
        except BaseException:
            solve.cancel()
            raise
        finally:
            drive.cancel()
            await self._last_events(status)
            await asyncio.gather(solve, drive, status, return_exceptions=True)
        return Answer(response=dict(response.ExporterResponse), metadata=self._metadata, definitions=self._definitions)

    # -- Control

    async def _solve(self) -> Any:
        call = self._call
        exporters = [control_pb.Exporter(Type=kind, Attrs=dict(attrs)) for kind, attrs in call.exporters]
        request = control_pb.SolveRequest(
            Ref=call.ref,
            Session=self._session_id,
            FrontendAttrs=dict(call.attrs),
            Exporters=exporters,
            Cache=control_pb.CacheOptions(
                Imports=[control_pb.CacheOptionsEntry(Type=c.type, Attrs=dict(c.attrs)) for c in call.cache_imports],
                Exports=[control_pb.CacheOptionsEntry(Type=c.type, Attrs=dict(c.attrs)) for c in call.cache_exports],
            ),
            Entitlements=call.entitlements,
            Internal=call.internal,
        )
        if exporters:  # daemons before v0.13 read these
            request.ExporterDeprecated = exporters[0].Type
            request.ExporterAttrsDeprecated.update(exporters[0].Attrs)
        return await self._control.unary("Solve", request)

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        async with self._control.stream("Status") as call:
            await call.send(control_pb.StatusRequest(Ref=self._call.ref))
            call.close_send()
            async for message in call:
                self._heard_at = loop.time()
                for event in events_of(message):
                    self._reporter.emit(event)

    async def _last_events(self, status: asyncio.Task[None]) -> None:
        """Until the stream ends, or nothing came for a while."""
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        while not status.done():
            left = self._heard_at + _QUIET_S - loop.time()
            if left <= 0:
                status.cancel()
                break
            with suppress(asyncio.CancelledError):  # a second cancellation waits no longer
                await asyncio.wait((status,), timeout=left)
                continue
            status.cancel()
            break
        if status.done() and not status.cancelled() and status.exception() is not None:
            # A build that ended before it was known has no events; any other loss of events leaves the build as it is.
            _log.debug("the status stream of build %s failed: %s", self._call.ref, status.exception())

    # -- the gateway

    async def _drive(self) -> None:
        """Run the frontend and return what it gave. A failure is returned too: Solve then fails with it."""
        try:
            pong = await self._bridge.unary("Ping", pb.PingRequest(), timeout_s=_PING_S)
            self._check(pong)
            answer = await self._bridge.unary("Solve", self._frontend_request())
        except GrpcError as err:
            await self._look(err)
            await self._return_error(err)
            return
        except UnsupportedError as err:
            await self._return_error(GrpcError(_UNKNOWN, str(err)))
            raise
        result = answer.result if answer.HasField("result") else pb.Result(refDeprecated=answer.ref)
        for key, value in self._call.metadata.items():
            result.metadata[key] = value
        self._metadata = dict(result.metadata)
        if self._convert:
            self._definitions = _definitions(result)
            result = pb.Result()  # nothing is to be made of it
        if result.WhichOneof("result") is None:
            result.ref.SetInParent()  # an empty result is one too
        with suppress(GrpcError):  # Solve says why
            await self._bridge.unary("Return", pb.ReturnRequest(result=result))

    async def _look(self, err: GrpcError) -> None:
        """Let whoever asked look into the step, if a step it was that failed."""
        if self._on_failure is None:
            return
        from .failed import failed_step

        failed = failed_step(err, self._bridge)
        if failed is None:
            return
        self._looked = err
        await self._quiet()
        try:
            await self._on_failure(failed)
        except Exception as problem:  # the build ends first, then it is raised
            self._looked = problem

    async def _quiet(self) -> None:
        """Until the events of what just failed are here: they come on a stream of their own."""
        loop = asyncio.get_running_loop()
        start = self._heard_at = loop.time()
        while loop.time() - start < _SETTLED_MOST_S and loop.time() - self._heard_at < _SETTLED_S:
            await asyncio.sleep(_SETTLED_S / 4)

    def _check(self, pong: Any) -> None:
        caps = {cap.ID for cap in pong.LLBCaps if cap.Enabled}
        if len(self._call.exporters) > 1 and "exporter.multiple" not in caps:
            raise UnsupportedError(
                "multiple outputs currently unsupported by the current BuildKit daemon, "
                "please upgrade to version v0.13+ or use a single output"
            )
        asked = [value for key, value in self._call.attrs.items() if key.startswith("attest:")]
        if any(value != DEFAULT_PROVENANCE for value in asked) and "exporter.image.attestations" not in caps:
            raise UnsupportedError("Attestations are not supported by the current BuildKit daemon")

    def _frontend_request(self) -> pb.SolveRequest:
        call = self._call
        request = pb.SolveRequest(allowResultReturn=True, allowResultArrayRef=True)
        # Run here, not when the result is exported: only an error of the gateway says where the state of the step is.
        request.Evaluate = self._on_failure is not None
        if call.definition is not None:
            request.Definition.CopyFrom(call.definition)
            return request
        options = dict(call.attrs)
        request.Frontend = call.frontend
        if call.cache_imports:
            # The frontend passes them on with each of its own solves.
            entries = [{"Type": c.type, "Attrs": dict(c.attrs)} for c in call.cache_imports]
            options["cache-imports"] = json.dumps(entries, separators=(",", ":"))
        request.FrontendOpt.update(options)
        return request

    async def _return_error(self, err: GrpcError) -> None:
        request = pb.ReturnRequest()
        request.error.code = err.code
        request.error.message = err.message
        for detail in err.details:
            request.error.details.add(type_url=detail.type_url, value=detail.value)
        with suppress(GrpcError):  # then Solve has failed by itself, and says why
            await self._bridge.unary("Return", request)


def _definitions(result: Any) -> dict[str, ops_pb2.Definition]:
    """Empty where the daemon is too old to say them."""
    kind = result.WhichOneof("result")
    refs = {"": result.ref} if kind == "ref" else dict(result.refs.refs) if kind == "refs" else {}
    return {platform: getattr(ref, "def") for platform, ref in refs.items()}


__all__ = ["BRIDGE", "CONTROL", "Answer", "Attach", "Solving"]
