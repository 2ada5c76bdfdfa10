# SPDX-License-Identifier: Apache-2.0
"""What end-to-end tests share: a real registry, a base image in it, and the command on a root of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from chantier.kernel.mounts import mount_points

IN_CI = os.environ.get("CI", "") not in ("", "0", "false")
settings.register_profile("busy", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # what an example takes says nothing on a machine with other work; all else as it is, in CI too
_NEEDS = {
    "runc": ["runc"],
    "registry": ["docker-registry"],
    "docker": ["dockerd", "docker"],
}


def pytest_configure() -> None:
    """What the tests start gets SIGINT as a terminal would give it, though the tests themselves run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a marker names must be there: in CI its absence is a failure, elsewhere a reason to skip."""
    missing = [
        p for marker, programs in _NEEDS.items() if item.get_closest_marker(marker) for p in programs if shutil.which(p) is None
    ]
    if item.get_closest_marker("cni") and not os.path.exists("/usr/lib/cni/bridge"):
        missing.append("containernetworking-plugins")
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing.append("root")
    if missing and IN_CI:
        pytest.fail(f"not here, and this is CI: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not here: {', '.join(missing)}")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def wait_for_port(port: int, *, process: subprocess.Popen[bytes] | None = None, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process is not None and process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}") from None
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"nothing listens on port {port}")


@dataclass
class RealRegistry:
    """A docker-registry process. `host` is HOST:PORT."""

    host: str
    directory: Path
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def start_registry(directory: Path, extra: str = "", *, port: int | None = None) -> RealRegistry:
    """`extra` is YAML added to the config (at top level; `http:` keys go below the one that is there)."""
    port = port or free_port()
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}, delete: {{enabled: true}}}}\n"
        f"http:\n  addr: 127.0.0.1:{port}\n{extra}"
    )
    log = open(directory / "log", "wb")
    process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    wait_for_port(port, process=process)
    return RealRegistry(f"127.0.0.1:{port}", directory, process)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    found = start_registry(tmp_path_factory.mktemp("registry"))
    yield found
    found.stop()


def unmount_below(directory: Path) -> None:
    """dockerd leaves namespaces mounted, and what containers had in their roots: nobody may remove files in there."""
    for place in mount_points(directory):
        subprocess.run(["umount", "-l", place], capture_output=True, check=False)


@contextmanager
def start_docker(directory: Path, *args: str) -> Iterator[str]:
    """A dockerd with state, socket and bridge of its own; yields its address. `args` are more of its flags."""
    socket_path = directory / "docker.sock"
    log = open(directory / "log", "wb")
    process = subprocess.Popen(
        [
            "dockerd", f"--data-root={directory}/data", f"--exec-root={directory}/exec", f"--pidfile={directory}/pid",
            f"--host=unix://{socket_path}", "--bridge=none", "--iptables=false", "--ip-masq=false", *args,
        ],
        stdout=log, stderr=log,
    )  # fmt: skip
    address = f"unix://{socket_path}"
    try:
        end = time.monotonic() + 60
        while subprocess.run(["docker", "-H", address, "version"], capture_output=True, check=False).returncode != 0:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"dockerd did not start: {(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(120)
        unmount_below(directory)


def make_base(directory: Path) -> Path:
    """A root directory with a static busybox and two users."""
    root = directory / "root"
    for name in ("bin", "etc", "tmp", "root", "home/app", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True, exist_ok=True)
    os.chmod(root / "tmp", 0o1777)
    busybox = shutil.which("busybox") or "/bin/busybox"
    shutil.copy(busybox, root / "bin/busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if not (root / "bin" / applet).exists():
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\napps:x:1001:app\n")
    os.chown(root / "home/app", 1000, 1001)
    return root


def push_tree(root: Path, image: str, work: Path) -> None:
    """An image of one layer from a directory, made and pushed by umoci and skopeo: no code of ours."""
    layout = work / "oci"
    run = lambda *args: subprocess.run(args, check=True, capture_output=True)  # noqa: E731
    run("umoci", "init", "--layout", str(layout))
    run("umoci", "new", "--image", f"{layout}:b")
    run("umoci", "insert", "--image", f"{layout}:b", str(root), "/")
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    run(
        "umoci", "config", "--image", f"{layout}:b", "--clear", "config.env", "--config.env", path, "--config.cmd", "/bin/sh",
        "--architecture", "amd64", "--os", "linux",
    )  # fmt: skip
    run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:b", f"docker://{image}")


@pytest.fixture(scope="session")
def base(registry: RealRegistry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name `alpine`, which a mirror for docker.io serves: a busybox image."""
    work = tmp_path_factory.mktemp("base")
    push_tree(make_base(work), f"{registry.host}/library/alpine:latest", work)
    return "alpine"


