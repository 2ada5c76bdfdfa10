# SPDX-License-Identifier: Apache-2.0
"""The builders that are compared: each has state of its own on a disk it is given, and says how it is asked to build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

_BIN = Path(sys.executable).parent
_PLUGIN = "usr/libexec/docker/cli-plugins/docker-buildx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One build. `push` and `load` are names of images; with neither the result stays in the cache."""

    dockerfile: Path
    context: Path
    push: str = ""
    compression: str = ""
    load: str = ""
    cache_to: str = ""
    cache_from: str = ""


class Builder(Protocol):
    """`start` gives it an empty directory for its state; `stop` ends what it started, and unmounts what it mounted."""

    name: str

    def start(self, state: Path) -> None: ...
    def stop(self) -> None: ...
    def daemons(self) -> list[int]: ...
    def env(self) -> dict[str, str]: ...
    def commands(self, build: Build) -> list[list[str]]: ...


@dataclass
class Setting:
    """What the builders share. `peer` is the directory that scripts/peer unpacked; `loader` the dockerd that --load loads into."""

    registry: str
    peer: Path
    loader: str = ""
    environment: dict[str, str] = field(default_factory=lambda: {k: v for k, v in os.environ.items() if k not in _SLOWER})


_SLOWER = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "DOCKER_HOST")


def buildx_flags(build: Build) -> list[str]:
    """The flags that docker buildx and chantier have in common, for one build."""
    args = ["--network=none", "--progress=plain", "--provenance=false", "-f", str(build.dockerfile)]
    if build.push:
        more = f",compression={build.compression},force-compression=true" if build.compression else ""
        args += ["--output", f"type=image,name={build.push},push=true,oci-mediatypes=true{more}"]
    elif build.load:
        args += ["--load", "-t", build.load]
    else:
        args += ["--output", "type=cacheonly"]
    if build.cache_to:
        args += ["--cache-to", f"type=registry,ref={build.cache_to},mode=max"]
    if build.cache_from:
        args += ["--cache-from", f"type=registry,ref={build.cache_from}"]
    return [*args, str(build.context)]


class _Ours:
    """What builders that are chantier share."""

    config = ""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.state = Path()

    def start(self, state: Path) -> None:
        self.state = state
        (state / "chantierd.toml").write_text(f'{self.config}[registry."{self.setting.registry}"]\nhttp = true\n')

    def stop(self) -> None:
        return

    def daemons(self) -> list[int]:
        return []

    def env(self) -> dict[str, str]:
        return {
            **self.setting.environment,
            "CHANTIER_ROOT": str(self.state / "root"),
            "CHANTIER_CONFIG": str(self.state / "chantierd.toml"),
            "HOME": str(self.state),
            **({"DOCKER_HOST": self.setting.loader} if self.setting.loader else {}),
        }


class Embedded(_Ours):
    """`chantier build`, the engine in the command itself."""

    name = "embedded"

    def commands(self, build: Build) -> list[list[str]]:
        return [[str(_BIN / "chantier"), "build", *buildx_flags(build)]]


class Daemon(_Ours):
    """`chantier build` through a chantierd that is running already."""

    name = "daemon"

    def start(self, state: Path) -> None:
        super().start(state)
        self._sockets = tempfile.TemporaryDirectory(prefix="bench-")
        self.address = f"unix://{self._sockets.name}/s"
        log = open(state / "log", "wb")
        command = [_BIN / "chantierd", "--root", state / "root", "--addr", self.address, "--config", state / "chantierd.toml"]
        self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self.env())
        _wait_for(Path(self._sockets.name) / "s", self._process, state / "log")

    def stop(self) -> None:
        _end(self._process)
        self._sockets.cleanup()

    def daemons(self) -> list[int]:
        return [self._process.pid]

    def commands(self, build: Build) -> list[list[str]]:
        return [[str(_BIN / "chantier"), "build", "--builder", self.address, *buildx_flags(build)]]


class Stock(Daemon):
    """Stock docker buildx, chantierd behind it."""

    name = "stock"

    def start(self, state: Path) -> None:
        super().start(state)
        create = [*self._buildx(), "create", "--name", "bench", "--driver", "remote", self.address]
        subprocess.run(create, env=self.env(), capture_output=True, check=True)

    def env(self) -> dict[str, str]:
        return {**super().env(), "BUILDX_CONFIG": str(self.state / "buildx")}

    def _buildx(self) -> list[str]:
        return [str(self.setting.peer / "tree" / _PLUGIN)]

    def commands(self, build: Build) -> list[list[str]]:
        return [[*self._buildx(), "build", "--builder", "bench", *buildx_flags(build)]]


