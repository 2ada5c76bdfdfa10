# SPDX-License-Identifier: Apache-2.0
"""What a stage stands on: an image, a named context, another stage, nothing (semantics.md 2.3)."""

from __future__ import annotations

from chantier.errors import ChantierError, ReferenceError_
from chantier.llb import DEFAULT_PATH, How, State, image, scratch
from chantier.spec import Platform, Reference
from chantier.values import dataclass, replace

from . import lint as checks
from .bridge import Resolver
from .config import Image
from .contexts import Contexts, prefixed
from .do_config import set_user
from .do_workdir import set_workdir
from .graph import SCRATCH, Node, Stages, placed
from .instructions import Program
from .names import hint
from .paths import follow
from .scope import Built, Scope
from .titles import numbered

# Names people mistype; with the tag they are also known by.
_COMMON = [
    form
    for name in ("alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora")
    for form in (name, f"docker.io/library/{name}", f"{name}:latest", f"docker.io/library/{name}:latest")
]


@dataclass(frozen=True, slots=True)
class Bases:
    """Resolves the bases of nodes; `contexts` is None where there are no named ones."""

    program: Program
    scope: Scope
    stages: Stages
    resolver: Resolver
    contexts: Contexts | None

    async def resolve(self, node: Node, *, reachable: bool) -> None:
        """Give `node.start`. What is not reachable is not looked up: its config is then unknown."""
        try:
            await self._resolve(node, reachable=reachable)
        except ChantierError as err:
            raise placed(err, self.program, node.ranges)
        if node.external or node.context is not None:
            node.dispatched = True

    async def _resolve(self, node: Node, *, reachable: bool) -> None:
        target = self.scope.platforms.target
        if node.base_name == SCRATCH and node.context is None:
            self._start(node, scratch(), Image.empty(target), target)
            return
        written = node.base_name
        try:
            ref = Reference.parse(written)
        except ReferenceError_ as err:
            raise prefixed(err, f'failed to parse stage name "{written}"')
        node.base_name = str(ref.with_default_tag())
        platform = node.platform or target
        if not reachable:
            self._start(node, self._image(node, platform), Image(platform=platform), platform)
            return
        if node.context is not None:
            await self._named_stage(node, platform)
        elif not await self._named_base(node, platform):
            await self._resolve_image(node, written, platform)

    def _start(self, node: Node, state: State, config: Image, platform: Platform, *, index: int = 0) -> None:
        node.platform = platform
        node.start = Built(state=state, image=config, platform=platform, index=index)

    async def _named_stage(self, node: Node, platform: Platform) -> None:
        """A named context in place of a whole stage."""
        assert node.context is not None
        state, config = await node.context.load()
        if config is None:
            self._start(node, state, Image(platform=Platform("", "")), platform)
            return
        config = replace(config, created="")
        own = config.platform if config.platform.architecture and config.platform.os else platform
        self._start(node, state, config, own)

    async def _named_base(self, node: Node, platform: Platform) -> bool:
        if self.contexts is None:
            return False
        context = self.contexts.named(
            node.base_name,
            platform=platform,
            resolve_mode=self.scope.options.resolve_mode,
            follow=lambda: follow(node.paths),
        )
        if context is None:
            return False
        state, config = await context.load()
        config = config or Image.empty(platform)
        node.base_image = config
        self._start(node, state.on_platform(platform), replace(config, created=""), platform, index=0)
        return True

    async def _resolve_image(self, node: Node, written: str, platform: Platform) -> None:
        shown = f"{platform.format_all()} " if self.scope.options.multi_platform else ""
        try:
            found = await self.resolver.resolve_image(
                node.base_name,
                platform=platform,
                mode=self.scope.options.resolve_mode,
                log_name=f"[{shown}internal] load metadata for {node.base_name}",
            )
        except ChantierError as err:
            text = f"{written}: {err.brief}"
            raise err.reworded(text + hint(written, [*self.stages.names, *_COMMON])) from err.__cause__
        config = Image.parse(found.of(written).config)
        node.base_image = config
        if node.platform is None and self.scope.platforms.implicit:
            platform = _detected(config, platform, self.scope.platforms.build)
        ref = Reference.parse(found.ref)
        node.base_name = str(ref.with_digest(found.digest) if found.digest else ref)
        config = replace(config, created="")
        if config.is_empty:
            self._start(node, scratch(), config, platform)
            return
        self._warn_platform(node, written, platform, config)
        index = 1 if node.total else 0
        self._start(node, self._image(node, platform), config, platform, index=index)

    def _image(self, node: Node, platform: Platform) -> State:
        scope = self.scope
        how: How = {
            "platform": platform,
            "description": {"com.docker.dockerfile.v1.command": node.stage.code if node.stage is not None else ""},
            "name": numbered(
                f"FROM {node.base_name}",
                index=1,
                total=node.total,
                stage=node.name,
                platform=platform if scope.options.multi_platform else None,
            ),
            "locations": scope.locations(node.ranges),
        }
        return image(node.base_name, resolve_mode=scope.options.resolve_mode, **how)

    def _warn_platform(self, node: Node, written: str, wanted: Platform, config: Image) -> None:
        got = config.platform
        if (wanted.os, wanted.architecture) != (got.os, got.architecture):
            self.scope.lint.warn(
                checks.INVALID_BASE_IMAGE_PLATFORM,
                written,
                got.normalise().format_all(),
                wanted.normalise().format_all(),
                at=node.ranges,
            )


def _detected(config: Image, wanted: Platform, build: tuple[Platform, ...]) -> Platform:
    """Where nobody asked for a platform, that of the image if this machine can run it."""
    got = config.platform
    if (wanted.os, wanted.architecture) == (got.os, got.architecture):
        return wanted
    return next((p for p in build if (p.os, p.architecture) == (got.os, got.architecture)), wanted)


def begin(node: Node, scope: Scope) -> Built:
    """A stage before its first instruction: what its base leaves, in the circumstances the base's config asks for."""
    built = _inherited(node) if node.base is not None else node.start
    assert built is not None
    config = built.image.config
    os = built.platform.os
    if config.get_env("PATH") is None and os != "windows":
        config = replace(config, env=(*config.env, "PATH=" + DEFAULT_PATH))
        built = replace(built, image=replace(built.image, config=config))
    state = built.state
    for item in config.env:
        key, _, value = item.partition("=")
        state = state.env(key, value)
    if scope.options.hostname:
        state = state.hostname(scope.options.hostname)
    built = replace(built, state=state)
    if config.working_dir:
        built = set_workdir(built, config.working_dir)
    if config.user:
        built = set_user(built, config.user)
    return replace(built, state=built.state.network(scope.options.network))


def _inherited(node: Node) -> Built:
    """From another stage come its tree, config and arguments; not its triggers, nor what it has seen."""
    assert node.base is not None
    base = node.base
    after = base.after
    node.platform = after.platform
    node.base_image = base.base_image
    without = replace(after.image.config, on_build=())
    return Built(
        state=after.state,
        image=replace(after.image, config=without),
        platform=after.platform,
        args=after.args,
        workdir_set=after.workdir_set,
    )


__all__ = ["Bases", "begin"]
