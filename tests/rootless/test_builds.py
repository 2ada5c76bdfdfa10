# SPDX-License-Identifier: Apache-2.0
"""Builds of an ordinary user: the same image as root's, in a command and in a library, and what one id can do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from ..conftest import run_ok, tree_of

pytestmark = [pytest.mark.root]

SEVERAL_OWNERS = """FROM scratch
COPY root /
COPY --chown=1000:1001 root/etc/passwd /home/app/copied
ENV PATH=/bin
RUN mkdir /data && echo x > /data/f && chown 33:44 /data /data/f && touch -d @1000000000 /data/f && stat -c %u /data > /seen
USER app
WORKDIR /home/app
RUN id -u > /tmp/uid
LABEL a=b
"""


def image_of(archive: Path, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the unpacked tree of an OCI archive, by tools that are not ours; times of the build left out."""
    layout = work / "layout"
    run_ok("skopeo", "copy", "-q", f"oci-archive:{archive}", f"oci:{layout}:x")
    run_ok("umoci", "unpack", "--image", f"{layout}:x", work / "bundle")
    config = json.loads(run_ok("skopeo", "inspect", "--config", f"oci:{layout}:x"))
    tree = {name: (*facts[:3], *facts[4:]) for name, facts in tree_of(work / "bundle/rootfs").items()}
    return config["config"], tree


