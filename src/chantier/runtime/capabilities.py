# SPDX-License-Identifier: Apache-2.0
"""Capabilities by name and number (capability.h), and the set a step of a build gets."""

from __future__ import annotations

_IN_ORDER = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST
NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""

# Bit n of a mask is the n-th name.
NAMES = tuple("CAP_" + name for name in _IN_ORDER.split())

# The mask a80425fb: what docker and BuildKit give, enough to install packages, too little to mount or to load modules.
DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)


def names_of(mask: int) -> tuple[str, ...]:
    """The names in a mask; bits newer than this table are left out, an OCI runtime would not know them either."""
    return tuple(name for bit, name in enumerate(NAMES) if mask >> bit & 1)


def mask_of(names: tuple[str, ...]) -> int:
    return sum(1 << NAMES.index(name) for name in set(names))


__all__ = ["DEFAULT", "NAMES", "mask_of", "names_of"]
