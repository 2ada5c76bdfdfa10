# SPDX-License-Identifier: Apache-2.0
"""Which foreign platforms this kernel can run: what binfmt_misc has handlers for (Documentation/admin-guide/binfmt-misc)."""

from __future__ import annotations

from pathlib import Path

from chantier.spec import Platform, host_platform

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_QEMU = {
    "qemu-aarch64": Platform("linux", "arm64"),
    "qemu-arm": Platform("linux", "arm", "v7"),
    "qemu-i386": Platform("linux", "386"),
    "qemu-x86_64": Platform("linux", "amd64"),
    "qemu-ppc64le": Platform("linux", "ppc64le"),
    "qemu-riscv64": Platform("linux", "riscv64"),
    "qemu-s390x": Platform("linux", "s390x"),
    "qemu-mips64el": Platform("linux", "mips64le"),
    "qemu-loongarch64": Platform("linux", "loong64"),
}


def emulated(binfmt: Path = _BINFMT) -> list[Platform]:
    """Platforms with an enabled handler, and those the processor runs by itself (386 on amd64)."""
    host = host_platform()
    found = [Platform("linux", "386")] if host.architecture == "amd64" else []
    for name, platform in _QEMU.items():
        handler = binfmt / name
        try:
            enabled = handler.read_text().startswith("enabled")
        except OSError:
            continue  # no such handler, or no binfmt_misc at all
        if enabled and platform not in (host, *found):
            found.append(platform)
    return found
