# SPDX-License-Identifier: Apache-2.0
"""A tree that a build will have, and the circumstances of the steps that are run on it. Immutable: every call gives a new one.

base = image("docker.io/library/alpine:3")
built = base.dir("/src").copy(local("context"), ".", ".").run("make").run(["make", "install"])
definition = built.marshal(Platform.parse("linux/arm64"))
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from chantier.errors import UsageError
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform
from chantier.values import dataclass, field, fields, replace

from .constraints import Constraints, How, constraints
from .file import BoundAction, Copying, FileAction, FileVertex, Owner, clean
from .run import Device, Mount, Network, Proxy, RunVertex, Secret, Security, Ssh, Ulimit
from .vertex import AnyOutput, DeferredOutput, Output, marshal_output, output_of

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class State:
    """`output` is None for an empty tree. The other fields apply to steps run on it and to relative paths."""

    output: AnyOutput | None = None
    env_vars: tuple[tuple[str, str], ...] = ()
    cwd: str = "/"
    username: str = ""
    platform: Platform | None = None
    net: Network = "sandbox"
    sec: Security = "sandbox"
    host_name: str = ""
    cgroup: str = ""
    extra_hosts: tuple[tuple[str, str], ...] = ()
    ulimits: tuple[Ulimit, ...] = ()

    def env(self, key: str, value: str) -> State:
        """Set a variable for the steps that follow; a variable keeps its place when its value changes."""
        if any(k == key for k, _ in self.env_vars):
            return replace(self, env_vars=tuple((k, value if k == key else v) for k, v in self.env_vars))
        return replace(self, env_vars=(*self.env_vars, (key, value)))

    def get_env(self, key: str) -> str | None:
        return next((v for k, v in self.env_vars if k == key), None)

    def dir(self, path: str) -> State:
        return replace(self, cwd=path if path.startswith("/") else clean(posixpath.join(self.cwd or "/", path)))

    def user(self, name: str) -> State:
        return replace(self, username=name)

    def network(self, mode: Network) -> State:
        return replace(self, net=mode)

    def security(self, mode: Security) -> State:
        return replace(self, sec=mode)

    def hostname(self, name: str) -> State:
        return replace(self, host_name=name)

    def cgroup_parent(self, path: str) -> State:
        return replace(self, cgroup=path)

    def host(self, name: str, ip: str) -> State:
        """A line of the steps' /etc/hosts."""
        return replace(self, extra_hosts=(*self.extra_hosts, (name, ip)))

    def ulimit(self, name: str, soft: int, hard: int) -> State:
        return replace(self, ulimits=(*self.ulimits, Ulimit(name=name, soft=soft, hard=hard)))

    def on_platform(self, platform: Platform) -> State:
        return replace(self, platform=platform.normalise())

    def with_output(self, output: AnyOutput | None) -> State:
        """The same circumstances on another tree."""
        platform = output.platform if output is not None and output.platform is not None else self.platform
        return replace(self, output=output, platform=platform)

    def with_image_config(self, config: bytes) -> State:
        """Environment, directory and platform as an image's config gives them."""
        raw = json.loads(config)
        inner = raw.get("config") or {}
        state = self
        for item in inner.get("Env") or ():
            key, _, value = str(item).partition("=")
            if key:
                state = state.env(key, value)
        if inner.get("WorkingDir"):
            state = state.dir(str(inner["WorkingDir"]))
        if raw.get("architecture") and raw.get("os"):
            state = state.on_platform(Platform.from_json(raw))
        return state

    def run(
        self,
        args: str | Sequence[str],
        *,
        mounts: Iterable[Mount] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        network: Network | None = None,
        security: Security | None = None,
        hostname: str | None = None,
        secrets: Iterable[Secret] = (),
        ssh: Iterable[Ssh] = (),
        hosts: Iterable[tuple[str, str]] = (),
        ulimits: Iterable[Ulimit] = (),
        cgroup_parent: str | None = None,
        proxy: Proxy | None = None,
        devices: Iterable[Device] = (),
        valid_exit_codes: Iterable[int] = (),
        readonly_root: bool = False,
        **how: Unpack[How],
    ) -> Ran:
        """Run a process on this tree. A string is given to `/bin/sh -c`.

        What is said here of environment, user and the like holds for this step alone.
        """
        base = self
        for key, value in (env or {}).items():
            base = base.env(key, value)
        if cwd is not None:
            base = base.dir(cwd)
        base = replace(
            base,
            username=base.username if user is None else user,
            net=network or base.net,
            sec=security or base.sec,
            host_name=base.host_name if hostname is None else hostname,
            cgroup=base.cgroup if cgroup_parent is None else cgroup_parent,
            extra_hosts=(*base.extra_hosts, *hosts),
            ulimits=(*base.ulimits, *ulimits),
        )
        own = constraints(how)
        if own.platform is None and base.platform is not None:
            own = replace(own, platform=base.platform)
        root = Mount(target="/", source=self, readonly=readonly_root)
        vertex = RunVertex(
            base=base,
            args=("/bin/sh", "-c", args) if isinstance(args, str) else tuple(args),
            mounts=(root, *mounts),
            secrets=tuple(secrets),
            ssh=tuple(ssh),
            proxy=proxy,
            devices=tuple(devices),
            valid_exit_codes=tuple(valid_exit_codes),
            how=own,
        )
        after = self if readonly_root else self.with_output(Output(vertex, root, how.get("platform")))
        return Ran(**{name: getattr(after, name) for name in _names()}, vertex=vertex)

    def file(self, action: FileAction, **how: Unpack[How]) -> State:
        """Apply file actions; one layer, no process."""
        own = constraints(how)
        return self.with_output(Output(FileVertex(BoundAction(action, self), own)))

    def copy(
        self, source: State, src: str, dest: str, *, options: Copying | None = None, owner: str | None = None, **how: Unpack[How]
    ) -> State:
        made = options or Copying(create_dest=True)
        if owner is not None:
            made = replace(made, owner=Owner.parse(owner))
        return self.file(FileAction().copy(source, src, dest, made), **how)

    def mkdir(self, path: str, mode: int = 0o755, *, parents: bool = False, **how: Unpack[How]) -> State:
        return self.file(FileAction().mkdir(path, mode, parents=parents), **how)

    def mkfile(self, path: str, data: bytes, mode: int = 0o644, **how: Unpack[How]) -> State:
        return self.file(FileAction().mkfile(path, data, mode), **how)

    def rm(self, path: str, *, missing_ok: bool = False, wildcard: bool = False, **how: Unpack[How]) -> State:
        return self.file(FileAction().rm(path, missing_ok=missing_ok, wildcard=wildcard), **how)

    def symlink(self, old: str, new: str, **how: Unpack[How]) -> State:
        return self.file(FileAction().symlink(old, new), **how)

    def marshal(
        self,
        platform: Platform | None = None,
        *,
        caps: frozenset[str] | None = None,
        unique_id: str | None = None,
        base: Constraints | None = None,
    ) -> pb.Definition:
        """The definition of this tree, byte for byte as the Go client writes it.

        `caps` are the engine's capabilities where they are known; `unique_id` stands for local sources without a session;
        `base` holds for every operation that says nothing else.
        Costs time linear in the size of the graph.
        """
        base = base or Constraints()
        if platform is not None:
            base = replace(base, platform=platform.normalise())
        return marshal_output(self.output, base, caps, unique_id)


