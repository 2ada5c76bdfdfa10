# SPDX-License-Identifier: Apache-2.0
"""What a runtime is asked to do: values, and the protocol that `Runc` and the native sandbox implement."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from chantier.snapshot.mount import Mount
from chantier.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rlimit:
    name: str  # without RLIMIT_, upper case
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """cgroup limits; 0 or empty means none (pb.LinuxResources)."""

    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    terminal: bool = False
    rlimits: tuple[Rlimit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """One more mount inside the container: where, and what (source is a host path for bind)."""

    target: str
    mount: Mount


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A device in a container: `kind` c, b or p, `mode` its permissions, `access` what its processes may do (r, w, m)."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    access: str = "rwm"
    host_path: str = ""  # the machine's own, bound where none can be made


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A program of the machine that the runtime runs at a moment of the container's life (runtime-spec config.md, "POSIX-platform Hooks")."""

    name: str  # createContainer and its like
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container to run: `rootfs` is a directory that is mounted already."""

    id: str
    rootfs: Path
    process: Process
    binds: tuple[Bind, ...] = ()
    hostname: str = "buildkitsandbox"
    network: str = "host"  # host, none, or the path of a network namespace file
    readonly: bool = False
    insecure: bool = False  # security.insecure: all capabilities, devices, no seccomp
    devices: tuple[DeviceNode, ...] = ()
    hooks: tuple[Hook, ...] = ()
    cgroup_parent: str = ""
    resources: Resources = Resources()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    code: int  # 255 unknown; 128+n if signal n ended it
    oom: bool = False
    message: str = ""  # the runtime's own complaint, when the process could not be started


OnOutput = Callable[[int, bytes], None]
"""Called with (stream 1|2, data) for each piece of output, in order, never after `run` has returned."""


Resize = Callable[[int, int], None]
"""(rows, columns)"""
Signal = Callable[[int], Awaitable[None]]


class Runtime(Protocol):
    name: str

    async def run(
        self,
        container: Container,
        *,
        output: OnOutput,
        stdin: Callable[[], Awaitable[bytes]] | None = None,
        started: Callable[[], None] | None = None,
    ) -> Exit:
        """Run to the end. Cancelling the awaiting task kills the whole process tree, reaps it, and then raises CancelledError."""

    async def exec(
        self,
        id: str,
        process: Process,
        *,
        output: OnOutput,
        stdin: Callable[[], Awaitable[bytes]] | None = None,
        resized: Callable[[Resize], None] | None = None,
        signalled: Callable[[Signal], None] | None = None,
    ) -> Exit:
        """One more process in a running container. `resized` and `signalled` are given what acts on it while it runs."""

    async def signal(self, id: str, signal: int) -> None:
        """To a container's first process."""

    def resize(self, id: str, rows: int, columns: int) -> None:
        """The terminal of a container's first process."""

    async def close(self) -> None:
        """When nothing runs any more."""


__all__ = ["Bind", "Container", "Exit", "OnOutput", "Process", "Resize", "Resources", "Rlimit", "Runtime", "Signal"]
