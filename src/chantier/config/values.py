# SPDX-License-Identifier: Apache-2.0
"""The config as values, one dataclass a table. None and empty mean: not set, the engine's default holds.

Upstream's meaning of each key is protocol.md section 7; what is ours stands in `ChantierConfig`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chantier.values import dataclass, field

from .patterns import is_pattern, pattern_error
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
    if wrong := pattern_error(name):
        return f'[registry."{name}"] has no effect: {wrong}'
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
    network_mode: str = toml(
        "networkMode",
        choice("auto", "host", "none", "cni", "bridge", "pasta", "slirp4netns"),
        "",
        about="the network of steps that ask for none in particular; auto: cni if its configuration is there, else host",
    )
    cni_config_path: str = toml("cniConfigPath", TEXT, "", about="configuration of CNI: /etc/buildkit/cni.json if not set")
    cni_binary_path: str = toml("cniBinaryPath", TEXT, "", about="directories of CNI plugins, with colons between them")
    cni_pool_size: int = toml("cniPoolSize", COUNT, 0, about="networks to keep ready, of bridge and of cni")
    bridge_name: str = toml("bridgeName", TEXT, "", about="the bridge of networkMode bridge: buildkit0 if not set")
    bridge_subnet: str = toml("bridgeSubnet", TEXT, "", about="its IPv4 network: 10.10.0.0/16 if not set")
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
    """A client certificate."""

    key: str = toml("key", TEXT, "", about="file of the private key; empty: it is in the file of the certificate")
    cert: str = toml("cert", TEXT, "", about="file of the certificate and the chain above it")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """A registry or a mirror by HOST[:PORT]. Chantier also takes `*` and `*.DOMAIN`, which BuildKit ignores."""

    mirrors: tuple[str, ...] = toml(
        "mirrors",
        Scalar(_mirrors, list, '["mirror.test:5000/path"]', TEXTS.schema),
        about="hosts to ask before the registry itself",
    )
    http: bool | None = toml("http", BOOL, None, about="speak plain HTTP")
    insecure: bool | None = toml("insecure", BOOL, None, about="do not verify certificates; with http: try TLS first")
    ca: tuple[str, ...] = toml("ca", TEXTS, about="files of certificate authorities, beside those of the system")
    keypairs: tuple[KeyPair, ...] = toml("keypair", Table(KeyPair, many=True))
    tls_config_dir: tuple[str, ...] = toml(
        "tlsconfigdir", TEXTS, about="directories: *.crt are authorities, *.cert with *.key are client certificates"
    )


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
class CredentialsConfig:
    """How the engine itself logs in to a host. One way of: a password, a token, a docker config.json, a helper.

    Without one, the client that asks for the build is asked, unless `client = false`.
    """

    username: str = toml("username", TEXT, "", about="name that goes with passwordFile or passwordEnv")
    password_file: str = toml("passwordFile", TEXT, "", about="file that holds the password; read anew for each login")
    password_env: str = toml("passwordEnv", TEXT, "", about="environment variable of the engine that holds the password")
    token_file: str = toml("tokenFile", TEXT, "", about="file that holds an identity (refresh) token")
    auth_file: str = toml("authFile", TEXT, "", about="a file in the form of docker's config.json")
    helper: str = toml("helper", TEXT, "", about="credential helper: docker-credential-NAME is run")
    client: bool | None = toml("client", BOOL, None, about="false: the client is not asked, the host is used anonymously")

    @property
    def ways(self) -> tuple[str, ...]:
        """The keys that say how, where they are set."""
        keys = ("passwordFile", "passwordEnv", "tokenFile", "authFile", "helper")
        values = (self.password_file, self.password_env, self.token_file, self.auth_file, self.helper)
        return tuple(key for key, value in zip(keys, values, strict=True) if value)

    def mistakes(self) -> Iterator[tuple[str, str]]:
        ways = self.ways
        if len(ways) > 1:
            yield ways[1], f"one way to log in is enough, {ways[0]} is another"
        elif self.username and not (self.password_file or self.password_env):
            yield "username", "a user name needs passwordFile or passwordEnv"
        elif (self.password_file or self.password_env) and not self.username:
            yield ways[0], "a password needs a username"
        if ways and self.client:
            yield "client", f"the client is not asked where the config has a login: {ways[0]}"


def _timeout(raw: object) -> float:
    seconds: float = DURATION.read(raw)
    if seconds <= 0:
        raise ValueError(f"must be longer than nothing, got {raw!r}")
    return seconds


def _proxy(raw: object) -> str:
    text: str = TEXT.read(raw)
    scheme, separator, host = text.partition("://")
    if text and text != "none" and (not separator or scheme not in ("http", "https") or not host):
        raise ValueError(f'want "http://HOST:PORT" or "https://HOST:PORT", got {text!r}')
    return text


_TIMEOUT = Scalar(_timeout, DURATION.write, '"5s"', DURATION.schema)
_PROXY = Scalar(_proxy, example='"http://proxy.test:3128"', schema={"type": "string", "pattern": "^(|none|https?://.+)$"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryExtra:
    """What Chantier adds for one host, be it a registry or a mirror: `[chantier.registry."HOST"]`; also `*` and `*.DOMAIN`."""

    connect_timeout_s: float | None = toml(
        "connectTimeout", _TIMEOUT, None, about="how long connecting may take, all addresses of the host together (30s)"
    )
    response_timeout_s: float | None = toml(
        "responseTimeout", DURATION, None, about="how long the host may be silent; 0: as the kind of request needs"
    )
    capabilities: tuple[str, ...] = toml(
        "capabilities", choices("pull", "resolve", "push"), about="what the host is asked for: blobs and manifests, tags, pushes"
    )
    only: bool | None = toml("only", BOOL, None, about="of a registry with mirrors: pull from them alone, never from itself")
    inherit: bool | None = toml("inherit", BOOL, None, about="false: take nothing from tables with a star")
    proxy: str | None = toml("proxy", _PROXY, None, about='proxy for this host; "none": go there directly')
    token_servers: tuple[str, ...] = toml(
        "tokenServers", TEXTS, about="hosts that may be sent this host's login to fetch tokens; empty: whichever it names"
    )
    breaker: bool | None = toml("breaker", BOOL, None, about="false: never pass over this host because it failed before")
    breaker_cooldown_s: float | None = toml(
        "breakerCooldown", _TIMEOUT, None, about="how long a host that failed is passed over at first (30s)"
    )
    max_concurrency: int | None = toml(
        "maxConcurrency", POSITIVE, None, about="blobs under way at a time, both ways together (system.maxRegistryConcurrency)"
    )
    max_pulls: int | None = toml("maxPulls", POSITIVE, None, about="blobs pulled at a time")
    max_pushes: int | None = toml("maxPushes", POSITIVE, None, about="blobs pushed at a time")
    max_metadata: int | None = toml("maxMetadata", POSITIVE, None, about="manifests and configs at a time beside the blobs (1)")
    credentials: CredentialsConfig = toml("credentials", Table(CredentialsConfig))


def _extra_mistakes(name: str, extra: RegistryExtra) -> Iterator[tuple[str, str]]:
    if wrong := pattern_error(name):
        yield "", wrong
    login = extra.credentials
    if name == "*" and (login.password_file or login.password_env or login.token_file):
        yield "credentials", "this login would go to whatever host a build names; give the host, or a domain"
    if is_pattern(name) and extra.only is not None:
        yield "only", "is of one registry: name it"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Trust and proxies of everything the engine does: tokens, pulls, pushes, git, ADD; and of RUN where injected."""

    ca: tuple[str, ...] = toml(
        "ca", TEXTS, about="files of certificate authorities to trust beside those of the system; read anew when they change"
    )
    proxy: str = toml("proxy", _PROXY, "", about="proxy for http and https; unset: that of the engine's environment")
    http_proxy: str = toml("httpProxy", _PROXY, "", about="proxy for http alone")
    https_proxy: str = toml("httpsProxy", _PROXY, "", about="proxy for https alone")
    no_proxy: tuple[str, ...] = toml(
        "noProxy", TEXTS, about="hosts to reach directly: names (with all below), .below, addresses, networks a.b.c.d/n, :port"
    )
    inject_ca: bool = toml(
        "injectCA", BOOL, False, about="let steps trust the same authorities: a bundle is mounted and named in their environment"
    )
    inject_proxy: bool = toml("injectProxy", BOOL, False, about="let steps use the same proxies")
    max_requests: int = toml("maxRegistryRequests", COUNT, 0, about="requests to all registries together; 0: no bound")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChantierConfig:
    """What BuildKit does not know, and ignores."""

    shutdown_s: float = toml("shutdown", DURATION, 60.0, about="how long running builds may finish after SIGTERM")
    step_stall_s: float = toml(
        "stepStall", DURATION, 0.0, about="end a build when one of its steps has said and done nothing for so long; 0: never"
    )
    build_stall_s: float = toml(
        "buildStall", DURATION, 0.0, about="end a build when nothing at all has happened in it for so long; 0: never"
    )
    builtin_frontends: tuple[str, ...] = toml(
        "builtinFrontends",
        TEXTS,
        ("docker/dockerfile", "docker/dockerfile-upstream"),
        about="frontend images (`# syntax=`) that are not run but served by the frontend that is built in",
    )
    read_in_place: bool = toml(
        "readInPlace",
        BOOL,
        True,
        about="read directories of a client where they lie, if it is on this machine and may read all that the daemon may",
    )
    max_bytes: Size = toml(
        "maxBytes", SIZE, Size(), about="the state directory never takes more, all included, but for what one running step writes"
    )
    network: NetworkConfig = toml("network", Table(NetworkConfig))
    registries: Mapping[str, RegistryExtra] = toml("registry", Table(RegistryExtra, named=True, check_item=_extra_mistakes))


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
