# SPDX-License-Identifier: Apache-2.0
"""The library's face: builds from Python code, blocking or in an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from chantier.values import fields, replace

from .client import BuildRequest, BuildResult, Output, Prepared, Secret, parse_output, prepare
from .config import Config
from .errors import ChantierError, SolveError
from .progress import Event, LastLines, Reporter, Silent
from .session.types import Credentials

if TYPE_CHECKING:
    from .driver.graph import Graph
    from .driver.running import Running
    from .llb import State

OnEvent = Callable[[Event], None]
OnError = Callable[[Any], Any]


class Builder:
    """An engine that is kept open for several builds. Use it as a context manager (`with` or `async with`).

    `root` is where its state lives (default: what the config or CHANTIER_ROOT say), `config` a file or a `Config`. `builder`
    names an engine elsewhere: a builder of `chantier ls`, a docker context, or an address such as "unix:///run/x.sock",
    "tcp://host:1234", "ssh://host", "docker-container://name".
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | Config | None = None,
        builder: str | None = None,
    ) -> None:
        self._driver: Running
        if builder is not None:
            from .driver.select import open_builder

            self._driver = open_builder(builder, root=root, config=config)
            return
        from .driver.rootless import open_embedded

        self._driver = open_embedded(root=root, config=config)

    def build(
        self,
        context: str | os.PathLike[str] = ".",
        *,
        on_event: OnEvent | None = None,
        on_error: OnError | None = None,
        **options: Any,
    ) -> BuildResult:
        """Build and wait. Options are those of the function `build`. Raises ChantierError and its kin."""
        return self._build(_prepared(context, options, on_error), on_event)

    async def abuild(
        self,
        context: str | os.PathLike[str] = ".",
        *,
        on_event: OnEvent | None = None,
        on_error: OnError | None = None,
        **options: Any,
    ) -> BuildResult:
        """The same in a running loop; several may run at once. Cancelling the task stops the build's steps."""
        prepared = await asyncio.to_thread(_prepared, context, options, on_error)
        return await self._abuild(prepared, on_event)

    def convert(self, context: str | os.PathLike[str] = ".", *, on_event: OnEvent | None = None, **options: Any) -> Graph:
        """What a Dockerfile means, as a graph to look at, change and `solve`. Options are those of `build`; nothing is run."""
        from .driver.graph import convert

        return convert(self._driver, _prepared(context, options), _reporter(on_event))

    def solve(
        self,
        graph: State | Graph,
        *,
        on_event: OnEvent | None = None,
        on_error: OnError | None = None,
        **options: Any,
    ) -> BuildResult:
        """Build a graph and wait. Options are those of the function `solve`."""
        return self._build(_prepared_graph(graph, options, on_error), on_event)

    async def asolve(
        self,
        graph: State | Graph,
        *,
        on_event: OnEvent | None = None,
        on_error: OnError | None = None,
        **options: Any,
    ) -> BuildResult:
        """The same in a running loop."""
        prepared = await asyncio.to_thread(_prepared_graph, graph, options, on_error)
        return await self._abuild(prepared, on_event)

    def _build(self, prepared: Prepared, on_event: OnEvent | None) -> BuildResult:
        lines = LastLines(_reporter(on_event))
        try:
            return self._driver.build(prepared, lines)
        except SolveError as err:
            err.logs = lines.of(err.vertex or "")
            raise

    async def _abuild(self, prepared: Prepared, on_event: OnEvent | None) -> BuildResult:
        lines = LastLines(_reporter(on_event))
        try:
            return await self._driver.abuild(prepared, lines)
        except SolveError as err:
            err.logs = lines.of(err.vertex or "")
            raise

    def close(self) -> None:
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        await self._driver.aclose()


def build(
    context: str | os.PathLike[str] = ".",
    *,
    root: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | Config | None = None,
    builder: str | None = None,
    on_event: OnEvent | None = None,
    on_error: OnError | None = None,
    **options: Any,
) -> BuildResult:
    """Build an image from a Dockerfile: in this process, or on the `builder` that is named (see `Builder`).

    `context` is a directory, a git URL or an http(s) URL. `on_event` is called with each `progress.Event` (Vertex, Status,
    Log, Warning), from whichever thread it arises in; it must not block. `on_error` is called when a step has failed, before
    the build ends, with a `driver.shell.FailedStep`: `run(args)` runs a process in the state the step left, `shell()` opens a
    shell in it on this terminal. A coroutine function is given a `client.failed.Failed` instead.

    Options, all keywords:
        dockerfile          path of the Dockerfile (default: in the context), or `dockerfile_text`, its text
        tags                names of the image; `push=True` pushes it, `load=True` loads it into Docker or Podman
        outputs             `Output` values or strings as for -o: "type=oci,dest=app.tar"
        build_args, labels  mappings
        pull                True or "always", "missing" (what is not known here), "never" (ask no registry)
        target, platforms, no_cache, no_cache_filter, network, add_hosts, shm_size, ulimits, allow, annotations
        secrets             mapping of id to bytes or str (the value), or `Secret` values
        logins              mapping of registry host to (user, password), or to an identity token: used before docker's logins
        provenance, sbom    what is attested of the result: True, False, or as --provenance has it: "mode=max"; `attest`, a list
        build_contexts      mapping of name to path, image, URL, oci-layout://, docker-archive:FILE or docker-daemon:IMAGE

    Returns the BuildResult. Raises ChantierError: a failed step is a SolveError whose `__cause__` is a StepError.
    """
    with Builder(root=root, config=config, builder=builder) as opened:
        return opened.build(context, on_event=on_event, on_error=on_error, **options)


