# SPDX-License-Identifier: Apache-2.0
"""Platforms: `os/arch[/variant]`, normalised and matched as containerd/platforms does (image-spec, image-index.md)."""

from __future__ import annotations

import os
import re
from typing import Any

from chantier.errors import ReferenceError_
from chantier.values import dataclass, replace

_PART = re.compile(r"[A-Za-z0-9_.-]+\Z")
_OS_WITH_VERSION = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.-]*)((?:\+[A-Za-z0-9_.-]+)*)\))?\Z")
_KNOWN_OS = frozenset(
    [
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "hurd",
        "illumos",
        "ios",
        "js",
        "linux",
        "nacl",
        "netbsd",
        "openbsd",
        "plan9",
        "solaris",
        "windows",
        "zos",
    ]
)
_KNOWN_ARCH = frozenset(
    [
        "386",
        "amd64",
        "amd64p32",
        "arm",
        "armbe",
        "arm64",
        "arm64be",
        "ppc64",
        "ppc64le",
        "loong64",
        "mips",
        "mipsle",
        "mips64",
        "mips64le",
        "mips64p32",
        "mips64p32le",
        "ppc",
        "riscv",
        "riscv64",
        "s390",
        "s390x",
        "sparc",
        "sparc64",
        "wasm",
    ]
)
_ARCH_ALIAS = {"i386": "386", "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "armel": "arm"}


@dataclass(frozen=True, slots=True)
class Platform:
    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Platform:
        """`linux/arm64/v8`, `linux`, `amd64`, `windows(10.0.17763)/amd64`; missing parts are the host's. Normalised.

        Raises ReferenceError_ with the text that was given.
        """
        parts = text.split("/", 3)  # a fourth part is all of the rest: containerd names it so
        os_match = _OS_WITH_VERSION.match(parts[0])
        if os_match is None:
            raise ReferenceError_(
                f'"{parts[0]}" is an invalid OS component of "{text}": OSAndVersion specifier component must match'
                f' "^{_OS_WITH_VERSION.pattern[:-2]}$": invalid argument'
            )
        for part in parts[1:]:
            if not _PART.match(part):
                raise ReferenceError_(
                    f'"{part}" is an invalid component of "{text}": platform specifier component must match "^[A-Za-z0-9_.-]+$": invalid argument'
                )
        if len(parts) > 3:
            raise ReferenceError_(f'"{text}": cannot parse platform specifier: invalid argument')
        name = _normalise_os(os_match[1])
        version = os_match[2] or ""
        features = tuple(f for f in (os_match[3] or "").split("+") if f)
        host = host_platform()
        if len(parts) == 1:
            if name in _KNOWN_OS:
                return cls(
                    name, host.architecture, host.variant if host.architecture == "arm" else "", version, features
                ).normalise()
            arch, variant = _normalise_arch(parts[0], "")
            if arch in _KNOWN_ARCH:
                return cls(host.os, arch, variant).normalise()
            raise ReferenceError_(f'"{text}": unknown operating system or architecture: invalid argument')
        arch, variant = _normalise_arch(parts[1], parts[2] if len(parts) == 3 else "")
        return cls(name, arch, variant, version, features).normalise()

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Platform:
        return cls(
            str(raw.get("os", "")),
            str(raw.get("architecture", "")),
            str(raw.get("variant", "")),
            str(raw.get("os.version", "")),
            tuple(str(f) for f in raw.get("os.features") or ()),
        )

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            out["os.version"] = self.os_version
        if self.os_features:
            out["os.features"] = list(self.os_features)
        if self.variant:
            out["variant"] = self.variant
        return out

    def normalise(self) -> Platform:
        arch, variant = _normalise_arch(self.architecture, self.variant)
        return replace(self, os=_normalise_os(self.os), architecture=arch, variant=variant)

    def __str__(self) -> str:
        """Without the OS version: `linux/arm/v7`."""
        return "/".join(p for p in (self.os, self.architecture, self.variant) if p)

    def format_all(self) -> str:
        """With the OS version, the id used in results: `windows(10.0.17763.1)/amd64`."""
        extra = self.os_version + "".join("+" + f for f in self.os_features)
        return "/".join(p for p in (f"{self.os}({extra})" if extra else self.os, self.architecture, self.variant) if p)

    def candidates(self) -> tuple[Platform, ...]:
        """Platforms whose images run here, best first: arm/v7 also takes v6 and v5, arm64 also arm, amd64 lower levels."""
        bare = replace(self, os_version="", os_features=())
        if self.architecture == "amd64" and self.variant.startswith("v"):
            level = int(self.variant[1:]) if self.variant[1:].isdigit() else 1
            return tuple(replace(bare, variant=f"v{n}" if n > 1 else "") for n in range(level, 0, -1))
        if self.architecture == "arm":
            level = int(self.variant[1:]) if self.variant[1:].isdigit() else 7
            return tuple(replace(bare, variant=f"v{n}") for n in range(level, 4, -1))
        if self.architecture == "arm64":
            return (bare, *(Platform(self.os, "arm", f"v{n}") for n in range(8, 4, -1)))
        return (bare,)

    def matches(self, other: Platform) -> bool:
        """Whether an image for `other` is exactly for this platform (containerd `OnlyStrict`, versions aside)."""
        a, b = self.normalise(), other.normalise()
        return (a.os, a.architecture, a.variant) == (b.os, b.architecture, b.variant)


def _normalise_os(name: str) -> str:
    name = name.lower()
    return {"": "linux", "macos": "darwin"}.get(name, name)


def _normalise_arch(arch: str, variant: str) -> tuple[str, str]:
    arch, variant = arch.lower(), variant.lower()
    if arch == "armhf":
        return "arm", "v7"
    if arch == "armel":
        return "arm", "v6"
    arch = _ARCH_ALIAS.get(arch, arch)
    if arch == "386" or (arch == "amd64" and variant == "v1") or (arch == "arm64" and variant in ("8", "v8", "v8.0")):
        variant = ""
    elif arch == "arm64" and variant in ("9", "9.0", "v9.0"):
        variant = "v9"
    elif arch == "arm":
        variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
    return arch, variant


def host_platform() -> Platform:
    """The platform of this machine's kernel, normalised."""
    uname = os.uname()
    machine = uname.machine.lower()
    variant = ""
    if machine.startswith("armv"):
        machine, variant = "arm", "v" + machine[4]
    arch, variant = _normalise_arch(machine, variant)
    return Platform("linux" if uname.sysname == "Linux" else uname.sysname.lower(), arch, variant)
