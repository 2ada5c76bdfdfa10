# SPDX-License-Identifier: Apache-2.0
"""Stock engines for our client: the Docker engine of Debian 13, unpacked and started without being installed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..conftest import unmount_below

_SCRIPT = Path(__file__).parents[2] / "scripts/get-buildx"


_PROGRAMS = {
    "usr/sbin/dockerd": ("docker.io", "docker-cli", "containerd", "tini"),
    "usr/libexec/docker/cli-plugins/docker-buildx": ("docker-buildx",),
    "usr/bin/kubectl": ("kubectl",),
}


def unpacked() -> Path:
    """Where the programs lie: unpacked once for a machine."""
    where = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chantier-tests/docker"
    missing = [package for program, packages in _PROGRAMS.items() if not (where / program).exists() for package in packages]
    if missing:
        done = subprocess.run([_SCRIPT, where, *missing], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    return where


@dataclass
class Engine:
    """A running dockerd."""

    address: str
    programs: Path
    directory: Path

    def docker(self, *args: str, check: bool = True) -> str:
        program = self.programs / "usr/bin/docker"
        done = subprocess.run([program, "-H", self.address, *args], capture_output=True, text=True, timeout=300, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + (done.stderr if not check else "")


@contextmanager
def start_engine(directory: Path, config: Mapping[str, object] | None = None) -> Iterator[Engine]:
    """BuildKit 0.13 with the runc of this machine, no bridge; `config` is of daemon.json."""
    programs = unpacked()
    file = directory / "daemon.json"
    file.write_text(json.dumps({"storage-driver": "overlay2", **(config or {})}))
    path = f"{programs}/usr/sbin:{programs}/usr/bin:{os.environ['PATH']}"
    address = f"unix://{directory}/docker.sock"
    log = open(directory / "log", "wb")
    process = subprocess.Popen(
        [
            programs / "usr/sbin/dockerd", f"--config-file={file}", f"--data-root={directory}/data",
            f"--exec-root={directory}/exec", f"--pidfile={directory}/pid", f"--host={address}",
            "--bridge=none", "--iptables=false", "--ip6tables=false",
        ],
        stdout=log, stderr=log, env={**os.environ, "PATH": path},
    )  # fmt: skip
    engine = Engine(address, programs, directory)
    try:
        end = time.monotonic() + 60
        while "API listen on" not in (directory / "log").read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"dockerd did not start: {(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield engine
    finally:
        process.terminate()
        process.wait(120)
        unmount_below(directory)