async def abuild(
    context: str | os.PathLike[str] = ".",
    *,
    root: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | Config | None = None,
    builder: str | None = None,
    on_event: OnEvent | None = None,
    on_error: OnError | None = None,
    **options: Any,
) -> BuildResult:
    """`build` for a running event loop. Cancelling it stops the build and waits until its processes are gone."""
    async with Builder(root=root, config=config, builder=builder) as opened:
        return await opened.abuild(context, on_event=on_event, on_error=on_error, **options)


def solve(
    graph: State | Graph,
    *,
    root: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | Config | None = None,
    builder: str | None = None,
    on_event: OnEvent | None = None,
    on_error: OnError | None = None,
    **options: Any,
) -> BuildResult:
    """Build a graph that was written in Python, or that `convert` made of a Dockerfile.

    Options, all keywords:
        locals              mapping of name to directory: what `llb.local(NAME)` stands for
        platform            for operations that say none, such as "linux/arm64"
        image_config        mapping or JSON bytes: the config that an image is exported with
        outputs, tags, push, load, annotations, secrets, logins, allow, provenance, sbom    as for `build`
    """
    with Builder(root=root, config=config, builder=builder) as opened:
        return opened.solve(graph, on_event=on_event, on_error=on_error, **options)


def convert(
    context: str | os.PathLike[str] = ".",
    *,
    root: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | Config | None = None,
    builder: str | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Graph:
    """The graph of a Dockerfile, with the image config and the directories that it needs to be solved.

    The frontend of any `builder` can be asked, a stock one too; the graph can be solved on any other.
    """
    with Builder(root=root, config=config, builder=builder) as opened:
        return opened.convert(context, on_event=on_event, **options)


class _Calling:
    def __init__(self, call: OnEvent) -> None:
        self._call = call

    def emit(self, event: Event, /) -> None:
        self._call(event)


def _reporter(on_event: OnEvent | None) -> Reporter:
    return _Calling(on_event) if on_event is not None else Silent()


def _prepared(context: str | os.PathLike[str], options: Mapping[str, Any], on_error: OnError | None = None) -> Prepared:
    from .driver.save import saving

    prepared = prepare(request_of(context, **options), save=saving())
    if on_error is None:
        return prepared
    from .driver.shell import calling

    return replace(prepared, on_failure=calling(on_error))


def _prepared_graph(graph: State | Graph, options: dict[str, Any], on_error: OnError | None) -> Prepared:
    from .client.graph import prepare_graph
    from .driver.graph import Graph

    options = dict(options)
    if isinstance(graph, Graph):
        options.setdefault("locals", graph.locals)
        options.setdefault("image_config", graph.image_config)
        options.setdefault("platform", graph.platform)
    options["outputs"] = _outputs(options.get("outputs", ()))
    options["secrets"] = _secrets(options.get("secrets", ()))
    options["logins"] = _logins(options.get("logins", {}))
    prepared = prepare_graph(graph.state if isinstance(graph, Graph) else graph, **options)
    if on_error is None:
        return prepared
    from .driver.shell import calling

    return replace(prepared, on_failure=calling(on_error))


def _outputs(values: Sequence[Output | str]) -> tuple[Output, ...]:
    return tuple(o if isinstance(o, Output) else parse_output(o) for o in values)


def _secrets(values: Mapping[str, str | bytes] | Sequence[Secret]) -> tuple[Secret, ...]:
    if not isinstance(values, Mapping):
        return tuple(values)
    return tuple(Secret(id=k, value=v.encode() if isinstance(v, str) else v) for k, v in values.items())


def _logins(values: Mapping[str, Credentials | tuple[str, str] | str]) -> dict[str, Credentials]:
    found: dict[str, Credentials] = {}
    for host, value in values.items():
        if isinstance(value, str):
            found[host] = Credentials(username="", secret=value)
        elif isinstance(value, Credentials):
            found[host] = value
        else:
            username, secret = value
            found[host] = Credentials(username=username, secret=secret)
    return found


def request_of(context: str | os.PathLike[str], **options: Any) -> BuildRequest:
    """A BuildRequest from friendly types: paths, lists, strings for outputs, plain values for secrets."""
    known = {one.name for one in fields(BuildRequest)}
    unknown = set(options) - known
    if unknown:
        import difflib

        name = sorted(unknown)[0]
        near = difflib.get_close_matches(name, known, n=1)
        raise TypeError(f"build() has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    values: dict[str, Any] = {}
    for name, value in options.items():
        values[name] = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value
    if isinstance(values.get("dockerfile"), os.PathLike):
        values["dockerfile"] = os.fspath(values["dockerfile"])
    if isinstance(values.get("dockerfile_text"), str):
        values["dockerfile_text"] = values["dockerfile_text"].encode()
    values["outputs"] = _outputs(values.get("outputs", ()))
    values["secrets"] = _secrets(values.get("secrets", ()))
    values["logins"] = _logins(values.get("logins", {}))
    if "build_contexts" in values:
        values["build_contexts"] = {k: os.fspath(v) for k, v in values["build_contexts"].items()}
    return BuildRequest(context=os.fspath(context), **values)


__all__ = ["Builder", "ChantierError", "abuild", "build", "convert", "request_of", "solve"]
