# SPDX-License-Identifier: Apache-2.0
"""One build while it runs: the solver's job, the bridge for whoever drives it, and what happens to the result.

A frontend of ours drives it in one call (`solve`); a client drives it over the wire, in calls that come one by one, and
names the result at the end.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from chantier.cache import LayerBlob
from chantier.dockerfile.bridge import CacheImport, FrontendResult
from chantier.errors import PolicyError, UsageError
from chantier.export import ExportContext, Exporter, Response, exporter_for
from chantier.op.worker import run_all
from chantier.progress import Reporter, Step, now, step

from .asked import Asked
from .attest import Attesting
from .bridge import EngineBridge, EngineRef
from .cache_export import Exports
from .devices import Granted
from .documents import Documents
from .goods import Export, Goods
from .request import SolveRequest, SolveResult
from .verify import check_metadata, verify

if TYPE_CHECKING:
    from chantier.solver import Built, Job

    from .engine import Engine

SERVED = "chantier.registry.blobs"
ENTITLEMENTS = ("network.host", "security.insecure", "device")


class Build:
    """Made by `Engine.open`, an async context manager. On exit nothing runs for it any more.

    The request is checked when it is made: unknown exporters, bad attributes and entitlements that are not allowed fail
    before anything is built.
    """

    job: Job
    bridge: EngineBridge

    def __init__(self, engine: Engine, request: SolveRequest, session: Any, reporter: Reporter) -> None:
        self.engine = engine
        self.request = request
        self.session = session
        self.reporter = reporter
        self.sessions = (session,) if session is not None else ()
        if request.definition is not None and request.frontend:
            raise UsageError("cannot solve with both Definition and Frontend specified")
        self._exporters = [exporter_for(kind, _with_epoch(attrs, request.attrs)) for kind, attrs in request.exporters]
        self._caches = Exports(engine, request.cache_exports, session, self.sessions, reporter)
        self._entitlements = _entitlements(engine, request)
        self.started = now()
        self.asked = Asked(frontend=request.frontend, attrs=request.attrs, inputs=request.inputs, producers=engine.producers)
        self.attesting = Attesting(self)
        self.documents = Documents()

    async def __aenter__(self) -> Self:
        self.job = self.engine.solver.job(self.request.ref, self.reporter, sessions=self.sessions)
        self.bridge = EngineBridge(
            self.engine,
            self.job,
            sessions=self.sessions,
            reporter=self.reporter,
            entitlements=self._entitlements,
            asked=self.asked,
        )
        self.job.keep_failed = self.request.on_failure is not None
        self.engine.registries.begin(self._owner, offline=self.request.attrs.get("image-resolve-mode") == "never")
        self.bridge.check_source = self.request.check_source
        try:
            await self.job.__aenter__()
        except BaseException:
            self.engine.registries.end(self._owner)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.engine.producers.forget(self.asked)
        try:
            await self.bridge.close()
        finally:
            try:
                await self.job.__aexit__(kind, err, tb)
            finally:
                self.engine.registries.end(self._owner)
                if self.job.failures:
                    await asyncio.to_thread(self._drop_failures)

    def _drop_failures(self) -> None:
        for failed in self.job.failures:
            failed.drop(self.job.id)

    @property
    def _owner(self) -> str:
        """By which name the registries know this build: as `Engine.registry_for` gives it."""
        return str(getattr(self.session, "id", ""))

    async def drive(self) -> FrontendResult:
        """Do what the request itself says: its definition, or its frontend."""
        request = self.request
        imports = [CacheImport(type=one.type, attrs=one.attrs) for one in request.cache_imports]
        if request.definition is not None:
            solved = await self.bridge.solve(request.definition, cache_imports=imports)
            return FrontendResult(refs={"": solved}, metadata=request.metadata)
        attrs = dict(request.attrs)
        if imports and "cache-imports" not in attrs:  # the frontend passes them on with each of its own solves
            attrs["cache-imports"] = json.dumps([{"Type": one.type, "Attrs": dict(one.attrs)} for one in imports])
        return await self.bridge.run_frontend(request.frontend, attrs, request.inputs)

    async def finish(self, result: FrontendResult) -> SolveResult:
        """Make the result real, export it, push what is to be pushed, then send the caches."""
        answers: list[Response] = []
        response: Response = {}
        check_metadata(result.metadata)
        verify(result, self.request.attrs, self.reporter)
        if result.refs:
            built = await _evaluate(result)
            if self.request.find_exporters is not None:
                for kind, attrs in await self.request.find_exporters(result):
                    self._exporters.append(exporter_for(kind, _with_epoch(attrs, self.request.attrs)))
            if self._exporters or self.request.cache_exports:
                await self.engine.ceiling.enter_step("the export")
            if self._exporters:
                goods = Goods(self.attesting, result, built)
                answers = await self._export(goods)
                result = goods.result
            response = await self._caches.run([one for one in built.values() if one is not None])
        response |= {key: value for answer in answers for key, value in answer.items()}
        response |= {key: value.decode() for key, value in result.metadata.items() if key.startswith("frontend.")}
        if served := self._served():
            response[SERVED] = served
        if self.request.exported is not None:
            await self.request.exported(response)
        return SolveResult(
            ref=self.request.ref,
            response=response,
            metadata=result.metadata,
            answers=tuple(answers),
            provenance={} if self.request.internal else await self.attesting.recorded(result),
            documents=self.documents.of(answers),
        )

    def _served(self) -> str:
        """Which host served each document and layer that this build had to fetch: JSON by digest, in base64 as BuildKit does."""
        found = {
            one.digest: {
                "host": one.host,
                "repository": one.repository,
                "mediaType": one.media_type,
                "bytes": one.size,
                "seconds": round(one.seconds, 4),
                "resumed": one.resumed,
            }
            for one in self.engine.registries.served(self._owner)
        }
        return base64.b64encode(json.dumps(found, separators=(",", ":")).encode()).decode() if found else ""

    async def _export(self, goods: Goods) -> list[Response]:
        answers: list[Response] = [{} for _ in self._exporters]
        pushes: list[tuple[int, str, Export]] = []
        engine, session = self.engine, self.session

        async def inline(platform: str, layers: Sequence[LayerBlob], shown: Step) -> bytes | None:
            one = goods.built[platform]
            return await self._caches.inline_cache(one, layers, shown) if one is not None else None

        async def one(number: int, exporter: Exporter) -> None:
            context = ExportContext(
                cache=engine.cache,
                blobs=engine.blobs,
                registry=engine.registry_for(self.sessions),
                session=session,
                sessions=self.sessions,
                reporter=self.reporter,
                number=number,
                scratch=engine.scratch,
                inline_cache=inline if self._caches.inline else None,
                pushed=engine.images.pushed,
                made=self.documents.take,
            )
            digest = "sha256:" + hashlib.sha256(f"{getattr(session, 'id', '')}-export-{number}".encode()).hexdigest()
            export = Export(exporter, context, goods)
            with step(self.reporter, exporter.name, digest=digest) as shown:
                await export.make(shown)
            answers[number] = export.answer
            if export.finalize is not None:
                pushes.append((number, digest, export))

        await run_all([one(number, exporter) for number, exporter in enumerate(self._exporters)])

        async def push(number: int, digest: str, export: Export) -> None:
            with step(self.reporter, export.exporter.name, digest=digest) as shown:
                await export.push(shown)
            answers[number] = export.answer

        await run_all([push(*p) for p in pushes])
        return answers


async def _evaluate(result: FrontendResult) -> dict[str, Built | None]:
    built: dict[str, Built | None] = {}

    async def one(key: str, ref: Any) -> None:
        built[key] = await ref.built() if isinstance(ref, EngineRef) else None

    await run_all([one(key, ref) for key, ref in result.refs.items()])
    return {key: built[key] for key in result.refs}


def _with_epoch(attrs: Mapping[str, str], options: Mapping[str, str]) -> Mapping[str, str]:
    epoch = options.get("build-arg:SOURCE_DATE_EPOCH", "")
    if epoch.lstrip("-").isdigit() and "source-date-epoch" not in attrs:
        return {**attrs, "source-date-epoch": epoch}
    return attrs


def _entitlements(engine: Engine, request: SolveRequest) -> frozenset[str]:
    for entitlement in request.entitlements:
        if entitlement.split("=")[0] not in ENTITLEMENTS:
            raise UsageError(f"unknown entitlement {entitlement}")
        if entitlement.startswith("device"):
            Granted.of((entitlement,))
            # The user's to grant, as with BuildKit: what devices there are, the machine's owner says.
            if engine.devices is not None:
                continue
        if engine.allowed_entitlements is not None and entitlement not in engine.allowed_entitlements:
            raise PolicyError(
                f"granting entitlement {entitlement} is not allowed by build daemon configuration",
                hint=f'add insecure-entitlements = ["{entitlement}"] to the config of the engine',
            )
    return request.entitlements


__all__ = ["Build", "run_all"]
