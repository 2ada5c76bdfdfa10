# SPDX-License-Identifier: Apache-2.0
"""What a measured command costs: wall and CPU seconds, peak memory and bytes written, of its clients and of the daemons behind them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """`cpu_s` is user and system time of every process that took part; `peak_bytes` the resident memory of the largest one."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    written_bytes: int


class Failed(Exception):
    """A measured command ended with an error: what it printed."""


def tree(roots: Iterable[int]) -> list[int]:
    """The processes `roots` and all that live below them."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                children.setdefault(int(_stat(int(name))[1]), []).append(int(name))
    found, waiting = [], list(roots)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def cpu_of(pids: Iterable[int]) -> float:
    """CPU seconds of processes and of the children they waited for. proc(5): utime, stime, cutime, cstime."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += sum(int(text) for text in _stat(pid)[11:15])
    return total / _TICK


def resident_bytes(pids: Iterable[int], key: str = "VmRSS") -> int:
    """Resident memory of processes, added up (`VmHWM`: their peaks)."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(f"{key}:"):
                    total += int(line.split()[1]) * 1024
    return total


def forget_peaks(pids: Iterable[int]) -> None:
    """From here on VmHWM counts anew. proc(5), /proc/PID/clear_refs."""
    for pid in pids:
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def measure(
    commands: Sequence[Sequence[str]], *, env: Mapping[str, str], daemons: Sequence[int], device: str, at_once: bool = False
) -> Cost:
    """Run commands one after the other, or at once. `device` is the block device of the builder's file system: `loop0`."""
    os.sync()
    below = tree(daemons) if daemons else []
    forget_peaks(below)
    cpu, written = cpu_of(below), _sectors(device)
    start, spent, peak, errors = time.perf_counter(), 0.0, 0, []
    for batch in [commands] if at_once else [[command] for command in commands]:
        clients = [_start(command, env) for command in batch]
        for client, output in clients:
            _, status, usage = os.wait4(client.pid, 0)
            client.returncode = os.waitstatus_to_exitcode(status)
            spent += usage.ru_utime + usage.ru_stime
            peak = max(peak, usage.ru_maxrss * 1024)
            if client.returncode != 0:
                errors.append(f"{client.args!r} ended with {client.returncode}:\n{_tail(output)}")
            os.close(output)
    wall = time.perf_counter() - start
    if errors:
        raise Failed("\n".join(errors))
    below = tree(daemons) if daemons else []
    spent += cpu_of(below) - cpu
    peak = max([peak, *(resident_bytes([pid], "VmHWM") for pid in below)])
    os.sync()
    return Cost(wall_s=wall, cpu_s=spent, peak_bytes=peak, written_bytes=(_sectors(device) - written) * 512)


def _start(command: Sequence[str], env: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    output = os.memfd_create("output")
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output), output


def _tail(output: int) -> str:
    size = os.fstat(output).st_size
    return os.pread(output, 3000, max(size - 3000, 0)).decode(errors="replace")


def _sectors(device: str) -> int:
    """Sectors of 512 bytes written so far. Documentation/admin-guide/iostats.rst, field 7."""
    return int(Path(f"/sys/block/{device}/stat").read_text().split()[6])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: the state is [0], the parent [1], utime [11]."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
