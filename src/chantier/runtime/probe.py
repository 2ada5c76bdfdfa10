# SPDX-License-Identifier: Apache-2.0
"""Finding a runtime that works here, by running a container with it: the native sandbox, or else an OCI runtime.

A version number says little: crun before 1.9 refuses a mixed cgroup hierarchy, a runc may lack seccomp, and inside another
container either may be forbidden to mount /proc. So each candidate runs one process of nine bytes of code in a container
described like every other. A success is remembered below the state directory, by binary, kernel and cgroup layout.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

from chantier.errors import UnsupportedError
from chantier.kernel.temporary import write_whole
from chantier.spec import new_id
from chantier.values import dataclass, replace

from .host import Host, this_host
from .native import Native
from .places import recover
from .runc import Runc
from .types import Container, Exit, Process

CANDIDATES = ("buildkit-runc", "runc", "crun")
NATIVE = "native"  # as `binary`, the sandbox that needs no program
_FILE = "runtime-probe.json"
_LIMIT_S = 60.0

# exit(0) in machine code, with the ELF machine number and flags.
_EXIT = {
    "x86_64": (62, 0, bytes.fromhex("31ff b83c000000 0f05")),
    "aarch64": (183, 0, bytes.fromhex("000080d2 a80b80d2 010000d4")),
    "riscv64": (243, 0, bytes.fromhex("13050000 9308d005 73000000")),
    "ppc64le": (21, 2, bytes.fromhex("01000038 00006038 02000044")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    binary: str
    works: bool
    seccomp: bool = True
    reason: str = ""  # why it does not work


async def probe(
    root: Path,
    *,
    binary: str = "",
    apparmor: str = "",
    selinux: str = "",
    process_sandbox: bool = True,
    host: Host | None = None,
    search: str | None = None,
    helper: str = "auto",
) -> Runc | Native:
    """The native sandbox where it runs a container, else the first of the candidates that does; `binary` (worker.oci.binary) is the only one.

    `root` is the state directory: containers live in its `executor`, where what dead processes left is removed first.
    Raises UnsupportedError that names each candidate and why it failed.
    """
    host = host or this_host()
    await asyncio.to_thread(recover, root / "executor")
    failed: list[str] = []
    for name in (binary,) if binary else (NATIVE, *CANDIDATES):
        if name == NATIVE:
            native = Native(
                root / "executor", host=host, apparmor=apparmor, selinux=selinux, process_sandbox=process_sandbox, helper=helper
            )
            reason = await _try_native(root, native, host)
            if not reason:
                return native
            failed.append(f"{NATIVE}: {reason}")
            continue
        path = shutil.which(name, path=search)
        if path is None:
            failed.append(f"{name}: not found in PATH" if "/" not in name else f"{name}: not found")
            continue
        verdict = _remembered(root, path, host) or await _try(root, path, host, apparmor, selinux, process_sandbox)
        if verdict.works:
            suited = host if verdict.seccomp else replace(host, seccomp=False)
            return Runc(
                path,
                root / "executor",
                host=suited,
                apparmor=apparmor,
                selinux=selinux,
                process_sandbox=process_sandbox,
            )
        failed.append(f"{path}: {verdict.reason}")
    raise UnsupportedError(
        "no runtime works on this machine: " + "; ".join(failed),
        detail="\n".join(failed),
        hint="`chantier doctor` says what is missing; or name a runtime that works as `binary` in [worker.oci]",
    )


async def _try_native(root: Path, native: Native, host: Host) -> str:
    """Why the native sandbox does not work here, "" if it does."""
    try:
        helper = await asyncio.to_thread(native.find)
        if _remembered(root, str(helper.program), host, NATIVE) is not None:
            return ""
        ended, said = await _run_once(native, host.machine)
    except (UnsupportedError, TimeoutError, OSError) as err:
        await native.close()
        return str(err) or f"it did not end within {_LIMIT_S:.0f} s"
    except BaseException:  # cancelled
        await native.close()
        raise
    if ended.code == 0:
        _remember(root, str(helper.program), host, Verdict(binary=NATIVE, works=True), NATIVE)
        return ""
    await native.close()
    return ended.message or " ".join(said.split()) or f"exit code {ended.code}"


async def _try(root: Path, path: str, host: Host, apparmor: str, selinux: str, process_sandbox: bool) -> Verdict:
    kinds = (True, False) if host.seccomp else (False,)
    reason = ""
    for seccomp in kinds:
        runtime = Runc(
            path,
            root / "executor",
            host=replace(host, seccomp=seccomp),
            apparmor=apparmor,
            selinux=selinux,
            process_sandbox=process_sandbox,
        )
        try:
            ended, said = await _run_once(runtime, host.machine)
        except (UnsupportedError, TimeoutError) as err:
            return Verdict(binary=path, works=False, reason=str(err) or f"it did not end within {_LIMIT_S:.0f} s")
        finally:
            await runtime.close()
        if ended.code == 0:
            verdict = Verdict(binary=path, works=True, seccomp=seccomp)
            _remember(root, path, host, verdict)
            return verdict
        reason = ended.message or " ".join(said.split()) or f"exit code {ended.code}"
        if "seccomp" not in reason:
            break
    return Verdict(binary=path, works=False, reason=reason)


async def _run_once(runtime: Runc | Native, machine: str) -> tuple[Exit, str]:
    place = runtime.places.new(f"probe-{new_id()[:12]}")
    rootfs = place / "rootfs"
    for name in ("proc", "sys", "dev"):
        (rootfs / name).mkdir(parents=True)
    program = rootfs / "exit"
    program.write_bytes(tiny_program(machine))
    program.chmod(0o755)
    said: list[bytes] = []
    container = Container(id=new_id(), rootfs=rootfs, process=Process(args=("/exit",), env=("PATH=/",)))
    async with asyncio.timeout(_LIMIT_S):
        ended = await runtime.run(container, output=lambda _stream, data: said.append(data))
    return ended, b"".join(said).decode(errors="replace")


def tiny_program(machine: str) -> bytes:
    """A static ELF executable that exits with 0 (elf(5)). UnsupportedError for a machine we have no code for."""
    if machine not in _EXIT:
        raise UnsupportedError(f"no probe program for {machine}")
    number, flags, code = _EXIT[machine]
    base, header = 0x10000, 64 + 56
    size = header + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    elf = struct.pack("<HHIQQQIHHHHHH", 2, number, 1, base + header, 64, 0, flags, 64, 56, 1, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
    return ident + elf + load + code


def _key(path: str, host: Host, kind: str) -> str:
    real = os.path.realpath(path)
    info = os.stat(real)
    return f"{kind}{real} {info.st_mtime_ns} {info.st_size} {host.kernel} {host.cgroups} {int(host.user_namespace)}"


def _read(root: Path) -> dict[str, Any]:
    try:
        known = json.loads((root / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or cut off: we look again
        return {}
    return known if isinstance(known, dict) else {}


def _remembered(root: Path, path: str, host: Host, kind: str = "") -> Verdict | None:
    known = _read(root).get(_key(path, host, kind))
    if not isinstance(known, dict):
        return None
    return Verdict(binary=path, works=True, seccomp=bool(known.get("seccomp")))


def _remember(root: Path, path: str, host: Host, verdict: Verdict, kind: str = "") -> None:
    known = {**_read(root), _key(path, host, kind): {"seccomp": verdict.seccomp}}
    write_whole(root / _FILE, json.dumps(known, indent=1).encode())


__all__ = ["CANDIDATES", "NATIVE", "Verdict", "probe", "tiny_program"]
