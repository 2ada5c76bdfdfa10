# SPDX-License-Identifier: Apache-2.0
"""A user made for the test, with a state directory and a context of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chantier.kernel import userns


def _shared() -> Any:
    """tests/runtime/rootless.py, which makes the user."""
    path = Path(__file__).parents[1] / "runtime" / "rootless.py"
    name = "chantier_test_user"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@dataclass
class Somebody:
    """`chantier` as an ordinary user; `where` is his directory, `narrow` a PATH without newuidmap."""

    where: Path
    narrow: Path

    @property
    def python(self) -> str:
        return str(_shared().python_of_the_user()[0])

    @property
    def uid(self) -> int:
        return int(_shared().make_user().pw_uid)

    def run(
        self, argv: list[str], *, timeout: float = 300, groups: Sequence[Path] = (), **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Any command of his, with variables on top of those that find the package."""
        paths = _shared().python_of_the_user()[1]
        done: subprocess.CompletedProcess[str] = _shared().as_user(
            argv, cwd=self.where, env={**paths, **env}, timeout=timeout, groups=groups
        )
        return done

    def __call__(
        self, *args: str, single: bool = False, program: tuple[str, ...] = ("-m", "chantier"), groups: Sequence[Path] = ()
    ) -> subprocess.CompletedProcess[str]:
        env = {
            **_shared().python_of_the_user()[1],
            "CHANTIER_ROOT": str(self.where / ("single" if single else "state")),
            "CHANTIER_CONFIG": str(self.where / "chantierd.toml"),
        }
        if single:
            env["PATH"] = str(self.narrow)
        done: subprocess.CompletedProcess[str] = _shared().as_user(
            [self.python, *program, *args], cwd=self.where, env=env, groups=groups
        )
        return done

    def inside(self, *argv: str) -> list[str]:
        """A command as one that runs it as root of his user namespace."""
        return [self.python, *userns.command(argv)[1:]]

    def start(self, argv: list[str], groups: Sequence[Path]) -> subprocess.Popen[str]:
        """Any command of his in some cgroups, not waited for."""
        paths = _shared().python_of_the_user()[1]
        env = {"PATH": os.environ["PATH"], **paths}
        joined: list[str] = _shared().joining(groups, argv)
        return subprocess.Popen(joined, cwd=self.where, env=env, stdout=subprocess.PIPE, text=True)

    def popen(self, *argv: str) -> subprocess.Popen[str]:
        user, paths = _shared().make_user(), _shared().python_of_the_user()[1]
        env = {
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "PATH": os.environ["PATH"],
            "CHANTIER_ROOT": str(self.where / "state"),
            **paths,
        }
        return subprocess.Popen(
            [self.python, *argv], cwd=self.where, env=env, stdout=subprocess.PIPE, text=True,
            user=user.pw_uid, group=user.pw_gid, extra_groups=[],
        )  # fmt: skip

    def owns(self, path: Path) -> Path:
        user = _shared().make_user()
        for directory, names, files in os.walk(path):
            for name in (".", *names, *files):
                os.lchown(os.path.join(directory, name), user.pw_uid, user.pw_gid)
        return path


@pytest.fixture
def somebody() -> Iterator[Somebody]:
    with make_somebody() as made:
        yield made


@contextmanager
def make_somebody() -> Iterator[Somebody]:
    where = _shared().own_directory()
    narrow = where / "bin"
    narrow.mkdir()
    for name in ("sh", "env"):
        (narrow / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    (where / "chantierd.toml").touch()
    made = Somebody(where=where, narrow=narrow)
    made.owns(where)
    yield made
    shutil.rmtree(where, ignore_errors=True)


def remove_group(group: Path) -> None:
    """A cgroup and those below it, once what was killed in them is gone."""
    _shared().remove_group(group)


@pytest.fixture
def groups(somebody: Somebody) -> Iterator[list[Path]]:
    """Cgroups that are his to divide, for the commands that are started in them."""
    with _shared().delegated() as made:
        if not made:
            pytest.skip("no cgroups to give")
        yield made


@pytest.fixture
def context(somebody: Somebody) -> Path:
    """A root of one static busybox, to be copied onto scratch."""
    where = somebody.where / "context"
    for name in ("bin", "etc", "tmp", "root", "home/app", "proc", "sys", "dev"):
        (where / "root" / name).mkdir(parents=True)
    (where / "root/tmp").chmod(0o1777)
    shutil.copy("/bin/busybox", where / "root/bin/busybox")
    for applet in "sh cat id ls chown echo touch stat grep mkdir sleep".split():  # noqa: SIM905
        (where / "root/bin" / applet).symlink_to("busybox")
    (where / "root/etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n")
    (where / "root/etc/group").write_text("root:x:0:\napps:x:1001:app\n")
    return somebody.owns(where)
