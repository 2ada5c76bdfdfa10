# SPDX-License-Identifier: Apache-2.0
"""A BuildRequest turned into what an engine is asked (SolveCall) and what a session must serve. Nothing is built here."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from chantier.errors import UsageError
from chantier.session.types import Credentials
from chantier.spec import Platform, host_platform, new_id
from chantier.values import dataclass, field, replace

from .attest import DEFAULT_PROVENANCE, attest_attrs, has_default
from .cache_dir import stores, with_digest
from .context import Context, is_git_url, is_http_url, resolve_context
from .output import Output, plan_outputs
from .parse import parse_annotations, parse_csv_fields, parse_host, parse_tag, parse_ulimit
from .request import BuildRequest, Secret, Ssh

if TYPE_CHECKING:
    from chantier.kernel.temporary import TemporaryDirectory
    from chantier.pb import ops_pb2 as pb

CALLS = {
    "check": "lint",
    "lint": "lint",
    "outline": "outline",
    "targets": "targets",
    "subrequests.describe": "subrequests.describe",
    "convertllb": "convertllb",
}
_RESOURCES = {
    "memory": "memory",
    "memory-swap": "memswap",
    "cpu-shares": "cpushares",
    "cpu-period": "cpuperiod",
    "cpu-quota": "cpuquota",
    "cpuset-cpus": "cpusetcpus",
    "cpuset-mems": "cpusetmems",
}
_ARCHIVES = ("docker-archive:", "oci-archive:", "docker-daemon:")
_ENTITLEMENTS = ("network.host", "security.insecure", "device")


if TYPE_CHECKING:
    from .archives import Save
    from .failed import Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """One --cache-from or --cache-to."""

    type: str
    attrs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveCall:
    """What is asked of an engine, whichever it is. `exporters` are (type, attributes) in the order of `outputs`."""

    ref: str
    frontend: str = "dockerfile.v0"
    attrs: Mapping[str, str]
    exporters: tuple[tuple[str, Mapping[str, str]], ...] = ()
    cache_imports: tuple[CacheSpec, ...] = ()
    cache_exports: tuple[CacheSpec, ...] = ()
    entitlements: tuple[str, ...] = ()
    internal: bool = False
    definition: pb.Definition | None = None  # a graph instead of a frontend, which is "" then
    metadata: Mapping[str, bytes] = field(default_factory=dict)  # what a frontend would say of the graph's result
    default_provenance: bool = False  # nobody spoke of provenance: engines that can carry it do

    def attested(self) -> SolveCall:
        """The same with what is attested by default, for an engine that can."""
        if not self.default_provenance:
            return self
        attrs = {**self.attrs, "attest:provenance": DEFAULT_PROVENANCE}
        return replace(self, attrs=attrs, default_provenance=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the session serves during the build."""

    context: Context
    outputs: tuple[Output, ...] = ()
    secrets: tuple[Secret, ...] = ()
    ssh: tuple[Ssh, ...] = ()
    layouts: Mapping[str, Path] = field(default_factory=dict)  # content stores by id: OCI layouts on disk
    scratch: tuple[TemporaryDirectory, ...] = ()  # made for this build: `cleanup` is for whoever serves the session
    allow_delete: bool = False
    logins: Mapping[str, Credentials] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    call: SolveCall
    offer: Offer
    on_failure: Callable[[Failed], Awaitable[None]] | None = None  # called when a step has failed, before the build ends
    provenance: bool = False  # daemons are asked for it when the build is over


def prepare(
    request: BuildRequest,
    *,
    stdin: Callable[[], BinaryIO] = lambda: sys.stdin.buffer,
    stdout_is_tty: bool = False,
    env: Mapping[str, str] | None = None,
    default_output: str = "",
    save: Save | None = None,
) -> Prepared:
    """Check a request and resolve everything that only the user's machine knows. Raises UsageError.

    `default_output` is the type of what a build makes that names no output: "image", "docker" (loaded) or nothing. `save`
    opens images of the local container engine, for contexts `docker-daemon:NAME`.
    """
    scratch: list[TemporaryDirectory] = []
    try:
        return _prepare(request, stdin, env, scratch, save, stdout_is_tty=stdout_is_tty, default_output=default_output)
    except BaseException:
        for folder in scratch:
            folder.cleanup()
        raise


