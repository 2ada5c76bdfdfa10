# SPDX-License-Identifier: Apache-2.0
"""A service beside BuildKit's own: what `chantier daemon status`, `history` and `cache-mount` ask."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from chantier import __version__
from chantier.pb import control_pb2, daemon_pb2
from chantier.progress import now
from chantier.values import asdict
from chantier.wire import Handler, ServerCall, Service

if TYPE_CHECKING:
    from chantier.engine.cache_mounts import CacheMounts
    from chantier.session.remote import RemoteSession

    from .builds import Running
    from .daemon import Daemon

STATUS_NAME = "chantier.v1.Daemon"


def own(daemon: Daemon) -> Service:
    """Answers are JSON in a BytesMessage: of `Status` see `report`, of `Record` a `record.BuildRecord`."""

    async def status(request: daemon_pb2.StatusRequest, call: ServerCall) -> control_pb2.BytesMessage:
        return control_pb2.BytesMessage(data=json.dumps(report(daemon), sort_keys=True).encode())

    async def record(request: daemon_pb2.RecordRequest, call: ServerCall) -> control_pb2.BytesMessage:
        await daemon.engine()
        found = await daemon.history.record(request.ref)
        return control_pb2.BytesMessage(data=json.dumps(asdict(found), default=str).encode())

    return Service(STATUS_NAME, {"Status": status, "Record": record, **_cache_mounts(daemon)})


def _cache_mounts(daemon: Daemon) -> dict[str, Handler]:
    """What `engine.cache_mounts` does, with logins and directories of the client's session."""

    async def mounts() -> CacheMounts:
        from chantier.engine.cache_mounts import CacheMounts

        return CacheMounts(await daemon.engine())

    async def session(request: daemon_pb2.MoveCacheMountRequest) -> RemoteSession | None:
        return await daemon.sessions.get(request.session) if request.session else None

    async def known(request: daemon_pb2.CacheMountsRequest, call: ServerCall) -> control_pb2.BytesMessage:
        return _json([asdict(mount) for mount in await (await mounts()).list()])

    async def export(request: daemon_pb2.MoveCacheMountRequest, call: ServerCall) -> control_pb2.BytesMessage:
        found = await mounts()
        moved = await found.export(request.name, dict(request.place), await session(request), limit=request.limit)
        return _json(moved.plain())

    async def import_(request: daemon_pb2.MoveCacheMountRequest, call: ServerCall) -> control_pb2.BytesMessage:
        moved = await (await mounts()).import_(request.name, dict(request.place), await session(request))
        return _json(moved.plain())

    return {"CacheMounts": known, "ExportCacheMount": export, "ImportCacheMount": import_}


def _json(value: Any) -> control_pb2.BytesMessage:
    return control_pb2.BytesMessage(data=json.dumps(value).encode())


def report(daemon: Daemon) -> dict[str, Any]:
    """What runs, what waits and for what, as plain values."""
    engine = daemon.opened_engine if daemon.is_open else None
    found: dict[str, Any] = {
        "version": __version__,
        "pid": os.getpid(),
        "started": daemon.started_at,
        "uptime_s": round(time.time() - daemon.started_at, 1),
        "state": daemon.state,
        "addresses": daemon.addresses,
        "root": str(daemon.root),
        "config": daemon.config.file or "",
        "sessions": [session.id for session in daemon.sessions],
        "connections": daemon.connections,
        "builds": [_build(build) for build in daemon.builds.all()],
        "needs_restart": list(daemon.needs_restart),
    }
    if engine is not None:
        slots = engine.worker.slots
        found["steps"] = {"running": len(slots.running), "waiting": len(slots.waiting), "limit": slots.limit}
        found["registries"] = engine.registries.status().plain()
        found["vertices"] = [
            {
                "digest": status.digest,
                "name": status.name,
                "builds": list(status.jobs),
                "state": status.state,
                "doing": list(status.doing),
                "waits_for": list(status.waits_for),
                "since_s": round(status.since_s, 1),
            }
            for status in engine.solver.dump()
            if status.state in ("busy", "waiting", "failed")
        ]
    return found


def _build(build: Running) -> dict[str, Any]:
    at = now()
    return {
        "ref": build.ref,
        "client": build.client,
        "session": build.request.Session,
        "internal": build.request.Internal,
        "since_s": round((at - build.started_at) / 1e9, 1),
        "quiet_s": round((at - build.progress.active_at) / 1e9, 1),
        "steps": {"total": build.progress.total, "completed": build.progress.completed, "cached": build.progress.cached},
        "running": [
            {"name": seen.vertex.name, "since_s": round((at - seen.vertex.started) / 1e9, 1)}
            for seen in build.progress.seen.values()
            if seen.vertex.started is not None and seen.vertex.completed is None
        ],
    }


__all__ = ["STATUS_NAME", "own", "report"]
