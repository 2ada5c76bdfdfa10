# SPDX-License-Identifier: Apache-2.0
"""The same tests as an ordinary user: run once inside a user namespace, and looked up case by case outside.

A test process has threads and is root, so it cannot enter one itself: `enter.py` runs a pytest of its own in it, as a user made
for the purpose, and each case of a kind `…-rootless` here is that run's case.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from chantier.kernel import userns

INNER = "CHANTIER_TEST_KIND"  # set in the run inside, to the kind of runtime it tests
SUFFIX = "-rootless"
USER = "chantier-test"
REPOSITORY = Path(__file__).parents[2]
ROOT_KINDS = ["runc", "native", "native-python"]
KINDS = [os.environ[INNER]] if INNER in os.environ else [*ROOT_KINDS, f"runc{SUFFIX}", f"native{SUFFIX}"]
LIMIT_S = 1200


@cache
def make_user() -> pwd.struct_passwd:
    """A user with subordinate ids."""
    try:
        found = pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", USER], check=True)
        found = pwd.getpwnam(USER)
    for file in ("/etc/subuid", "/etc/subgid"):
        if not any(line.startswith(f"{USER}:") for line in Path(file).read_text().splitlines()):
            with open(file, "a", encoding="utf-8") as out:
                out.write(f"{USER}:2000000:65536\n")
    return found


# Into cgroups, while we may, and then another user: arguments are UID, GID, how many groups, the groups, the command.
_JOIN = f"""
uid=$1 gid=$2 count=$3; shift 3
while [ $count -gt 0 ]; do echo $$ > "$1/cgroup.procs" || exit 120; shift; count=$((count-1)); done
# The shell in between has no capabilities left to execute what the user may not.
exec {shutil.which("setpriv")} --reuid $uid --regid $gid --clear-groups -- /bin/sh -c 'exec "$@"' as-user "$@"
"""


def as_user(
    argv: list[str], *, cwd: Path, env: dict[str, str], timeout: float = 300, groups: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    """A command as the user, in cgroups of his."""
    user = make_user()
    base = {"HOME": user.pw_dir, "USER": USER, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
    return subprocess.run(
        joining(groups, argv), cwd=cwd, env={**base, **env}, capture_output=True, text=True, timeout=timeout, check=False
    )


def joining(groups: Sequence[Path], argv: Sequence[str]) -> list[str]:
    user = make_user()
    return ["/bin/sh", "-c", _JOIN, "join", str(user.pw_uid), str(user.pw_gid), str(len(groups)), *map(str, groups), *argv]


@contextmanager
def delegated() -> Iterator[list[Path]]:
    """A cgroup in each hierarchy, the user's to divide: as systemd's Delegate= gives it, or an administrator by hand. None on a
    machine that has none to give."""
    user = make_user()
    base = Path("/sys/fs/cgroup")
    is_v2 = (base / "cgroup.controllers").exists()
    made: list[Path] = []
    with suppress(OSError):  # not ours to make either
        for top in [base] if is_v2 else [entry for entry in base.iterdir() if entry.is_dir() and not entry.is_symlink()]:
            if is_v2:
                for name in ("memory", "cpu", "cpuset"):
                    (top / "cgroup.subtree_control").write_text(f"+{name}")
            group = top / f"chantier-user-{os.getpid()}-{len(os.listdir(top))}"
            group.mkdir()
            made.append(group)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (group / name).exists() and not is_v2:
                    (group / name).write_text((top / name).read_text())
            for name in (".", "cgroup.procs", "tasks", "cgroup.subtree_control", "cgroup.threads"):
                if (group / name).exists():
                    os.chown(group / name, user.pw_uid, user.pw_gid)
    try:
        yield made
    finally:
        for group in made:
            remove_group(group)


def remove_group(group: Path) -> None:
    """A cgroup and those below it; what has been killed is counted there until it is gone."""
    end = time.monotonic() + 60
    for directory, _, _ in os.walk(group, topdown=False):
        while Path(directory, "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.01)
        os.rmdir(directory)


@cache
def python_of_the_user() -> tuple[str, dict[str, str]]:
    """An interpreter that the user can run, with what tests import: ours, or the system's of the same version on our packages."""
    packages = sysconfig.get_path("purelib")
    system = "/usr/bin/python3"
    paths = {"PYTHONPATH": f"{REPOSITORY / 'src'}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, system):
        with suppress(OSError):  # not even to be found by the user
            if as_user([python, "-c", "import pytest, chantier, google.protobuf"], cwd=Path("/"), env=paths).returncode == 0:
                return python, paths
    pytest.skip("no interpreter that another user can run")


def in_namespace(
    argv: list[str], *, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300, groups: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    """A command as root of the user's namespace."""
    python, paths = python_of_the_user()
    inside = [python, *userns.command(argv)[1:]]
    return as_user(inside, cwd=cwd, env={**paths, **(env or {})}, timeout=timeout, groups=groups)


def own_directory() -> Path:
    """A directory of the user's, on a real file system."""
    user = make_user()
    made = Path(tempfile.mkdtemp(prefix="chantier-rootless-", dir="/var/tmp"))
    os.chown(made, user.pw_uid, user.pw_gid)
    return made


@dataclass(frozen=True)
class Outcome:
    kind: str  # passed, failed or skipped
    text: str = ""


@cache
def outcomes(module: str, kind: str) -> dict[str, Outcome]:
    """Every case of a test module, run inside."""
    where = own_directory()
    python, _ = python_of_the_user()
    report = where / "report.xml"
    try:
        with delegated() as groups:
            done = in_namespace(
                [
                    python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={where / 'tmp'}", f"--junitxml={report}",
                    "--timeout=300", module,
                ],
                cwd=REPOSITORY,
                env={INNER: kind, "TMPDIR": str(where)},
                timeout=LIMIT_S,
                groups=groups,
            )  # fmt: skip
        if not report.exists():
            pytest.fail(f"the run inside a user namespace came to nothing:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return {case.attrib["name"]: _outcome(case) for case in ET.parse(report).iter("testcase")}
    finally:
        in_namespace(["rm", "-rf", str(where / "tmp")], cwd=Path("/"))
        shutil.rmtree(where, ignore_errors=True)


def _outcome(case: ET.Element) -> Outcome:
    for name, kind in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = case.find(name)
        if found is not None:
            return Outcome(kind, found.attrib.get("message", "") + "\n" + (found.text or ""))
    return Outcome("passed")


def look_up(item: pytest.Function, kind: str) -> None:
    """End as the case inside ended."""
    inner = kind.removesuffix(SUFFIX)
    found = outcomes(str(item.path.relative_to(REPOSITORY)), inner)
    name = item.name.replace(f"-{kind}]", f"-{inner}]").replace(f"[{kind}", f"[{inner}")
    if name not in found:
        pytest.fail(f"no case {name} was run inside")
    outcome = found[name]
    if outcome.kind == "skipped":
        pytest.skip(outcome.text.strip().splitlines()[0])
    if outcome.kind == "failed":
        pytest.fail(outcome.text, pytrace=False)
