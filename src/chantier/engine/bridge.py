# SPDX-License-Identifier: Apache-2.0
"""What one build's frontend sees of the engine: the dockerfile room's Bridge, over the solver's job."""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chantier.cache import Ref
from chantier.dockerfile.bridge import CacheImport, FrontendResult, OciStore, ResolvedImage, SourceMeta
from chantier.errors import ChantierError, NotFoundError, UnsupportedError, UsageError
from chantier.llb.definition import Graph, load, platform_to_pb
from chantier.op.run_key import cache_mounts_to_clear, clear_cache_mounts
from chantier.op.worker import threaded
from chantier.pb import fsutil_pb2
from chantier.pb import ops_pb2 as pb
from chantier.progress import Reporter, Silent, Step, Warning, step
from chantier.solver import Built
from chantier.spec import Platform, Reference

from .asked import Asked
from .cache_import import Imports
from .containers import Containers
from .files import read_dir, read_file, stat_file
from .graph import to_edge
from .materials import ImageSource, Materials, parsed
from .policy import SourceCheck, checked_sources, in_turn
from .sources import place

if TYPE_CHECKING:
    from chantier.op.image_chain import AttestationChain
    from chantier.solver import Job

    from .engine import Engine

T = TypeVar("T")


class ReadableRef:
    """A result that can be read from; what it is made of is the sub-class's."""

    _bridge: EngineBridge

    async def result(self) -> Ref | None:
        raise NotImplementedError

    async def renew(self) -> bool:
        """Make the result anew if its data turned out to be damaged or gone; False if that is not what is wrong."""
        return False

    async def read_file(self, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        return await self._within(f"open {path}", lambda root, _: read_file(root, path, offset=offset, length=length))

    async def read_dir(self, path: str, *, pattern: str = "") -> list[fsutil_pb2.Stat]:
        if path.strip("/.") == "" and await self.result() is None:
            return []
        return await self._within(
            f"open {path}", lambda root, cancelled: read_dir(root, path, pattern=pattern, cancelled=cancelled)
        )

    async def stat_file(self, path: str) -> fsutil_pb2.Stat:
        return await self._within(f"lstat {path}", lambda root, _: stat_file(root, path))

    async def _within(self, action: str, work: Callable[[Path, Callable[[], bool]], T]) -> T:
        """Do something with the mounted result, in a thread."""
        ref = await self.result()
        if ref is None:
            raise NotFoundError(f"{action}: no such file or directory")
        bridge = self._bridge

        def run(ref: Ref, cancelled: Callable[[], bool]) -> T:
            with ref.mounted(sessions=bridge.sessions, cancelled=cancelled) as root:
                return work(root, cancelled)

        while True:
            try:
                return await threaded(partial(run, ref))
            except ChantierError:
                if not await self.renew() or (ref := await self.result()) is None:
                    raise


class KeptRef(ReadableRef):
    """A reference that somebody else holds as long as the build lives: what a failed step was given, and what it left."""

    def __init__(self, bridge: EngineBridge, ref: Ref) -> None:
        self._bridge = bridge
        self._ref = ref

    async def result(self) -> Ref | None:
        return self._ref


class EngineRef(ReadableRef):
    """A definition's result, made when it is first needed. `release` by the bridge at the end of the build."""

    def __init__(
        self, bridge: EngineBridge, definition: pb.Definition, graph: Graph, cache_imports: Sequence[CacheImport] = ()
    ) -> None:
        self.definition = definition
        self._imports = tuple(cache_imports)
        self._bridge = bridge
        self.graph = graph
        self._edge = to_edge(graph, bridge.entitlements, bridge.engine.devices)
        self._result: asyncio.Task[Built | None] | None = None
        self._renewing = asyncio.Lock()

    @property
    def made(self) -> bool:
        """Whether it was needed, and is there."""
        done = self._result
        return done is not None and done.done() and not done.cancelled() and done.exception() is None

    @property
    def empty(self) -> bool:
        """Whether it is an empty tree, known without making anything."""
        return self._edge is None

    async def result(self) -> Ref | None:
        """The reference, which stays the bridge's; None for an empty tree. Errors carry the places of the definition."""
        built = await self.built()
        return built.value if built is not None else None

    async def built(self) -> Built | None:
        """The same with the way it came about; None if there was nothing to build."""
        if self._result is None:
            self._result = asyncio.create_task(self._build())
        return await asyncio.shield(self._result)

    async def renew(self) -> bool:
        built = await self.built()
        async with self._renewing:
            return built is not None and await self._bridge.job.renew(built)

    async def _build(self) -> Built | None:
        if self._edge is None:
            return None
        await self._bridge.imports.ready(self._imports)
        try:
            return await self._bridge.job.build(self._edge)
        except ChantierError as err:
            raise place(err, self.graph) from err.__cause__

    async def release(self) -> None:
        if self._result is None:
            return
        self._result.cancel()
        done = (await asyncio.gather(self._result, return_exceptions=True))[0]
        if isinstance(done, Built):
            await threaded(lambda _: done.release())


class EngineBridge:
    """Made for one build, closed at its end."""

    def __init__(
        self,
        engine: Engine,
        job: Job,
        *,
        sessions: Sequence[Any],
        reporter: Reporter,
        entitlements: Collection[str],
        asked: Asked | None = None,
    ) -> None:
        """`asked` is what the client asked of the build."""
        self.engine = engine
        self.asked = asked or Asked()
        self.job = job
        self.sessions = tuple(sessions)
        self.entitlements = entitlements
        self.check_source: SourceCheck | None = None
        self._reporter = reporter
        self._context = contextvars.copy_context()
        self._refs: list[EngineRef] = []
        self._held: list[Ref] = []  # what the build was told of a source, so that nothing takes it away meanwhile
        self.containers = Containers(self)
        self.imports = Imports(engine, job, self.sessions, reporter)
        self._cleared: set[str] = set()  # cache mounts that --no-cache emptied already

    @property
    def session_id(self) -> str:
        return str(self.sessions[0].id) if self.sessions else ""

    @property
    def platforms(self) -> Sequence[Platform]:
        return self.engine.platforms

    @property
    def caps(self) -> frozenset[str]:
        return self.engine.caps

    async def solve(
        self,
        definition: pb.Definition,
        *,
        evaluate: bool = False,
        cache_imports: Sequence[CacheImport] = (),
        check: SourceCheck | None = None,
    ) -> EngineRef:
        """`check` goes before the build's own policy, for this definition alone."""
        checks = self._checks(check)
        sources = await checked_sources(definition, checks) if checks is not None else None
        graph = load(definition, known_caps=self.engine.caps, sources=sources)
        ref = EngineRef(self, definition, graph, cache_imports)
        self._refs.append(ref)
        self.asked.refs.append(ref)
        stale = [id for id in cache_mounts_to_clear(graph) if id not in self._cleared]
        if stale:
            self._cleared.update(stale)
            await threaded(lambda _: clear_cache_mounts(self.engine.cache, stale))
        if evaluate:
            await ref.result()
        return ref

    async def resolve_image(
        self,
        ref: str,
        *,
        platform: Platform | None = None,
        mode: str = "default",
        log_name: str = "",
        store: OciStore | None = None,
        check: SourceCheck | None = None,
        unchecked: bool = False,
    ) -> ResolvedImage:
        """`check` is as in `solve`; `unchecked` is for a source policy that asks before it decides."""
        wanted = platform or self.engine.platforms[0]
        if not unchecked:
            ref = await self._checked_image(ref, wanted, store, self._checks(check))
            if "://" in ref:
                return ResolvedImage(ref=ref, digest="", config=b"")
        reporter: Reporter = self._reporter if log_name else Silent()
        with step(reporter, log_name or f"resolve image config for docker-image://{ref}") as shown:
            try:
                return await self._resolve(ref, wanted, mode, store, shown)
            except ChantierError as err:
                raise err.reworded(f"failed to resolve source metadata for {ref}: {err.brief}") from err.__cause__

    def _checks(self, first: SourceCheck | None) -> SourceCheck | None:
        """A frontend's own policy, then the build's."""
        checks = [one for one in (first, self.check_source) if one is not None]
        return in_turn(checks) if checks else None

    async def _checked_image(self, ref: str, platform: Platform, store: OciStore | None, check: SourceCheck | None) -> str:
        """The reference that the policy wants in its place; an identifier, with its scheme, of what is no such image."""
        if check is None:
            return ref
        scheme = "docker-image://" if store is None else "oci-layout://"
        source = pb.SourceOp(identifier=scheme + str(Reference.parse(ref).with_default_tag()))
        made = await check(source, platform_to_pb(platform))
        if made.identifier == source.identifier:
            return ref
        if not made.identifier.startswith(scheme):
            return made.identifier
        return made.identifier.removeprefix(scheme)

    async def _resolve(self, ref: str, platform: Platform, mode: str, store: OciStore | None, shown: Step) -> ResolvedImage:
        if store is not None:
            found = await self.engine.layouts.resolve(Reference.parse(ref), platform, store.store, self.sessions)
        else:
            found = await self.engine.images.resolve(
                Reference.parse(ref).with_default_tag(), platform, mode=mode, sessions=self.sessions
            )
            if found.seen is not None:
                said = f"{ref} is {found.digest} as {found.seen.host} said {found.seen.age()}; no registry was asked\n"
                shown.log(said.encode(), 2)
        name = parsed(ref)
        if name is not None:
            named = name if store is not None else name.with_default_tag()
            self.asked.images.append(ImageSource(ref=named, platform=platform, digest=str(found.digest), local=store is not None))
        return ResolvedImage(ref=ref, digest=str(found.digest), config=found.config)

    async def attestation_chain(
        self, ref: str, *, platform: Platform | None, mode: str, predicates: Collection[str]
    ) -> AttestationChain | None:
        """What vouches for an image that was resolved; see op.image_chain."""
        wanted = platform or self.engine.platforms[0]
        name = Reference.parse(ref).with_default_tag()
        return await self.engine.images.chain(name, wanted, mode=mode, sessions=self.sessions, predicates=predicates)

    async def resolve_source(self, source: pb.SourceOp, *, log_name: str = "", return_object: bool = False) -> SourceMeta:
        if self.check_source is not None:
            source = await self.check_source(source, None)
        return await self.engine.source_meta(source, self.job, return_object=return_object)

    async def whole_meta(
        self,
        source: pb.SourceOp,
        *,
        return_object: bool,
        suffixed: tuple[str, bytes] | None = None,
        check: SourceCheck | None = None,
        unchecked: bool = False,
    ) -> tuple[pb.SourceOp, SourceMeta]:
        """The source after policies, and all there is to know of it: an HTTP source is fetched for that.

        `suffixed` asks for another digest of it too: of its bytes and then these, by this algorithm.
        """
        from .meta import whole_meta

        checks = self._checks(check)
        if checks is not None and not unchecked:
            source = await checks(source, None)
        return source, await whole_meta(
            self.engine.worker,
            source,
            self.sessions,
            return_object=return_object,
            suffixed=suffixed,
            job=self.job,
            hold=self._held.append,
        )

    async def warn(self, warning: Warning) -> None:
        self._reporter.emit(warning)

    async def within(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the build's context: what the store finds or makes is held by the build, whoever calls."""
        return await asyncio.create_task(work, context=self._context.copy())

    async def run_frontend(self, name: str, attrs: Mapping[str, str], inputs: Mapping[str, pb.Definition]) -> FrontendResult:
        """`dockerfile.v0`, or a frontend image by `gateway.v0`. Raises UsageError for another name."""
        if name == "gateway.v0":
            source = attrs.get("source", "")
            if source != "dockerfile.v0" or "context:dockerfile.v0" in attrs:
                if not source:
                    raise UsageError("no source specified for gateway")
                return await self.forward(source, attrs.get("cmdline", ""), attrs, inputs)
            name = source
        if name != "dockerfile.v0":
            raise UsageError(f"invalid frontend: {name}")
        from chantier.dockerfile.frontend import frontend

        told = {key: value for key, value in attrs.items() if key not in ("source", "cmdline")}
        bridge = self._for(name, told, inputs)
        return bridge._made(await frontend(attrs, inputs, bridge))

    def _made(self, result: FrontendResult) -> FrontendResult:
        """Whoever is given the results as inputs may tell which request made them."""
        for ref in result.refs.values():
            if isinstance(ref, EngineRef):
                asked = self.asked.find(ref) or self.asked
                self.engine.producers.add(self.asked.top, ref.definition, asked.request(Materials()))
        return result

    def _for(self, frontend: str, attrs: Mapping[str, str], inputs: Mapping[str, pb.Definition]) -> EngineBridge:
        """The same bridge for a frontend that is called: what it asks for is noted as its own."""
        made = copy.copy(self)
        made.asked = self.asked.call(frontend, attrs, inputs)
        return made

    @property
    def own_frontends(self) -> tuple[str, ...]:
        return self.engine.config.chantier.builtin_frontends

    async def forward(
        self, source: str, cmdline: str, opts: Mapping[str, str], inputs: Mapping[str, pb.Definition]
    ) -> FrontendResult:
        if self.engine.run_frontend_image is None:
            raise UnsupportedError(
                f"cannot run the frontend image {source}: frontend images are run by the daemon only",
                hint="drop the `# syntax=` line, use docker/dockerfile, which is built in, or build through chantierd",
            )
        bridge = self._for("gateway.v0", opts, inputs)
        # To a frontend that has a command line its image was chosen by a `syntax` line: it looks for no other.
        told = {**opts, "cmdline": cmdline} if cmdline else opts
        return bridge._made(await self.engine.run_frontend_image(bridge, source, told, inputs))

    async def close(self) -> None:
        await self.containers.close()
        await self.imports.close()
        for ref in self._refs:
            await ref.release()
        for held in self._held:
            await threaded(lambda _, held=held: held.release())  # type: ignore[misc]
