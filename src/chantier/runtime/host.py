# SPDX-License-Identifier: Apache-2.0
"""What of this machine a container's description depends on, found once."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from chantier.kernel import in_user_namespace
from chantier.values import dataclass

from . import capabilities

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Facts about the kernel we run on. `cgroups` is v1, hybrid, v2 or none."""

    machine: str
    kernel: str
    cgroups: str
    cgroup_namespace: bool
    seccomp: bool
    capabilities: tuple[str, ...]
    user_namespace: bool = False


@cache
def this_host() -> Host:
    """This machine, as the process sees it."""
    uname = os.uname()
    cgroups = _cgroup_layout(_CGROUP)
    return Host(
        machine=uname.machine,
        kernel=uname.release,
        cgroups=cgroups,
        # A namespace of its own is of use only where a tree can be delegated.
        cgroup_namespace=cgroups == "v2"
        and (_CGROUP / "cgroup.subtree_control").exists()
        and Path("/proc/self/ns/cgroup").exists(),
        seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        capabilities=capabilities.names_of(_effective()),
        user_namespace=in_user_namespace(),
    )


def _cgroup_layout(where: Path) -> str:
    if (where / "cgroup.controllers").exists():
        return "v2"
    if (where / "unified" / "cgroup.controllers").exists():
        return "hybrid"
    if (where / "memory").is_dir() or (where / "cpu").is_dir():
        return "v1"
    return "none"


def _effective() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == "CapEff":
            return int(value, 16)
    return 0


__all__ = ["Host", "this_host"]
