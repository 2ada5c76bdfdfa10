# SPDX-License-Identifier: Apache-2.0
"""Frontends that are images (`gateway.v0`, `# syntax=`): run in a container that speaks LLBBridge over its standard streams.

protocol.md 1.5.3: HTTP/2 goes to its standard input and comes from its standard output; this side is the gRPC server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from chantier.config import Config
from chantier.engine import EngineBridge, FrontendResult, HeldContainer
from chantier.errors import ChantierError, PolicyError, StepError, UnsupportedError, UsageError
from chantier.llb import image, scratch
from chantier.pb import ops_pb2
from chantier.spec import Platform, Reference, new_id
from chantier.wire import Health, Server

from .bridge import serve
from .gateway import Gateway
from .workers import worker_record

if TYPE_CHECKING:
    from chantier.engine import EngineRef

_log = logging.getLogger(__name__)
_CAPS_LABEL = "moby.buildkit.frontend.caps"
_NO_NETWORK_LABEL = "moby.buildkit.frontend.network.none"
_INPUTS_CAP = "moby.buildkit.frontend.inputs"
_METADATA = "/run/config/buildkit/metadata"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GRACE_S = 10.0
_TAIL = 8 << 10


class FrontendImages:
    """What the engine calls for a frontend that is not its own."""

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config

    async def run(
        self, bridge: EngineBridge, source: str, opts: Mapping[str, str], inputs: Mapping[str, ops_pb2.Definition]
    ) -> FrontendResult:
        """Raises PolicyError, UnsupportedError for a capability it lacks, what it returned as its error, how it ended else."""
        check_allowed(self._config(), source)
        if "gateway-devel" in opts:
            raise UsageError("gateway-devel is not supported")
        config, definition = await _resolve(bridge, source, opts)
        _check_caps(config, opts, inputs)
        running = _Frontend(bridge, config, opts, inputs)
        return await running.run(await bridge.solve(definition), definition)


def check_allowed(config: Config, source: str) -> None:
    """Raises PolicyError `'SOURCE' is not an allowed gateway source`."""
    own = config.frontends.gateway
    if own.enabled is False:
        raise PolicyError("frontend gateway.v0 is disabled by the configuration of the daemon")
    if not own.allowed_repositories:
        return
    name = Reference.parse(source).name
    if all(Reference.parse(allowed).name != name for allowed in own.allowed_repositories):
        raise PolicyError(f"'{source}' is not an allowed gateway source")


async def _resolve(bridge: EngineBridge, source: str, opts: Mapping[str, str]) -> tuple[dict[str, Any], ops_pb2.Definition]:
    """The image, or the named context that stands for it, as LLB; and its config."""
    platform = bridge.platforms[0]
    named = opts.get(f"context:{source}", "")
    ref = named.removeprefix("docker-image://") if named.startswith("docker-image://") else source
    if named and ref == source:
        raise UnsupportedError(f"failed to run frontend {source}: the context {named!r} cannot stand for a frontend image")
    parsed = Reference.parse(ref).with_default_tag()
    found = await bridge.resolve_image(
        str(parsed), platform=platform, log_name=f"resolve image config for docker-image://{parsed}"
    )
    found.of(str(parsed))
    pinned = str(parsed) if parsed.digest else f"{parsed}@{found.digest}"
    state = image(pinned, record_type="frontend", name=f"docker-image://{pinned}")
    return json.loads(found.config).get("config") or {}, state.marshal(platform, caps=bridge.caps)


def _check_caps(config: Mapping[str, Any], opts: Mapping[str, str], inputs: Mapping[str, Any]) -> None:
    has = set(filter(None, ((config.get("Labels") or {}).get(_CAPS_LABEL) or "").split(",")))
    wanted = [name.partition("+")[0] for name in filter(None, opts.get("frontend.caps", "").split(","))]
    if inputs:
        wanted.append(_INPUTS_CAP)
    for name in wanted:
        if name not in has:
            raise UnsupportedError(f"unsupported frontend capability {name}")


class _Frontend:
    def __init__(
        self,
        bridge: EngineBridge,
        config: Mapping[str, Any],
        opts: Mapping[str, str],
        inputs: Mapping[str, ops_pb2.Definition],
    ) -> None:
        self._bridge = bridge
        self._config = config
        self._opts = opts
        self._gateway = Gateway(bridge, inputs)
        self._input: asyncio.Queue[bytes] = asyncio.Queue()
        self._output: asyncio.Queue[bytes] = asyncio.Queue()
        self._said = b""

    async def run(self, ref: EngineRef, definition: ops_pb2.Definition) -> FrontendResult:
        metadata = await self._bridge.solve(
            scratch().mkfile("/frontend.bin", definition.SerializeToString(), 0o444).marshal(caps=self._bridge.caps)
        )
        id = new_id()
        containers = self._bridge.containers
        labels = self._config.get("Labels") or {}
        container = await containers.new(
            id,
            [
                (ops_pb2.Mount(dest="/"), ref),
                (ops_pb2.Mount(dest=_METADATA, readonly=True), metadata),
            ],
            network=ops_pb2.NetMode.NONE if labels.get(_NO_NETWORK_LABEL) == "true" else ops_pb2.NetMode.UNSET,
        )
        try:
            return await self._talk(container)
        finally:
            await containers.release(id)

    async def _talk(self, container: HeldContainer) -> FrontendResult:
        server = Server([serve(self._gateway), Health().service()])
        serving = asyncio.create_task(server.serve_stream(_Pipe(self._output, self._input), name="the frontend"))
        process = asyncio.create_task(container.run(self._meta(), output=self._take, stdin=self._input.get))
        try:
            await asyncio.wait((process, self._gateway.returned), return_when=asyncio.FIRST_COMPLETED)
            if self._gateway.returned.done():
                await asyncio.wait((process,), timeout=_GRACE_S)  # it may still have something to tidy up
                return self._gateway.returned.result()
            ended = await process
            if self._gateway.returned.done():  # a return that came with its end
                return self._gateway.returned.result()
            raise self._failure(ended.code)
        finally:
            process.cancel()
            self._output.put_nowait(b"")
            serving.cancel()
            await asyncio.gather(process, serving, return_exceptions=True)
            self._gateway.fail(ChantierError("the frontend has ended"))

    def _failure(self, code: int) -> ChantierError:
        said = self._said.decode(errors="replace").strip()
        last = said.splitlines()[-1] if said else ""
        if code == 0:
            return ChantierError("frontend did not return a result", detail=said or None)
        return StepError(f"exit code: {code}", argv=tuple(self._meta().args), exit_status=code, hint=last or None)

    def _meta(self) -> ops_pb2.Meta:
        config = self._config
        args = list(config.get("Entrypoint") or ["/run"])
        cmdline = self._opts.get("cmdline", "")
        # The words after the image's name in a `# syntax=` line are the frontend's own arguments.
        args += shlex.split(cmdline)[1:] if cmdline else []
        env = list(config.get("Env") or [_PATH])
        workers = [worker_json(self._bridge)]
        env += [f"BUILDKIT_FRONTEND_OPT_{n}={key}={value}" for n, (key, value) in enumerate(sorted(self._opts.items()))]
        env.append(f"BUILDKIT_SESSION_ID={self._bridge.session_id}")
        env.append(f"BUILDKIT_WORKERS={json.dumps(workers, separators=(',', ':'))}")
        env.append("BUILDKIT_EXPORTEDPRODUCT=buildkit")
        return ops_pb2.Meta(args=args, env=env, cwd=config.get("WorkingDir") or "/", user=config.get("User") or "")

    def _take(self, stream: int, data: bytes) -> None:
        if stream == 1:
            self._output.put_nowait(data)
            return
        self._said = (self._said + data)[-_TAIL:]
        _log.info("frontend: %s", data.decode(errors="replace").rstrip())


class _Pipe:
    """The process's standard streams as a wire.ByteStream."""

    def __init__(self, incoming: asyncio.Queue[bytes], outgoing: asyncio.Queue[bytes]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def read(self) -> bytes:
        return await self._incoming.get()

    async def write(self, data: bytes, /) -> None:
        self._outgoing.put_nowait(data)

    async def close(self) -> None:
        self._outgoing.put_nowait(b"")


def worker_json(bridge: EngineBridge) -> dict[str, Any]:
    """Go's JSON of client.WorkerInfo."""
    record = worker_record(bridge.engine, brief=True)
    return {
        "ID": record.ID,
        "Labels": dict(record.Labels),
        "Platforms": [_platform_json(platform) for platform in bridge.platforms],
        "GCPolicy": None,
        "BuildkitVersion": {"package": "", "version": "", "revision": ""},
    }


def _platform_json(platform: Platform) -> dict[str, Any]:
    found: dict[str, Any] = platform.to_json()
    return found


__all__ = ["FrontendImages", "check_allowed"]
