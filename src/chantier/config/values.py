# SPDX-License-Identifier: Apache-2.0
"""The config as values, one dataclass a table. None and empty mean: not set, the engine's default holds.

Upstream's meaning of each key is protocol.md section 7; what is ours stands in `ChantierConfig`.
"""

# ruff: noqa: RUF009 -- `toml` makes a dataclass field, as dataclasses.field does
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .schema import (
    BOOL,
    COUNT,
    DURATION,
    EMPTY,
    FREE,
    INT,
    POSITIVE,
    SIZE,
    TEXT,
    TEXT_MAP,
    TEXTS,
    ItemError,
    Scalar,
    Table,
    choice,
    choices,
    toml,
)
from .units import Size

LEVELS = ("info", "debug", "trace", "warn", "warning", "error", "fatal", "panic")


def _mirrors(raw: object) -> tuple[str, ...]:
    texts: tuple[str, ...] = TEXTS.read(raw)
    for index, text in enumerate(texts):
        scheme, separator, rest = text.partition("://")
        if separator and scheme != "https":
            raise ItemError(
                index,
                f'a mirror is "host[:port][/path]" without a scheme, got {text!r}; set http = true in [registry."{rest.partition("/")[0]}"]',
            )
        host = (rest if separator else text).partition("/")[0]
        if not host or any(c.isspace() for c in text):
            raise ItemError(index, f'a mirror is "host[:port][/path]", got {text!r}')
    return tuple(t.removeprefix("https://").rstrip("/") for t in texts)


