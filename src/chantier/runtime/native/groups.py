# SPDX-License-Identifier: Apache-2.0
"""Cgroups of the containers: which there are, their limits, and which devices may be opened (cgroup-v1, cgroup-v2.rst).

Joining a cgroup costs up to a grace period of RCU (12 ms were measured), so on cgroup v1 a container without limits joins
none: it inherits the engine's own, in which the helper sits since it was started. What a container has for itself is

    HIERARCHY/PARENT/buildkit/ID

On v2 a process is born into its cgroup for nothing, so every container has one there. In a user namespace only those with limits
have groups, where these are delegated (delegation.py).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from chantier.errors import UnsupportedError
from chantier.kernel import attach_device_program
from chantier.runtime.delegation import Delegation
from chantier.runtime.places import end_groups
from chantier.values import dataclass

from .held import make_held, remove_unheld

_DEFAULT_RULES = (
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
)
_EVERYTHING = "a *:* rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Directories in the cgroup file systems, for the helper. `devices` names what guards devices; "" means nothing does."""

    own: tuple[str, ...] = ()  # made for this container: it is moved there, and they are removed at its end
    oom: str = ""
    mounted: str = ""  # what the container sees at /sys/fs/cgroup: v1, v2 or nothing
    devices: str = ""
    base: str = "/sys/fs/cgroup"

    def controller(self, directory: str) -> str:
        """The name of the hierarchy that a directory of v1 lies in: `memory`, `cpu,cpuacct`."""
        return os.path.relpath(directory, self.base).split("/")[0]

    def remove(self) -> None:
        """After a helper that died: what it would have removed."""
        end_groups([Path(directory) for directory in self.own])


