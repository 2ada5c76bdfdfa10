# SPDX-License-Identifier: Apache-2.0
"""A container as the OCI runtime specification wants it written: a pure function from `Container` to config.json.

runtime-spec config.md and config-linux.md; the choices are BuildKit's, so that a step sees the same machine there and here.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from chantier.snapshot.mount import Mount

from . import capabilities, seccomp
from .host import Host
from .types import Bind, Container, DeviceNode, Process, Resources

_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
)
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# The files every container gets. They come before the cgroup mount, hence before everything the step asked for.
FILES = ("/etc/resolv.conf", "/etc/hosts")

_INSECURE_DEVICES = ("/dev/kmsg", "/dev/cuse", "/dev/fuse", "/dev/kvm", "/dev/net/tun", "/dev/loop-control")
_LOOP_CTL_GET_FREE = 0x4C82  # linux/loop.h
_LOOP_MAJOR = 7
_SPARE_LOOPS = 7


def build(
    container: Container,
    host: Host,
    *,
    apparmor: str = "",
    selinux: str = "",
    process_sandbox: bool = True,
    group: str = "",
) -> dict[str, Any]:
    """config.json. Pure but for `insecure`, which looks at the devices of this machine.

    `process_sandbox` off (rootless, where a new /proc is refused) shares the pid namespace and /proc of the engine. `group` is the
    cgroup in a user namespace, "" for none and no limits.
    """
    held = held_by(container, host)
    linux: dict[str, Any] = {
        "namespaces": _namespaces(container, host, process_sandbox),
        "resources": _resources(container, limited=not host.user_namespace or bool(group)),
        "maskedPaths": [] if container.insecure else _kept(_MASKED, process_sandbox),
        "readonlyPaths": [] if container.insecure else _kept(_READONLY, process_sandbox),
    }
    if not host.user_namespace or group:
        linux["cgroupsPath"] = group or cgroup_of(container)
    if not container.insecure:
        if host.seccomp:
            linux["seccomp"] = seccomp.profile(tuple(held["bounding"]), host.machine)
        if selinux:
            linux["mountLabel"] = selinux
    elif not host.user_namespace:
        linux["devices"] = _insecure_devices()
    if container.devices and not host.user_namespace:
        linux["devices"] = [*linux.get("devices", ()), *(_node(device) for device in container.devices)]
    described = process(container.process, held)
    if apparmor and not container.insecure:
        described["apparmorProfile"] = apparmor
    out = {
        "ociVersion": "1.0.2",
        "process": described,
        "root": {"path": str(container.rootfs), "readonly": container.readonly},
        "hostname": container.hostname,
        "mounts": _mounts(container, host, process_sandbox),
        "linux": linux,
    }
    if container.hooks:
        out["hooks"] = _hooks(container)
    return out


def process(what: Process, held: dict[str, list[str]]) -> dict[str, Any]:
    """The `process` part: of config.json, and of `exec` into a running container."""
    user: dict[str, Any] = {"uid": what.uid, "gid": what.gid}
    user["additionalGids"] = [what.gid, *(group for group in what.groups if group != what.gid)]
    out: dict[str, Any] = {
        "args": list(what.args),
        "env": list(what.env),
        "cwd": what.cwd,
        "terminal": what.terminal,
        "user": user,
        "noNewPrivileges": False,
        "capabilities": held,
    }
    if what.rlimits:
        out["rlimits"] = [{"type": f"RLIMIT_{r.name.upper()}", "soft": r.soft, "hard": r.hard} for r in what.rlimits]
    return out


def held_by(container: Container, host: Host) -> dict[str, list[str]]:
    """The capability sets of a container's processes."""
    if container.insecure:
        everything = list(dict.fromkeys((*capabilities.DEFAULT, *host.capabilities)))
        return dict.fromkeys(("bounding", "permitted", "effective", "inheritable", "ambient"), everything)
    # An ambient or inheritable capability would survive the change to another user (CVE-2022-24769).
    default = list(capabilities.DEFAULT)
    return {"bounding": default, "permitted": default, "effective": default}


def _kept(paths: tuple[str, ...], process_sandbox: bool) -> list[str]:
    return [path for path in paths if process_sandbox or not path.startswith("/proc/")]


def _namespaces(container: Container, host: Host, process_sandbox: bool) -> list[dict[str, str]]:
    out = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount") if process_sandbox or kind != "pid"]
    if container.network == "none":
        out.append({"type": "network"})
    elif container.network != "host":
        out.append({"type": "network", "path": container.network})
    if host.cgroup_namespace:
        out.append({"type": "cgroup"})
    return out


def cgroup_of(container: Container) -> str:
    """A container's cgroup, in every hierarchy: PARENT/buildkit/ID, never above the top whatever the parent is called."""
    parent = container.cgroup_parent
    if ".slice" in parent and parent.endswith(":"):
        return parent + container.id  # systemd: `SLICE:PREFIX:NAME`
    return os.path.normpath("/" + f"{parent}/buildkit/{container.id}".lstrip("/"))


