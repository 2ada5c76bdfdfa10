# SPDX-License-Identifier: Apache-2.0
"""Run one process in one rootfs, and say how it ended.

`Native` runs containers by the kernel alone, `Runc` by an OCI runtime, and `probe` finds out which of them works here. The rest
of the room prepares what a container sees: `oci` describes it, `users` finds who it runs as, `files` makes hosts and resolv.conf, `stubs` keeps mount
points out of the result, `network` makes the networks of steps.

What it promises: output arrives whole and in order; a cancelled container is dead, reaped and gone with its whole tree
before the cancellation goes on; if this process is killed, so are its containers, and `recover` removes what is left. What
it refuses: to fork the engine (processes start by vfork of the runtime), and to run anything outside a container.

Three names to know: `probe`, `Runc`, `Container`.
"""

from __future__ import annotations

from .files import DEFAULT_HOSTNAME, Dns, Files
from .native import Native
from .network import Networks, Same, open_networks
from .network import recover as recover_networks
from .places import Places, recover
from .probe import probe
from .runc import Runc
from .stubs import Stubs, record
from .types import Bind, Container, Exit, OnOutput, Process, Resources, Rlimit, Runtime
from .users import User, resolve_user

__all__ = [
    "DEFAULT_HOSTNAME",
    "Bind",
    "Container",
    "Dns",
    "Exit",
    "Files",
    "Native",
    "Networks",
    "OnOutput",
    "Places",
    "Process",
    "Resources",
    "Rlimit",
    "Runc",
    "Runtime",
    "Same",
    "Stubs",
    "User",
    "open_networks",
    "probe",
    "record",
    "recover",
    "recover_networks",
    "resolve_user",
]
