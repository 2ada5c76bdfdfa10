# SPDX-License-Identifier: Apache-2.0
"""The frontend `dockerfile.v0`: from a map of options to one result a platform (semantics.md 1.2, 2.9)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from chantier.errors import ChantierError, ReferenceError_, Source, UnsupportedError
from chantier.llb import SourceMap
from chantier.llb import caps as cap
from chantier.pb import ops_pb2 as pb
from chantier.progress import Warning
from chantier.spec import Platform, Reference, dumps
from chantier.values import replace

from .bridge import Attestation, Bridge, CacheImport, FrontendResult, OciStore, ResolvedImage, SolvedRef, SourceMeta
from .calls import answer
from .contexts import Contexts, prefixed
from .convert import Converted, linter_for, to_llb
from .directives import detect_syntax, find_directive
from .lint import Linter, LintWarning
from .options import Options
from .sbom import scanner_of

CAPS = frozenset(f"moby.buildkit.frontend.{name}" for name in ("inputs", "subrequests", "contexts", "gitquerystring"))
"""What this frontend can be asked for with the option `frontend.caps`."""

# Images that hold this very language; their versions only fix it, so all of them are served here unless the engine says otherwise.
_OWN = ("docker/dockerfile", "docker/dockerfile-upstream")
_SYNTAX_ARG = "build-arg:BUILDKIT_SYNTAX"


async def frontend(opts: Mapping[str, str], inputs: Mapping[str, pb.Definition], bridge: Bridge) -> FrontendResult:
    """Build, or answer a subrequest. Errors carry the lines of the Dockerfile they come from."""
    if cap.FILE_BASE not in bridge.caps:
        raise UnsupportedError("needs BuildKit 0.5 or later")
    options = Options.from_frontend_attrs(opts)
    missing = _missing_cap(opts.get("frontend.caps", ""))
    contexts = Contexts(_Resolving(bridge), opts, inputs)
    source = await contexts.read_dockerfile()
    try:
        if "cmdline" not in opts:
            forwarded = await _forward(opts, inputs, bridge, source)
            if forwarded is not None:
                return forwarded
        if missing is not None:
            raise missing
        if options.request:
            return await _answer(options, contexts, source)
        return await _build(options, contexts, source)
    except ChantierError as err:
        # Whoever shows the error may ask where the file itself came from.
        err.sources = [_told(place, source) for place in err.sources]
        raise


def _told(place: Source, source: SourceMap) -> Source:
    same = place.definition is None and place.filename == source.filename
    return replace(place, definition=source.definition) if same else place


def _missing_cap(wanted: str) -> UnsupportedError | None:
    """The error for an unknown capability; raised at once unless a frontend image may still have it."""
    found: UnsupportedError | None = None
    for item in wanted.split(",") if wanted else ():
        name, _, suffix = item.partition("+")
        if name not in CAPS:
            found = UnsupportedError(f"unsupported frontend capability {name}")
            if suffix != "forward":
                raise found
    return found


async def _forward(
    opts: Mapping[str, str], inputs: Mapping[str, pb.Definition], bridge: Bridge, source: SourceMap
) -> FrontendResult | None:
    """Give the build to the frontend that the options or the file ask for; None if that is this one."""
    argument = opts.get(_SYNTAX_ARG)
    if argument is not None:
        ref = argument.strip().split(" ", 1)[0]
        if is_own(ref, bridge.own_frontends):
            return None
        try:
            return await bridge.forward(ref, argument, {**opts, "cmdline": argument, "source": ref}, inputs)
        except ChantierError as err:
            raise err if err.sources else prefixed(err, f"failed with {_SYNTAX_ARG} = {argument}")
    found = detect_syntax(source.data)
    if found is None or is_own(found[0], bridge.own_frontends):
        return None
    ref, cmdline = found
    try:
        return await bridge.forward(ref, cmdline, {**opts, "cmdline": cmdline, "source": ref}, inputs)
    except ChantierError as err:
        directive = find_directive(source.data, "syntax")
        if not err.sources and directive is not None:
            err.at(Source(source.filename, source.data, directive.ranges))
        raise


def is_own(ref: str, own: Sequence[str] = _OWN) -> bool:
    """Whether a frontend reference means this frontend: one of `own` in any version (`*`: all of them), or `dockerfile.v0`."""
    if ref == "dockerfile.v0" or "*" in own:
        return True
    try:
        name = Reference.parse(ref).name
        return any(Reference.parse(one).name == name for one in own)
    except ReferenceError_:
        return False


async def _answer(options: Options, contexts: Contexts, source: SourceMap) -> FrontendResult:
    async def convert(linter: Linter | None, all_stages: bool) -> Converted:
        first = options.platforms[0] if options.platforms else None
        return await to_llb(
            source.data,
            replace(options, multi_platform=False),
            contexts.bridge,
            platform=first,
            contexts=contexts,
            source_map=source,
            linter=linter,
            all_stages=all_stages,
        )

    return await answer(options.request, source, options.target, convert, lambda: linter_for(source.data, options))


async def _build(options: Options, contexts: Contexts, source: SourceMap) -> FrontendResult:
    targets: Sequence[Platform | None] = options.platforms or (None,)
    made = await asyncio.gather(
        *(_build_one(options, contexts, source, target, first=number == 0) for number, target in enumerate(targets)),
        return_exceptions=True,
    )
    scanner = None
    if options.sbom is not None:
        scanner = await scanner_of(contexts.bridge, options.sbom, contexts.bridge.platforms[0], options.resolve_mode)
    refs: dict[str, SolvedRef] = {}
    attestations: dict[str, list[Attestation]] = {}
    definitions: dict[str, pb.Definition] = {}
    metadata: dict[str, bytes] = {}
    listed = []
    for target, result in zip(targets, made, strict=True):
        if isinstance(result, BaseException):
            raise result
        converted, definition, ref = result
        platform = (target or contexts.bridge.platforms[0]).normalise()
        id = platform.format_all()
        key, suffix = (id, f"/{id}") if options.multi_platform else ("", "")
        refs[key], definitions[key] = ref, definition
        if scanner is not None:
            extras = {
                name: state.marshal(converted.platform, caps=converted.caps) for name, state in converted.sbom_extras.items()
            }
            attestations[id] = [await scanner.scan(contexts.bridge, id, definition, extras, ignore_cache=converted.ignore_cache)]
        metadata["containerimage.config" + suffix] = converted.image.to_json()
        if converted.base_image is not None:
            metadata["containerimage.base.config" + suffix] = converted.base_image.to_json()
        if converted.epoch is not None:
            metadata["source.date.epoch" + suffix] = str(converted.epoch).encode()
        listed.append({"ID": id, "Platform": _extended(platform, converted.image.platform).to_json()})
    metadata["refs.platforms"] = dumps({"Platforms": listed})
    return FrontendResult(refs=refs, definitions=definitions, metadata=metadata, attestations=attestations)


async def _build_one(
    options: Options, contexts: Contexts, source: SourceMap, target: Platform | None, *, first: bool
) -> tuple[Converted, pb.Definition, SolvedRef]:
    linter = linter_for(source.data, options)
    try:
        converted = await to_llb(
            source.data, options, contexts.bridge, platform=target, contexts=contexts, source_map=source, linter=linter
        )
    finally:
        if first:  # the same findings would come again for every platform
            await _warn(contexts.bridge, source, linter.warnings)
    definition = converted.definition
    return converted, definition, await contexts.bridge.solve(definition, cache_imports=options.cache_imports)


async def _warn(bridge: Bridge, source: SourceMap, warnings: Sequence[LintWarning]) -> None:
    vertex = _head(source.definition) if source.definition is not None else ""
    for w in warnings:
        place = Source(source.filename, source.data, w.ranges)
        detail = (w.rule.description.encode(),)
        await bridge.warn(
            Warning(
                vertex=vertex, level=1, short=str(w).encode(errors="surrogateescape"), detail=detail, url=w.rule.url, source=place
            )
        )


def _head(definition: pb.Definition) -> str:
    """The vertex that a definition's result comes from."""
    raws = list(getattr(definition, "def"))
    if not raws:
        return ""
    op = pb.Op()
    op.ParseFromString(raws[-1])
    return str(op.inputs[0].digest) if op.inputs else ""