def _registry_name(name: str) -> str:
    if name in {"index.docker.io", "registry-1.docker.io"}:
        return f'[registry."{name}"] has no effect: docker hub is configured as [registry."docker.io"]'
    if "://" in name:
        return f'[registry."{name}"] has no effect: write the host without a scheme'
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    format: str = toml("format", choice("text", "json"), "")
    level: str = toml("level", choice(*LEVELS), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    cert: str = toml("cert", TEXT, "")
    key: str = toml("key", TEXT, "")
    ca: str = toml("ca", TEXT, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcConfig:
    address: tuple[str, ...] = toml("address", TEXTS)
    debug_address: str = toml("debugAddress", TEXT, "")
    uid: int | None = toml("uid", INT, None)
    gid: int | None = toml("gid", INT, None)
    security_descriptor: str = toml("securityDescriptor", TEXT, "")
    tls: TlsConfig = toml("tls", Table(TlsConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class OtelConfig:
    socket_path: str = toml("socketPath", TEXT, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiConfig:
    disabled: bool | None = toml("disabled", BOOL, None)
    spec_dirs: tuple[str, ...] = toml("specDirs", TEXTS)
    auto_allowed: tuple[str, ...] = toml("autoAllowed", TEXTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPolicyConfig:
    all: bool = toml("all", BOOL, False)
    filters: tuple[str, ...] = toml("filters", TEXTS)
    keep_duration_s: float = toml("keepDuration", DURATION, 0.0)
    keep_bytes: Size = toml("keepBytes", SIZE, Size(), deprecated="reservedSpace")
    reserved_space: Size = toml("reservedSpace", SIZE, Size())
    max_used_space: Size = toml("maxUsedSpace", SIZE, Size())
    min_free_space: Size = toml("minFreeSpace", SIZE, Size())


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The keys both workers have."""

    enabled: bool | None = toml("enabled", BOOL, None)
    labels: Mapping[str, str] = toml("labels", TEXT_MAP, EMPTY)
    platforms: tuple[str, ...] = toml("platforms", TEXTS)
    snapshotter: str = toml("snapshotter", TEXT, "")
    rootless: bool | None = toml("rootless", BOOL, None)
    gc: bool | None = toml("gc", BOOL, None)
    gc_keep_storage: Size = toml("gckeepstorage", SIZE, Size(), deprecated="reservedSpace")
    reserved_space: Size = toml("reservedSpace", SIZE, Size())
    max_used_space: Size = toml("maxUsedSpace", SIZE, Size())
    min_free_space: Size = toml("minFreeSpace", SIZE, Size())
    gc_policies: tuple[GcPolicyConfig, ...] = toml("gcpolicy", Table(GcPolicyConfig, many=True))
    network_mode: str = toml("networkMode", choice("auto", "host", "none", "cni", "bridge"), "")
    cni_config_path: str = toml("cniConfigPath", TEXT, "")
    cni_binary_path: str = toml("cniBinaryPath", TEXT, "")
    cni_pool_size: int = toml("cniPoolSize", COUNT, 0)
    bridge_name: str = toml("bridgeName", TEXT, "")
    bridge_subnet: str = toml("bridgeSubnet", TEXT, "")
    apparmor_profile: str = toml("apparmor-profile", TEXT, "")
    selinux: bool = toml("selinux", BOOL, False)
    max_parallelism: int = toml("max-parallelism", COUNT, 0)
    default_cgroup_parent: str = toml("defaultCgroupParent", TEXT, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class OciConfig(WorkerConfig):
    no_process_sandbox: bool = toml("noProcessSandbox", BOOL, False)
    user_remap_unsupported: str = toml("userRemapUnsupported", TEXT, "")
    binary: str = toml("binary", TEXT, "")
    proxy_snapshotter_path: str = toml("proxySnapshotterPath", TEXT, "")
    isolate_cgroups: bool = toml("isolateCgroups", BOOL, False)
    stargz_snapshotter: Mapping[str, object] = toml("stargzSnapshotter", FREE, EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerdRuntimeConfig:
    name: str = toml("name", TEXT, "")
    path: str = toml("path", TEXT, "")
    options: Mapping[str, object] = toml("options", FREE, EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerdConfig(WorkerConfig):
    """Accepted and kept; Chantier has no containerd worker."""

    address: str = toml("address", TEXT, "")
    namespace: str = toml("namespace", TEXT, "")
    runtime: ContainerdRuntimeConfig = toml("runtime", Table(ContainerdRuntimeConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    key: str = toml("key", TEXT, "")
    cert: str = toml("cert", TEXT, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    mirrors: tuple[str, ...] = toml("mirrors", Scalar(_mirrors, list, '["mirror.test:5000/path"]'))
    http: bool | None = toml("http", BOOL, None)
    insecure: bool | None = toml("insecure", BOOL, None)
    ca: tuple[str, ...] = toml("ca", TEXTS)
    keypairs: tuple[KeyPair, ...] = toml("keypair", Table(KeyPair, many=True))
    tls_config_dir: tuple[str, ...] = toml("tlsconfigdir", TEXTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsConfig:
    nameservers: tuple[str, ...] = toml("nameservers", TEXTS)
    options: tuple[str, ...] = toml("options", TEXTS)
    search_domains: tuple[str, ...] = toml("searchDomains", TEXTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryConfig:
    max_age_s: float = toml("maxAge", DURATION, 0.0)
    max_entries: int = toml("maxEntries", INT, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemConfig:
    platforms_cache_max_age_s: float | None = toml("platformsCacheMaxAge", DURATION, None)
    max_registry_concurrency: int = toml("maxRegistryConcurrency", POSITIVE, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerfileFrontendConfig:
    enabled: bool | None = toml("enabled", BOOL, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayFrontendConfig:
    enabled: bool | None = toml("enabled", BOOL, None)
    allowed_repositories: tuple[str, ...] = toml("allowedRepositories", TEXTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig:
    dockerfile: DockerfileFrontendConfig = toml("dockerfile.v0", Table(DockerfileFrontendConfig))
    gateway: GatewayFrontendConfig = toml("gateway.v0", Table(GatewayFrontendConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class GhaSignConfig:
    command: tuple[str, ...] = toml("command", TEXTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GhaVerifyConfig:
    required: bool = toml("required", BOOL, False)
    policy: Mapping[str, object] = toml("policy", FREE, EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGhaConfig:
    sign: GhaSignConfig = toml("sign", Table(GhaSignConfig))
    verify: GhaVerifyConfig = toml("verify", Table(GhaVerifyConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    gha: CacheGhaConfig = toml("gha", Table(CacheGhaConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersConfig:
    oci: OciConfig = toml("oci", Table(OciConfig))
    containerd: ContainerdConfig = toml("containerd", Table(ContainerdConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryExtra:
    """What Chantier adds for one host, be it a registry or a mirror: `[chantier.registry."HOST"]`."""

    connect_timeout_s: float = toml("connectTimeout", DURATION, 30.0)
    response_timeout_s: float = toml("responseTimeout", DURATION, 0.0)  # 0: as the kind of request needs


@dataclass(frozen=True, slots=True, kw_only=True)
class ChantierConfig:
    registries: Mapping[str, RegistryExtra] = toml("registry", Table(RegistryExtra, named=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file. `file` and `warnings` do not count when configs are compared."""

    debug: bool = toml("debug", BOOL, False, deprecated='log.level = "debug"')
    trace: bool = toml("trace", BOOL, False, deprecated='log.level = "trace"')
    root: str = toml("root", TEXT, "")
    entitlements: tuple[str, ...] = toml("insecure-entitlements", choices("network.host", "security.insecure", "device"))
    proxy_network: bool = toml("proxyNetwork", BOOL, False)
    provenance_env_dir: str = toml("provenanceEnvDir", TEXT, "")
    log: LogConfig = toml("log", Table(LogConfig))
    grpc: GrpcConfig = toml("grpc", Table(GrpcConfig))
    otel: OtelConfig = toml("otel", Table(OtelConfig))
    cdi: CdiConfig = toml("cdi", Table(CdiConfig))
    workers: WorkersConfig = toml("worker", Table(WorkersConfig))
    registries: Mapping[str, RegistryConfig] = toml("registry", Table(RegistryConfig, named=True, check_name=_registry_name))
    dns: DnsConfig = toml("dns", Table(DnsConfig))
    history: HistoryConfig = toml("history", Table(HistoryConfig))
    frontends: FrontendConfig = toml("frontend", Table(FrontendConfig))
    system: SystemConfig = toml("system", Table(SystemConfig))
    cache: CacheConfig = toml("cache", Table(CacheConfig))
    chantier: ChantierConfig = toml("chantier", Table(ChantierConfig))
    file: str | None = field(default=None, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def worker_oci(self) -> OciConfig:
        return self.workers.oci

    @property
    def log_level(self) -> str:
        """`log.level`, or what the older `trace` and `debug` ask for; `info` if nothing does."""
        if self.log.level:
            return "warning" if self.log.level == "warn" else self.log.level
        return "trace" if self.trace else "debug" if self.debug else "info"
