# SPDX-License-Identifier: Apache-2.0
"""A process in a root file system: ExecOp, its mounts, secrets and agents (protocol.md 1.4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from chantier.errors import UsageError
from chantier.pb import ops_pb2 as pb
from chantier.values import dataclass, field

from . import caps as cap
from .constraints import Constraints
from .vertex import AnyOutput, Output, Writer, real

if TYPE_CHECKING:
    from .state import State

Network = Literal["sandbox", "host", "none"]
Security = Literal["sandbox", "insecure"]
Sharing = Literal["shared", "private", "locked"]
ContentCache = Literal["default", "on", "off"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NETWORKS = {"sandbox": pb.UNSET, "host": pb.HOST, "none": pb.NONE}
SECURITIES = {"sandbox": pb.SANDBOX, "insecure": pb.INSECURE}
_SHARINGS = {"shared": pb.SHARED, "private": pb.PRIVATE, "locked": pb.LOCKED}
_CONTENT = {"default": pb.DEFAULT, "on": pb.ON, "off": pb.OFF}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mount:
    """Something at `target`: a state (`source`; None is empty), a cache (`cache_id`) or memory (`tmpfs`)."""

    target: str
    source: State | None = None
    path: str = ""  # only this path of the source
    readonly: bool = False
    no_output: bool = False  # writes are dropped: what is mounted can be written, but not asked for afterwards
    cache_id: str = ""
    sharing: Sharing = "shared"
    tmpfs: bool = False
    size: int = 0  # of a tmpfs, bytes; 0 is the kernel's default
    content_cache: ContentCache = "default"

    @property
    def output(self) -> AnyOutput | None:
        return self.source.output if self.source is not None else None

    @property
    def has_output(self) -> bool:
        return not (self.no_output or self.readonly or self.tmpfs or self.cache_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret as a file at `target`, as the variable `env`, or both."""

    id: str
    target: str | None = None
    env: str | None = None
    uid: int = 0
    gid: int = 0
    mode: int = 0o400
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssh:
    """The client's agent `id` as a socket; SSH_AUTH_SOCK names the first one."""

    id: str = ""
    target: str = ""
    uid: int = 0
    gid: int = 0
    mode: int = 0o600
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Proxy variables of a step; not part of its cache key."""

    http: str = ""
    https: str = ""
    ftp: str = ""
    no: str = ""
    all: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ulimit:
    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A CDI device."""

    name: str
    optional: bool = False


def bind(target: str, source: State, *, path: str = "", readonly: bool = True) -> Mount:
    """A state at `target`. Written to only if `readonly=False`; the result is then `ran.mount(target)`."""
    return Mount(target=target, source=source, path=path, readonly=readonly)


def cache(target: str, *, id: str = "", sharing: Sharing = "shared", source: State | None = None, path: str = "") -> Mount:
    """A directory that outlives the build, by default named for its target."""
    return Mount(target=target, source=source, path=path, cache_id=id or target, sharing=sharing)


def tmpfs(target: str, *, size: int = 0) -> Mount:
    return Mount(target=target, tmpfs=True, size=size)