def _extended(platform: Platform, image: Platform) -> Platform:
    """A Windows platform takes the version that its base image is for."""
    if platform.os != "windows" or image.os != "windows":
        return platform
    return replace(
        platform,
        os_version=platform.os_version or image.os_version,
        os_features=platform.os_features or image.os_features,
    ).normalise()


class _Resolving:
    """A bridge that asks for each image once, however many stages and platforms want it."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._images: dict[tuple[object, ...], asyncio.Task[ResolvedImage]] = {}
        self.session_id = bridge.session_id
        self.own_frontends = bridge.own_frontends
        self.platforms: Sequence[Platform] = tuple(bridge.platforms)
        self.caps = bridge.caps

    async def solve(
        self, definition: pb.Definition, *, evaluate: bool = False, cache_imports: Sequence[CacheImport] = ()
    ) -> SolvedRef:
        return await self._bridge.solve(definition, evaluate=evaluate, cache_imports=cache_imports)

    async def resolve_image(
        self,
        ref: str,
        *,
        platform: Platform | None = None,
        mode: str = "default",
        log_name: str = "",
        store: OciStore | None = None,
    ) -> ResolvedImage:
        key = (ref, platform, mode, store)
        if key not in self._images:
            asking = self._bridge.resolve_image(ref, platform=platform, mode=mode, log_name=log_name, store=store)
            self._images[key] = asyncio.ensure_future(asking)
        return await asyncio.shield(self._images[key])

    async def resolve_source(self, source: pb.SourceOp, *, log_name: str = "", return_object: bool = False) -> SourceMeta:
        return await self._bridge.resolve_source(source, log_name=log_name, return_object=return_object)

    async def warn(self, warning: Warning) -> None:
        await self._bridge.warn(warning)

    async def forward(
        self, source: str, cmdline: str, opts: Mapping[str, str], inputs: Mapping[str, pb.Definition]
    ) -> FrontendResult:
        return await self._bridge.forward(source, cmdline, opts, inputs)


__all__ = ["CAPS", "frontend", "is_own"]