@dataclass
class Done:
    """How a run of the command ended."""

    code: int
    out: str
    err: str

    def step(self, text: str) -> str:
        """The lines of the step whose title holds `text`."""
        lines = self.err.splitlines()
        number = next((line.split()[0] for line in lines if text in line and line.startswith("#")), None)
        return "\n".join(line for line in lines if number is not None and line.startswith(f"{number} "))

    def ok(self) -> Done:
        assert self.code == 0, self.err
        return self


@dataclass
class Command:
    """`chantier` with a root and a config of its own."""

    root: Path
    config: Path
    env: dict[str, str] = field(default_factory=dict)

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "chantier", *args]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**os.environ, "CHANTIER_ROOT": str(self.root), "CHANTIER_CONFIG": str(self.config), **self.env, **(more or {})}

    def __call__(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = 300) -> Done:
        done = subprocess.run(
            self.argv(*args), input=stdin, capture_output=True, env=self.environment(env), timeout=timeout, check=False
        )
        return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def build(
        self, dockerfile: str, *args: str, context: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> Done:
        """Build with the Dockerfile on standard input."""
        where = context
        if where is None:
            where = self.root.parent / "empty"
            where.mkdir(exist_ok=True)
        return self(
            "build", "--progress=plain", "-f", "-", *args, str(where), stdin=dockerfile.encode(), env=env, timeout=timeout
        )


def write_config(path: Path, registry: RealRegistry, extra: str = "") -> Path:
    path.write_text(
        f'{extra}\n[registry."docker.io"]\nmirrors = ["{registry.host}"]\n[registry."{registry.host}"]\nhttp = true\n'
    )
    return path


@pytest.fixture
def chantier(tmp_path: Path, registry: RealRegistry, base: str) -> Command:
    return Command(root=tmp_path / "state", config=write_config(tmp_path / "chantierd.toml", registry))


@pytest.fixture
def make_command(tmp_path: Path, registry: RealRegistry, base: str) -> Callable[..., Command]:
    """A command with more config: `make_command('debug = true', name="other")`."""

    def make(extra: str = "", *, name: str = "state", root: Path | None = None) -> Command:
        return Command(root=root or tmp_path / name, config=write_config(tmp_path / f"{name}.toml", registry, extra))

    return make


def tree_of(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a tree that an image must keep: type, mode, owner, mtime, size, link target, content, xattrs."""
    import hashlib
    import stat

    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            st = os.lstat(path)
            content: object = ""
            if stat.S_ISREG(st.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
                content = st.st_rdev
            xattrs = tuple(
                (k, os.getxattr(path, k, follow_symlinks=False))
                for k in sorted(os.listxattr(path, follow_symlinks=False))
                if k.startswith("security.")
            )
            mtime = int(st.st_mtime) if not stat.S_ISDIR(st.st_mode) else None
            found[os.path.relpath(path, root)] = (st.st_mode, st.st_uid, st.st_gid, mtime, content, xattrs)
    return found


def run_ok(*args: str | Path, **more: object) -> str:
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{args}: {done.stderr}"
    return str(done.stdout)


__all__: Sequence[str] = (
    "Command",
    "Done",
    "RealRegistry",
    "free_port",
    "run_ok",
    "start_registry",
    "tree_of",
    "wait_for_port",
    "write_config",
)
