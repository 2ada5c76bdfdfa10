# SPDX-License-Identifier: Apache-2.0
"""How a daemon starts, takes a new config, stalls, and ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chantier.kernel.mounts import mount_points
from chantier.llb import image
from chantier.pb import control_pb2 as pb
from chantier.pb import daemon_pb2  # describes the service
from chantier.spec import new_id
from chantier.wire import GrpcError, Stub

from .conftest import CONTROL, Chantierd, Start, end, mark, those_that_run

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]


def running(script: str) -> Any:
    return image("alpine").run(args=["/bin/sh", "-c", script]).root.marshal()


async def solve(daemon: Chantierd, script: str) -> Any:
    async with daemon.client() as channel:
        request = pb.SolveRequest(Ref=new_id(), Definition=running(script))
        return await Stub(channel, CONTROL).unary("Solve", request, timeout_s=60)


async def report(daemon: Chantierd) -> dict[str, Any]:
    async with daemon.client() as channel:
        answer = await Stub(channel, "chantier.v1.Daemon").unary("Status", daemon_pb2.StatusRequest())
    found: dict[str, Any] = json.loads(answer.data)
    return found


async def until_running(daemon: Chantierd, name: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            found = await report(daemon)
            if any(name in step["name"] for build in found["builds"] for step in build["running"]):
                return found
            await asyncio.sleep(0.05)


def test_a_running_build_may_finish_and_no_new_one_begins(start_daemon: Start) -> None:
    daemon = start_daemon("[chantier]\nshutdown = 120")
    command = mark()

    async def run() -> None:
        task = asyncio.create_task(solve(daemon, f"echo going; {command} || true"))
        await until_running(daemon, "going")
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("waiting up to 120 s")
        with pytest.raises(GrpcError) as caught:
            await solve(daemon, "true")
        assert caught.value.code == 14
        assert "shutting down" in caught.value.message
        while not task.done():
            end(command)
            await asyncio.sleep(0.05)
        await task

    asyncio.run(run())
    assert daemon.process.wait(60) == 0
    assert not Path(daemon.address.removeprefix("unix://")).exists()


def test_a_build_that_does_not_finish_in_time_is_told_why(start_daemon: Start) -> None:
    daemon = start_daemon("[chantier]\nshutdown = 1")
    command = mark()

    async def run() -> None:
        task = asyncio.create_task(solve(daemon, f"echo going; {command}"))
        await until_running(daemon, "going")
        daemon.signal(signal.SIGTERM)
        with pytest.raises(GrpcError) as caught:
            await task
        assert caught.value.code == 14
        assert "did not end within 1 s" in caught.value.message

    asyncio.run(run())
    assert daemon.process.wait(60) == 0
    assert not those_that_run(command)


def test_a_changed_config_is_taken_over_and_a_bad_one_refused_whole(start_daemon: Start) -> None:
    daemon = start_daemon("[worker.oci]\nmax-parallelism = 1")
    text = daemon.config.read_text()

    def write(whole: str) -> None:
        """At once: it may be looked at at any time."""
        fresh = daemon.config.with_suffix(".fresh")
        fresh.write_text(whole)
        fresh.replace(daemon.config)

    async def limit() -> int:
        return int((await report(daemon))["steps"]["limit"])

    async def run() -> None:
        task = asyncio.create_task(solve(daemon, "echo going; sleep 3"))
        await until_running(daemon, "going")
        assert await limit() == 1
        write("debug = true\n" + text.replace("max-parallelism = 1", "max-parallelism = 7"))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("loaded anew")
        assert await limit() == 7
        await solve(daemon, "echo beside")
        assert "level=debug" in daemon.log
        write(text.replace("max-parallelism = 1", 'max-parallelism = "many"'))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("the old one stays in effect")
        assert await limit() == 7
        await task  # the running build has seen nothing of it
        write(text.replace("max-parallelism = 1", 'max-parallelism = 3\nsnapshotter = "native"'))
        daemon.wait_for("takes effect after a restart")  # noticed without a signal
        found = await report(daemon)
        assert found["needs_restart"] == ["worker.oci.snapshotter"]
        assert found["steps"]["limit"] == 3

    asyncio.run(run())


def test_a_step_that_says_nothing_is_ended_with_what_it_did(start_daemon: Start) -> None:
    daemon = start_daemon('[chantier]\nstepStall = "4s"')

    async def run() -> None:
        await solve(daemon, "for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.5; done")  # slow, but not silent
        with pytest.raises(GrpcError) as caught:
            await solve(daemon, "echo then silence; sleep 7777")
        assert caught.value.message.startswith("no progress for 4 s in the step /bin/sh -c echo then silence")
        assert "busy" in caught.value.message
        assert "no progress for 4 s" in daemon.log

    asyncio.run(run())


def test_status_names_what_waits_and_for_what(start_daemon: Start) -> None:
    daemon = start_daemon("[worker.oci]\nmax-parallelism = 1")
    command = mark()

    async def run() -> None:
        first = asyncio.create_task(solve(daemon, f"echo going; {command} || true"))
        await until_running(daemon, "going")
        second = asyncio.create_task(solve(daemon, "echo other"))
        async with asyncio.timeout(60):
            while not (found := await report(daemon))["steps"]["waiting"]:
                await asyncio.sleep(0.05)
        assert found["state"] == "serving"
        assert found["steps"] == {"running": 1, "waiting": 1, "limit": 1}
        assert len(found["builds"]) == 2
        assert {v["name"] for v in found["vertices"]} >= {f"/bin/sh -c echo going; {command} || true", "/bin/sh -c echo other"}
        while not first.done():
            end(command)
            await asyncio.sleep(0.05)
        await asyncio.gather(first, second)

    asyncio.run(run())


def chantierd(*args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", "from chantier.daemon import main; raise SystemExit(main())", *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, **more)


def test_two_daemons_do_not_share_a_root(start_daemon: Start, tmp_path: Path) -> None:
    daemon = start_daemon()
    done = chantierd("--config", str(daemon.config), "--root", str(daemon.root), "--addr", f"unix://{tmp_path}/other.sock")
    assert done.returncode != 0
    assert "another instance running?" in done.stderr
    done = chantierd("--config", str(daemon.config), "--root", str(tmp_path / "other"), "--addr", daemon.address)
    assert done.returncode != 0
    assert "another process listens there" in done.stderr


def test_flags_that_mean_nothing_say_so(tmp_path: Path) -> None:
    done = chantierd("--no-such-flag")
    assert done.returncode == 1
    assert "unrecognized arguments: --no-such-flag" in done.stderr
    assert chantierd("--version").stdout.startswith("chantierd chantier v")
    config = tmp_path / "bad.toml"
    config.write_text("[worker.oci]\nsnapshoter = 'x'\n")
    done = chantierd("--config", str(config))
    assert done.returncode == 1
    assert f"{config}:2:" in done.stderr


def test_buildkitds_command_line_of_the_test_suite_is_taken(start_daemon: Start) -> None:
    daemon = start_daemon(
        "[worker.containerd]\nenabled = false",
        "--oci-worker=true", "--containerd-worker=false", "--oci-worker-gc=false",
        "--oci-worker-labels=org.mobyproject.buildkit.worker.sandbox=true", "--debug",
    )  # fmt: skip

    async def run() -> None:
        async with daemon.client() as channel:
            (worker,) = (await Stub(channel, CONTROL).unary("ListWorkers", pb.ListWorkersRequest())).record
            assert worker.Labels["org.mobyproject.buildkit.worker.sandbox"] == "true"
            assert not worker.GCPolicy

    asyncio.run(run())


def test_a_socket_that_was_handed_over(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "activated.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3, inheritable=True); "
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
        "from chantier.daemon import main; raise SystemExit(main(sys.argv[2:]))"
    )
    argv = [sys.executable, "-c", script, str(listening.fileno()), "--root", str(tmp_path / "r"), "--addr", "fd://"]
    process = subprocess.Popen(argv, pass_fds=[listening.fileno()], stderr=subprocess.PIPE, env={**os.environ})

    async def run() -> None:
        from chantier.wire import dial

        async with dial(f"unix://{path}") as channel:
            await Stub(channel, CONTROL).unary("Info", pb.InfoRequest(), timeout_s=60)

    try:
        asyncio.run(run())
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_debug_endpoints(start_daemon: Start, tmp_path: Path) -> None:
    path = tmp_path / "debug.sock"
    daemon = start_daemon("", "--debugaddr", f"unix://{path}")
    assert path.stat().st_mode & 0o777 == 0o600

    def get(page: str, *more: str) -> str:
        done = subprocess.run(
            ["curl", "-sS", "-w", "\n%{http_code}", "--unix-socket", str(path), *more, f"http://localhost{page}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    told = json.loads(get("/debug/vars").rpartition("\n")[0])
    assert told["status"]["pid"] == daemon.process.pid
    assert str(path) in " ".join(told["cmdline"])
    stacks = get("/debug/pprof/goroutine?debug=2")
    assert "thread MainThread:" in stacks
    assert "Stack for <Task" in stacks
    figures = dict(line.split(" ") for line in get("/metrics").splitlines() if " " in line and not line.startswith("#"))
    assert float(figures["process_resident_memory_bytes"]) > 1 << 20
    assert figures["chantier_builds_running"] == "0"
    assert get("/debug/none").endswith("\n404")
    assert get("/metrics", "-X", "POST").endswith("\n405")
    assert daemon.stop() == 0
    assert not path.exists()


def test_a_debug_address_that_cannot_be(start_daemon: Start) -> None:
    with pytest.raises(AssertionError, match="cannot serve debug endpoints on nowhere"):
        start_daemon("", "--debugaddr", "nowhere")


@pytest.mark.parametrize("after_s", [0, 0.05, 0.1, 0.2, 0.4])
def test_told_to_stop_while_it_opens_it_leaves_nothing(start_daemon: Start, after_s: float) -> None:
    """It serves before its engine is open: what that has made by then goes with it."""
    daemon = start_daemon()
    time.sleep(after_s)
    assert daemon.stop() == 0
    assert mount_points(daemon.root) == []
    for name in ("processes", "tmp", "executor"):
        assert not (daemon.root / name).is_dir() or os.listdir(daemon.root / name) == []
