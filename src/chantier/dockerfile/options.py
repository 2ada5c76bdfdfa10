# SPDX-License-Identifier: Apache-2.0
"""What a build may be told: the frontend's string map as values (protocol.md 3.2)."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from chantier.errors import ChantierError, ReferenceError_, UsageError
from chantier.llb import Device, Resources, Ulimit
from chantier.llb.run import Network
from chantier.llb.sources import ResolveMode
from chantier.spec import Platform
from chantier.values import dataclass, field, replace

from .attests import Sbom, attestation_options
from .bridge import CacheImport
from .gotext import csv_fields, parse_bool

_CPUSET = re.compile(r"[0-9]+(-[0-9]+)?\Z")
_ULIMITS = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_T = TypeVar("_T")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Frozen; `raw` is the map it was read from, for what only contexts and forwarding look at."""

    target: str = ""
    platforms: tuple[Platform, ...] = ()
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    no_cache: tuple[str, ...] | None = None  # () is every stage, None is no stage
    add_hosts: tuple[tuple[str, str], ...] = ()
    hostname: str = ""
    network: Network = "sandbox"
    shm_size: int = 0
    ulimits: tuple[Ulimit, ...] = ()
    cgroup_parent: str = ""
    resources: Resources | None = None
    devices: tuple[Device, ...] = ()
    resolve_mode: ResolveMode = "default"
    multi_platform: bool = False
    cache_namespace: str = ""
    cache_imports: tuple[CacheImport, ...] = ()
    check: str | None = None  # replaces the file's own `check` directive
    sbom: Sbom | None = None
    request: str = ""  # a subrequest
    raw: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_frontend_attrs(cls, opts: Mapping[str, str]) -> Options:
        """Raises UsageError with BuildKit's texts."""
        _refuse_removed(opts)
        platforms = _platforms(opts.get("platform", ""))
        return cls(
            target=opts.get("target", ""),
            platforms=platforms,
            build_args=_with_prefix(opts, "build-arg:"),
            labels=_with_prefix(opts, "label:"),
            no_cache=_no_cache(opts),
            add_hosts=_within("failed to parse additional hosts", _hosts, opts.get("add-hosts", "")),
            hostname=opts.get("build-arg:BUILDKIT_SANDBOX_HOSTNAME") or opts.get("hostname", ""),
            network=_network(opts.get("force-network-mode", "")),
            shm_size=_within("failed to parse shm size", _shm_size, opts.get("shm-size", "")),
            ulimits=_within("failed to parse ulimit", parse_ulimits, opts.get("ulimit", "")),
            cgroup_parent=opts.get("cgroup-parent", ""),
            resources=_within("failed to parse resource limits", _resources, opts),
            devices=_devices(opts.get("device", "")),
            resolve_mode=_resolve_mode(opts.get("image-resolve-mode", "")),
            multi_platform=_multi_platform(opts, platforms),
            cache_namespace=opts.get("build-arg:BUILDKIT_CACHE_MOUNT_NS", ""),
            cache_imports=_cache_imports(opts),
            check=opts.get("build-arg:BUILDKIT_DOCKERFILE_CHECK"),
            sbom=_sbom(opts),
            request=opts.get("requestid", ""),
            raw=dict(opts),
        )

    def is_no_cache(self, stage: str) -> bool:
        if self.no_cache is None:
            return False
        return not self.no_cache or any(name.lower() == stage.lower() for name in self.no_cache)

    def without_epoch_arg(self) -> Options:
        args = {k: v for k, v in self.build_args.items() if k != "SOURCE_DATE_EPOCH"}
        return replace(self, build_args=args)

    def with_build_arg(self, key: str, value: str) -> Options:
        return replace(self, build_args={**self.build_args, key: value})


def _within(what: str, parse: Callable[[_V], _T], value: _V) -> _T:
    """Say of which option an error is."""
    try:
        return parse(value)
    except ChantierError as err:
        raise UsageError(f"{what}: {err}") from err


def _refuse_removed(opts: Mapping[str, str]) -> None:
    if opts.get("override-copy-image"):
        raise UsageError('support for "override-copy-image" was removed in BuildKit 0.11')
    if parse_bool(opts.get("build-arg:BUILDKIT_DISABLE_FILEOP", "")):
        raise UsageError('support for "BUILDKIT_DISABLE_FILEOP" build-arg was removed in BuildKit 0.11')


def _with_prefix(opts: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in opts.items() if key.startswith(prefix)}


def _platforms(text: str) -> tuple[Platform, ...]:
    out = []
    for part in text.split(",") if text else ():
        try:
            out.append(Platform.parse(part))
        except ReferenceError_ as err:
            raise UsageError(f"failed to parse target platform {part}: {err}") from err
    return tuple(out)


def _no_cache(opts: Mapping[str, str]) -> tuple[str, ...] | None:
    value = opts.get("no-cache")
    if value is None:
        return None
    return tuple(value.split(",")) if value else ()


