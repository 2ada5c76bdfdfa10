# SPDX-License-Identifier: Apache-2.0
"""The native sandbox: containers that need the kernel alone.

    oci.build    what a container is like: the same description that an OCI runtime is given
    plan         the description as records, in order; all policy is decided here
    bpf, groups  its system call filter and its cgroups
    sandbox.c    carries records out; helper/ does the same in Python where there is no compiler
    server       one helper process an engine, from which containers are forked
    native       the Runtime

What it promises: what `Runc` promises, and that a killed engine takes its containers with it at once, without a guard. What
it refuses: to read anything from inside a container but its first process's exit status.

Three names to know: `Native`, `find_helper`, `compile_filter`.
"""

from __future__ import annotations

from .bpf import compile_filter
from .built import find_helper
from .native import Native

__all__ = ["Native", "compile_filter", "find_helper"]
