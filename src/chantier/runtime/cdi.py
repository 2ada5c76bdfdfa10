# SPDX-License-Identifier: Apache-2.0
"""Devices of this machine that steps may be given: the Container Device Interface (CDI 1.0, SPEC.md of cncf-tags).

A vendor describes its devices in files, JSON or YAML, in directories such as /etc/cdi: how the description of a container is to be
edited for it to have the device. The files are read again when they change. Of two devices of one name that of the later
directory counts; in one directory neither does.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chantier.errors import ConfigError, NotFoundError
from chantier.values import dataclass, field

from .types import Bind, DeviceNode, Hook

_log = logging.getLogger(__name__)

DIRECTORIES = ("/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_-]*\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*\Z")
_CLASS = "org.mobyproject.buildkit.device.class"
_AUTO_ALLOW = "org.mobyproject.buildkit.device.autoallow"
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What is to be added to a container."""

    env: tuple[str, ...] = ()
    devices: tuple[DeviceNode, ...] = ()
    binds: tuple[Bind, ...] = ()
    hooks: tuple[Hook, ...] = ()
    groups: tuple[int, ...] = ()

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            env=self.env + other.env,
            devices=self.devices + other.devices,
            binds=self.binds + other.binds,
            hooks=self.hooks + other.hooks,
            groups=self.groups + other.groups,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """`name` is qualified: VENDOR/CLASS=NAME. `annotations` are those of its file and its own."""

    name: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    file: str = ""
    edits: Mapping[str, Any] = field(
        default_factory=dict
    )  # as the file has them: device nodes are looked at when they are needed
    file_edits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.name.partition("=")[0]


class Devices:
    """The devices of some directories. Any thread. `auto_allowed` names devices or kinds that every step may have."""

    def __init__(self, directories: Sequence[str] = (), auto_allowed: Sequence[str] = ()) -> None:
        self._directories = tuple(directories) or DIRECTORIES
        self._auto_allowed = frozenset(auto_allowed)
        self._lock = threading.Lock()
        self._seen: tuple[Any, ...] | None = None
        self._devices: dict[str, Device] = {}

    def every(self) -> list[Device]:
        """All of them, by name, as the files are now."""
        with self._lock:
            files = list(self._files())
            seen = tuple((path, info.st_mtime_ns, info.st_size, info.st_ino) for path, info in files)
            if seen != self._seen:
                self._devices = _read(self._directories, [path for path, _ in files])
                self._seen = seen
            return [self._devices[name] for name in sorted(self._devices)]

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        for directory in self._directories:
            try:
                names = sorted(os.listdir(directory))
            except OSError:  # no such directory: most machines have no devices
                continue
            for name in names:
                if name.endswith((".json", ".yaml", ".yml")):
                    path = os.path.join(directory, name)
                    try:
                        yield path, os.stat(path)
                    except FileNotFoundError:
                        continue

    def auto_allowed(self, device: Device) -> bool:
        return (
            device.name in self._auto_allowed
            or device.kind in self._auto_allowed
            or str(device.annotations.get(_AUTO_ALLOW, "")) in _TRUE
        )

    def find(self, wanted: Sequence[tuple[str, bool]]) -> list[Device]:
        """The devices that (name, optional) stand for, each once: KIND=NAME, KIND=* (all), KIND (the first), or a class.

        Raises NotFoundError `required device "x" is not registered`.
        """
        every = self.every()
        found: dict[str, Device] = {}
        for name, optional in wanted:
            matching = _matching(name, every)
            if not matching and not optional:
                raise NotFoundError(
                    f'required device "{name}" is not registered',
                    hint=f"known devices: {', '.join(d.name for d in every) or 'none'}; files are looked for in {', '.join(self._directories)}",
                )
            found |= {device.name: device for device in matching}
        return list(found.values())

    def edits(self, wanted: Sequence[tuple[str, bool]]) -> Edits:
        """What those devices add to a container; what a file says for all its devices comes once. Raises as `find`, ConfigError."""
        made = Edits()
        files: set[str] = set()
        for device in self.find(wanted):
            if device.file not in files:
                files.add(device.file)
                made += _edits(device.file_edits, device.file)
            made += _edits(device.edits, device.file)
        return made


def _matching(name: str, every: Sequence[Device]) -> list[Device]:
    kind, _, which = name.partition("=")
    found: list[Device] = []
    if _KIND.match(kind):
        of_kind = [device for device in every if device.kind == kind]
        found = of_kind if which == "*" else of_kind[:1] if not which else [d for d in of_kind if d.name == name]
    return found or [device for device in every if device.annotations.get(_CLASS) == name]


# Files.


