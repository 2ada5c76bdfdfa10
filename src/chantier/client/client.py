# SPDX-License-Identifier: Apache-2.0
"""A BuildKit daemon as its clients see it, ours or a stock one: what it is, what it holds, builds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Self

from chantier.errors import ChantierError, UnsupportedError
from chantier.pb import control_pb2 as pb
from chantier.progress import Reporter
from chantier.session.serve import Attached, Offered, attach
from chantier.wire import Channel, GrpcError, Stub, error_of

from .call import SolveCall
from .solve import CONTROL, Answer, Attach, Solving
from .worker import Usage, Version, Worker, usage_of, version_of, worker_of

if TYPE_CHECKING:
    from .failed import Failed

_UNIMPLEMENTED = 12
_NO_MOUNTS = "does not move cache mounts"
_UNAVAILABLE = 14


class Client:
    """Belongs to one event loop; owns its channel. Methods raise ChantierError; a daemon that is not there is `transient`."""

    def __init__(self, channel: Channel, *, attach: Attach | None = None) -> None:
        """`attach` is how sessions reach the daemon; None: inside Control.Session."""
        self.channel = channel
        self.name = channel.name
        self._control = Stub(channel, CONTROL)
        self._attach = attach or self._tunnel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.channel.close()

    # -- facts

    async def version(self, *, timeout_s: float | None = None) -> Version | None:
        """None for a daemon too old to say it."""
        try:
            answer = await self._control.unary("Info", pb.InfoRequest(), timeout_s=timeout_s)
        except GrpcError as err:
            if err.code == _UNIMPLEMENTED:
                return None
            raise error_of(err) from err
        return version_of(answer.buildkitVersion)

    async def workers(self, filters: Sequence[str] = (), *, timeout_s: float | None = None) -> tuple[Worker, ...]:
        """The first is the default one, its first platform the default platform."""
        try:
            answer = await self._control.unary("ListWorkers", pb.ListWorkersRequest(filter=filters), timeout_s=timeout_s)
        except GrpcError as err:
            raise error_of(err) from err
        return tuple(worker_of(record) for record in answer.record)

    async def usage(self, filters: Sequence[str] = ()) -> tuple[Usage, ...]:
        try:
            answer = await self._control.unary("DiskUsage", pb.DiskUsageRequest(filter=filters))
        except GrpcError as err:
            raise error_of(err) from err
        return tuple(usage_of(record) for record in answer.record)

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
        """What is deleted, as it is deleted. `keep_duration` in nanoseconds, spaces in bytes."""
        request = pb.PruneRequest(
            filter=filters,
            all=all,
            keepDuration=keep_duration,
            reservedSpace=reserved_space,
            maxUsedSpace=max_used_space,
            minFreeSpace=min_free_space,
        )
        try:
            async with self._control.stream("Prune") as call:
                await call.send(request)
                call.close_send()
                async for record in call:
                    yield usage_of(record)
        except GrpcError as err:
            raise error_of(err) from err

    async def wait(self, *, timeout_s: float) -> None:
        """Until the daemon answers. Raises the last error."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            try:
                await self.version(timeout_s=max(0.1, end - loop.time()))
            except ChantierError as err:
                if not err.transient or loop.time() + 1 > end:
                    raise
            else:
                return
            await asyncio.sleep(1)

    # -- builds

    async def solve(
        self,
        call: SolveCall,
        offered: Offered,
        reporter: Reporter,
        *,
        convert: bool = False,
        on_failure: Callable[[Failed], Awaitable[None]] | None = None,
    ) -> Answer:
        """Run one build to its end. Cancelling it cancels the build. Raises ChantierError with places in sources.

        `convert` asks what graphs it is, and runs nothing.
        """
        try:
            async with self._attach(offered) as attached:
                solving = Solving(self.channel, call, offered.session.id, reporter, convert=convert, on_failure=on_failure)
                work = asyncio.create_task(solving.run())
                try:
                    answer: Answer = await attached.watch(work)
                except asyncio.CancelledError:
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                    raise
                return answer
        except GrpcError as err:
            raise error_of(err) from err

    def _tunnel(self, offered: Offered, /) -> AbstractAsyncContextManager[Attached]:
        return attach(self.channel, offered)

    async def daemon_status(self, *, timeout_s: float | None = 20.0) -> dict[str, Any]:
        """What chantierd says of itself: state, builds, steps, what waits for what. Raises UnsupportedError for other daemons."""
        from chantier.pb.daemon_pb2 import StatusRequest

        found: dict[str, Any] = await self._ask("Status", StatusRequest(), "does not tell what it does", timeout_s=timeout_s)
        return found

    async def build_record(self, ref: str) -> dict[str, Any]:
        """All that chantierd keeps of a build, as `record.load_record` reads it. Raises UnsupportedError for other daemons."""
        from chantier.pb.daemon_pb2 import RecordRequest

        found: dict[str, Any] = await self._ask("Record", RecordRequest(ref=ref), "has no records of its own")
        return found

    async def cache_mounts(self) -> list[dict[str, Any]]:
        """The cache mounts of chantierd: id, record, size, last_used. Raises UnsupportedError for other daemons."""
        from chantier.pb.daemon_pb2 import CacheMountsRequest

        found: list[dict[str, Any]] = await self._ask("CacheMounts", CacheMountsRequest(), _NO_MOUNTS)
        return found

    async def move_cache_mount(
        self, what: str, name: str, place: Mapping[str, str], offered: Offered, *, limit: int = 0
    ) -> dict[str, Any]:
        """`what` is export or import; see `MoveCacheMountRequest` for the place. Raises what the daemon answers."""
        from chantier.pb.daemon_pb2 import MoveCacheMountRequest

        request = MoveCacheMountRequest(name=name, place=place, session=offered.session.id, limit=limit)
        async with self._attach(offered) as attached:
            work = asyncio.create_task(self._ask(f"{what.capitalize()}CacheMount", request, _NO_MOUNTS))
            try:
                found: dict[str, Any] = await attached.watch(work)
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        return found

    async def _ask(self, method: str, request: Any, lacks: str, *, timeout_s: float | None = None) -> Any:
        """A call of chantierd's own service, which answers JSON."""
        try:
            answer = await Stub(self.channel, "chantier.v1.Daemon").unary(method, request, timeout_s=timeout_s)
        except GrpcError as err:
            if err.code == _UNIMPLEMENTED:
                raise UnsupportedError(f"{self.name} is no chantierd: it {lacks}") from err
            raise error_of(err) from err
        return json.loads(answer.data)

    def stub(self, service: str) -> Any:
        """Calls of another service of the daemon, such as its content store."""
        return Stub(self.channel, service)


__all__ = ["Client"]
