# SPDX-License-Identifier: Apache-2.0
"""From an OCI spec to the records that the helpers carry out, in order. A pure function: all policy is decided here.

A record is words: its name, how many arguments follow, the arguments; each word ends with NUL, which no path, argument or
variable can hold.

    pids                                   the container has a pid namespace of its own
    clone FLAGS                            CLONE_NEW* of the rest
    group DIR INTO / join DIR / oom FILE   cgroups: to be removed at the end, or another's; where a kill is counted
    netns PATH, cgroupns, loopback, hostname NAME
    root DIR                               "/" becomes the container's, what is relative stays the machine's
    mount TYPE SOURCE TARGET FLAGS DATA PROPAGATION
    bind SOURCE TARGET REC FLAGS PROPAGATION
    node PATH KIND MAJOR MINOR MODE UID GID / symlink TO PATH
    tty UID CONSOLE, mask PATH, readonly PATH, pivot MOVE, mkdir PATH, remount TARGET FLAGS
    pause                                  the engine has something to do before the container goes on
    hook KIND NUMBER TIMEOUT_MS STATE STATE PATH ARGC ARG… ENV…
                                           a program: createContainer before pivot, startContainer before the step's;
                                           its input is the state, between whose halves stands the first process's PID
    enter PID KIND…                        instead of all these: a container that runs
    process UID GID CWD NO_NEW_PRIVILEGES UMASK
    args …, env …, groups …, caps BOUNDING PERMITTED EFFECTIVE INHERITABLE AMBIENT, rlimit NUMBER SOFT HARD
    seccomp HEX, label FILE TEXT
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from chantier import kernel
from chantier.errors import UnsupportedError, UsageError
from chantier.runtime import capabilities
from chantier.runtime.hooks import state
from chantier.values import dataclass, field

from .bpf import compile_filter
from .groups import Groups

_FLAGS = {
    "ro": kernel.MS_RDONLY,
    "nosuid": kernel.MS_NOSUID,
    "nodev": kernel.MS_NODEV,
    "noexec": kernel.MS_NOEXEC,
    "sync": kernel.MS_SYNCHRONOUS,
    "dirsync": kernel.MS_DIRSYNC,
    "noatime": kernel.MS_NOATIME,
    "nodiratime": kernel.MS_NODIRATIME,
    "relatime": kernel.MS_RELATIME,
    "strictatime": kernel.MS_STRICTATIME,
    "nosymfollow": kernel.MS_NOSYMFOLLOW,
}
_KINDS = {"private": kernel.MS_PRIVATE, "shared": kernel.MS_SHARED, "slave": kernel.MS_SLAVE, "unbindable": kernel.MS_UNBINDABLE}
_PROPAGATION = {**_KINDS, **{f"r{name}": flag | kernel.MS_REC for name, flag in _KINDS.items()}}
_NOTHING = {"rw", "bind", "rbind", "suid", "dev", "exec", "defaults", "async", "atime", "diratime"}

_NAMESPACES = {
    "mount": kernel.CLONE_NEWNS,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
    "network": kernel.CLONE_NEWNET,
    "pid": kernel.CLONE_NEWPID,
}
# Namespaces of a running container, in the order they are entered; its pid namespace is for our children only.
ENTERED = {"ipc": "ipc", "uts": "uts", "network": "net", "cgroup": "cgroup", "pid": "pid", "mount": "mnt"}

_DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
    ("pts/ptmx", "/dev/ptmx"),
)

# What may be put over a file of /proc: nothing there decides anything (runc allows the same).
_IN_PROC = {
    f"/proc/{name}" for name in ("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev")
}
_UMASK = 0o022
_NO_NODES: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class _Words:
    words: list[str] = field(default_factory=list)

    def add(self, op: str, *args: object) -> None:
        self.words += [op, str(len(args)), *(str(arg) for arg in args)]

    def encoded(self) -> bytes:
        text = "\0".join(self.words) + "\0"
        if text.count("\0") != len(self.words):
            word = next(word for word in self.words if "\0" in word)
            raise UsageError(f"{word!r} holds a NUL byte, which no argument or variable can")
        return os.fsencode(text)


def run_plan(
    spec: Mapping[str, Any],
    groups: Groups,
    *,
    machine: str,
    unprivileged: bool,
    ids: Sequence[int] = (),
    no_pivot: bool = False,
    home: str = "",
    nodes: Mapping[str, str] = _NO_NODES,
    bundle: Path | None = None,
) -> bytes:
    """The plan of a container. `ids` are group ids that this user namespace lacks (5 of the terminals), `home` is $HOME.

    `nodes` says which node of the machine a device is, by its path inside: to be bound where none can be made. `bundle` is a
    directory with config.json, for hooks.
    """
    out = _Words()
    kinds = {entry["type"]: entry.get("path", "") for entry in spec["linux"]["namespaces"]}
    if "pid" in kinds:
        out.add("pids")
    out.add("clone", sum(_NAMESPACES[kind] for kind, path in kinds.items() if kind in _NAMESPACES and not path))
    _add_groups(out, groups)
    if kinds.get("network"):
        out.add("netns", kinds["network"])
    if "cgroup" in kinds:
        out.add("cgroupns")
    if kinds.get("network") == "":
        out.add("loopback")
    out.add("hostname", spec.get("hostname", ""))
    out.add("root", os.path.realpath(spec["root"]["path"]))
    _add_mounts(out, spec, groups, own_cgroups="cgroup" in kinds, ids=ids)
    _add_devices(out, spec, nodes, bound=unprivileged or not groups.devices)
    if spec["process"].get("terminal"):
        out.add("tty", spec["process"]["user"]["uid"], 1)
    for path in spec["linux"].get("readonlyPaths") or ():
        out.add("readonly", path)
    for path in spec["linux"].get("maskedPaths") or ():
        out.add("mask", path)
    if spec.get("hooks"):
        assert bundle is not None
        _add_hooks(out, spec["hooks"], bundle)
    out.add("pivot", int(no_pivot))
    out.add("mkdir", spec["process"]["cwd"])
    _add_last_flags(out, spec, unprivileged=unprivileged, devices=groups.devices)
    _add_process(out, spec["process"], spec["linux"].get("seccomp"), machine, unprivileged=unprivileged, home=home)
    return out.encoded()


def exec_plan(
    process: Mapping[str, Any],
    spec: Mapping[str, Any],
    pid: int,
    groups: Groups,
    *,
    machine: str,
    unprivileged: bool,
    home: str = "",
) -> bytes:
    """The plan of one more process in the container that was described by `spec`, whose first process is `pid`."""
    out = _Words()
    out.add("clone", 0)
    for directory in groups.own:
        out.add("join", directory)
    present = {entry["type"] for entry in spec["linux"]["namespaces"]}
    out.add("enter", pid, *(name for kind, name in ENTERED.items() if kind in present))
    if process.get("terminal"):
        out.add("tty", process["user"]["uid"], 0)
    _add_process(out, process, spec["linux"].get("seccomp"), machine, unprivileged=unprivileged, home=home)
    return out.encoded()


def _add_groups(out: _Words, groups: Groups) -> None:
    for directory in groups.own:
        out.add("group", directory, int(groups.mounted == "v2"))
    if groups.oom:
        out.add("oom", groups.oom)


def _add_mounts(out: _Words, spec: Mapping[str, Any], groups: Groups, *, own_cgroups: bool, ids: Sequence[int]) -> None:
    label = spec["linux"].get("mountLabel", "")
    for mount in spec["mounts"]:
        target = os.path.normpath(mount["destination"])
        if mount["type"] == "cgroup":
            _add_cgroups(out, mount, groups, own=own_cgroups)
            continue
        flags, propagation, data, recursive = options_of(mount["options"])
        _check_in_proc(mount, target)
        if mount["type"] == "bind":
            source = os.path.realpath(mount["source"])
            out.add("bind", source, target, kernel.MS_REC if recursive else 0, flags, propagation)
            continue
        data = [word for word in data if word not in {f"gid={number}" for number in ids}]
        if label and mount["type"] in ("tmpfs", "devpts", "mqueue"):
            data.append(f'context="{label}"')
        out.add("mount", mount["type"], mount["source"], target, flags, ",".join(data), propagation)


def _check_in_proc(mount: Mapping[str, Any], target: str) -> None:
    """A step may not replace what we, and the kernel's own checks, rely on finding in /proc (CVE-2019-19921)."""
    if target == "/proc" and mount["type"] != "proc" and not (mount["type"] == "bind" and mount["source"] == "/proc"):
        raise UsageError(f'"{mount["source"]}" cannot be mounted at "/proc" because it is not of type proc')
    if target.startswith("/proc/") and not (mount["type"] == "bind" and target in _IN_PROC):
        raise UsageError(f'"{target}" cannot be mounted because it is inside /proc')


