# SPDX-License-Identifier: Apache-2.0
"""Builds on fuse-overlayfs: the same layers as on the kernel's overlay, as root and as an ordinary user, and nothing left of it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from ..conftest import run_ok

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("fuse-overlayfs") is None, reason="needs fuse-overlayfs"),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="this kernel has no FUSE"),
]

CHANGES = """FROM scratch
COPY root /
ENV PATH=/bin
RUN mkdir -p /d/sub /e && echo 1 > /d/x && echo 2 > /d/sub/y && echo 3 > /e/z && chown 33:44 /e/z && chmod 4755 /bin/busybox
RUN rm -r /d && mkdir /d && echo n > /d/new && rm /e/z && echo 4 > /d/sub
RUN rm -r /d && rm -r /e && mkdir /e && touch /e/only
USER app
RUN id -u > /tmp/uid && stat -c %a /bin/busybox > /tmp/mode
"""
APPLETS = "sh id mkdir echo chown chmod rm touch stat sleep"


@pytest.fixture
def tree(somebody: Any) -> Path:
    where: Path = somebody.where / "context"
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev"):
        (where / "root" / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", where / "root/bin/busybox")
    for applet in APPLETS.split():
        (where / "root/bin" / applet).symlink_to("busybox")
    (where / "root/tmp").chmod(0o1777)
    (where / "root/etc/passwd").write_text("app:x:1000:1001::/:/bin/sh\n")
    (where / "Dockerfile").write_text(CHANGES)
    (somebody.where / "chantierd.toml").write_text('[worker.oci]\nsnapshotter = "fuse-overlayfs"\n')
    owned: Path = somebody.owns(where)
    return owned


def as_root(somebody: Any, state: Path, *args: str, config: str = "chantierd.toml") -> subprocess.Popen[str]:
    env = {**os.environ, "CHANTIER_ROOT": str(state), "CHANTIER_CONFIG": str(somebody.where / config)}
    command = [sys.executable, "-m", "chantier", *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def as_somebody(somebody: Any, *args: str) -> subprocess.CompletedProcess[str]:
    """As every distribution's rules would have it, /dev/fuse may be opened by anybody, in a mount namespace of the test's own."""
    node = somebody.where / "fuse"
    os.mknod(node, 0o020666, os.stat("/dev/fuse").st_rdev)
    node.chmod(0o666)
    uid = str(somebody.uid)
    script = 'mount --bind "$1" /dev/fuse && shift && exec setpriv --reuid "$0" --regid "$0" --clear-groups "$@"'
    from_user = ["env", f"CHANTIER_ROOT={somebody.where}/state", f"CHANTIER_CONFIG={somebody.where}/chantierd.toml"]
    paths = {name: value for name, value in _paths().items() if name != "PATH"}
    command = ["unshare", "-m", "sh", "-c", script, uid, str(node), *from_user, somebody.python, "-m", "chantier", *args]
    env = {"HOME": str(somebody.where), "USER": "chantier-test", "PATH": os.environ["PATH"], **paths}
    return subprocess.run(command, env=env, cwd=somebody.where, capture_output=True, text=True, check=False, timeout=300)


def _paths() -> dict[str, str]:
    from .conftest import _shared

    found: dict[str, str] = _shared().python_of_the_user()[1]
    return found


def layers_of(archive: Path, work: Path) -> tuple[dict[str, Any], list[list[tuple[Any, ...]]]]:
    """The config and each layer's entries, times left out."""
    layout = work / "layout"
    run_ok("skopeo", "copy", "-q", f"oci-archive:{archive}", f"oci:{layout}:x")
    config = json.loads(run_ok("skopeo", "inspect", "--config", f"oci:{layout}:x"))
    layers = []
    for layer in json.loads(run_ok("skopeo", "inspect", "--raw", f"oci:{layout}:x"))["layers"]:
        with (
            gzip.open(layout / "blobs/sha256" / layer["digest"].removeprefix("sha256:")) as data,
            tarfile.open(fileobj=data) as tar,
        ):
            layers.append(
                sorted(
                    (m.name, m.type, m.mode, m.uid, m.gid, m.linkname, tar.extractfile(m).read() if m.isreg() else b"")  # type: ignore[union-attr]
                    for m in tar
                )
            )
    return config["config"], layers


def left_mounted(where: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(where) in line]


