# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can run programs of a platform: itself, or through an emulator registered with binfmt_misc."""

from __future__ import annotations

from pathlib import Path

from chantier.spec import Platform

_BINFMT = Path("/proc/sys/fs/binfmt_misc")

# Names of qemu's interpreters, which are those of the registrations that Debian and tonistiigi/binfmt make.
_QEMU = {
    "386": "i386",
    "amd64": "x86_64",
    "arm": "arm",
    "arm64": "aarch64",
    "loong64": "loongarch64",
    "mips64": "mips64",
    "mips64le": "mips64el",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}

# What a kernel runs beside its own, by its 32-bit compatibility.
_BESIDE = {"amd64": ("386",), "arm64": ("arm",)}


def runs_here(platform: Platform, host: Platform, *, binfmt: Path = _BINFMT) -> bool:
    """Whether a process of `platform` can be started on `host`."""
    if platform.os != host.os:
        return False
    if platform.architecture == host.architecture or platform.architecture in _BESIDE.get(host.architecture, ()):
        return True
    return _registered(platform.architecture, binfmt)


def emulated(host: Platform, *, binfmt: Path = _BINFMT) -> tuple[str, ...]:
    """Architectures that run here through an emulator."""
    return tuple(arch for arch in sorted(_QEMU) if arch != host.architecture and _registered(arch, binfmt))


def _registered(architecture: str, binfmt: Path) -> bool:
    """An enabled entry whose interpreter the kernel has opened already (flag F): the rootfs need not hold it."""
    name = _QEMU.get(architecture)
    if name is None:
        return False
    for entry in (f"qemu-{name}", f"qemu-{architecture}"):
        try:
            lines = (binfmt / entry).read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:  # no such registration, or binfmt_misc is not mounted
            continue
        flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
        if lines and lines[0] == "enabled" and "F" in flags:
            return True
    return False


__all__ = ["emulated", "runs_here"]
