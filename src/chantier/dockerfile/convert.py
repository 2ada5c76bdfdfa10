# SPDX-License-Identifier: Apache-2.0
"""A Dockerfile to LLB: the pipeline of semantics.md 2.1, one function a step.

    parse -> global args -> epoch -> nodes -> target -> dependencies -> bases -> instructions -> result

`to_llb` is the whole of it. It touches nothing: base images, ignore files and named contexts are asked of a resolver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from chantier.errors import ChantierError, DockerfileError, ReferenceError_
from chantier.llb import SourceMap, State, deferred, local
from chantier.llb import caps as cap
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform, Reference
from chantier.spec.patterns import Patterns
from chantier.values import dataclass, field, replace

from . import lint as checks
from .advice import advise
from .args import EPOCH, GlobalArgs, global_args, predefined, proxy_of
from .at import At
from .base import Bases, begin
from .bridge import Resolver
from .config import Image
from .contexts import Contexts, prefixed
from .do_config import (
    do_arg,
    do_cmd,
    do_entrypoint,
    do_env,
    do_expose,
    do_healthcheck,
    do_label,
    do_maintainer,
    do_on_build,
    do_shell,
    do_stop_signal,
    do_user,
    do_volume,
)
from .do_copy import do_add, do_copy
from .do_run import do_run
from .do_workdir import do_workdir
from .epoch import resolve_epoch
from .gotext import parse_bool
from .graph import SCRATCH, Node, Stages, count_steps, placed
from .instructions import (
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Label,
    Maintainer,
    OnBuild,
    Program,
    Run,
    Shell,
    Stage,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from .lint import Linter, LintWarning, parse_check
from .names import hint, nearest
from .options import Options
from .parser import parse, parse_trigger
from .paths import follow
from .scope import SBOM_SCAN_CONTEXT, SBOM_SCAN_STAGE, Built, Platforms, Scope
from .shell import Expansion, Lex
from .titles import internal

_DOERS: dict[type, Callable[[At, Built, Any], Built]] = {
    Add: do_add,
    Arg: do_arg,
    Cmd: do_cmd,
    Copy: do_copy,
    Entrypoint: do_entrypoint,
    Env: do_env,
    Expose: do_expose,
    Healthcheck: do_healthcheck,
    Label: do_label,
    Maintainer: do_maintainer,
    OnBuild: do_on_build,
    Run: do_run,
    Shell: do_shell,
    StopSignal: do_stop_signal,
    User: do_user,
    Volume: do_volume,
    Workdir: do_workdir,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a Dockerfile means for one platform."""

    state: State
    image: Image
    base_image: Image | None
    platform: Platform
    epoch: int | None
    target: Node = field(repr=False)
    warnings: tuple[LintWarning, ...] = ()
    sbom_extras: Mapping[str, State] = field(default_factory=dict)  # trees to be scanned besides the result
    ignore_cache: bool = False  # of a tree to be scanned
    caps: frozenset[str] = field(default=cap.ALL, repr=False)

    @property
    def definition(self) -> pb.Definition:
        return self.state.marshal(self.platform, caps=self.caps)


async def to_llb(
    data: bytes | Program,
    options: Options,
    resolver: Resolver,
    *,
    platform: Platform | None = None,
    contexts: Contexts | None = None,
    source_map: SourceMap | None = None,
    linter: Linter | None = None,
    all_stages: bool = False,
) -> Converted:
    """Convert for `platform`, or for that of the resolver's worker where none is given.

    Findings of the build checks are in `linter.warnings` too, also when this raises. `contexts` reads ignore files and named
    contexts; without it the main context is the client's directory `context`, whole.
    """
    raw = data.data if isinstance(data, Program) else data
    if not raw:
        raise advise(DockerfileError("the Dockerfile cannot be empty"))
    lint = linter if linter is not None else linter_for(raw, options)
    filename = source_map.filename if source_map is not None else "Dockerfile"
    program = data if isinstance(data, Program) else parse(data, filename, lint=lint)
    return await _Conversion(program, options, resolver, contexts, source_map, lint, all_stages).run(platform)