def _read(directories: Sequence[str], paths: Sequence[str]) -> dict[str, Device]:
    found: dict[str, tuple[str, Device | None]] = {}
    for path in paths:
        try:
            devices = list(_devices_of(path))
        except (ConfigError, OSError) as err:
            _log.warning("CDI setup error %s: %s", path, err)
            continue
        for device in devices:
            directory = os.path.dirname(path)
            rival = found.get(device.name)
            if rival is not None and rival[0] == directory:
                _log.warning("CDI setup error %s: device %s is described by another file there too", path, device.name)
                found[device.name] = (directory, None)
            else:
                found[device.name] = (directory, device)
    return {name: device for name, (_, device) in found.items() if device is not None}


def _devices_of(path: str) -> Iterator[Device]:
    raw = _parse(path, Path(path).read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or not isinstance(raw.get("devices"), list):
        raise ConfigError("no CDI description: `kind` and `devices` are wanted")
    kind = str(raw.get("kind", ""))
    if not _KIND.match(kind):
        raise ConfigError(f"invalid kind {kind!r}: want VENDOR/CLASS")
    for entry in raw["devices"]:
        name = str(entry.get("name", "")) if isinstance(entry, dict) else ""
        if not _NAME.match(name):
            raise ConfigError(f"invalid device name {name!r}")
        yield Device(
            name=f"{kind}={name}",
            annotations={**_texts(raw.get("annotations")), **_texts(entry.get("annotations"))},
            file=path,
            edits=entry.get("containerEdits") or {},
            file_edits=raw.get("containerEdits") or {},
        )


def _parse(path: str, text: str) -> Any:
    if path.endswith(".json"):
        try:
            return json.loads(text)
        except ValueError as err:
            raise ConfigError(f"no JSON: {err}") from err
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as err:
        raise ConfigError(
            "files in YAML need the Python package PyYAML (`pip install 'chantier[cdi]'`); in JSON they need nothing"
        ) from err
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"no YAML: {err}") from err


def _texts(raw: Any) -> dict[str, str]:
    # YAML has booleans of its own: `autoallow: true` means the text.
    return {str(k): str(v).lower() if isinstance(v, bool) else str(v) for k, v in raw.items()} if isinstance(raw, dict) else {}


# Edits.


def _edits(raw: Mapping[str, Any], path: str) -> Edits:
    """Raises ConfigError for what cannot be done."""
    try:
        return Edits(
            env=tuple(str(entry) for entry in raw.get("env") or ()),
            devices=tuple(_node(entry) for entry in raw.get("deviceNodes") or ()),
            binds=tuple(_bind(entry) for entry in raw.get("mounts") or ()),
            hooks=tuple(_hook(entry) for entry in raw.get("hooks") or ()),
            groups=tuple(int(group) for group in raw.get("additionalGids") or ()),
        )
    except OSError as err:
        raise ConfigError(f"{path}: {err.filename}: {(err.strerror or '').lower()}") from err
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise ConfigError(f"{path}: invalid containerEdits: {err}") from err


def _node(raw: Mapping[str, Any]) -> DeviceNode:
    """What the file leaves open is as the machine's own node has it."""
    path = str(raw["path"])
    kind, major, minor, mode = raw.get("type"), raw.get("major"), raw.get("minor"), raw.get("fileMode")
    if not kind or (kind != "p" and major is None):
        info = os.stat(raw.get("hostPath") or path)
        kind = "b" if stat.S_ISBLK(info.st_mode) else "c" if stat.S_ISCHR(info.st_mode) else "p"
        major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
        mode = stat.S_IMODE(info.st_mode) if mode is None else mode
    return DeviceNode(
        path=path,
        kind=str(kind),
        major=int(major or 0),
        minor=int(minor or 0),
        mode=int(mode) & 0o7777 if mode is not None else 0o666,
        uid=int(raw.get("uid") or 0),
        gid=int(raw.get("gid") or 0),
        access=str(raw.get("permissions") or "rwm"),
        host_path=str(raw.get("hostPath") or path),
    )


def _bind(raw: Mapping[str, Any]) -> Bind:
    from chantier.snapshot.mount import Mount

    options = tuple(str(option) for option in raw.get("options") or ("rbind", "ro"))
    return Bind(target=str(raw["containerPath"]), mount=Mount(str(raw.get("type") or "bind"), str(raw["hostPath"]), options))


def _hook(raw: Mapping[str, Any]) -> Hook:
    name = str(raw["hookName"])
    if name not in _HOOKS:
        raise ValueError(f"unknown hook {name!r}")
    return Hook(
        name=name,
        path=str(raw["path"]),
        args=tuple(str(arg) for arg in raw.get("args") or ()),
        env=tuple(str(entry) for entry in raw.get("env") or ()),
        timeout_s=int(raw["timeout"]) if raw.get("timeout") is not None else None,
    )


__all__ = ["DIRECTORIES", "Device", "Devices", "Edits"]
