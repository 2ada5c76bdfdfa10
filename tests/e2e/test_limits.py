# SPDX-License-Identifier: Apache-2.0
"""Limits of steps, and platforms that this machine cannot run, from the command to the kernel."""

from __future__ import annotations

import platform
import re

import pytest

from chantier.op.emulate import runs_here
from chantier.spec import Platform, host_platform

from ..conftest import Command

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.slow]


def test_a_step_may_use_so_much_memory(chantier: Command) -> None:
    show = "FROM alpine\nRUN cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true\n"
    assert re.search(r" 67108864$", chantier.build(show, "--resource", "memory=64m").ok().err, re.MULTILINE)
    # Another limit is no other step.
    assert "CACHED" in chantier.build(show, "--resource", "memory=65m").ok().step("RUN cat")
    done = chantier.build("FROM alpine\nRUN head -c 200m /dev/zero | tail > /dev/null\n", "--resource", "memory=32m")
    assert done.code == 1
    assert "did not complete successfully: cannot allocate memory" in done.err
    assert "hint: the step needs more memory than its limit" in done.err


def test_an_unknown_resource_is_named(chantier: Command) -> None:
    done = chantier.build("FROM alpine\n", "--resource", "speed=9")
    assert done.code == 1
    assert "unknown resource speed" in done.err


def test_a_platform_without_an_emulator(chantier: Command) -> None:
    other = "linux/s390x" if platform.machine() != "s390x" else "linux/amd64"
    if runs_here(Platform.parse(other), host_platform()):
        pytest.skip(f"{other} is emulated here")
    done = chantier.build("FROM alpine\nRUN true\n", "--platform", other)
    assert done.code == 1
    assert f"no emulator for {other} is registered on this {host_platform()} machine" in done.err
    assert "binfmt_misc" in done.err
    # What needs no process needs no emulator.
    chantier.build("FROM scratch\nCOPY --from=alpine /etc/passwd /\n", "--platform", other).ok()
