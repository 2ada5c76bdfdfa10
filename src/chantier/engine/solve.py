# SPDX-License-Identifier: Apache-2.0
"""The way of one build through the engine: frontend, results, exporters, push."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chantier.cache import Ref
from chantier.dockerfile.bridge import FrontendResult
from chantier.errors import PolicyError, UsageError
from chantier.export import Exportable, ExportContext, Exporter, Response, exporter_for
from chantier.progress import Reporter, step

from .bridge import EngineBridge, EngineRef
from .request import SolveRequest, SolveResult

if TYPE_CHECKING:
    from chantier.export.types import Finalize

    from .engine import Engine

ENTITLEMENTS = ("network.host", "security.insecure", "device")


async def solve(engine: Engine, request: SolveRequest, session: Any, reporter: Reporter) -> SolveResult:
    """Run one build. Raises what went wrong, with its vertex and source places; nothing half-exported is named."""
    exporters = [exporter_for(kind, _with_epoch(attrs, request.attrs)) for kind, attrs in request.exporters]
    entitlements = _entitlements(engine, request)
    sessions = (session,) if session is not None else ()
    async with engine.solver.job(request.ref, reporter, sessions=sessions) as job:
        bridge = EngineBridge(engine, job, sessions=sessions, reporter=reporter, entitlements=entitlements)
        try:
            result = await _result(bridge, request)
            if not result.refs and not result.definitions:
                return SolveResult(ref=request.ref, response={}, metadata=result.metadata)
            what = await _evaluate(result)
            response = await _export(engine, exporters, what, session, sessions, reporter)
        finally:
            await bridge.close()
    return SolveResult(ref=request.ref, response=response, metadata=result.metadata)


async def _result(bridge: EngineBridge, request: SolveRequest) -> FrontendResult:
    if request.definition is not None:
        if request.frontend:
            raise UsageError("cannot solve with both Definition and Frontend specified")
        return FrontendResult(refs={"": await bridge.solve(request.definition)})
    if request.frontend != "dockerfile.v0":
        raise UsageError(f"invalid frontend: {request.frontend}")
    from chantier.dockerfile.frontend import frontend

    return await frontend(request.attrs, request.inputs, bridge)


async def _evaluate(result: FrontendResult) -> Exportable:
    refs: dict[str, Ref | None] = {}

    async def one(key: str, ref: Any) -> None:
        refs[key] = await ref.result() if isinstance(ref, EngineRef) else None

    await run_all([one(key, ref) for key, ref in result.refs.items()])
    return Exportable(refs={key: refs[key] for key in result.refs}, metadata=result.metadata)


async def _export(
    engine: Engine, exporters: Sequence[Exporter], what: Exportable, session: Any, sessions: Sequence[Any], reporter: Reporter
) -> Response:
    response: Response = {}
    pushes: list[tuple[str, str, Finalize]] = []

    async def one(number: int, exporter: Exporter) -> None:
        context = ExportContext(
            cache=engine.cache,
            blobs=engine.blobs,
            registry=engine.registry_for(sessions),
            session=session,
            sessions=sessions,
            reporter=reporter,
            number=number,
            mount_dir=engine.mount_dir,
        )
        digest = "sha256:" + hashlib.sha256(f"{getattr(session, 'id', '')}-export-{number}".encode()).hexdigest()
        with step(reporter, exporter.name, digest=digest) as shown:
            answer, finalize = await exporter.export(what, context, shown)
        response.update(answer)
        if finalize is not None:
            pushes.append((exporter.name, digest, finalize))

    await run_all([one(number, exporter) for number, exporter in enumerate(exporters)])

    async def push(name: str, digest: str, finalize: Finalize) -> None:
        with step(reporter, name, digest=digest) as shown:
            await finalize(shown)

    await run_all([push(*p) for p in pushes])
    return response


async def run_all(jobs: Sequence[Any]) -> None:
    """Run all at once; the first error cancels the others, and is raised once they have ended."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    if not tasks:
        return
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _with_epoch(attrs: Mapping[str, str], options: Mapping[str, str]) -> Mapping[str, str]:
    epoch = options.get("build-arg:SOURCE_DATE_EPOCH", "")
    if epoch.lstrip("-").isdigit() and "source-date-epoch" not in attrs:
        return {**attrs, "source-date-epoch": epoch}
    return attrs


def _entitlements(engine: Engine, request: SolveRequest) -> frozenset[str]:
    for entitlement in request.entitlements:
        if entitlement.split("=")[0] not in ENTITLEMENTS:
            raise UsageError(f"unknown entitlement {entitlement}")
        if engine.allowed_entitlements is not None and entitlement not in engine.allowed_entitlements:
            raise PolicyError(
                f"granting entitlement {entitlement} is not allowed by build daemon configuration",
                hint=f'add insecure-entitlements = ["{entitlement}"] to the config of the engine',
            )
    return request.entitlements


__all__ = ["run_all", "solve"]
