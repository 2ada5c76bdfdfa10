# SPDX-License-Identifier: Apache-2.0
"""The main job with real parts: a Dockerfile becomes an image that a registry and other tools accept."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import Command, RealRegistry, run_ok, tree_of

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]

DIGEST = re.compile(r"sha256:[0-9a-f]{64}\n\Z")


def test_hello_is_built_pushed_and_named_by_its_digest(chantier: Command, registry: RealRegistry) -> None:
    name = f"{registry.host}/test/hello:1"
    done = chantier.build('FROM alpine\nRUN echo "hello world"\n', "-t", name, "--push").ok()
    assert "hello world" in done.step("RUN echo")
    assert DIGEST.fullmatch(done.out), done.out
    raw = run_ok("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}")
    import hashlib

    assert "sha256:" + hashlib.sha256(raw.encode()).hexdigest() == done.out.strip()


def test_debug_shows_which_mirror_answered(make_command: Callable[..., Command], registry: RealRegistry) -> None:
    done = make_command("debug = true").build("FROM alpine\nRUN true\n").ok()
    lines = done.err.splitlines()
    asked = [line for line in lines if 'msg="do request"' in line]
    answered = [line for line in lines if 'msg="fetch response received"' in line]
    assert any(registry.host in line and "request.header.user-agent" in line for line in asked)
    assert any(registry.host in line and "200" in line and "response.header.docker-content-digest" in line for line in answered)


def test_a_second_process_finds_everything_cached(chantier: Command) -> None:
    text = "FROM alpine\nRUN echo one > /one\nRUN echo two > /two\n"
    chantier.build(text).ok()
    done = chantier.build(text).ok()
    for step in ("RUN echo one", "RUN echo two"):
        assert done.step(step).endswith("CACHED"), done.err


def test_touching_one_file_runs_only_what_depends_on_it(chantier: Command, tmp_path: Path) -> None:
    context = tmp_path / "ctx"
    context.mkdir()
    (context / "a").write_text("a")
    (context / "b").write_text("b")
    text = "FROM alpine\nCOPY a /a\nRUN cat /a > /a2\nFROM alpine\nCOPY b /b\nRUN cat /b > /b2\nCOPY --from=0 /a2 /a2\n"
    chantier.build(text, context=context).ok()
    (context / "b").write_text("changed")
    done = chantier.build(text, context=context).ok()
    assert done.step("RUN cat /a").endswith("CACHED"), done.err
    assert "CACHED" not in done.step("RUN cat /b")
    os.utime(context / "a", (1, 1))
    done = chantier.build(text, context=context).ok()
    assert done.step("RUN cat /a").endswith("CACHED"), done.err


def _stages(count: int) -> str:
    stage = "FROM alpine AS s{n}\nRUN --mount=type=cache,target=/m for i in 1 2 3 4 5 6 7 8; do date +%s%N > /m/{n}-$i; sleep 0.1; done; touch /m/end-{n}; echo {n} > /out{n}\n"
    text = "".join(stage.format(n=n) for n in range(count))
    return text + "FROM scratch\n" + "".join(f"COPY --from=s{n} /out{n} /\n" for n in range(count))


def _running(err: str) -> int:
    """The most steps that ran at once, from rawjson events."""
    intervals: dict[str, tuple[str, str]] = {}
    for line in err.splitlines():
        if not line.startswith("{"):
            continue
        for vertex in json.loads(line).get("vertexes", ()):
            if "RUN" in vertex["name"] and vertex.get("completed"):
                intervals[vertex["digest"]] = (vertex["started"], vertex["completed"])
    points = sorted([(start, 1) for start, _ in intervals.values()] + [(end, -1) for _, end in intervals.values()])
    most = now = 0
    for _, change in points:
        now += change
        most = max(most, now)
    return most


@pytest.mark.slow
def test_stages_run_in_parallel_within_the_limit(make_command: Callable[..., Command]) -> None:
    done = make_command().build(_stages(12), "--progress=rawjson").ok()
    assert _running(done.err) > 4
    done = make_command("[worker.oci]\nmax-parallelism = 2", name="two").build(_stages(12), "--progress=rawjson").ok()
    assert _running(done.err) == 2


AWKWARD = r"""FROM alpine
RUN mkdir -p /d/sub /gone && echo x > /d/x && ln /d/x /d/hard && ln -s x /d/soft && chown -h 5:6 /d/soft
RUN chmod 4755 /d/x && mkfifo /d/fifo && mknod /d/null c 1 3 && dd if=/dev/zero of=/d/sparse bs=1 count=1 seek=5000000
RUN touch "/d/$(printf 'caf\351')" "/d/$(printf '%0120d' 0)" && touch -d '2001-02-03 04:05:06' /d/old
RUN mkdir /h && echo y > /h/a && ln /h/a /h/b && ln /h/a /h/c
RUN rm -rf /d/sub /home/app && mkdir /home/app && echo new > /home/app/new && rmdir /gone && rm /etc/group
RUN chown -R 1000:1001 /d && chmod 2770 /d && chmod 4755 /d/x
"""


@pytest.mark.slow
def test_other_tools_unpack_our_layers_identically(chantier: Command, registry: RealRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/test/awkward:1"
    out = tmp_path / "image.tar"
    chantier.build(AWKWARD, "-t", name, "--push", "-o", f"type=oci,dest={out}").ok()
    layout = tmp_path / "oci"
    run_ok("skopeo", "copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{layout}:b")
    run_ok("umoci", "raw", "unpack", "--image", f"{layout}:b", tmp_path / "pushed")
    run_ok("skopeo", "copy", f"oci-archive:{out}", f"oci:{tmp_path}/oci2:b")
    run_ok("umoci", "raw", "unpack", "--image", f"{tmp_path}/oci2:b", tmp_path / "exported")
    pushed = tree_of(tmp_path / "pushed")
    assert pushed == tree_of(tmp_path / "exported")
    ours = tmp_path / "ours.tar"
    chantier.build(AWKWARD, "-o", f"type=tar,dest={ours}").ok()
    (tmp_path / "ours").mkdir()
    run_ok("tar", "--xattrs", "--xattrs-include=*", "--same-owner", "--numeric-owner", "-xpf", ours, "-C", tmp_path / "ours")
    assert pushed == tree_of(tmp_path / "ours")
    root = tmp_path / "pushed"
    assert os.lstat(root / "d/x").st_mode & 0o7777 == 0o4755
    assert os.stat(root / "h/a").st_ino == os.stat(root / "h/b").st_ino == os.stat(root / "h/c").st_ino
    assert os.listdir(root / "home/app") == ["new"]
    assert not (root / "gone").exists()
    assert os.fsencode("caf") + b"\xe9" in os.listdir(os.fsencode(root / "d"))


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_the_image_is_the_same_whatever_the_parallelism(
    make_command: Callable[..., Command], tmp_path: Path, compression: str
) -> None:
    context = tmp_path / "ctx"
    context.mkdir()
    for number in range(4):
        (context / f"f{number}").write_bytes(random.Random(number).randbytes(1_500_000) + b"the same again\n" * 150_000)
    stages = "".join(f"FROM alpine AS s{n}\nCOPY f{n} /f\nRUN cat /f /f > /g && touch -d @1 /g\n" for n in range(4))
    text = stages + "FROM scratch\n" + "".join(f"COPY --from=s{n} /f /g /{n}/\n" for n in range(4))
    allowed, digests = os.sched_getaffinity(0), set()
    for parallelism, processors in ((1, {min(allowed)}), (8, allowed)):
        out = tmp_path / f"{parallelism}.tar"
        output = f"type=oci,dest={out},compression={compression},force-compression=true,rewrite-timestamp=true"
        command = make_command(f"[worker.oci]\nmax-parallelism = {parallelism}", name=f"state{parallelism}")
        os.sched_setaffinity(0, processors)  # what is started from here has as many threads that compress
        try:
            done = command.build(text, "-o", output, "--build-arg", "SOURCE_DATE_EPOCH=7", context=context).ok()
        finally:
            os.sched_setaffinity(0, allowed)
        digests.add(done.out)
        bare = f"dir:{tmp_path}/bare{parallelism}"  # umoci knows gzip only: skopeo decompresses
        run_ok("skopeo", "copy", "--dest-decompress", f"oci-archive:{out}", bare)
        run_ok("skopeo", "copy", bare, f"oci:{tmp_path}/oci{parallelism}:b")
        run_ok("umoci", "raw", "unpack", "--image", f"{tmp_path}/oci{parallelism}:b", tmp_path / f"root{parallelism}")
    assert len(digests) == 1
    assert tree_of(tmp_path / "root1") == tree_of(tmp_path / "root8")
    assert (tmp_path / "root1/3/f").read_bytes() == (context / "f3").read_bytes()


def test_a_failed_step_shows_the_lines_and_the_cause(chantier: Command) -> None:
    done = chantier.build('FROM alpine\nRUN echo before; echo "to stderr" >&2; exit 7\n')
    assert done.code == 1
    assert ">>> RUN echo before" in done.err
    last = [line for line in done.err.splitlines() if line.startswith("ERROR: ")][-1]
    assert last.startswith("ERROR: failed to build: failed to solve: process ")
    assert last.endswith("did not complete successfully: exit code: 7")
    assert "to stderr" in done.err.split("------")[1]
    assert "Traceback" not in done.err


def test_interrupting_kills_the_step_at_once(chantier: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    marker = f"sleep 98{os.getpid()}"
    process = subprocess.Popen(
        chantier.argv("build", "--progress=plain", "-f", "-", str(tmp_path / "empty")),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=chantier.environment(),
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(f"FROM alpine\nRUN (setsid {marker} &); echo started; {marker}\n".encode())
    process.stdin.close()
    for line in process.stderr:
        if b"started" in line and b"RUN" not in line:
            break
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    assert process.wait(60) == 130
    assert marker not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_secrets_stay_out_of_image_cache_and_output(chantier: Command, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("hunter2-very-secret")
    out = tmp_path / "out.tar"
    text = 'FROM alpine\nRUN --mount=type=secret,id=t cat /run/secrets/t | wc -c > /n\nRUN --mount=type=secret,id=t,env=T test -n "$T"\n'
    done = chantier.build(text, "--secret", f"id=t,src={secret}", "-o", f"type=oci,dest={out}").ok()
    assert "hunter2" not in done.err
    assert subprocess.run(["grep", "-rq", "hunter2-very-secret", str(chantier.root), str(out)], check=False).returncode == 1


def test_outputs_local_and_docker_tar(chantier: Command, tmp_path: Path) -> None:
    text = "FROM alpine AS b\nRUN mkdir /o && echo hi > /o/f && ln -s f /o/l\nFROM scratch\nCOPY --from=b /o /\n"
    chantier.build(text, "-o", str(tmp_path / "dir")).ok()
    assert (tmp_path / "dir/f").read_text() == "hi\n"
    assert os.readlink(tmp_path / "dir/l") == "f"
    chantier.build(text, "-t", "x:1", "-o", f"type=docker,dest={tmp_path}/d.tar").ok()
    run_ok("skopeo", "copy", f"docker-archive:{tmp_path}/d.tar", f"oci:{tmp_path}/d:b")
    manifest = json.loads(run_ok("tar", "-xOf", tmp_path / "d.tar", "manifest.json"))
    assert manifest[0]["RepoTags"] == ["x:1"]


def test_compressions_give_the_same_tree(chantier: Command, tmp_path: Path) -> None:
    text = "FROM alpine\nRUN seq 100000 > /numbers\n"
    trees = []
    for kind, suffix in (("gzip", "+gzip"), ("zstd", "+zstd"), ("uncompressed", ".tar")):
        out = tmp_path / f"{kind}.tar"
        chantier.build(text, "-o", f"type=oci,dest={out},compression={kind},force-compression=true").ok()
        manifest, config = manifest_of(out)
        assert [layer["mediaType"].endswith(suffix) for layer in manifest["layers"]] == [True, True]
        trees.append(config["rootfs"]["diff_ids"])
        run_ok("skopeo", "copy", f"oci-archive:{out}", f"oci:{tmp_path}/{kind}:b")
    assert trees[0] == trees[1] == trees[2]


def manifest_of(archive: Path) -> tuple[dict, dict]:
    """Manifest and config of the one image in an OCI archive."""
    with tarfile.open(archive) as tar:

        def read(name: str) -> dict:
            member = tar.extractfile(name)
            assert member is not None
            return json.load(member)

        digest = read("index.json")["manifests"][0]["digest"]
        manifest = read("blobs/" + digest.replace(":", "/"))
        return manifest, read("blobs/" + manifest["config"]["digest"].replace(":", "/"))


def test_files_for_other_programs(chantier: Command, tmp_path: Path, registry: RealRegistry) -> None:
    chantier.build(
        "FROM alpine\nRUN true\n", "-t", f"{registry.host}/test/meta:1", "--push",
        "--provenance=false", "--metadata-file", str(tmp_path / "m.json"), "--iidfile", str(tmp_path / "iid"),
    ).ok()  # fmt: skip
    metadata = json.loads((tmp_path / "m.json").read_text())
    assert metadata["containerimage.descriptor"]["digest"] == metadata["containerimage.digest"]
    assert (tmp_path / "iid").read_text() == metadata["containerimage.config.digest"]
    assert metadata["image.name"] == f"{registry.host}/test/meta:1"


@pytest.mark.slow
def test_killed_builds_leave_nothing_that_harms(chantier: Command, tmp_path: Path) -> None:
    """kill -9 at 30 moments; every next build works, and what it gives is right."""
    import random

    context = tmp_path / "ctx"
    context.mkdir()
    chance = random.Random(7)
    out = tmp_path / "out.tar"
    for number in range(30):
        for name in range(30):
            (context / f"f{name}").write_bytes(chance.randbytes(20_000))
        (context / "n").write_text(str(number))
        text = "FROM alpine\nCOPY . /ctx\nRUN cp -a /ctx /copy && sleep 0.1\nRUN cat /copy/n > /n\n"
        process = subprocess.Popen(
            chantier.argv("build", "--progress=plain", "-f", "-", "-o", f"type=oci,dest={out}", str(context)),
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=chantier.environment(), start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(text.encode())
        process.stdin.close()
        time.sleep(chance.uniform(0.05, 1.6))
        process.kill()
        process.wait()
        if number % 3 == 2:
            destination = tmp_path / "tree"
            shutil.rmtree(destination, ignore_errors=True)
            chantier.build(text, "-o", str(destination), context=context).ok()
            assert (destination / "n").read_text() == str(number)
            for name in range(30):
                assert (destination / f"copy/f{name}").read_bytes() == (context / f"f{name}").read_bytes()
    mounts = Path("/proc/self/mountinfo").read_text()
    chantier.build("FROM alpine\nRUN true\n").ok()
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(chantier.root) not in mounts


def test_two_processes_on_one_root(chantier: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(exist_ok=True)
    processes = []
    for number in range(4):
        process = subprocess.Popen(
            chantier.argv("build", "--progress=plain", "-f", "-", str(tmp_path / "empty")),
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=chantier.environment(),
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(f"FROM alpine\nRUN echo same > /same\nRUN echo {number % 2} > /n\n".encode())
        process.stdin.close()
        processes.append(process)
    for process in processes:
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(300) == 0, err.decode()