@dataclass(frozen=True, slots=True)
class Ran(State):
    """The root after a step; `mount` gives what the step left in a writable mount."""

    vertex: RunVertex | None = field(default=None, repr=False)

    @property
    def root(self) -> State:
        return State(*(getattr(self, name) for name in _names()))

    def mount(self, target: str) -> State:
        """Raises UsageError for a mount that cannot be asked for: tmpfs, or one whose writes are dropped."""
        vertex = self.vertex
        assert vertex is not None
        for mount in vertex.mounts:
            if mount.target == target:
                if mount.readonly:
                    return State(mount.output)
                if not mount.has_output and not mount.cache_id:
                    kind = "tmpfs mount for" if mount.tmpfs else "mount marked no-output and"
                    raise UsageError(f"{kind} {target} can't be used as a parent")
                source = mount.source or State()
                return source.with_output(Output(vertex, mount, vertex.how.platform))
        raise UsageError(f"no mount at {target}")


def _names() -> list[str]:
    return [one.name for one in fields(State)]


def scratch() -> State:
    """An empty tree."""
    return State()


def deferred(make: Callable[[], State]) -> State:
    """A tree that is decided when the graph is marshalled."""
    return State(DeferredOutput(make))


def from_definition(definition: pb.Definition) -> State:
    """The result of a definition, to build on."""
    return State(output_of(definition))


__all__ = ["Constraints", "Ran", "State", "deferred", "from_definition", "scratch"]