def _resources(container: Container, *, limited: bool) -> dict[str, Any]:
    devices: list[dict[str, Any]]
    if container.insecure:
        devices = [{"allow": True, "type": kind, "access": "rwm"} for kind in ("c", "b")]
    else:
        # The runtime itself adds null, zero, full, random, urandom, tty, ptmx and the console.
        devices = [{"allow": False, "access": "rwm"}]
        devices += [
            {"allow": True, "type": node.kind, "major": node.major, "minor": node.minor, "access": node.access}
            for node in container.devices
            if node.kind != "p"
        ]
    out: dict[str, Any] = {"devices": devices}
    return {**out, **_limits(container.resources)} if limited else out


def _limits(limits: Resources) -> dict[str, Any]:
    memory = {key: value for key, value in (("limit", limits.memory), ("swap", limits.memory_swap)) if value}
    cpu = {
        "shares": limits.cpu_shares,
        "period": limits.cpu_period,
        "quota": limits.cpu_quota,
        "cpus": limits.cpuset_cpus,
        "mems": limits.cpuset_mems,
    }
    cpu = {key: value for key, value in cpu.items() if value}
    return {key: value for key, value in (("memory", memory), ("cpu", cpu)) if value}


def _mounts(container: Container, host: Host, process_sandbox: bool) -> list[dict[str, Any]]:
    system = "rw" if container.insecure else "ro"
    proc = _mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev"))
    if not process_sandbox:
        proc = _mount("/proc", "bind", "/proc", ("rbind",))
    mounts: list[dict[str, Any]] = [
        proc,
        _mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        _mount("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
        _mount("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
        _mount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
        _mount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", system)),
    ]
    files = [bind for bind in container.binds if bind.target in FILES]
    asked = sorted((bind for bind in container.binds if bind.target not in FILES), key=lambda bind: bind.target)
    later = [_from_bind(bind, host) for bind in files]
    if host.cgroups != "none":
        later.append(_mount("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", system)))
    later += [_from_bind(bind, host) for bind in asked]
    if host.user_namespace:  # where no node can be made, the machine's own is bound
        later += [_mount(node.path, "bind", node.host_path, ("bind", "nosuid", "noexec")) for node in container.devices]
    for mount in later:
        _place(mounts, mount)
    if host.user_namespace:
        return [m for m in mounts if m["destination"] != "/sys" and not m["destination"].startswith("/sys/")]
    return mounts


def _place(mounts: list[dict[str, Any]], mount: dict[str, Any]) -> None:
    """A later mount of the same place takes the earlier one's turn, so that what lies below it stays visible."""
    for index, earlier in enumerate(mounts):
        if earlier["destination"] == mount["destination"]:
            mounts[index] = mount
            return
    mounts.append(mount)


def _mount(destination: str, type: str, source: str, options: tuple[str, ...]) -> dict[str, Any]:
    return {"destination": destination, "type": type, "source": source, "options": list(options)}


def _from_bind(bind: Bind, host: Host) -> dict[str, Any]:
    mount: Mount = bind.mount
    options = mount.options
    if mount.type == "bind" and not {"bind", "rbind"} & set(options):
        options = ("rbind", *options)
    if mount.type == "bind" and host.user_namespace:
        options = (*options, *(flag for flag in _locked(mount.source) if flag not in options))
    return _mount(bind.target, mount.type, mount.source, options)


def _locked(source: str) -> tuple[str, ...]:
    """Flags of a file system that a user namespace may not clear: a remount without them is EPERM (mount_namespaces(7))."""
    flags = os.statvfs(source).f_flag
    known = (("nosuid", os.ST_NOSUID), ("nodev", os.ST_NODEV), ("noexec", os.ST_NOEXEC))
    return tuple(name for name, bit in known if flags & bit)


def _insecure_devices() -> list[dict[str, Any]]:
    out = []
    for path in _INSECURE_DEVICES:
        try:
            info = os.stat(path)
        except FileNotFoundError:
            continue
        if stat.S_ISCHR(info.st_mode):
            out.append(_device(path, "c", os.major(info.st_rdev), os.minor(info.st_rdev), stat.S_IMODE(info.st_mode)))
    out += [_device(f"/dev/loop{n}", "b", _LOOP_MAJOR, n, 0o660) for n in range(_free_loop() + _SPARE_LOOPS + 1)]
    return out


def _free_loop() -> int:
    """The number of the next free loop device; -8 makes the caller's range empty where there are none."""
    import fcntl

    try:
        with open("/dev/loop-control", "rb") as control:
            return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    except OSError:  # no loop driver in this kernel, or not ours to use
        return -_SPARE_LOOPS - 1


def _node(node: DeviceNode) -> dict[str, Any]:
    return {**_device(node.path, node.kind, node.major, node.minor, node.mode), "uid": node.uid, "gid": node.gid}


def _hooks(container: Container) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for hook in container.hooks:
        entry: dict[str, Any] = {"path": hook.path, "args": list(hook.args) or [hook.path], "env": list(hook.env)}
        if hook.timeout_s is not None:
            entry["timeout"] = hook.timeout_s
        out.setdefault(hook.name, []).append(entry)
    return out


def _device(path: str, kind: str, major: int, minor: int, mode: int) -> dict[str, Any]:
    return {"path": path, "type": kind, "major": major, "minor": minor, "fileMode": mode, "uid": 0, "gid": 0}


__all__ = ["FILES", "build", "cgroup_of", "held_by", "process"]
