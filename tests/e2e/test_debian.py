# SPDX-License-Identifier: Apache-2.0
"""A real distribution as base: packages are installed in a step, and other tools unpack the layers to the same tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry, push_tree, run_ok, tree_of

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry, pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module")
def debian(registry: RealRegistry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`debian`, a minimal system by mmdebstrap with the machine's own package sources."""
    work = tmp_path_factory.mktemp("debian")
    suite = next(
        line.split("=")[1].strip()
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_CODENAME")
    )
    run_ok("mmdebstrap", "--variant=apt", "--format=directory", suite, work / "root", *_sources())
    push_tree(work / "root", f"{registry.host}/library/debian:latest", work)
    return "debian"


def _sources() -> list[str]:
    """The first package source that this machine is set up with, as mmdebstrap wants it."""
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        for line in file.read_text().splitlines():
            if line.startswith("URIs:"):
                return [line.split()[1]]
            if line.startswith("deb "):
                return [next(word for word in line.split()[1:] if "://" in word)]
    return []


def test_packages_are_installed_in_a_step(chantier: Command, debian: str, registry: RealRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/test/debian:1"
    text = (
        f"FROM {debian}\n"
        "RUN apt-get update && apt-get install -y --no-install-recommends less && rm -rf /var/lib/apt/lists/*\n"
        "RUN useradd -m someone && install -o someone -g someone -m 4750 /bin/true /home/someone/true\n"
        "RUN apt-get purge -y less && rm -rf /var/log/* && less --version && exit 1 || true\n"
    )
    out = tmp_path / "image.tar"
    chantier.build(text, "-t", name, "--push", "-o", f"type=oci,dest={out}", timeout=280).ok()
    run_ok("skopeo", "copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/oci:b")
    run_ok("umoci", "raw", "unpack", "--image", f"{tmp_path}/oci:b", tmp_path / "umoci")
    ours = tmp_path / "ours.tar"
    chantier.build(text, "-o", f"type=tar,dest={ours}", timeout=280).ok()
    (tmp_path / "ours").mkdir()
    run_ok("tar", "--xattrs", "--xattrs-include=*", "--same-owner", "--numeric-owner", "-xpf", ours, "-C", tmp_path / "ours")
    theirs = tree_of(tmp_path / "umoci")
    assert len(theirs) > 3000
    assert theirs == tree_of(tmp_path / "ours")
    st = os.lstat(tmp_path / "umoci/home/someone/true")
    assert (st.st_mode & 0o7777, st.st_uid) == (0o4750, 1000)
    assert not (tmp_path / "umoci/usr/bin/less").exists()
