# SPDX-License-Identifier: Apache-2.0
"""What this machine can do for builds, one finding a capability, each with its fix.

Everything is looked at or tried, nothing is changed: namespaces are made in a process of their own, overlays are mounted in a
directory that is removed. A finding is `ok`, a `warning` (something is slower, or missing for some builds) or a `failure`
(steps cannot run, or nothing can be built).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chantier.config import Config
from chantier.errors import ChantierError, UnsupportedError
from chantier.kernel import userns
from chantier.kernel.temporary import TemporaryDirectory
from chantier.values import asdict, dataclass

OK, WARNING, FAILURE = "ok", "warning", "failure"
_LOW_BYTES = 2 << 30
_ASK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`name` is stable, for scripts."""

    name: str
    state: str
    found: str
    fix: str = ""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    root: Path
    config: Config
    registries: bool


def examine(root: Path, config: Config, *, registries: bool = True) -> tuple[Finding, ...]:
    """All findings, in the order a build needs them. Blocks for up to some seconds; never raises for what it finds."""
    asked = _Asked(root=root, config=config, registries=registries)
    found: list[Finding] = []
    for check in _CHECKS:
        try:
            found += check(asked)
        except (OSError, ChantierError) as err:  # a check that cannot be made is a finding too
            found.append(Finding(name=check.__name__.strip("_"), state=WARNING, found=f"could not be examined: {err}"))
    return tuple(found)


def exit_code(findings: Sequence[Finding]) -> int:
    """0 all is well, 1 something failed, 2 only warnings."""
    states = {finding.state for finding in findings}
    return 1 if FAILURE in states else 2 if WARNING in states else 0


def _user(asked: _Asked) -> list[Finding]:
    who = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}"
    inside = _outer_uid()
    if inside is not None:
        return [Finding(name="user", state=OK, found=f"{who} of a user namespace made by uid {inside}")]
    return [Finding(name="user", state=OK, found=who)]


def _outer_uid() -> int | None:
    from chantier.kernel import in_user_namespace, parse_id_map

    if not in_user_namespace():
        return None
    ranges = parse_id_map(Path("/proc/self/uid_map").read_text(encoding="ascii"))
    return ranges[0].outside if ranges else None


def _namespaces(asked: _Asked) -> list[Finding]:
    """That steps can be given namespaces: a trial by the runtime says more, this says why not."""
    missing = [
        kind for kind in ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup") if not os.path.exists(f"/proc/self/ns/{kind}")
    ]
    hard = [kind for kind in missing if kind in ("mnt", "pid", "ipc", "uts")]
    if hard:
        return [
            Finding(
                name="namespaces",
                state=FAILURE,
                found=f"this kernel has no {', '.join(hard)} namespaces",
                fix="use another kernel",
            )
        ]
    cause, hint = userns.why_no_namespace()
    if os.geteuid() != 0 and cause and "seccomp" not in cause:
        return [Finding(name="namespaces", state=FAILURE, found=cause, fix=hint)]
    if missing:
        return [Finding(name="namespaces", state=WARNING, found=f"this kernel has no {', '.join(missing)} namespaces")]
    return [Finding(name="namespaces", state=OK, found="mount, pid, network, ipc, uts, user, cgroup")]


def _ids(asked: _Asked) -> list[Finding]:
    from chantier.kernel import in_user_namespace, parse_id_map

    if os.geteuid() == 0 and in_user_namespace():
        ranges = parse_id_map(Path("/proc/self/uid_map").read_text(encoding="ascii"))
        count = sum(part.size for part in ranges)
        if count >= 65536:
            return [Finding(name="ids", state=OK, found=f"{count} user ids in this namespace")]
        why, hint = userns.why_one_id()
        return [
            Finding(
                name="ids",
                state=WARNING,
                found=f"{count} user id{'' if count == 1 else 's'}: files of other owners and USER are not possible"
                + (f" ({why})" if why else ""),
                fix=hint or "give the user lines in /etc/subuid and /etc/subgid, and install the package uidmap",
            )
        ]
    if os.geteuid() == 0:
        return [Finding(name="ids", state=OK, found="all, as root")]
    plan = userns.plan_ids(userns.this_caller())
    if plan.how == userns.SINGLE:
        return [Finding(name="ids", state=WARNING, found=f"one user id: {plan.why}", fix=plan.hint)]
    return [Finding(name="ids", state=OK, found=f"{plan.count} user ids by {plan.how}")]