class Hierarchy:
    """The cgroup file systems of this machine, as far as they are ours to change. `name` is that of the engine's own groups."""

    def __init__(self, layout: str, name: str, base: Path = Path("/sys/fs/cgroup"), delegated: Delegation | None = None) -> None:
        """`layout` is `Host.cgroups`; with `delegated` groups are made there only, and for those with limits only."""
        self.layout = layout if delegated is None else delegated.layout
        self.base = base
        self.delegated = delegated
        self._name = name
        self._held = -1
        self.shared: tuple[str, ...] = ()
        self.devices = ""

    def open(self) -> None:
        """Make the engine's own group, where the helper will sit. Nothing where it may not be made.

        It is flock'ed as long as we live: those of engines that were killed are removed here, whatever state they worked on.
        """
        if self.delegated is not None:
            return
        if self.layout in ("v1", "hybrid") and (self.base / "devices").is_dir():
            group = self.base / "devices" / "buildkit" / self._name
            try:
                self._held = make_held(group)
                remove_unheld(group.parent)
                _restrict_v1(group)
            except OSError:  # not ours to make, or already in a container whose devices are someone else's care
                with suppress(OSError):
                    group.rmdir()
                self._let_go()
                return
            self.shared, self.devices = (str(group),), "v1"
        elif self.layout == "v2":
            group = self.base / "buildkit"
            try:
                group.mkdir(exist_ok=True)
                trial = group / self._name
                self._held = make_held(trial)
                remove_unheld(group)
                try:
                    _restrict_v2(trial)
                finally:
                    trial.rmdir()
                    self._let_go()
            except OSError:
                return
            self.devices = "v2"

    def paths_of(self, spec: Mapping[str, Any]) -> list[Path]:
        """Where the groups of a container may be, of those that are delegated."""
        assert self.delegated is not None
        path = _asked(spec)[0].strip("/")
        return [place / path for place in sorted(set(self.delegated.places.values()))] if path else []

    def close(self) -> None:
        for group in self.shared:
            with suppress(OSError):
                os.rmdir(group)
        self._let_go()

    def _let_go(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def inherited(self, spec: Mapping[str, Any]) -> Groups | None:
        """The groups of a container that needs none of its own; None if it does."""
        path, wanted, insecure, rules = _asked(spec)
        plain = not path or os.path.dirname(path) == "/buildkit"
        if wanted or not plain or insecure or (rules and self.devices) or (self.layout == "v2" and self.devices):
            return None
        return Groups(mounted=self._mounted(), devices=self.devices, base=str(self.base))

    def make(self, spec: Mapping[str, Any]) -> Groups:
        """The groups of one container, made and limited. Raises UnsupportedError if limits are asked that cannot be set."""
        path, wanted, insecure, rules = _asked(spec)
        if not path or self.layout == "none":
            if wanted:
                raise UnsupportedError("this machine has no cgroups to limit a step with")
            return Groups(mounted=self._mounted(), devices=self.devices, base=str(self.base))
        if ":" in path:
            path = _from_systemd(path)
        try:
            make = self._make_v2 if self.layout == "v2" else self._make_v1
            return make(path, wanted, rules, insecure=insecure)
        except OSError as err:
            raise UnsupportedError(
                f"cannot make the cgroup {path}: {err.strerror or err}",
                hint="leave out limits and --cgroup-parent, or run where cgroups may be written",
            ) from err

    def _mounted(self) -> str:
        if self.delegated is not None:
            return ""
        return "v2" if self.layout == "v2" else "" if self.layout == "none" else "v1"

    def _make_v1(self, path: str, wanted: Mapping[str, Mapping[str, Any]], rules: Sequence[str], *, insecure: bool) -> Groups:
        parent = path.strip("/").removesuffix("/" + os.path.basename(path))
        own_parent = parent not in ("buildkit", "")
        names = set()
        if wanted.get("memory"):
            names.add("memory")
        cpu = wanted.get("cpu", {})
        if {"shares", "period", "quota"} & set(cpu):
            names.add("cpu")
        if {"cpus", "mems"} & set(cpu):
            names.add("cpuset")
        limiting = frozenset(names)
        if own_parent:
            names |= {"memory", "cpu", "cpuset", "pids"}
        if (insecure or own_parent or rules) and self.devices:
            names.add("devices")
        # A privileged step has groups in every hierarchy, as far as we may make them: it may make more below them.
        rest = self._hierarchies() - names if insecure and self.delegated is None else set()
        made: list[str] = []
        try:
            for name in sorted(rest):
                place = self._hierarchy(name)
                if place is not None and str(group := place / path.strip("/")) not in made:
                    with suppress(OSError):
                        _make_v1_directory(place, group)
                        made.append(str(group))
            for name in sorted(names):
                place = self._hierarchy(name)
                if place is None:
                    if name in limiting:
                        raise OSError(errno.ENOENT, f"no {name} controller")
                    continue
                group = place / path.strip("/")
                _make_v1_directory(place, group)
                made.append(str(group))
                if name == "devices" and not insecure:
                    _restrict_v1(group, rules)
                _limit_v1(group, name, wanted)
        except BaseException:
            for group_name in made:
                with suppress(OSError):
                    os.rmdir(group_name)
            raise
        memory = next((group for group in made if self._is_of(group, "memory")), "")
        return Groups(
            own=tuple(made),
            oom=f"{memory}/memory.oom_control" if memory and wanted.get("memory") else "",
            mounted="v1",
            devices=self.devices,
            base=str(self.base),
        )

    def _is_of(self, group: str, controller: str) -> bool:
        place = self._hierarchy(controller)
        return place is not None and Path(group).is_relative_to(place)

    def _hierarchy(self, controller: str) -> Path | None:
        if self.delegated is not None:
            return self.delegated.places.get(controller)
        for entry in sorted(self.base.iterdir()):
            if not entry.is_symlink() and controller in entry.name.split(","):
                return entry
        return None

    def _hierarchies(self) -> set[str]:
        """One controller of each hierarchy of v1."""
        return {entry.name.split(",")[0] for entry in self.base.iterdir() if entry.is_dir() and not entry.is_symlink()} - {
            "unified"
        }

    def _make_v2(self, path: str, wanted: Mapping[str, Mapping[str, Any]], rules: Sequence[str], *, insecure: bool) -> Groups:
        base = self.base if self.delegated is None else next(iter(self.delegated.places.values()))
        group = base / path.strip("/")
        try:
            controllers = [name for name, asked in _v2_controllers(wanted) if asked]
            _enable(base, group.parent, controllers)
            group.mkdir(parents=True, exist_ok=True)
        except OSError:
            if wanted or (rules and self.devices):
                raise
            return Groups(mounted="v2", devices=self.devices, base=str(self.base))
        try:
            _limit_v2(group, wanted)
            if self.devices and not insecure:
                _restrict_v2(group, rules)
        except BaseException:
            with suppress(OSError):
                group.rmdir()
            raise
        oom = str(group / "memory.events") if wanted.get("memory") else ""
        return Groups(own=(str(group),), oom=oom, mounted="v2", devices=self.devices, base=str(self.base))


def _asked(spec: Mapping[str, Any]) -> tuple[str, dict[str, Mapping[str, Any]], bool, list[str]]:
    """The path, the limits by controller, whether all devices are allowed, and rules for those that are beside the usual ones."""
    limits = spec["linux"].get("resources", {})
    allowed = [rule for rule in limits.get("devices", ()) if rule.get("allow")]
    insecure = any("major" not in rule for rule in allowed)
    rules = [f"{rule['type']} {rule['major']}:{rule['minor']} {rule['access']}" for rule in allowed if "major" in rule]
    wanted = {key: limits[key] for key in ("memory", "cpu") if limits.get(key)}
    return spec["linux"].get("cgroupsPath", ""), wanted, insecure, rules


def _from_systemd(path: str) -> str:
    """`SLICE:PREFIX:NAME` as the path systemd would give it; `a-b.slice` lies in `a.slice`."""
    slice_name, prefix, name = path.split(":", 2)
    parts = slice_name.removesuffix(".slice").split("-")
    nested = ["-".join(parts[: n + 1]) + ".slice" for n in range(len(parts))] if slice_name not in ("", "-.slice") else []
    path = "/".join([*nested, f"{prefix}-{name}.scope" if prefix else f"{name}.scope"])
    return os.path.normpath("/" + path.lstrip("/"))


def _make_v1_directory(top: Path, group: Path) -> None:
    """A directory and those above it; a cpuset takes no process before it has processors and memory."""
    missing = [place for place in (*reversed(group.parents), group) if place != top and top in place.parents]
    for place in missing:
        place.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (place / name).exists() and not _read(place / name):
                (place / name).write_text(_read(place.parent / name), encoding="ascii")


def _restrict_v1(group: Path, more: Sequence[str] = ()) -> None:
    (group / "devices.deny").write_text("a", encoding="ascii")
    for rule in more:
        (group / "devices.allow").write_text(rule, encoding="ascii")
    for rule in _DEFAULT_RULES:
        with suppress(PermissionError):  # our own group has not got it either
            (group / "devices.allow").write_text(rule, encoding="ascii")


def _limit_v1(group: Path, name: str, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    memory, cpu = wanted.get("memory", {}), wanted.get("cpu", {})
    if name == "memory" and memory:
        if memory.get("limit"):
            (group / "memory.limit_in_bytes").write_text(str(memory["limit"]), encoding="ascii")
        if memory.get("swap"):
            with suppress(FileNotFoundError):  # a kernel that does not account for swap
                (group / "memory.memsw.limit_in_bytes").write_text(str(memory["swap"]), encoding="ascii")
    for key, file in _V1_FILES[name].items():
        if cpu.get(key):
            (group / file).write_text(str(cpu[key]), encoding="ascii")


_V1_FILES: dict[str, dict[str, str]] = {
    "memory": {},
    "devices": {},
    "pids": {},
    "cpu": {"shares": "cpu.shares", "period": "cpu.cfs_period_us", "quota": "cpu.cfs_quota_us"},
    "cpuset": {"cpus": "cpuset.cpus", "mems": "cpuset.mems"},
}


def _v2_controllers(wanted: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, bool]]:
    cpu = wanted.get("cpu", {})
    return [
        ("memory", bool(wanted.get("memory"))),
        ("cpu", bool({"shares", "period", "quota"} & set(cpu))),
        ("cpuset", bool({"cpus", "mems"} & set(cpu))),
    ]


def _enable(base: Path, parent: Path, controllers: Sequence[str]) -> None:
    """Hand the controllers down from the top to `parent`."""
    above = [place for place in (*reversed(parent.parents), parent) if place == base or base in place.parents]
    for place in above:
        place.mkdir(exist_ok=True)
        if not controllers:
            continue
        enabled = _read(place / "cgroup.subtree_control").split()
        for name in controllers:
            if name not in enabled:
                (place / "cgroup.subtree_control").write_text(f"+{name}", encoding="ascii")


def _limit_v2(group: Path, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    memory, cpu = wanted.get("memory", {}), wanted.get("cpu", {})
    limit, swap = memory.get("limit", 0), memory.get("swap", 0)
    if limit:
        (group / "memory.max").write_text(str(limit) if limit > 0 else "max", encoding="ascii")
    if swap and limit:
        # OCI counts memory and swap together, v2 apart.
        with suppress(FileNotFoundError):
            (group / "memory.swap.max").write_text("max" if swap < 0 else str(max(0, swap - limit)), encoding="ascii")
    if cpu.get("shares"):
        weight = 1 + (min(max(int(cpu["shares"]), 2), 262144) - 2) * 9999 // 262142
        (group / "cpu.weight").write_text(str(weight), encoding="ascii")
    if cpu.get("quota") or cpu.get("period"):
        quota, period = int(cpu.get("quota", 0)), int(cpu.get("period", 0)) or 100000
        (group / "cpu.max").write_text(f"{quota if quota > 0 else 'max'} {period}", encoding="ascii")
    for key in ("cpus", "mems"):
        if cpu.get(key):
            (group / f"cpuset.{key}").write_text(str(cpu[key]), encoding="ascii")


def _restrict_v2(group: Path, more: Sequence[str] = ()) -> None:
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attach_device_program(device_program((*_DEFAULT_RULES, *more)), fd)
    finally:
        os.close(fd)


def device_program(rules: Sequence[str]) -> bytes:
    """eBPF for BPF_PROG_TYPE_CGROUP_DEVICE: 1 if one of the rules (devices.allow's syntax) lets the access through.

    The context is three words: access << 16 | type, major, minor (struct bpf_cgroup_dev_ctx).
    """
    code: list[tuple[int, int, int, int, int]] = []  # opcode, dst, src, off, imm
    load, move, and_, right = 0x61, 0xBF, 0x57, 0x77  # LDX|MEM|W, MOV64 X, AND64 K, RSH64 K
    code += [(load, 2, 1, 0, 0), (move, 3, 2, 0, 0), (and_, 2, 0, 0, 0xFFFF), (right, 3, 0, 0, 16)]
    code += [(load, 4, 1, 4, 0), (load, 5, 1, 8, 0)]
    different = 0x55  # JNE K
    for rule in rules:
        kind, numbers, access = rule.split()
        major, minor = numbers.split(":")
        mask = sum(bit for letter, bit in (("m", 1), ("r", 2), ("w", 4)) if letter in access)
        # r6 = access & ~mask: what is asked beyond the rule
        block = [(move, 6, 3, 0, 0), (and_, 6, 0, 0, ~mask & 7), (different, 6, 0, 0, 0)]
        if kind != "a":
            block.append((different, 2, 0, 0, 2 if kind == "c" else 1))
        block += [(different, register, 0, 0, int(text)) for register, text in ((4, major), (5, minor)) if text != "*"]
        block += [(0xB7, 0, 0, 0, 1), (0x95, 0, 0, 0, 0)]  # r0 = 1; exit
        code += [
            (op, dst, src, len(block) - index - 1 if op == different else off, imm)
            for index, (op, dst, src, off, imm) in enumerate(block)
        ]
    code += [(0xB7, 0, 0, 0, 0), (0x95, 0, 0, 0, 0)]
    return b"".join(struct.pack("=BBhi", op, dst | src << 4, off, imm) for op, dst, src, off, imm in code)


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


__all__ = ["Groups", "Hierarchy", "device_program"]