def _prepare(
    request: BuildRequest,
    stdin: Callable[[], BinaryIO],
    env: Mapping[str, str] | None,
    scratch: list[TemporaryDirectory],
    save: Save | None,
    *,
    stdout_is_tty: bool,
    default_output: str,
) -> Prepared:
    env = os.environ if env is None else env
    for tag in request.tags:
        parse_tag(tag)
    outputs = (
        plan_outputs(
            request.outputs,
            tags=request.tags,
            push=request.push,
            load=request.load,
            annotations=parse_annotations(request.annotations),
            stdout_is_tty=stdout_is_tty,
            default=default_output,
        )
        if request.call == "build"
        else []
    )
    context = resolve_context(request, stdin)
    attrs = dict(context.attrs)
    attrs.update(_option_attrs(request))
    caps: set[str] = set()
    directories = dict(context.directories)
    layouts: dict[str, Path] = {}
    for name, value in request.build_contexts.items():
        caps.add("moby.buildkit.frontend.contexts+forward")
        if value.startswith(_ARCHIVES):
            attrs[f"context:{name}"] = _archive(value, layouts, scratch, save)
        else:
            attrs[f"context:{name}"] = _named_context(name, value, directories, layouts, attrs)
    if request.call != "build":
        method = CALLS.get(request.call)
        if method is None:
            raise UsageError(f"unsupported request frontend.{request.call}", hint="calls are build, check, outline, targets")
        attrs["requestid"] = f"frontend.{method}"
        caps.add("moby.buildkit.frontend.subrequests+forward")
    if caps:
        attrs["frontend.caps"] = ",".join(sorted(caps))
    asked = attest_attrs(request.attest, provenance=request.provenance, sbom=request.sbom) if request.call == "build" else {}
    attrs.update({f"attest:{kind}": text for kind, text in asked.items() if text is not None})
    attrs.update(request.extra_attrs)
    ssh = request.ssh
    if not ssh and context.attrs.get("context", "").startswith(("git@", "ssh://")) and env.get("SSH_AUTH_SOCK"):
        ssh = (Ssh(paths=(env["SSH_AUTH_SOCK"],)),)
    imports = tuple(with_digest(c) for text in request.cache_from for c in _cache_specs(text))
    exports = [c for text in request.cache_to for c in _cache_specs(text)]
    if request.build_args.get("BUILDKIT_INLINE_CACHE") in ("1", "true") and not any(c.type == "inline" for c in exports):
        exports.append(CacheSpec(type="inline", attrs={}))
    layouts.update(stores(imports, exports))
    return Prepared(
        call=SolveCall(
            ref=new_id(),
            attrs=attrs,
            exporters=tuple((o.type, o.attrs) for o in outputs),
            cache_imports=imports,
            cache_exports=tuple(exports),
            entitlements=_entitlements(request),
            internal=request.call != "build",
            default_provenance=request.call == "build" and has_default(asked, outputs, env),
        ),
        offer=Offer(
            context=Context(
                attrs=context.attrs,
                directories=directories,
                files=context.files,
                upload=context.upload,
                shared_base=context.shared_base,
                dockerfile_name=context.dockerfile_name,
            ),
            outputs=tuple(outputs),
            secrets=request.secrets,
            ssh=ssh,
            layouts=layouts,
            scratch=tuple(scratch),
            allow_delete="buildx.local.delete" in request.allow,
            logins=request.logins,
        ),
    )


def _option_attrs(request: BuildRequest) -> dict[str, str]:
    attrs: dict[str, str] = {}
    for key, value in request.build_args.items():
        attrs[f"build-arg:{key}"] = value
    for key, value in request.labels.items():
        attrs[f"label:{key}"] = value
    if request.target:
        attrs["target"] = request.target
    if request.platforms:
        attrs["platform"] = ",".join(_platform(p) for text in request.platforms for p in text.split(","))
    if request.no_cache and request.no_cache_filter:
        raise UsageError("--no-cache and --no-cache-filter cannot currently be used together")
    if request.no_cache:
        attrs["no-cache"] = ""
    if request.no_cache_filter:
        attrs["no-cache"] = ",".join(request.no_cache_filter)
    if request.pull:
        attrs["image-resolve-mode"] = _pull_mode(request.pull)
    if request.add_hosts:
        attrs["add-hosts"] = ",".join(pair for text in request.add_hosts for pair in parse_host(text))
    if request.network in ("host", "none"):
        attrs["force-network-mode"] = request.network
    elif request.network not in ("", "default"):
        raise UsageError(
            f'network mode "{request.network}" not supported by buildkit - you can define a custom network for your builder using the network driver-opt in buildx create',
            hint="networks of steps are default, host and none",
        )
    if request.shm_size:
        attrs["shm-size"] = str(request.shm_size)
    if request.ulimits:
        attrs["ulimit"] = ",".join(parse_ulimit(u) for u in request.ulimits)
    if request.cgroup_parent:
        attrs["cgroup-parent"] = request.cgroup_parent
    for key, value in request.resources.items():
        if key not in _RESOURCES:
            raise UsageError(f"unknown resource {key}", hint="resources are " + ", ".join(_RESOURCES))
        attrs[_RESOURCES[key]] = value
    return attrs