@dataclass(frozen=True, eq=False)
class RunVertex:
    base: State  # its env, cwd, user and the rest are those of the process
    args: tuple[str, ...]
    mounts: tuple[Mount, ...]  # the root is one of them, target "/"
    secrets: tuple[Secret, ...]
    ssh: tuple[Ssh, ...]
    proxy: Proxy | None
    devices: tuple[Device, ...]
    valid_exit_codes: tuple[int, ...]
    how: Constraints
    _sorted: tuple[Mount, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # The order of mounts is that of their targets; equal targets keep the order they were given in.
        object.__setattr__(self, "_sorted", tuple(sorted(self.mounts, key=lambda m: m.target.encode(errors="surrogatepass"))))

    def inputs(self) -> Sequence[Output]:
        found: dict[int, Output] = {}
        for mount in self._sorted:
            out = real(mount.output)
            if out is not None:
                found[id(out)] = out
        return tuple(found.values())

    def index(self, slot: object) -> int:
        number = 0
        for mount in self._sorted:
            if mount.has_output:
                if mount is slot:
                    return number
                number += 1
        target = slot.target if isinstance(slot, Mount) else slot
        raise UsageError(f"invalid mount: {target} has no output")

    def write(self, op: pb.Op, writer: Writer) -> set[str]:
        if not self.args:
            raise UsageError("arguments are required")
        caps = {cap.EXEC_BASE}
        execution = op.exec
        self._write_meta(execution, op, writer, caps)
        for mount in self._sorted:
            self._write_mount(execution, op, writer, mount, caps)
        self._write_secrets(execution, caps)
        self._write_agents(execution, caps)
        return caps

    def _write_meta(self, execution: pb.ExecOp, op: pb.Op, writer: Writer, caps: set[str]) -> None:
        base, meta = self.base, execution.meta
        env = dict(base.env_vars)
        if self.ssh:
            env.setdefault("SSH_AUTH_SOCK", self._agents()[0].target)
        if writer.known is not None:
            if cap.EXEC_DEFAULT_PATH in writer.known:
                caps.add(cap.EXEC_DEFAULT_PATH)
            elif op.platform.OS != "windows":
                env.setdefault("PATH", DEFAULT_PATH)
        meta.args.extend(self.args)
        meta.env.extend(f"{key}={value}" for key, value in env.items())
        meta.cwd, meta.user, meta.hostname, meta.cgroupParent = base.cwd, base.username, base.host_name, base.cgroup
        meta.removeMountStubsRecursive = True
        if self.valid_exit_codes:
            meta.validExitCodes.extend(self.valid_exit_codes)
            caps.add(cap.EXEC_VALID_EXIT_CODE)
        meta.extraHosts.extend(pb.HostIP(Host=host, IP=ip) for host, ip in base.extra_hosts)
        if base.ulimits:
            meta.ulimit.extend(pb.Ulimit(Name=u.name, Soft=u.soft, Hard=u.hard) for u in base.ulimits)
            caps.add(cap.EXEC_ULIMIT)
        if self.how.resources is not None:
            caps.add(cap.EXEC_RESOURCES)
        execution.network, execution.security = NETWORKS[base.net], SECURITIES[base.sec]
        if base.net != "sandbox":
            caps.add(cap.EXEC_NETWORK)
        if base.sec != "sandbox":
            caps.add(cap.EXEC_SECURITY)
        if self.proxy is not None:
            p = self.proxy
            meta.proxy_env.CopyFrom(
                pb.ProxyEnv(http_proxy=p.http, https_proxy=p.https, ftp_proxy=p.ftp, no_proxy=p.no, all_proxy=p.all)
            )
            caps.add(cap.EXEC_PROXY)
        if self.devices:
            execution.cdiDevices.extend(pb.CDIDevice(name=d.name, optional=d.optional) for d in self.devices)
            caps.add(cap.EXEC_CDI)

    def _write_mount(self, execution: pb.ExecOp, op: pb.Op, writer: Writer, mount: Mount, caps: set[str]) -> None:
        out = real(mount.output)
        if mount.tmpfs and out is not None:
            raise UsageError("tmpfs mounts must use scratch")
        made = pb.Mount(
            input=writer.add_input(op, out) if out is not None else -1,
            selector=mount.path,
            dest=mount.target,
            output=self.index(mount) if mount.has_output else -1,
            readonly=mount.readonly,
            contentCache=_CONTENT[mount.content_cache],
        )
        if mount.path:
            caps.add(cap.EXEC_MOUNT_SELECTOR)
        if mount.cache_id:
            made.mountType = pb.CACHE
            made.cacheOpt.CopyFrom(pb.CacheOpt(ID=mount.cache_id, sharing=_SHARINGS[mount.sharing]))
            caps |= {cap.EXEC_MOUNT_CACHE, cap.EXEC_MOUNT_CACHE_SHARING}
        elif mount.tmpfs:
            made.mountType = pb.TMPFS
            made.TmpfsOpt.CopyFrom(pb.TmpfsOpt(size=mount.size))
            caps.add(cap.EXEC_MOUNT_TMPFS)
            if mount.size > 0:
                caps.add(cap.EXEC_MOUNT_TMPFS_SIZE)
        elif out is not None:
            caps.add(cap.EXEC_MOUNT_BIND)
        if mount.content_cache != "default":
            caps.add(cap.EXEC_MOUNT_CONTENT_CACHE)
        execution.mounts.append(made)

    def _write_secrets(self, execution: pb.ExecOp, caps: set[str]) -> None:
        for s in self.secrets:
            caps.add(cap.EXEC_MOUNT_SECRET)
            if s.env is not None:
                execution.secretenv.append(pb.SecretEnv(ID=s.id, name=s.env, optional=s.optional))
                caps.add(cap.EXEC_SECRET_ENV)
            if s.target is not None:
                opt = pb.SecretOpt(ID=s.id, uid=s.uid, gid=s.gid, mode=s.mode, optional=s.optional)
                execution.mounts.append(pb.Mount(input=-1, dest=s.target, mountType=pb.SECRET, secretOpt=opt))

    def _agents(self) -> tuple[Ssh, ...]:
        from chantier.values import replace

        return tuple(s if s.target else replace(s, target=f"/run/buildkit/ssh_agent.{n}") for n, s in enumerate(self.ssh))

    def _write_agents(self, execution: pb.ExecOp, caps: set[str]) -> None:
        for s in self._agents():
            caps.add(cap.EXEC_MOUNT_SSH)
            opt = pb.SSHOpt(ID=s.id, uid=s.uid, gid=s.gid, mode=s.mode, optional=s.optional)
            execution.mounts.append(pb.Mount(input=-1, dest=s.target, mountType=pb.SSH, SSHOpt=opt))


__all__ = [
    "DEFAULT_PATH",
    "ContentCache",
    "Device",
    "Mount",
    "Network",
    "Proxy",
    "RunVertex",
    "Secret",
    "Security",
    "Sharing",
    "Ssh",
    "Ulimit",
    "bind",
    "cache",
    "tmpfs",
]