def _add_cgroups(out: _Words, mount: Mapping[str, Any], groups: Groups, *, own: bool) -> None:
    """/sys/fs/cgroup as the container may see it: its own groups only."""
    target = mount["destination"]
    flags, _, _, _ = options_of(mount["options"])
    if groups.mounted == "v2" and own:
        out.add("mount", "cgroup2", "cgroup", target, flags, "", 0)
        return
    if groups.mounted == "v2" and groups.own:
        out.add("bind", groups.own[0], target, 0, flags, 0)
        return
    access = flags & ~kernel.MS_RDONLY
    out.add("mount", "tmpfs", "tmpfs", target, access, "mode=755", 0)
    for directory in groups.own:
        controller = groups.controller(directory)
        out.add("bind", directory, f"{target}/{controller}", 0, flags, 0)
        for name in controller.split(","):
            if name != controller:
                out.add("symlink", controller, f"{target}/{name}")
    if flags & kernel.MS_RDONLY:
        out.add("remount", target, flags)


def options_of(options: Sequence[str]) -> tuple[int, int, list[str], bool]:
    """Mount options as flags, propagation, data, and whether a bind takes what is mounted below."""
    flags = propagation = 0
    data = []
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option in _PROPAGATION:
            propagation |= _PROPAGATION[option]
        elif option not in _NOTHING:
            data.append(option)
    return flags, propagation, data, "bind" not in options


