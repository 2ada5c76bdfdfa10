# SPDX-License-Identifier: Apache-2.0
"""In unprivileged containers of a real dockerd, with the options that docs/rootless.md gives, and what a restricted pod has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import RealRegistry, run_ok, start_docker
from ..e2e.test_debian import debian
from .conftest import make_somebody
from .test_clean_clone import REPOSITORY, Clone

__all__ = ["debian"]  # the fixture

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.registry, pytest.mark.network, pytest.mark.slow]

UNCONFINED = [f"--security-opt={name}=unconfined" for name in ("seccomp", "apparmor", "systempaths")]
# The "restricted" standard of Kubernetes: no root, no capability, no new privileges, profiles of the node's only.
RESTRICTED = [
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    f"--security-opt=seccomp={REPOSITORY / 'docs/seccomp.json'}",
    "--security-opt=apparmor=unconfined",
]
HELLO = 'FROM scratch\nCOPY busybox /bin/\nRUN ["/bin/busybox", "sh", "-c", "busybox id -u && echo hello"]\n'
DEBIAN = "FROM debian\nRUN useradd -m someone && install -o someone -g mail /bin/true /home/someone/true && stat -c %u:%g /home/someone/true\n"


class Containers:
    """Containers whose system is this machine's, read-only, with an installed chantier and a context beside it."""

    def __init__(self, clone: Clone, docker: str, work: Path) -> None:
        self.clone, self.docker, self.where = clone, docker, clone.where
        root = work / "system"
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(f"usr/{name}")
        (root / "etc").mkdir()
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o1777)
        archive = work / "system.tar"
        run_ok("tar", "-cf", archive, "-C", root, ".")
        run_ok("docker", "-H", docker, "import", archive, "system:1")
        context = self.where / "context"
        context.mkdir(exist_ok=True)
        run_ok("cp", "/bin/busybox", context / "busybox")

    def build(self, text: str, *options: str, name: str, config: str = "") -> subprocess.CompletedProcess[str]:
        (self.where / "context/Dockerfile").write_text(text)
        state = self.where / f"state-{name}"
        state.mkdir()
        (self.where / f"{name}.toml").write_text((self.where / "chantierd.toml").read_text() + config)
        self.clone.who.owns(self.where / "context")
        if any(option.startswith("--user") for option in options):
            self.clone.who.owns(state)
        mounts = [f"--volume={path}:{path}:ro" for path in ("/usr", "/etc/ld.so.cache", "/etc/alternatives", sys.base_prefix)]
        return subprocess.run(
            [
                "docker", "-H", self.docker, "run", "--rm", "--network=host", *dict.fromkeys(mounts),
                f"--volume={self.where}:{self.where}:ro", f"--volume={state}:{state}", "--env=HOME=/tmp",
                f"--env=CHANTIER_CONFIG={self.where}/{name}.toml", *options, "system:1",
                f"{self.where}/venv/bin/chantier", "build", "--progress=plain", f"--root={state}", f"{self.where}/context",
            ],
            capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip


@pytest.fixture(scope="module")
def containers(registry: RealRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    work = tmp_path_factory.mktemp("docker")
    with make_somebody() as who, start_docker(work) as docker:
        yield Containers(Clone(who, registry), docker, work)


def test_root_of_an_unprivileged_container_has_all_ids(containers: Containers, debian: str) -> None:
    done = containers.build(DEBIAN, *UNCONFINED, name="root")
    assert done.returncode == 0, done.stderr
    assert "1000:8" in done.stderr
    assert "one user id" not in done.stderr


def test_a_restricted_pod_builds_with_one_id(containers: Containers) -> None:
    user = f"--user={containers.clone.who.uid}"
    no_proc = "[worker.oci]\nnoProcessSandbox = true\n"
    done = containers.build(HELLO, user, *RESTRICTED, name="pod", config=no_proc)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("WARNING: one user id only: ")
    assert "hello" in done.stderr


def test_a_step_without_a_proc_of_its_own_is_told_what_to_set(containers: Containers) -> None:
    done = containers.build(HELLO, f"--user={containers.clone.who.uid}", *RESTRICTED, name="proc")
    assert done.returncode != 0
    assert "chantier doctor" in done.stderr


def test_a_container_without_options_says_which(containers: Containers) -> None:
    done = containers.build(HELLO, name="plain")
    assert done.returncode == 125
    assert "cannot make a user namespace" in done.stderr
    for name in ("seccomp", "apparmor", "systempaths", "docs/rootless.md"):
        assert name in done.stderr
