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
import xml.etree.ElementTree as ET
from contextlib import suppress
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
_LIMIT_S = 900


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


def as_user(argv: list[str], *, cwd: Path, env: dict[str, str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    user = make_user()
    base = {"HOME": user.pw_dir, "USER": USER, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
    return subprocess.run(
        argv, cwd=cwd, env={**base, **env}, capture_output=True, text=True, timeout=timeout, check=False,
        user=user.pw_uid, group=user.pw_gid, extra_groups=[],
    )  # fmt: skip


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
    argv: list[str], *, cwd: Path, env: dict[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """A command as root of the user's namespace."""
    python, paths = python_of_the_user()
    return as_user([python, *userns.command(argv)[1:]], cwd=cwd, env={**paths, **(env or {})}, timeout=timeout)


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
        done = in_namespace(
            [
                python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={where / 'tmp'}", f"--junitxml={report}",
                "--timeout=120", module,
            ],
            cwd=REPOSITORY,
            env={INNER: kind, "TMPDIR": str(where)},
            timeout=_LIMIT_S,
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