class Runc(Stock):
    """Stock docker buildx, and a chantierd that runs steps with runc rather than in its own sandbox."""

    name = "runc"
    config = '[worker.oci]\nbinary = "runc"\n'


class Peer:
    """Stock docker buildx, the BuildKit inside Debian 13's dockerd behind it."""

    name = "buildkit"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def start(self, state: Path) -> None:
        self.state = state
        self._sockets = tempfile.TemporaryDirectory(prefix="bench-")
        self.address = f"unix://{self._sockets.name}/docker.sock"
        programs = self.setting.peer / "tree/usr"
        (state / "daemon.json").write_text('{"features":{"containerd-snapshotter":true}}')
        command = [
            programs / "sbin/dockerd", "--config-file", state / "daemon.json", "--data-root", state / "data",
            "--exec-root", f"{self._sockets.name}/run", "--pidfile", state / "pid", "--host", self.address,
            "--bridge=none", "--iptables=false", "--ip6tables=false",
        ]  # fmt: skip
        env = {**self.setting.environment, "PATH": f"{programs}/bin:{programs}/sbin:{os.environ['PATH']}"}
        log = open(state / "log", "wb")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        _wait_for(Path(self._sockets.name) / "docker.sock", self._process, state / "log")

    def stop(self) -> None:
        _end(self._process)
        unmount_below(Path(self._sockets.name))
        shutil.rmtree(self._sockets.name, ignore_errors=True)

    def daemons(self) -> list[int]:
        return [self._process.pid]

    def env(self) -> dict[str, str]:
        return {
            **self.setting.environment,
            "DOCKER_HOST": self.address,
            "HOME": str(self.state),
            "BUILDX_CONFIG": str(self.state / "buildx"),
        }

    def commands(self, build: Build) -> list[list[str]]:
        return [[str(self.setting.peer / "tree" / _PLUGIN), "build", *buildx_flags(build)]]


class Buildah:
    """`buildah build` with runc and overlayfs. It keeps each result as an image of its own store, and pushes with a second command."""

    name = "buildah"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def start(self, state: Path) -> None:
        self.state = state
        self._run = tempfile.mkdtemp(prefix="bench-")

    def stop(self) -> None:
        unmount_below(Path(self._run))
        shutil.rmtree(self._run, ignore_errors=True)

    def daemons(self) -> list[int]:
        return []

    def env(self) -> dict[str, str]:
        return {**self.setting.environment, "HOME": str(self.state), "BUILDAH_RUNTIME": "runc", "TMPDIR": str(self.state)}

    def commands(self, build: Build) -> list[list[str]]:
        buildah = ["buildah", "--root", f"{self.state}/root", "--runroot", self._run, "--storage-driver", "overlay"]
        name = build.push or build.load or f"localhost/bench:{abs(hash(build.dockerfile))}"
        make = [*buildah, "build", "--layers", "--isolation=oci", "--network=none", "--tls-verify=false", "-q", "-t", name]
        if build.cache_to:
            make += ["--cache-to", build.cache_to.rpartition(":")[0]]
        if build.cache_from:
            make += ["--cache-from", build.cache_from.rpartition(":")[0]]
        commands = [[*make, "-f", str(build.dockerfile), str(build.context)]]
        if build.push:
            more = ["--compression-format", build.compression] if build.compression else []
            commands.append([*buildah, "push", "-q", "--tls-verify=false", *more, name])
        return commands


ALL: dict[str, type[Builder]] = {kind.name: kind for kind in (Embedded, Daemon, Stock, Runc, Peer, Buildah)}


def _wait_for(socket: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 90
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} did not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def unmount_below(directory: Path) -> None:
    """What a builder left mounted there."""
    targets = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in sorted((t for t in targets if t.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "-l", target], capture_output=True, check=False)


def warm_up(builder: Builder, builds: Sequence[Build]) -> None:
    """Builds that are not measured."""
    for build in builds:
        for command in builder.commands(build):
            done = subprocess.run(command, env=builder.env(), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{command}: {done.stderr[-3000:]}")