def linter_for(data: bytes, options: Options) -> Linter:
    """The checks as the options say, else as the file's own directive says."""
    if options.check is None:
        return Linter.for_file(data)
    try:
        return Linter(parse_check(options.check))
    except DockerfileError as err:
        raise prefixed(err, "failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK")


@dataclass(slots=True)
class _Conversion:
    """The steps, and what they hand on that is not a value yet: the graph of nodes."""

    program: Program
    options: Options
    resolver: Resolver
    contexts: Contexts | None
    source_map: SourceMap | None
    lint: Linter
    all_stages: bool
    stages: Stages = field(default_factory=Stages)
    main: State | None = None

    async def run(self, platform: Platform | None) -> Converted:
        platforms = Platforms.of(platform, tuple(self.resolver.platforms))
        lex = Lex(self.program.escape)
        found = self._global_args(platforms, lex)
        found, epoch = await self._epoch(found, lex)
        scope = Scope(
            options=self.options,
            platforms=platforms,
            global_args=found.values,
            epoch=epoch,
            lex=lex,
            lint=self.lint,
            caps=self.resolver.caps,
            source_map=self.source_map,
            context=deferred(self._main_context),
            proxy=proxy_of(self.options.build_args),
        )
        self._make_nodes(scope, found)
        target = self.stages.target(self.options.target)
        self.stages.connect(self.program, lex)
        reachable = await self._resolve(scope, target)
        scope = await self._with_ignore(scope)
        used = self._dispatch(scope, reachable)
        target.paths.add("/")
        return await self._finish(scope, target, used)

    # Arguments

    def _global_args(self, platforms: Platforms, lex: Lex) -> GlobalArgs:
        stages = self.program.stages
        name = self.options.target or stages[-1].stage_name
        start = predefined(platforms, self.options.build_args, name)
        self._check_default_bases(lex, start)
        return global_args(self.program, lex, start, self.options.build_args)

    def _check_default_bases(self, lex: Lex, start: Mapping[str, str]) -> None:
        """Whether FROM would name images if no build argument were given."""
        try:
            values = global_args(self.program, lex, start, {}).values
            for stage in self.program.stages:
                if not _is_reference(lex.process_word(stage.base_name, values)):
                    self.lint.warn(checks.INVALID_DEFAULT_ARG_IN_FROM, stage.base_name, at=stage.ranges)
        except DockerfileError:  # the same error comes again where it stops the build
            return

    async def _epoch(self, found: GlobalArgs, lex: Lex) -> tuple[GlobalArgs, int | None]:
        value = self.options.build_args.get(EPOCH)
        if value is None:
            value = found.values.get(EPOCH) or None
        if value is None:
            return found, None
        epoch = await resolve_epoch(value, self.program, self.options, found.values, lex, self.contexts)
        # The argument is from here on the number it came to, for every ARG of that name.
        if EPOCH in self.options.build_args:
            without = self.options.without_epoch_arg()
            self.options = without if epoch is None else without.with_build_arg(EPOCH, str(epoch))
        values = {key: value for key, value in found.values.items() if key != EPOCH or epoch is not None}
        if epoch is not None and EPOCH in values:
            values[EPOCH] = str(epoch)
        return replace(found, values=values), epoch

    # Nodes

    def _make_nodes(self, scope: Scope, found: GlobalArgs) -> None:
        known = {**found.infos, **scope.global_args}
        for number, stage in enumerate(self.program.stages):
            try:
                self._make_node(scope, found, known, number, stage)
            except ChantierError as err:
                raise placed(err, self.program, stage.ranges)

    def _make_node(self, scope: Scope, found: GlobalArgs, known: Mapping[str, object], number: int, stage: Stage) -> None:
        base = scope.lex.expand(stage.base_name, scope.global_args)
        self._warn_undeclared(stage, base, known)
        if not base.text:
            raise DockerfileError(f"base name ({stage.base_name}) should not be blank")
        node = Node(stage=stage, base_name=base.text, name=stage.stage_name, ranges=stage.ranges)
        node.outline.all_args = dict(found.infos)
        used = set(base.matched)
        if stage.platform:
            node.platform = self._platform(scope, stage, known, used)
        if stage.stage_name and self.contexts is not None:
            node.context = self.contexts.named(
                stage.stage_name,
                platform=node.platform or scope.platforms.target if not scope.platforms.implicit else node.platform,
                resolve_mode=self.options.resolve_mode,
                follow=lambda: follow(node.paths),
            )
            if node.context is not None:
                self.stages.add(node)
                node.base = None
                node.paths = set()
                return
        node.name = stage.stage_name or f"stage-{number}"
        self.stages.add(node)
        node.outline.used_args |= used
        shown = node.base is None and node.base_name != SCRATCH
        node.total = count_steps(stage.commands, base_is_shown=shown)
        node.ignore_cache = self.options.is_no_cache(stage.stage_name)

    def _platform(self, scope: Scope, stage: Stage, known: Mapping[str, object], used: set[str]) -> Platform:
        made = scope.lex.expand(stage.platform, scope.global_args)
        self._warn_undeclared(stage, made, known)
        self._warn_platform(scope, stage, made)
        near = next((h for n in made.unmatched if (h := hint(n, scope.global_args))), "")
        if not made.text:
            raise DockerfileError(f"empty platform value from expression {stage.platform}{near}")
        try:
            parsed = Platform.parse(made.text)
        except ReferenceError_ as err:
            raise DockerfileError(f"failed to parse platform {stage.platform}: {err}{near}") from err
        used |= set(made.matched)
        return parsed

    def _warn_undeclared(self, stage: Stage, made: Expansion, known: Mapping[str, object]) -> None:
        for name in made.unmatched:
            if name not in known:
                self.lint.warn(checks.UNDEFINED_ARG_IN_FROM, name, nearest(name, sorted(known)), at=stage)

    def _warn_platform(self, scope: Scope, stage: Stage, made: Expansion) -> None:
        if not made.matched and not made.unmatched:
            try:
                platform = Platform.parse(made.text)
            except ReferenceError_:  # refused right after this
                return
            if platform.os not in stage.stage_name and platform.architecture not in stage.stage_name:
                self.lint.warn(checks.FROM_PLATFORM_FLAG_CONST_DISALLOWED, made.text, at=stage)
        elif made.matched == ("TARGETPLATFORM",) and not made.unmatched:
            if made.text == scope.global_args.get("TARGETPLATFORM"):
                self.lint.warn(checks.REDUNDANT_TARGET_PLATFORM, stage.platform, at=stage)

    # Bases

    async def _resolve(self, scope: Scope, target: Node) -> set[Node]:
        """Resolve what the target needs; triggers of base images may make it need more."""
        bases = Bases(self.program, scope, self.stages, self.resolver, self.contexts)
        while True:
            reachable = self.stages.reachable(target)
            todo = [n for n in self.stages.nodes if n.base is None and not n.dispatched and not n.resolved]
            wanted = [self.all_stages or n in reachable for n in todo]
            for node, is_wanted in zip(todo, wanted, strict=True):
                node.resolved = is_wanted
            await _all(*(bases.resolve(n, reachable=w) for n, w in zip(todo, wanted, strict=True)))
            more = [self._read_triggers(scope, node) for node in self.stages.nodes if node in reachable]
            if not any(more):
                return reachable

    def _read_triggers(self, scope: Scope, node: Node) -> bool:
        """Put the triggers of the base in front of the stage's own instructions; tells whether new dependencies came up."""
        if node.stage is None or node.triggers_read:
            return False
        texts: list[str] = []
        if node.base is None:
            if node.start is None:
                return False
            texts += node.start.image.config.on_build
            node.start = node.start.configured(on_build=())
        else:
            texts += [p.command.expression for p in node.base.commands if isinstance(p.command, OnBuild)]
        node.triggers_read = True
        try:
            planned = []
            for text in texts:
                planned.append(self.stages.plan(parse_trigger(text, at=node.stage), scope.lex, on_build=True))
                self.stages.link(node, planned[-1])
        except ChantierError as err:
            raise placed(err, self.program, node.ranges)
        node.commands = [*planned, *node.commands]
        node.total += len(planned)
        return any(p.sources for p in planned)

    # Instructions

    async def _with_ignore(self, scope: Scope) -> Scope:
        if self.contexts is None:
            return scope
        patterns = await self.contexts.ignore_patterns()
        return replace(scope, ignore=Patterns(patterns)) if patterns else scope

    def _dispatch(self, scope: Scope, reachable: set[Node]) -> set[str]:
        """Every reachable stage in the order of the file. Returns the paths used of the main context."""
        used: set[str] = set()
        for node in self.stages.nodes:
            wanted = node in reachable and not node.dispatched
            if not (self.all_stages or wanted) or node.stage is None:
                continue
            node.dispatched = True
            try:
                built = begin(node, scope)
            except ChantierError as err:
                raise placed(err, self.program, node.ranges)
            for planned in node.commands:
                try:
                    built = _DOERS[type(planned.command)](At(scope, node, planned), built, planned.command)
                except ChantierError as err:
                    raise placed(err, self.program, planned.command.ranges)
            node.built = built
            used |= node.context_paths
        return used

    # Result

    async def _finish(self, scope: Scope, target: Node, used: set[str]) -> Converted:
        built = target.after
        labels = {**built.image.config.labels, **self.options.labels}
        built = built.configured(labels=labels)
        failure = self.lint.failure()
        if failure is not None:
            raise failure
        if self.contexts is not None:
            self.main = await self.contexts.main(follow(used))
        else:
            self.main = local("context", shared_key="context", follow=follow(used), name=internal("load build context"))
        extras, ignore_cache = self._to_scan(scope, target)
        return Converted(
            state=built.state,
            image=replace(built.image, platform=_image_platform(scope.platforms, built.image.platform)),
            base_image=target.base_image,
            platform=scope.platforms.target,
            epoch=scope.epoch,
            target=target,
            warnings=tuple(self.lint.warnings),
            sbom_extras=extras,
            ignore_cache=ignore_cache,
            caps=scope.caps,
        )

    def _main_context(self) -> State:
        assert self.main is not None, "the graph was marshalled before its conversion ended"
        return self.main

    def _to_scan(self, scope: Scope, target: Node) -> tuple[dict[str, State], bool]:
        extras: dict[str, State] = {}
        ignore_cache = target.ignore_cache
        if _wants(scope, target, SBOM_SCAN_CONTEXT):
            extras["context"] = scope.context
        reachable = self.stages.reachable(target)
        for node in self.stages.nodes:
            if node is not target and node in reachable and node.built is not None and _wants(scope, node, SBOM_SCAN_STAGE):
                extras[node.name] = node.built.state
                ignore_cache = ignore_cache or node.ignore_cache
        return extras, ignore_cache


def _wants(scope: Scope, node: Node, key: str) -> bool:
    values = [scope.global_args.get(key), *(p.value for p in node.after.args if p.key == key)]
    last = next((v for v in reversed(values) if v is not None), None)
    if last is None:
        return False
    truth = parse_bool(last)
    return truth if truth is not None else node.name in last.split(",")


def _image_platform(platforms: Platforms, image: Platform) -> Platform:
    """An explicit target is what the image says it is for, whatever its base said."""
    if platforms.implicit:  # a context in place of a stage has no config, and then the image is for nothing in particular
        return image.normalise() if image.os or image.architecture else image
    target = platforms.target
    same = (target.os, target.architecture) == (image.os, image.architecture)
    return Platform(
        target.os,
        target.architecture,
        target.variant if target.variant or not same else image.variant,
        target.os_version if target.os_version or not same else image.os_version,
        target.os_features or image.os_features,
    ).normalise()


def _is_reference(name: str) -> bool:
    try:
        Reference.parse(name)
    except ReferenceError_:
        return False
    return True


async def _all(*doing: Any) -> None:
    """Run together; the first failure in the order given is raised, after all have ended."""
    for result in await asyncio.gather(*doing, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


__all__ = ["Converted", "linter_for", "to_llb"]