def _add_devices(out: _Words, spec: Mapping[str, Any], sources: Mapping[str, str], *, bound: bool) -> None:
    """Nodes of /dev: made, or where we may not (a user namespace) or had better not, the machine's own bound in."""
    own = any(mount["destination"] == "/dev" and mount["type"] == "tmpfs" for mount in spec["mounts"])
    nodes = [(f"/dev/{name}", "c", major, minor, 0o666, 0, 0) for name, major, minor in _DEVICES] if own else []
    for d in spec["linux"].get("devices") or ():
        path = os.path.normpath("/" + d["path"].lstrip("/"))
        nodes.append((path, d["type"], d["major"], d["minor"], d["fileMode"], d["uid"], d["gid"]))
    for node in nodes:
        source = sources.get(node[0], node[0])
        if not bound or node[1] == "p":
            out.add("node", *node)
        elif os.path.exists(source):
            out.add("bind", os.path.realpath(source), node[0], 0, 0, 0)
        elif node[0] in sources:
            raise UnsupportedError(f"the device {node[0]} cannot be made here, and this machine has no {source} to bind")
    if not own:
        return  # somebody put a /dev of their own there
    for to, path in _LINKS:
        out.add("symlink", to, path)


def _add_hooks(out: _Words, hooks: Mapping[str, Any], bundle: Path) -> None:
    """A pause for the hooks of the runtime's namespaces, and those of the container's."""
    out.add("pause")
    for kind, status in (("createContainer", "creating"), ("startContainer", "created")):
        for number, hook in enumerate(hooks.get(kind, ())):
            args = hook["args"]
            limit_ms = int(hook.get("timeout", 0)) * 1000
            out.add(
                "hook", kind, number, limit_ms, *state(bundle.name, bundle, status), hook["path"], len(args), *args, *hook["env"],
            )  # fmt: skip


def _add_last_flags(out: _Words, spec: Mapping[str, Any], *, unprivileged: bool, devices: str) -> None:
    if not devices and not unprivileged:
        # Nothing says which devices may be opened: then none, but for those that were bound into /dev.
        for target in ("/dev", *(m["destination"] for m in spec["mounts"] if m["type"] == "bind"), "/"):
            out.add("remount", target, kernel.MS_NODEV | (kernel.MS_NOSUID if target == "/dev" else 0))
    if spec["root"].get("readonly"):
        out.add("remount", "/", kernel.MS_RDONLY)


def _add_process(
    out: _Words,
    process: Mapping[str, Any],
    profile: Mapping[str, Any] | None,
    machine: str,
    *,
    unprivileged: bool,
    home: str,
) -> None:
    user = process["user"]
    quiet = int(bool(process.get("noNewPrivileges")))
    out.add("process", user["uid"], user["gid"], process["cwd"], quiet, user.get("umask", _UMASK))
    if not process["args"]:
        raise UsageError("a process needs a program to run")
    out.add("args", *process["args"])
    unnamed = next((entry for entry in process["env"] if entry.startswith("=")), None)
    if unnamed is not None:
        raise UsageError(f'environment variable name can\'t be empty: "{unnamed}"')
    # The last of several settings counts, as it does for a runtime that sets them one by one.
    environment = dict(entry.partition("=")[::2] for entry in process["env"])
    environment.setdefault("HOME", home or "/")
    out.add("env", *(f"{name}={value}" for name, value in environment.items()))
    if not unprivileged or may_set_groups():
        out.add("groups", *user.get("additionalGids", ()))
    held = process.get("capabilities", {})
    masks = (capabilities.mask_of(tuple(held.get(kind, ()))) for kind in _SETS)
    out.add("caps", *masks)
    for limit in process.get("rlimits", ()):
        number = getattr(resource, limit["type"], None)
        if number is None:
            raise UnsupportedError(f"unknown rlimit {limit['type']}")
        out.add("rlimit", number, limit["soft"], limit["hard"])
    if profile:
        out.add("seccomp", compile_filter(profile, machine).hex())
    if process.get("apparmorProfile"):
        where = "/proc/self/attr/apparmor/exec"
        out.add("label", where if os.path.exists(where) else "/proc/self/attr/exec", f"exec {process['apparmorProfile']}")
    if process.get("selinuxLabel"):
        out.add("label", "/proc/self/attr/exec", process["selinuxLabel"])


_SETS = ("bounding", "permitted", "effective", "inheritable", "ambient")


def may_set_groups() -> bool:
    """False in a user namespace of one id, made without help: setgroups(2) is switched off there (user_namespaces(7))."""
    try:
        with open("/proc/self/setgroups", encoding="ascii") as file:
            return file.read().strip() == "allow"
    except OSError:  # a kernel without user namespaces
        return True


__all__ = ["ENTERED", "exec_plan", "may_set_groups", "options_of", "run_plan"]
