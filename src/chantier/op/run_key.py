# SPDX-License-Identifier: Apache-2.0
"""What a step's result depends on, and what the engine has to check and do for the steps of a graph before they run.

The key is the digest of the operation as it stands with everything blanked that must not count: addresses of extra hosts,
proxies, the paths that mounts select (they count by content), the names of cache mounts. Values of secrets and resource
limits are no part of the operation at all.
"""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from chantier.cache.content import Selector
from chantier.errors import UsageError
from chantier.llb.definition import Graph
from chantier.pb import ops_pb2 as pb
from chantier.solver.types import CacheMap, ContentKey, Dep
from chantier.spec import Platform
from chantier.values import dataclass, field

from .file import content_key, dedupe
from .key_json import digest_of, digests
from .mounts import ROOT, cache_index
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import Cache, Ref

_TYPE = "buildkit.exec.v0"


def cache_map_of(op: pb.ExecOp, inputs: int, platform: Platform, worker: Worker) -> CacheMap:
    """The one cache map of a step."""
    digest, also, detail = key_digests(op, platform)
    return CacheMap(digest=digest, also=also, deps=tuple(_deps(op, inputs, worker)), detail=detail)


def key_digest(op: pb.ExecOp, platform: Platform) -> str:
    """The definition part of a step's cache key."""
    return key_digests(op, platform)[0]


def key_digests(op: pb.ExecOp, platform: Platform) -> tuple[str, tuple[str, ...], bytes]:
    """The same with what older versions of BuildKit call it, and what it is made of."""
    counted = pb.ExecOp()
    counted.CopyFrom(op)
    for host in counted.meta.extraHosts:
        host.IP = ""
    counted.meta.ClearField("proxy_env")
    for mount in counted.mounts:
        mount.selector = ""
        if mount.HasField("cacheOpt") and not _is_default_cache(mount):
            mount.cacheOpt.ID = ""
            mount.cacheOpt.sharing = pb.SHARED
    if _is_plain_root(counted.mounts):
        counted.ClearField("mounts")
    return digests(
        lambda struct: (
            {"Type": _TYPE, "Exec": struct(counted), "OS": platform.os, "Arch": platform.architecture}
            | {
                name: value
                for name, value in (
                    ("Variant", platform.variant),
                    ("OSVersion", platform.os_version),
                    ("OSFeatures", list(platform.os_features)),
                )
                if value
            }
        )
    )


def _is_default_cache(mount: pb.Mount) -> bool:
    """A shared cache mount named after its place: `ID` or `NAMESPACE/ID` of `--mount=type=cache` without options."""
    option = mount.cacheOpt
    return option.sharing == pb.SHARED and mount.dest in (option.ID, option.ID.partition("/")[2])


def _is_plain_root(mounts: Sequence[pb.Mount]) -> bool:
    """The one writable root mount of a plain RUN, which says nothing that the input does not."""
    if len(mounts) != 1:
        return False
    mount = mounts[0]
    options = ("TmpfsOpt", "cacheOpt", "secretOpt", "SSHOpt")
    return (
        mount.dest == ROOT
        and not mount.readonly
        and mount.mountType == pb.BIND
        and not mount.resultID
        and not any(mount.HasField(name) for name in options)
    )


@dataclass(slots=True)
class _Use:
    """How one input is mounted, all mounts taken together."""

    selectors: list[str] = field(default_factory=list)
    by_content: bool = True


def _deps(op: pb.ExecOp, inputs: int, worker: Worker) -> Iterable[Dep]:
    uses = [_Use() for _ in range(inputs)]
    for mount in op.mounts:
        if mount.input < 0 or mount.mountType in (pb.SECRET, pb.SSH, pb.TMPFS):
            continue
        if mount.input >= inputs:
            raise UsageError(f"invalid mountinput {mount.input}")
        use = uses[mount.input]
        selector = posixpath.normpath(posixpath.join("/", mount.selector))
        use.selectors.append(selector)
        use.by_content = use.by_content and _by_content(mount, selector)
    for use in uses:
        # One mount of the whole makes every selection beside it a part of what counts anyway.
        paths = use.selectors if "/" not in use.selectors else []
        yield Dep(
            selector=digest_of("\0".join(use.selectors).encode()) if use.selectors else "",
            content=_content(paths, worker) if use.by_content and use.selectors else None,
            prepare=_prepare(worker),
        )


def _by_content(mount: pb.Mount, selector: str) -> bool:
    """Whether equal contents of what is mounted mean an equal result, whatever else the input holds."""
    safe = mount.output < 0 or mount.readonly or selector == "/"
    if mount.contentCache == pb.OFF:
        return False
    if mount.contentCache == pb.ON:
        if not safe:
            raise UsageError(f"invalid mount cache content ON for {mount.dest}: it is an output of a part of its input")
        return True
    return safe and mount.dest != ROOT


def _content(paths: Sequence[str], worker: Worker) -> ContentKey:
    return content_key(worker, dedupe([Selector(path=path, follow_links=True) for path in paths]))


def _prepare(worker: Worker) -> Callable[[Any, Any], Awaitable[None]]:
    async def prepare(job: Any, result: Ref | None) -> None:
        if result is not None and result.lazy:
            await worker.threaded(lambda cancelled: result.realise(step=job.step, sessions=job.sessions, cancelled=cancelled))

    return prepare


def cache_mounts_to_clear(graph: Graph) -> tuple[str, ...]:
    """Ids of the cache mounts of steps that ignore the cache: `--no-cache` starts them empty, once a build."""
    ids: dict[str, None] = {}
    for vertex in graph.vertices.values():
        if vertex.metadata.ignore_cache and vertex.op.WhichOneof("op") == "exec":
            ids.update((mount.cacheOpt.ID, None) for mount in vertex.op.exec.mounts if mount.mountType == pb.CACHE)
    return tuple(ids)


def clear_cache_mounts(cache: Cache, ids: Iterable[str]) -> None:
    for id in ids:
        cache.clear_index(cache_index(id))


__all__ = [
    "cache_map_of",
    "cache_mounts_to_clear",
    "clear_cache_mounts",
    "key_digest",
    "key_digests",
]
