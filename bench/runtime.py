# SPDX-License-Identifier: Apache-2.0
"""From "run this" to its exit, for `true`: each runtime in turns, so that a busy machine is busy for all of them.

    python bench/runtime.py [--runs 50] [--json FILE]

One run is what a step pays beyond its own work: an overlay of three layers is mounted, the container runs, the overlay is
unmounted. Medians; as root for runc, crun and both helpers of the native sandbox, and as an ordinary user for what works there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from chantier.errors import ChantierError
from chantier.runtime import Container, Process, probe
from chantier.snapshot import Mount, mount_all, unmount
from chantier.spec import new_id

KINDS = {
    "runc": {"binary": "runc"},
    "crun": {"binary": "crun"},
    "native (C)": {"binary": "native", "helper": "c"},
    "native (Python)": {"binary": "native", "helper": "python"},
}


def make_layers(where: Path) -> list[Path]:
    """Three layers: empty, a few files, a root of one static busybox; the upper one first."""
    layers = [where / name for name in ("top", "middle", "base")]
    for layer in layers:
        layer.mkdir()
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (layers[2] / name).mkdir()
    shutil.copy(shutil.which("busybox") or "/bin/busybox", layers[2] / "bin/busybox")
    (layers[2] / "bin/true").symlink_to("busybox")
    (layers[1] / "etc").mkdir()
    for number in range(10):
        (layers[1] / f"etc/file{number}").write_text("x")
    return layers


async def one(runtime: Any, layers: list[Path], where: Path, *, userxattr: bool) -> float:
    parts = {part: where / part for part in ("upper", "work", "merged")}
    for part in parts.values():
        part.mkdir(parents=True)
    options = [
        "lowerdir=" + ":".join(map(str, layers)),
        f"upperdir={parts['upper']}",
        f"workdir={parts['work']}",
        *(["userxattr"] if userxattr else []),
    ]
    process = Process(args=("true",), env=("PATH=/bin",))
    begun = time.perf_counter()
    mount_all((Mount("overlay", "overlay", tuple(options)),), parts["merged"])
    ended = await runtime.run(Container(id=new_id(), rootfs=parts["merged"], process=process), output=lambda *_: None)
    unmount(parts["merged"])
    took = time.perf_counter() - begun
    assert ended.code == 0, ended
    shutil.rmtree(where)
    return took


async def measure(runs: int) -> dict[str, dict[str, float]]:
    from chantier.kernel import in_user_namespace

    work = Path(tempfile.mkdtemp(prefix="chantier-bench-", dir="/var/tmp"))
    layers = make_layers(work)
    runtimes = {}
    for kind, how in KINDS.items():
        with suppress(ChantierError):
            runtimes[kind] = await probe(work / kind.replace(" ", "-"), **how)
    times: dict[str, list[float]] = {kind: [] for kind in runtimes}
    try:
        for number in range(runs + 3):
            for kind, runtime in runtimes.items():
                took = await one(runtime, layers, work / f"run-{number}", userxattr=in_user_namespace())
                if number >= 3:  # the first ones warm caches, and start the helper
                    times[kind].append(took)
    finally:
        for runtime in runtimes.values():
            await runtime.close()
        shutil.rmtree(work, ignore_errors=True)
    return {
        kind: {
            "median_ms": statistics.median(found) * 1e3,
            "min_ms": min(found) * 1e3,
            "p90_ms": sorted(found)[int(len(found) * 0.9)] * 1e3,
        }
        for kind, found in times.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    found = asyncio.run(measure(given.runs))
    base = found.get("runc", {}).get("median_ms", 0.0)
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    print(
        f"{'runtime':18}{'median':>10}{'min':>10}{'p90':>10}{'of runc':>10}   ({who}, {given.runs} runs, load {os.getloadavg()[0]:.1f})"
    )
    for kind, row in found.items():
        share = f"{row['median_ms'] / base:.0%}" if base else ""
        print(f"{kind:18}" + "".join(f"{row[key]:8.1f}ms" for key in ("median_ms", "min_ms", "p90_ms")) + f"{share:>10}")
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
