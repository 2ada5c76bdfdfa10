# SPDX-License-Identifier: Apache-2.0
"""Containers that the client of a build runs processes in, on that build's results (LLBBridge.NewContainer)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chantier.cache import Ref
from chantier.errors import CancelledError_, ChantierError, NotFoundError, PolicyError, UsageError
from chantier.op.container import ContainerSpec, HeldContainer
from chantier.op.worker import threaded
from chantier.pb import fsutil_pb2
from chantier.pb import ops_pb2 as pb

from .files import read_dir, read_file, stat_file

if TYPE_CHECKING:
    from .bridge import EngineBridge, ReadableRef


class ExistsError(ChantierError):
    grpc_code = 6


class Containers:
    """Those of one build, by the ids that its client chose."""

    def __init__(self, bridge: EngineBridge) -> None:
        self._bridge = bridge
        self._open: dict[str, HeldContainer | None] = {}

    async def new(
        self,
        id: str,
        mounts: Sequence[tuple[pb.Mount, ReadableRef | None]],
        *,
        network: int = 0,
        platform: pb.Platform | None = None,
        hostname: str = "",
        extra_hosts: Sequence[pb.HostIP] = (),
    ) -> HeldContainer:
        """Each mount comes with the result it shows, if any. Raises ExistsError, what a RUN's mounts raise.

        What the build was not granted is refused to the processes in it: `check` goes before each.
        """
        if id in self._open:
            raise ExistsError(f"container {id} already exists")
        self._open[id] = None
        try:
            inputs: list[Ref | None] = []
            prepared = []
            for mount, ref in mounts:
                made = pb.Mount()
                made.CopyFrom(mount)
                made.ClearField("resultID")
                made.input, made.output = -1, -1
                if mount.dest == "/" and mount.mountType != pb.BIND:
                    raise UsageError("the root of a container must be a bind mount")
                found = await ref.result() if ref is not None else None
                if found is not None:
                    made.input = len(inputs)
                    inputs.append(found)
                prepared.append(made)
            spec = ContainerSpec(
                mounts=prepared,
                inputs=inputs,
                network=network,
                platform=platform,
                hostname=hostname,
                extra_hosts=extra_hosts,
            )
            container = HeldContainer(self._bridge.engine.worker, spec, self._bridge.sessions)
            await container.open()
        except BaseException:
            del self._open[id]
            raise
        self._open[id] = container
        return container

    def check(self, network: int, security: int) -> None:
        """Raises PolicyError for what the build was not granted, UsageError for what there is not."""
        if security not in (pb.SecurityMode.SANDBOX, pb.SecurityMode.INSECURE):
            raise UsageError(f"invalid security mode {security}")
        granted = self._bridge.entitlements
        if network == pb.NetMode.HOST and "network.host" not in granted:
            raise PolicyError("network.host is not allowed")
        if security == pb.SecurityMode.INSECURE and "security.insecure" not in granted:
            raise PolicyError("security.insecure is not allowed")

    def get(self, id: str) -> HeldContainer:
        found = self._open.get(id)
        if found is None:
            raise NotFoundError(f"container details for {id} not found")
        return found

    async def release(self, id: str) -> None:
        """Raises NotFoundError; CancelledError_ if it had to stop something, which clients of BuildKit expect to hear of."""
        found = self.get(id)
        del self._open[id]
        if not await found.close():
            raise CancelledError_

    async def close(self) -> None:
        containers, self._open = self._open, {}
        for container in containers.values():
            if container is not None:
                await container.close()

    async def read_file(self, id: str, mount: int, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        root = self.get(id).path_of(mount)
        return await threaded(lambda _: read_file(root, path, offset=offset, length=length))

    async def read_dir(self, id: str, mount: int, path: str, *, pattern: str = "") -> list[fsutil_pb2.Stat]:
        root = self.get(id).path_of(mount)
        return await threaded(lambda cancelled: read_dir(root, path, pattern=pattern, cancelled=cancelled))

    async def stat_file(self, id: str, mount: int, path: str) -> fsutil_pb2.Stat:
        root = self.get(id).path_of(mount)
        return await threaded(lambda _: stat_file(root, path))


__all__ = ["Containers", "ExistsError"]