@pytest.mark.parametrize("who", ["root", "somebody"])
def test_layers_are_those_of_the_kernels_overlay(somebody: Any, tree: Path, tmp_path: Path, who: str) -> None:
    (somebody.where / "kernel.toml").write_text('[worker.oci]\nsnapshotter = "overlayfs"\n')
    build = ["build", "--progress=plain", str(tree)]
    peer = as_root(somebody, tmp_path / "peer", *build, "-o", f"type=oci,dest={tmp_path}/peer.tar", config="kernel.toml")
    said, _ = peer.communicate(timeout=300)
    assert peer.returncode == 0, said
    mine = somebody.where / "mine.tar"
    if who == "root":
        done = as_root(somebody, tmp_path / "state", *build, "-o", f"type=oci,dest={mine}")
        said, _ = done.communicate(timeout=300)
    else:
        ran = as_somebody(somebody, *build, "-o", f"type=oci,dest={mine}")
        done, said = ran, ran.stderr  # type: ignore[assignment]
    assert done.returncode == 0, said
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    expected = layers_of(tmp_path / "peer.tar", tmp_path / "a")
    found = layers_of(mine, tmp_path / "b")
    assert found[0] == expected[0]
    assert final(found[1]) == final(expected[1])
    assert [kinds(layer) for layer in found[1]] == [kinds(layer) for layer in expected[1]]
    assert not left_mounted(tmp_path)


def kinds(layer: list[tuple[Any, ...]]) -> set[str]:
    """What a layer says of names, whiteouts as they are."""
    return {entry[0] for entry in layer}


def final(layers: list[list[tuple[Any, ...]]]) -> dict[str, tuple[Any, ...]]:
    """What the layers come to, one on top of the other (image-spec layer.md)."""
    tree: dict[str, tuple[Any, ...]] = {}
    for layer in layers:
        for name, *_ in layer:
            head, _, last = name.rpartition("/")
            if last.startswith(".wh."):
                gone = f"{head}/{last[4:]}" if head else last[4:]
                tree = {path: entry for path, entry in tree.items() if path != gone and not path.startswith(gone + "/")}
        tree |= {entry[0]: entry for entry in layer if not entry[0].rpartition("/")[2].startswith(".wh.")}
    return tree


def test_nothing_is_left_mounted_of_a_killed_build(somebody: Any, tree: Path, tmp_path: Path) -> None:
    (tree / "Dockerfile").write_text("FROM scratch\nCOPY root /\nENV PATH=/bin\nRUN echo begun; sleep 600\n")
    state = tmp_path / "state"
    with as_root(somebody, state, "build", "--progress=plain", str(tree)) as build:
        assert build.stdout is not None
        assert any("begun" in line and "RUN" not in line for line in build.stdout)
        assert [line for line in left_mounted(state) if "fuse.fuse-overlayfs" in line]
        build.send_signal(signal.SIGKILL)
        build.wait()
    end = time.monotonic() + 60
    while time.monotonic() < end and [line for line in left_mounted(state) if "fuse.fuse-overlayfs" in line]:
        time.sleep(0.05)
    assert not [line for line in left_mounted(state) if "fuse.fuse-overlayfs" in line]
    run_ok(sys.executable, "-m", "chantier.testing.clean", state)


def test_whole_copies_are_taken_where_no_whiteout_can_be_kept(somebody: Any, tree: Path, tmp_path: Path) -> None:
    """An overlay cannot lie on an overlay, as it would in a container; nor can what marks a deletion."""
    (somebody.where / "auto.toml").write_text("")
    for name in ("lower", "upper", "work", "state"):
        (tmp_path / name).mkdir()
    options = ",".join(f"{key}dir={tmp_path / key}" for key in ("lower", "upper", "work"))
    run_ok("mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "state")
    try:
        done = as_root(somebody, tmp_path / "state/root", "build", "--progress=plain", str(tree), config="auto.toml")
        said, _ = done.communicate(timeout=300)
        assert done.returncode == 0, said
        assert "whiteouts cannot be kept there" in said
        assert "every snapshot is a full copy" in said
        doctor = as_root(somebody, tmp_path / "state/root", "doctor", "--json", config="auto.toml")
        facts = json.loads(doctor.communicate(timeout=300)[0])["findings"]
        (overlay,) = [finding for finding in facts if finding["name"] == "overlay"]
        assert overlay["state"] == "warning"
        assert "full copy" in overlay["found"]
        asked = as_root(somebody, tmp_path / "state/other", "build", str(tree))
        said, _ = asked.communicate(timeout=300)
        assert asked.returncode != 0
        assert "fuse-overlayfs cannot be used: whiteouts" in said
    finally:
        for state in ("root", "other"):
            run_ok(sys.executable, "-m", "chantier.testing.clean", tmp_path / "state" / state)
        run_ok("umount", "-l", tmp_path / "state")


def test_an_unknown_snapshotter_names_those_there_are(somebody: Any, tree: Path, tmp_path: Path) -> None:
    (somebody.where / "chantierd.toml").write_text('[worker.oci]\nsnapshotter = "stargz"\n')
    done = as_root(somebody, tmp_path / "state", "build", str(tree))
    said, _ = done.communicate(timeout=300)
    assert done.returncode != 0
    assert "auto, overlayfs, fuse-overlayfs and native" in said