def _multi_platform(opts: Mapping[str, str], platforms: tuple[Platform, ...]) -> bool:
    several = len(platforms) > 1
    value = opts.get("build-arg:BUILDKIT_MULTI_PLATFORM") or opts.get("multi-platform", "")
    if not value:
        return several
    wanted = parse_bool(value)
    if wanted is None:
        raise UsageError(f"invalid boolean value for multi-platform: {value}")
    if several and not wanted:
        raise UsageError("conflicting config: returning multiple target platforms is not allowed")
    return wanted


def _hosts(text: str) -> tuple[tuple[str, str], ...]:
    out = []
    for field_ in csv_fields(text) if text else ():
        host, equals, ip = field_.lower().partition("=")
        if not equals:
            raise UsageError(f"invalid key-value pair {field_}")
        try:
            out.append((host, str(ipaddress.ip_address(ip))))
        except ValueError:
            raise UsageError(f"failed to parse IP {ip}") from None
    return tuple(out)


def _shm_size(text: str) -> int:
    return _integer(text) if text else 0


def _integer(text: str) -> int:
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else _not_a_number(text)
    except ValueError:
        return _not_a_number(text)


def _not_a_number(text: str) -> int:
    raise UsageError(f'parsing "{text}": invalid syntax')


def _network(text: str) -> Network:
    match text:
        case "" | "sandbox":
            return "sandbox"
        case "host":
            return "host"
        case "none":
            return "none"
    raise UsageError(f"invalid netmode {text}")


def _resolve_mode(text: str) -> ResolveMode:
    match text:
        case "" | "default":
            return "default"
        case "pull":
            return "pull"
        case "local":
            return "local"
        case "never":  # ours: --pull=never
            return "never"
    raise UsageError(f"invalid image-resolve-mode: {text}")


def parse_ulimits(text: str) -> tuple[Ulimit, ...]:
    """`nofile=1024:2048` and the like, comma separated; one number is both limits."""
    return tuple(_ulimit(item) for item in (csv_fields(text) if text else ()))


def _ulimit(text: str) -> Ulimit:
    name, equals, limits = text.partition("=")
    if not equals:
        raise UsageError(f"invalid ulimit argument: {text}")
    if name not in _ULIMITS:
        raise UsageError(f"invalid ulimit type: {name}")
    soft_text, colon, hard_text = limits.partition(":")
    if ":" in hard_text:
        raise UsageError(f"too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`")
    try:
        soft = int(soft_text)
        hard = int(hard_text) if colon else soft
    except ValueError:
        raise UsageError(f'invalid ulimit value: parsing "{limits}": invalid syntax') from None
    if hard != -1 and (soft == -1 or soft > hard):
        raise UsageError(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return Ulimit(name=name, soft=soft, hard=hard)


def _resources(opts: Mapping[str, str]) -> Resources | None:
    made = Resources(
        memory=_positive(opts, "memory"),
        memory_swap=_positive(opts, "memswap", unlimited=True),
        cpu_shares=_positive(opts, "cpushares"),
        cpu_period=_positive(opts, "cpuperiod"),
        cpu_quota=_positive(opts, "cpuquota"),
        cpuset_cpus=_cpuset(opts, "cpusetcpus"),
        cpuset_mems=_cpuset(opts, "cpusetmems"),
    )
    return made if made != Resources() else None


def _positive(opts: Mapping[str, str], key: str, *, unlimited: bool = False) -> int:
    text = opts.get(key, "")
    if not text:
        return 0
    try:
        number = _integer(text)
    except UsageError as err:
        raise UsageError(f"invalid {key} value: {text}: {err}") from None
    if number > 0 or (unlimited and number == -1):
        return number
    raise UsageError(f"invalid {key} value: {text}: must be {'-1 (unlimited) or ' if unlimited else ''}> 0")


def _cpuset(opts: Mapping[str, str], key: str) -> str:
    text = opts.get(key, "")
    if text and not all(_CPUSET.match(part.strip()) for part in text.split(",")):
        raise UsageError(f"invalid {key} value: {text}: want a list such as 0-3,6")
    return text


def _devices(text: str) -> tuple[Device, ...]:
    out = []
    for item in csv_fields(text) if text else ():
        name, _, mode = item.partition("=")
        out.append(Device(name=name if mode in ("", "required") else item, optional=mode != "required"))
    return tuple(out)


def _cache_imports(opts: Mapping[str, str]) -> tuple[CacheImport, ...]:
    out = []
    text = opts.get("cache-imports", "")
    if text:
        try:
            for item in json.loads(text) or ():
                out.append(
                    CacheImport(
                        type=str(item.get("Type", "")), attrs={str(k): str(v) for k, v in (item.get("Attrs") or {}).items()}
                    )
                )
        except (ValueError, AttributeError, TypeError) as err:
            raise UsageError(f"failed to unmarshal cache-imports ({json.dumps(text)}): {err}") from None
    if opts.get("cache-from"):
        out += [CacheImport(type="registry", attrs={"ref": ref}) for ref in opts["cache-from"].split(",")]
    return tuple(out)


def _sbom(opts: Mapping[str, str]) -> Sbom | None:
    asked = attestation_options(opts)
    return Sbom.parse(asked["sbom"]) if "sbom" in asked else None


__all__ = ["Options", "parse_ulimits"]
