# SPDX-License-Identifier: Apache-2.0
"""What is built from: trees and images made from a seed, so that every builder and every round gets the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much there is of everything; `--scale` multiplies what is large."""

    seed: int = 8
    files: int = 20_000
    file_bytes: int = 6_000
    big_bytes: int = 1 << 30
    layers: int = 8
    layer_files: int = 1_500
    steps: int = 30
    stages: int = 12
    chain: int = 200
    imported: int = 50
    builds: int = 20


def many_files(where: Path, count: int, mean_bytes: int, seed: int) -> Path:
    """`count` files of 1 to 2 * `mean_bytes` bytes, a hundred in a directory; half of each compresses."""
    rng = random.Random(seed)
    for number in range(count):
        directory = where / f"d{number // 1000}/e{number // 100 % 10}"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        half = rng.randrange(1, mean_bytes)
        (directory / f"f{number}.txt").write_bytes(rng.randbytes(half) + b"chantier" * (half // 8))
    return where


def big_file(path: Path, size: int, seed: int) -> Path:
    """A file of which every other 4 KiB are noise, the rest text."""
    rng = random.Random(seed)
    text = (b"The quick brown fox jumps over the lazy dog. " * 100)[:4096]
    with open(path, "wb") as file:
        for _ in range(size // (1 << 20)):
            noise = rng.randbytes(1 << 19)
            file.write(b"".join(noise[at : at + 4096] + text for at in range(0, 1 << 19, 4096)))
    return path


@contextmanager
def registry(where: Path) -> Iterator[str]:
    """A docker-registry on a free port of the loopback; yields HOST:PORT."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    where.mkdir(parents=True)
    config = where / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {where}/data}}}}\nhttp: {{addr: '{host}'}}\n"
    )
    log = open(where / "log", "wb")
    process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(host.rpartition(":")[2]))) == 0:
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"docker-registry did not start: {(where / 'log').read_text()}")
            time.sleep(0.05)
        yield host
    finally:
        process.terminate()
        process.wait(30)


def busybox_tree(where: Path) -> Path:
    for name in ("bin", "etc", "tmp", "root", "proc", "sys", "dev"):
        (where / name).mkdir(parents=True)
    busybox = shutil.which("busybox") or "/bin/busybox"
    shutil.copy(busybox, where / "bin/busybox")
    for applet in _run(busybox, "--list").split():
        if not (where / "bin" / applet).exists():
            (where / "bin" / applet).symlink_to("busybox")
    return where


def push(name: str, layers: list[Path], work: Path) -> str:
    """An image of one layer for each tree, made and pushed by umoci and skopeo."""
    layout = work / "oci"
    _run("umoci", "init", "--layout", str(layout))
    _run("umoci", "new", "--image", f"{layout}:b")
    for tree in layers:
        _run("umoci", "insert", "--image", f"{layout}:b", str(tree), "/")
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    config = (
        "--clear",
        "config.env",
        "--config.env",
        path,
        "--config.cmd",
        "/bin/sh",
        "--architecture",
        "amd64",
        "--os",
        "linux",
    )
    _run("umoci", "config", "--image", f"{layout}:b", *config)
    _run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:b", f"docker://{name}")
    shutil.rmtree(layout)
    return name


def debian_tree(where: Path) -> Path:
    """A minimal Debian of this machine's release, from where this machine gets its packages."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    lines = [
        line for file in files if file.is_file() for line in file.read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    words = [word for line in lines for word in line.split() if "://" in word]
    _run("mmdebstrap", "--variant=minbase", "--format=directory", release["VERSION_CODENAME"].strip('"'), str(where), *words[:1])
    shutil.rmtree(where / "dev")
    (where / "dev").mkdir()
    return where


def _run(*args: str) -> str:
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(args)}: {done.stderr.strip()[-3000:]}")
    return done.stdout


def touch(tree: Path, text: str) -> None:
    """One file of a tree from `many_files` changes."""
    with open(next(tree.glob("d0/e0/*")), "a") as file:
        file.write(text)
    os.sync()