def test_the_image_is_roots_image(somebody: Any, context: Path, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text(SEVERAL_OWNERS)
    mine = somebody("build", "--progress=plain", "-o", f"type=oci,dest={somebody.where}/mine.tar", str(context))
    assert mine.returncode == 0, mine.stderr
    os.chmod(context, 0o755)
    env = {**os.environ, "CHANTIER_ROOT": str(tmp_path / "state"), "CHANTIER_CONFIG": str(somebody.where / "chantierd.toml")}
    command = [sys.executable, "-m", "chantier", "build", "-o", f"type=oci,dest={tmp_path}/roots.tar", str(context)]
    roots = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert roots.returncode == 0, roots.stderr
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    config, tree = image_of(somebody.where / "mine.tar", tmp_path / "a")
    assert (config, tree) == image_of(tmp_path / "roots.tar", tmp_path / "b")
    assert tree["data/f"][1:3] == (33, 44)
    assert tree["home/app/copied"][1:3] == (1000, 1001)
    assert config["User"] == "app"


def test_a_second_build_finds_everything(somebody: Any, context: Path) -> None:
    (context / "Dockerfile").write_text(SEVERAL_OWNERS)
    assert somebody("build", str(context)).returncode == 0
    again = somebody("build", "--progress=plain", str(context))
    assert again.stderr.count("CACHED") == 5, again.stderr


def test_one_id_says_first_what_it_cannot(somebody: Any, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY root /\nENV PATH=/bin\nRUN id -u > /uid && echo made\n")
    done = somebody("build", "--progress=plain", "-o", f"type=oci,dest={somebody.where}/one.tar", str(context), single=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "WARNING: one user id only: newuidmap and newgidmap not found"
    assert "COPY --chown" in lines[1]
    assert "several owners" in lines[2]
    assert "uidmap" in lines[3]
    assert "made" in done.stderr
    (context / "Dockerfile").write_text("FROM scratch\nCOPY root /\nENV PATH=/bin\nUSER app\nRUN id\n")
    done = somebody("build", "--progress=plain", str(context), single=True)
    assert done.returncode == 1
    assert "1000" in done.stderr


def test_the_library_in_a_process_with_threads(somebody: Any, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY root /\nENV PATH=/bin\nRUN id -u\n")
    (somebody.where / "lib.py").write_text(f"""
import os, threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
import chantier
with chantier.Builder(root={str(somebody.where / "state")!r}) as builder:
    result = builder.build({str(context)!r}, outputs=["type=oci,dest={somebody.where}/lib.tar"])
    print(result.digest, os.geteuid())
    try:
        builder.build({str(context)!r}, dockerfile_text="FROM scratch\\nCOPY root /\\nENV PATH=/bin\\nRUN exit 3\\n")
    except chantier.ChantierError as err:
        print(type(err).__name__, err.__cause__.exit_status)
""")
    done = somebody(program=("lib.py",))
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("sha256:")
    assert int(first.split()[1]) != 0
    assert second == "SolveError 3"


def test_nothing_outlives_a_killed_library(somebody: Any, context: Path) -> None:
    mark = f"sleep {31000 + os.getpid() % 1000}"
    (context / "Dockerfile").write_text(f"FROM scratch\nCOPY root /\nENV PATH=/bin\nRUN echo begun && {mark}\n")
    (somebody.where / "lib.py").write_text(f"""
import chantier
from chantier.progress import Log
def told(event):
    if isinstance(event, Log) and b"begun" in event.data:
        print("begun", flush=True)
chantier.build({str(context)!r}, root={str(somebody.where / "state")!r}, on_event=told)
""")
    with somebody.popen("lib.py") as process:
        assert process.stdout.readline() == "begun\n"
        process.kill()
        process.wait()
        end = time.monotonic() + 60
        while time.monotonic() < end and mark in run_ok("ps", "-eo", "args"):
            time.sleep(0.05)
    assert mark not in run_ok("ps", "-eo", "args")


class TestDoctor:
    def names(self, done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
        return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}

    def test_of_an_ordinary_user(self, somebody: Any) -> None:
        done = somebody("doctor", "--json")
        found = self.names(done)
        assert found["ids"]["found"] == "65537 user ids in this namespace"
        assert found["runtime"]["state"] == found["overlay"]["state"] == "ok"
        assert found["cgroups"]["state"] == "warning"
        assert done.returncode == json.loads(done.stdout)["exit_code"] == 2

    def test_of_one_id(self, somebody: Any) -> None:
        found = self.names(somebody("doctor", "--json", single=True))
        assert found["ids"]["state"] == "warning"
        assert "uidmap" in found["ids"]["fix"]
        assert found["runtime"]["state"] == "ok"  # the native sandbox: that PATH has no OCI runtime

    def test_lines_and_registries(self, somebody: Any) -> None:
        config = somebody.where / "chantierd.toml"
        config.write_text('[registry."docker.io"]\nmirrors = ["127.0.0.1:1"]\n[registry."127.0.0.1:1"]\nhttp = true\n')
        done = somebody("doctor")
        assert "warn  registry 127.0.0.1:1" in done.stdout
        assert "connection refused" in done.stdout
        assert done.stdout.count("fix:") >= 2

    def test_a_runtime_that_does_not_exist_is_a_failure(self, somebody: Any) -> None:
        (somebody.where / "chantierd.toml").write_text('[worker.oci]\nbinary = "no-such-runtime"\n')
        done = somebody("doctor", "--json")
        assert done.returncode == 1
        assert "not found" in self.names(done)["runtime"]["found"]


def test_limits_without_cgroups_are_said_to_have_no_effect(somebody: Any, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY root /\nENV PATH=/bin\nRUN echo ran\n")
    done = somebody("build", "--progress=plain", "--resource=memory=64m", "--resource=cpu-quota=50000", str(context))
    assert done.returncode == 0, done.stderr
    assert "WARNING: limits without effect: memory, cpu-quota: " in done.stderr
    assert "without effect" not in somebody("build", "--progress=plain", "--no-cache", str(context)).stderr


def archive_with_everything(path: Path) -> None:
    """Files of several owners, a device, a pipe."""
    with tarfile.open(path, "w") as tar:
        for name, kind, uid in (("dir", tarfile.DIRTYPE, 0), ("plain", tarfile.REGTYPE, 33), ("pipe", tarfile.FIFOTYPE, 0)):
            member = tarfile.TarInfo(f"got/{name}")
            member.type, member.uid, member.gid, member.mode = kind, uid, uid, 0o755
            tar.addfile(member)
        for name, kind in (("tty9", tarfile.CHRTYPE), ("disk", tarfile.BLKTYPE)):
            member = tarfile.TarInfo(f"got/{name}")
            member.type, member.devmajor, member.devminor = kind, 4, 9
            tar.addfile(member)


@pytest.mark.parametrize("single", [False, True])
def test_device_nodes_are_left_out_by_name(somebody: Any, context: Path, tmp_path: Path, single: bool) -> None:
    archive_with_everything(context / "all.tar")
    (context / "Dockerfile").write_text("FROM scratch\nADD all.tar /\n")
    done = somebody(
        "build", "--progress=plain", "-o", f"type=oci,dest={somebody.where}/out.tar", str(context), single=single
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("tty9", "disk"):
        assert f"WARNING: device node /got/{name} left out: a user namespace cannot make one" in done.stderr
    _, tree = image_of(somebody.where / "out.tar", tmp_path)
    assert {"got/dir", "got/plain", "got/pipe"} <= set(tree)
    assert not {"got/tty9", "got/disk"} & set(tree)
    assert tree["got/plain"][1:3] == ((0, 0) if single else (33, 33))


def layout_of(where: Path, archive: Path) -> str:
    """An image of one layer, as a layout."""
    layout = where / "base"
    run_ok("umoci", "init", "--layout", layout)
    run_ok("umoci", "new", "--image", f"{layout}:x")
    run_ok("umoci", "raw", "add-layer", "--image", f"{layout}:x", archive)
    return str(layout)


def test_a_base_of_several_owners_with_one_id(somebody: Any, context: Path, tmp_path: Path) -> None:
    """It can be built on: its own layers are sent as they are, what a step changes is root's."""
    archive_with_everything(tmp_path / "all.tar")
    layout = layout_of(somebody.where, tmp_path / "all.tar")
    somebody.owns(somebody.where)
    (context / "Dockerfile").write_text(
        "FROM base\nCOPY root /\nENV PATH=/bin\nRUN echo x > /got/more && stat -c %u /got/plain\n"
    )
    args = ["build", "--progress=plain", f"--build-context=base=oci-layout://{layout}:x", str(context)]
    done = somebody(*args, "-o", f"type=oci,dest={somebody.where}/out.tar", single=True)
    assert done.returncode == 0, done.stderr
    assert "several owners" in done.stderr.splitlines()[2]
    _, tree = image_of(somebody.where / "out.tar", tmp_path)
    assert tree["got/plain"][1:3] == (33, 33)
    assert "got/tty9" in tree  # umoci runs as root here: the layer still has it
    assert tree["got/more"][1:3] == (0, 0)
    (context / "Dockerfile").write_text("FROM base\nCOPY --chown=5:6 root /\n")
    done = somebody(*args, single=True)
    assert done.returncode == 1


def test_states_of_one_id_and_of_many_are_not_mixed(somebody: Any, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY root /\n")
    assert somebody("build", str(context), single=True).returncode == 0
    shutil.move(somebody.where / "single", somebody.where / "state")
    done = somebody("build", str(context))
    assert done.returncode != 0
    assert "was made with one user id" in done.stderr
    assert "--root" in done.stderr