def _pull_mode(pull: bool | str) -> str:
    """`local` is BuildKit's name for: take what is here, ask for the rest."""
    modes = {"always": "pull", "missing": "local", "never": "never"}
    mode = modes.get("always" if pull is True else str(pull))
    if mode is None:
        raise UsageError(f"invalid pull mode {pull!r}", hint="modes are always, missing and never")
    return mode


def _platform(text: str) -> str:
    return str(host_platform()) if text == "local" else str(Platform.parse(text))


def _named_context(name: str, value: str, directories: dict[str, Path], layouts: dict[str, Path], attrs: dict[str, str]) -> str:
    if is_git_url(value) or is_http_url(value) or value.startswith(("docker-image://", "target:", "input:")):
        return value
    if value.startswith("oci-layout://"):
        return _layout(name, value.removeprefix("oci-layout://"), layouts)
    path = Path(value)
    if not path.exists():
        raise UsageError(f"failed to get build context {name}: stat {value}: no such file or directory")
    if not path.is_dir():
        raise UsageError(f"failed to get build context path {{{value} <nil>}}: not a directory")
    mount = f"_{name}" if name in ("context", "dockerfile") else name
    directories[mount] = path.resolve()
    attrs[f"sharedkey:localdir:{mount}"] = str(path.resolve())
    return f"local:{mount}"


def _archive(value: str, layouts: dict[str, Path], scratch: list[TemporaryDirectory], save: Save | None) -> str:
    """An image in an archive, unpacked to a layout that the session offers."""
    from chantier.kernel.temporary import TemporaryDirectory

    from .archives import open_archive

    made = TemporaryDirectory("image")
    scratch.append(made)
    folder = Path(made.name)
    digest = open_archive(value, folder, save)
    id = new_id()
    layouts[id] = folder
    return f"oci-layout://{id}@{digest}"


def _layout(name: str, text: str, layouts: dict[str, Path]) -> str:
    """`path[:tag][@digest]` of an OCI layout on disk to a content store of the session and a pinned reference."""
    import json

    path, _, digest = text.partition("@")
    tag = ""
    if ":" in os.path.basename(path):
        path, _, tag = path.rpartition(":")
    root = Path(path).resolve()
    if not digest:
        try:
            index = json.loads((root / "index.json").read_text())
        except (OSError, ValueError) as err:
            raise UsageError(f"failed to get build context {name}: {path} is not an OCI layout: {err}") from err
        manifests = index.get("manifests") or []
        wanted = [
            m for m in manifests if (m.get("annotations") or {}).get("org.opencontainers.image.ref.name") == (tag or "latest")
        ]
        if not wanted and not tag and len(manifests) == 1:
            wanted = manifests
        if not wanted:
            raise UsageError(f"failed to get build context {name}: no image tagged {tag or 'latest'!r} in the OCI layout {path}")
        digest = wanted[-1]["digest"]
    id = new_id()
    layouts[id] = root
    return f"oci-layout://{id}{':' + tag if tag else ''}@{digest}"


def _entitlements(request: BuildRequest) -> tuple[str, ...]:
    granted = []
    for text in request.allow:
        if text == "buildx.local.delete":
            continue
        if text.split("=")[0] not in _ENTITLEMENTS:
            raise UsageError(f"unknown entitlement {text}", hint="entitlements are " + ", ".join(_ENTITLEMENTS))
        granted.append(text)
    if request.network == "host" and "network.host" not in granted:
        granted.append("network.host")
    return tuple(granted)


def _cache_specs(text: str) -> list[CacheSpec]:
    if not text:
        return []
    if "=" not in text:
        return [CacheSpec(type="registry", attrs={"ref": ref}) for ref in text.split(",") if ref]
    fields = parse_csv_fields(text)
    kind = fields.pop("type", "")
    if not kind:
        raise UsageError(f'type required for "{text}"')
    return [CacheSpec(type=kind, attrs=fields)]