def _overlay(asked: _Asked) -> list[Finding]:
    from chantier.snapshot import choose, overlay_works

    wanted = asked.config.worker_oci.snapshotter
    fix = "put the state on ext4, XFS or Btrfs with --root; an ordinary user needs Linux 5.11 or later"
    with TemporaryDirectory("doctor", base=_existing(asked.root)) as place:
        try:
            choice = choose(wanted, Path(place))
            works = choice.name != "overlayfs" or overlay_works(Path(place))
        except UnsupportedError as err:
            return [Finding(name="overlay", state=FAILURE, found=str(err), fix=err.hint or "")]
    if not works:  # it was asked for
        said = f"overlayfs cannot be mounted below {asked.root} (Linux {os.uname().release})"
        return [Finding(name="overlay", state=FAILURE, found=said, fix=fix)]
    if choice.note:
        if choice.name == "native":
            fix += "; or install fuse-overlayfs, which needs /dev/fuse"
        return [Finding(name="overlay", state=WARNING, found=choice.note.replace(place, str(asked.root)), fix=fix)]
    said = (
        f"the kernel's overlayfs works below {asked.root}" if choice.name == "overlayfs" else f"{choice.name}, as the config asks"
    )
    return [Finding(name="overlay", state=OK, found=said)]


def _existing(path: Path) -> Path:
    while not path.is_dir():
        path = path.parent
    return path if os.access(path, os.W_OK) else Path(tempfile.gettempdir())


def _cgroups(asked: _Asked) -> list[Finding]:
    from chantier.runtime.host import this_host

    layout = this_host().cgroups
    if layout == "none":
        return [
            Finding(
                name="cgroups", state=WARNING, found="not mounted: no limits for steps", fix="mount cgroup2 on /sys/fs/cgroup"
            )
        ]
    if this_host().user_namespace:
        return [_delegated(layout)]
    base = Path("/sys/fs/cgroup") if layout == "v2" else Path("/sys/fs/cgroup/memory")
    if not os.access(base, os.W_OK):
        return [
            Finding(name="cgroups", state=WARNING, found=f"{layout}, read-only: no limits for steps", fix="mount them writable")
        ]
    return [Finding(name="cgroups", state=OK, found=layout)]


def _delegated(layout: str) -> Finding:
    from chantier.runtime import delegation

    found = delegation.find(layout)
    if not found.places:
        return Finding(
            name="cgroups",
            state=WARNING,
            found=f"{layout}, not delegated: limits of steps have no effect: {found.why}",
            fix=found.fix,
        )
    where = ", ".join(str(place) for place in sorted(set(found.places.values())))
    said = f"{layout}, delegated below {where}: limits of {', '.join(found.places)}"
    if found.missing:
        return Finding(name="cgroups", state=WARNING, found=f"{said}; {found.why}", fix=found.fix)
    if found.closed:
        said += f"; an OCI runtime sets none, it would want groups of {', '.join(found.closed)}, too"
        return Finding(name="cgroups", state=WARNING, found=said, fix='binary = "native" in [worker.oci]')
    return Finding(name="cgroups", state=OK, found=said)


def _seccomp(asked: _Asked) -> list[Finding]:
    from chantier.runtime.host import this_host

    if this_host().seccomp:
        return [Finding(name="seccomp", state=OK, found="filters are available")]
    return [
        Finding(
            name="seccomp",
            state=WARNING,
            found="this kernel has no filters: steps run without",
            fix="use a kernel with CONFIG_SECCOMP_FILTER",
        )
    ]


