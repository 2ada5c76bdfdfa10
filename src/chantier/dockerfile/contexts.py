# SPDX-License-Identifier: Apache-2.0
"""Where the files of a build come from: the Dockerfile, .dockerignore, the main context and named ones.

Nothing is read before it is needed, and each thing once, whatever the number of platforms that are built.
"""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from posixpath import basename, dirname, join
from typing import TypeVar

from chantier.errors import ChantierError, IntegrityError, NotFoundError, ReferenceError_, SessionLostError, UsageError
from chantier.llb import (
    Copying,
    FileAction,
    GitRef,
    How,
    Location,
    SourceMap,
    State,
    deferred,
    from_definition,
    git,
    http,
    image,
    local,
    raw_ops,
    scratch,
)
from chantier.llb import oci_layout as oci_layout_state
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform, Reference
from chantier.spec.patterns import read_ignore
from chantier.values import dataclass, field, replace

from .bridge import Bridge, OciStore, SolvedRef
from .config import Image
from .gotext import parse_bool
from .titles import internal

DOCKERFILE = "Dockerfile"
IGNORE_FILE = ".dockerignore"
HTTP_FILE = "context"
_HTTP = re.compile(r"https?://")
_MAGIC = (b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\0")
_MAX_RECURSION = 10

_T = TypeVar("_T")
Follow = Callable[[], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MainContext:
    """What the options say of the main context. `state` is None for a directory of the client."""

    state: State | None = None
    dockerfile: State | None = None  # None: the client's directory
    context_local: str = "context"
    dockerfile_local: str = "dockerfile"
    filename: str = DOCKERFILE
    force_local_dockerfile: bool = False
    source: pb.SourceOp | None = None  # of a git or HTTP context
    ref: SolvedRef | None = field(default=None, repr=False)  # of an HTTP context
    is_archive: bool = False


class Contexts:
    """The sources of one build. `opts` are the frontend's options, `inputs` its inputs by name."""

    def __init__(self, bridge: Bridge, opts: Mapping[str, str], inputs: Mapping[str, pb.Definition]) -> None:
        self.bridge = bridge
        self.opts = dict(opts)  # a source policy may rewrite named contexts
        self.inputs = inputs
        self._main: asyncio.Task[MainContext] | None = None
        self._ignore: asyncio.Task[tuple[str, ...]] | None = None
        self._ignore_file: tuple[str, bytes] | None = None

    async def main_context(self) -> MainContext:
        if self._main is None:
            self._main = asyncio.ensure_future(self._find_main())
        return await asyncio.shield(self._main)

    def session(self, name: str) -> str:
        return self.opts.get("local-sessionid:" + name, self.bridge.session_id)

    async def read_dockerfile(self) -> SourceMap:
        """Read the Dockerfile and, on the way, the ignore file beside it. Raises NotFoundError."""
        main = await self.main_context()
        state = main.dockerfile if not main.force_local_dockerfile else None
        if state is None:
            names = [main.filename, main.filename + IGNORE_FILE]
            if basename(main.filename) == DOCKERFILE:
                names.append(join(dirname(main.filename), DOCKERFILE.lower()))
            state = local(
                main.dockerfile_local,
                follow=names,
                session=self.session(main.dockerfile_local),
                shared_key=main.dockerfile_local,
                differ="none",
                name=internal(f"load build definition from {main.filename}"),
            )
        definition = state.marshal(caps=self.bridge.caps)
        ref = await _said("failed to resolve dockerfile", self.bridge.solve(definition))
        data = await _said("failed to read dockerfile", _read_either(ref, main.filename))
        name = main.filename + IGNORE_FILE
        ignored = await _try_read(ref, name)
        if ignored is not None:
            self._ignore_file = (name, ignored)
        return SourceMap(filename=main.filename, data=data, state=state, definition=definition)

    async def ignore_patterns(self) -> tuple[str, ...]:
        """The patterns of the ignore file; none for a context that is no directory of the client. Raises UsageError."""
        main = await self.main_context()
        return await self._local_patterns(main) if main.state is None else ()

    async def _local_patterns(self, main: MainContext) -> tuple[str, ...]:
        if self._ignore is None:
            self._ignore = asyncio.ensure_future(self._read_patterns(main))
        return await asyncio.shield(self._ignore)

    async def _read_patterns(self, main: MainContext) -> tuple[str, ...]:
        if self._ignore_file is None:
            state = local(
                main.context_local,
                session=self.session(main.context_local),
                follow=[IGNORE_FILE],
                shared_key=f"{main.context_local}-{IGNORE_FILE}",
                differ="none",
                name=internal(f"load {IGNORE_FILE}"),
            )
            ref = await self.bridge.solve(state.marshal(caps=self.bridge.caps))
            self._ignore_file = (IGNORE_FILE, await _try_read(ref, IGNORE_FILE) or b"")
        return _parse_ignore(*self._ignore_file)

    async def main(self, follow: Sequence[str] = ()) -> State:
        """The main context's tree; `follow` are the paths used of it, none for all."""
        main = await self.main_context()
        if main.state is not None:
            return main.state
        return local(
            main.context_local,
            session=self.session(main.context_local),
            exclude=await _said("failed to read dockerignore patterns", self._local_patterns(main)),
            shared_key=main.context_local,
            follow=follow,
            name=internal("load build context"),
        )

    def named(
        self, name: str, *, platform: Platform | None, resolve_mode: str = "default", follow: Follow = tuple
    ) -> NamedContext | None:
        """The context that stands for `name` on `platform`, if one was given. Raises ReferenceError_ for an odd name."""
        if name.lower() in ("scratch", "context"):
            return None
        return self.named_any(name, platform=platform, resolve_mode=resolve_mode, follow=follow)

    def named_any(
        self, name: str, *, platform: Platform | None, resolve_mode: str = "default", follow: Follow = tuple
    ) -> NamedContext | None:
        try:
            short = Reference.parse(name).familiar().removesuffix(":latest")
        except ReferenceError_ as err:
            raise prefixed(err, f"invalid context name {name}") from err.__cause__
        where = (platform or self.bridge.platforms[0]).normalise().format_all()
        for key in (f"{short}::{where}", short):
            value = self.opts.get("context:" + key)
            if value is not None:
                return NamedContext(
                    contexts=self, value=value, name=short, key=key, platform=platform, resolve_mode=resolve_mode, follow=follow
                )
        return None

    async def _find_main(self) -> MainContext:
        opts = self.opts
        value = opts.get(opts.get("contextkey", "context"), "")
        made = MainContext(
            filename=opts.get("filename", DOCKERFILE),
            force_local_dockerfile="dockerfilekey" in opts,
            dockerfile_local=opts.get("dockerfilekey", "dockerfile"),
        )
        state = git_context(value, keep=parse_bool(opts.get("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR", "")), opts=opts)
        if state is not None:
            made = replace(made, state=state, dockerfile=state, source=source_of(state))
        elif _HTTP.match(value):
            made = await self._http_context(made, value)
        else:
            if not made.force_local_dockerfile and made.dockerfile_local in self.inputs:
                made = replace(made, dockerfile=_input_state(self.inputs[made.dockerfile_local]))
            if "context" in self.inputs:
                made = replace(made, state=_input_state(self.inputs["context"]))
        if made.state is not None and "contextsubdir" in opts:
            scoped = FileAction().copy(made.state, opts["contextsubdir"], "/", Copying(contents_only=True))
            made = replace(made, state=scratch().file(scoped))
        return made

    async def _http_context(self, made: MainContext, url: str) -> MainContext:
        state = http(url, filename=HTTP_FILE, name=internal("load remote build context"))
        ref = await _said("failed to resolve httpcontext", self.bridge.solve(state.marshal(caps=self.bridge.caps)))
        head = await _said("failed to read downloaded context", ref.read_file(HTTP_FILE, length=1024))
        source = source_of(state)
        if looks_like_archive(head):
            tree = scratch().file(FileAction().copy(state, "/" + HTTP_FILE, "/", Copying(unpack=True)))
            return replace(made, state=tree, dockerfile=tree, source=source, ref=ref, is_archive=True)
        return replace(made, filename=HTTP_FILE, state=state, dockerfile=state, source=source, ref=ref)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamedContext:
    """A context given by name; `load` looks at what it needs to look at."""

    contexts: Contexts = field(repr=False)
    value: str
    name: str
    key: str  # the name, with the platform where it was given with one
    platform: Platform | None
    resolve_mode: str
    follow: Follow = field(repr=False)

    async def load(self) -> tuple[State, Image | None]:
        """Its tree, and its config where it is an image."""
        return await self._load(0)

    async def _load(self, depth: int) -> tuple[State, Image | None]:
        if depth > _MAX_RECURSION:
            raise UsageError(
                "context recursion limit exceeded; this may indicate a cycle in the provided source policies: " + self.value
            )
        scheme, colon, rest = self.value.partition(":")
        if not colon:
            raise UsageError(f"invalid context specifier {self.value} for {self.key}")
        if scheme.startswith("git@"):
            scheme = "git"
        match scheme:
            case "docker-image":
                return await self._image(rest.removeprefix("//"), depth)
            case "git":
                state = git_context(self.value)
                if state is None:
                    raise UsageError(f"invalid git context {self.value}")
                return state, None
            case "http" | "https":
                state = git_context(self.value)
                return state or http(self.value, filename=HTTP_FILE, name=f"[context {self.key}] {self.value}"), None
            case "ssh":
                state = git_context(self.value)
                if state is not None:
                    return state, None
            case "oci-layout":
                return await self._oci_layout(rest.removeprefix("//"))
            case "local":
                return await self._local(rest), None
            case "input":
                return self._input(rest)
        raise UsageError(f"unsupported context source {scheme} for {self.key}")

    async def _image(self, ref: str, depth: int) -> tuple[State, Image | None]:
        if ref == "scratch":
            return scratch(), None
        full = str(Reference.parse(ref).with_default_tag())
        found = await self.contexts.bridge.resolve_image(
            full, platform=self.platform, mode=self.resolve_mode, log_name=f"[context {self.key}] load metadata for {ref}"
        )
        scheme, separator, rest = found.ref.partition("://")
        if separator and scheme != "docker-image":  # a source policy turned the image into something else
            changed = f"{scheme}:{rest}" if scheme == "local" else f"{scheme}://{rest}"
            self.contexts.opts["context:" + self.key] = changed
            return await replace(self, value=changed)._load(depth + 1)
        config = Image.parse(found.config)
        name = f"[context {self.key}] {ref}"
        where = rest if separator else found.ref
        if found.digest:
            where = str(Reference.parse(where).with_digest(found.digest))
        state = image(where, name=name, platform=self.platform) if self.platform else image(where, name=name)
        return state.with_image_config(found.config), replace(config, created="")

    async def _oci_layout(self, spec: str) -> tuple[State, Image | None]:
        named, at, digest = spec.partition("@")
        if not named:
            raise UsageError(f'oci-layout reference "{spec}" has no name')
        if not at:
            raise UsageError(f'oci-layout reference "{named}" has no digest')
        folder, slash, last = named.rpartition("/")
        store = OciStore(session=self.contexts.bridge.session_id, store=folder + slash + last.partition(":")[0])
        # The name people read is that of the context: the store's may mean nothing to them.
        shown = str(Reference.parse(self.name).with_digest(digest))
        found = await self.contexts.bridge.resolve_image(
            shown, platform=self.platform, log_name=f"[context {self.key}] load metadata for {shown}", store=store
        )
        found.of(shown)
        name = f"[context {self.key}] OCI load from client"
        if self.platform:
            state = oci_layout_state(shown, session=store.session, store=store.store, name=name, platform=self.platform)
        else:
            state = oci_layout_state(shown, session=store.session, store=store.store, name=name)
        return state.with_image_config(found.config), Image.parse(found.config)

    async def _local(self, local_name: str) -> State:
        contexts = self.contexts
        session = contexts.session(local_name)
        probe = local(
            local_name,
            session=session,
            follow=[IGNORE_FILE],
            shared_key=f"context:{self.key}-{IGNORE_FILE}",
            differ="none",
            name=f"[context {self.key}] load {IGNORE_FILE}",
        )
        ref = await contexts.bridge.solve(probe.marshal(), evaluate=True)
        data = await _try_read(ref, IGNORE_FILE)
        exclude = _parse_ignore(IGNORE_FILE, data) if data else ()
        shared = f"context:{self.key}-{contexts.opts.get('sharedkey:localdir:' + self.key, '')}"
        return deferred(
            lambda: local(
                local_name,
                session=session,
                shared_key=shared,
                exclude=exclude,
                follow=self.follow(),
                name=f"[context {self.key}] load from client",
            )
        )

    def _input(self, name: str) -> tuple[State, Image | None]:
        if name not in self.contexts.inputs:
            raise UsageError(f"invalid input {name} for {self.key}")
        state = _input_state(self.contexts.inputs[name])
        text = self.contexts.opts.get("input-metadata:" + name)
        if text is None:
            return state, None
        try:
            values = {key: b64decode(value) for key, value in json.loads(text).items()}
        except (ValueError, AttributeError, TypeError) as err:
            raise UsageError(f"failed to parse input metadata {text}: {err}") from err
        config = values.get("containerimage.config")
        if config is None:
            return state, None
        try:
            return state.with_image_config(config), Image.parse(config)
        except (ValueError, IntegrityError) as err:
            raise UsageError(f"failed to parse image config for {self.key}: {err}") from err


def git_context(value: str, *, keep: bool | None = None, opts: Mapping[str, str] | None = None) -> State | None:
    """The tree of a git address, None where `value` is none. Raises UsageError for an address with a wrong query."""
    ref = GitRef.parse(value) if value else None
    if ref is None:
        return None
    return git_state(
        ref,
        keep_git_dir=bool(ref.keep_git_dir or keep),
        commit_times=bool((opts or {}).get("build-arg:SOURCE_DATE_EPOCH")),
        name=internal(f"load git source {value}"),
    )


def git_state(
    ref: GitRef,
    *,
    keep_git_dir: bool = False,
    checksum: str = "",
    commit_times: bool = False,
    name: str | None = None,
    locations: tuple[Location, ...] = (),
) -> State:
    """A checkout of what `ref` says; the other arguments are over what it says."""
    how: How = {"locations": locations}
    if name is not None:
        how["name"] = name
    return git(
        ref.remote,
        ref.ref,
        subdir=ref.subdir,
        keep_git_dir=keep_git_dir,
        checksum=checksum or ref.checksum,
        skip_submodules=ref.submodules is False,
        mtime=ref.mtime or ("commit" if commit_times else ""),
        fetch_by_commit=ref.fetch_by_commit,
        **how,
    )


def source_of(state: State) -> pb.SourceOp | None:
    """The one source operation a tree is made of; None where there are none or several."""
    found: pb.SourceOp | None = None
    for raw in raw_ops(state.marshal()):
        op = pb.Op()
        op.ParseFromString(raw)
        if op.WhichOneof("op") == "source":
            if found is not None:
                return None
            found = op.source
    return found


def looks_like_archive(head: bytes) -> bool:
    """By its first kilobyte: a compression's mark, or a tar header with a right checksum."""
    if head.startswith(_MAGIC):
        return True
    import io
    import tarfile

    try:
        with tarfile.open(fileobj=io.BytesIO(head[:512].ljust(10240, b"\0")), mode="r:") as tar:
            return tar.next() is not None or bool(tar.getmembers())
    except (tarfile.TarError, OSError):
        return False


def prefixed(error: ChantierError, text: str) -> ChantierError:
    """The same error, its text with `text: ` in front."""
    return error.reworded(f"{text}: {error.brief}")


async def _said(text: str, doing: Awaitable[_T]) -> _T:
    try:
        return await doing
    except ChantierError as err:
        raise prefixed(err, text)


async def _read_either(ref: SolvedRef, filename: str) -> bytes:
    try:
        return await ref.read_file(filename)
    except NotFoundError:
        if basename(filename) == DOCKERFILE:
            data = await _try_read(ref, join(dirname(filename), DOCKERFILE.lower()))
            if data is not None:
                return data
        raise


def _input_state(definition: pb.Definition) -> State:
    """The tree of an input. One that was never made has not even the description of an operation."""
    if not definition.metadata:
        raise UsageError("invalid nil input definition to definition op")
    return from_definition(definition)


async def _try_read(ref: SolvedRef, name: str) -> bytes | None:
    try:
        return await ref.read_file(name)
    except SessionLostError:
        raise
    except (
        ChantierError
    ):  # a client may also offer no directories at all; an ignore file that cannot be read is as good as none, as in BuildKit
        return None


def _parse_ignore(name: str, data: bytes) -> tuple[str, ...]:
    try:
        return tuple(read_ignore(data))
    except ChantierError as err:
        raise prefixed(err, f"failed parsing {name}")


__all__ = ["Contexts", "MainContext", "NamedContext", "git_context", "git_state", "looks_like_archive", "prefixed", "source_of"]