def _runtime(asked: _Asked) -> list[Finding]:
    """Run a container, as the engine would."""
    from chantier.runtime import probe

    oci = asked.config.worker_oci

    async def trial(place: Path) -> str:
        runtime = await probe(place, binary=oci.binary, apparmor=oci.apparmor_profile, process_sandbox=not oci.no_process_sandbox)
        await runtime.close()
        return getattr(runtime, "binary", "") or "the native sandbox"

    with TemporaryDirectory("doctor") as name:
        try:
            found = asyncio.run(trial(Path(name)))
        except ChantierError as err:
            causes = [part for part in (err.detail or str(err)).splitlines() if part]
            return [Finding(name="runtime", state=FAILURE, found=causes[-1], fix=_runtime_fix(causes[-1]))]
    return [Finding(name="runtime", state=OK, found=f"{found} runs containers")]


def _runtime_fix(cause: str) -> str:
    if '"proc"' in cause or "/proc" in cause:
        return "noProcessSandbox = true in [worker.oci], or docker run --security-opt systempaths=unconfined"
    if "namespace" in cause or "unshare" in cause:
        return userns.why_no_namespace()[1] or "run as root, or where user namespaces are allowed"
    return "install runc or crun, or run where namespaces and mounts are allowed (docs/rootless.md)"


def _helper(asked: _Asked) -> list[Finding]:
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "")
    if compiler:
        return [Finding(name="helper", state=OK, found=f"the native sandbox's helper is compiled with {compiler}")]
    return [
        Finding(name="helper", state=OK, found="no C compiler: the native sandbox's helper is the one in Python, which is slower")
    ]


def _network(asked: _Asked) -> list[Finding]:
    from chantier.runtime.network import modes_here

    return [Finding(name="network", state=OK, found=f"steps may have {', '.join(modes_here())}")]


def _binfmt(asked: _Asked) -> list[Finding]:
    from .platforms import emulated

    others = [str(platform) for platform in emulated()]
    if others:
        return [Finding(name="binfmt", state=OK, found="emulates " + ", ".join(others))]
    return [
        Finding(
            name="binfmt",
            state=OK,
            found="no emulators: other platforms than this machine's cannot run steps (qemu-user-static has them)",
        )
    ]


def _disk(asked: _Asked) -> list[Finding]:
    info = os.statvfs(_existing(asked.root))
    free, total = info.f_bavail * info.f_frsize, info.f_blocks * info.f_frsize
    if not os.access(_existing_parent(asked.root), os.W_OK):
        return [
            Finding(
                name="disk",
                state=FAILURE,
                found=f"{asked.root} cannot be written",
                fix="name another directory: --root or CHANTIER_ROOT",
            )
        ]
    said = f"{free >> 30} of {total >> 30} GiB free for {asked.root}"
    if free < _LOW_BYTES:
        return [Finding(name="disk", state=WARNING, found=said, fix="make room: chantier prune, or another --root")]
    return [Finding(name="disk", state=OK, found=said)]


def _existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _registry(asked: _Asked) -> list[Finding]:
    """Whether the mirrors of the config can be reached: one connection each, no request."""
    import socket

    if not asked.registries:
        return []
    hosts = {host for config in asked.config.registries.values() for host in config.mirrors}
    hosts |= {name for name, config in asked.config.registries.items() if not config.mirrors and "*" not in name}
    found = []
    for host in sorted(hosts):
        address, plain = (
            host.partition("/")[0],
            bool((known := asked.config.registries.get(host.partition("/")[0])) and known.http),
        )
        name, _, port = address.partition(":")
        try:
            socket.create_connection((name, int(port or (80 if plain else 443))), _ASK_S).close()
        except (OSError, ValueError) as err:
            said = getattr(err, "strerror", None) or str(err) or "no answer"
            found.append(
                Finding(
                    name=f"registry {address}",
                    state=WARNING,
                    found=f"cannot be reached: {said.lower()}",
                    fix=f"chantier registry explain --help; check {address} and proxies",
                )
            )
        else:
            found.append(Finding(name=f"registry {address}", state=OK, found="can be reached"))
    return found


_CHECKS: tuple[Callable[[_Asked], list[Finding]], ...] = (
    _user,
    _namespaces,
    _ids,
    _overlay,
    _cgroups,
    _seccomp,
    _runtime,
    _helper,
    _network,
    _binfmt,
    _disk,
    _registry,
)

__all__ = ["FAILURE", "OK", "WARNING", "Finding", "examine", "exit_code"]
