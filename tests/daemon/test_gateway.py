# SPDX-License-Identifier: Apache-2.0
"""LLBBridge as stock clients use it: lazy refs, reading from them, containers, and the result that is returned."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chantier.llb import Mount, State, copy, image, mkdir, mkfile, scratch
from chantier.llb.file import Owner
from chantier.pb import common_pb2, control_pb2, ops_pb2
from chantier.pb import gateway_pb2 as pb
from chantier.wire import GrpcError, Stub

from ..conftest import run_ok
from .conftest import BRIDGE, Chantierd, Start, driven, mark, read_all, until_gone

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]


def tree() -> Any:
    base = scratch().mkdir("/d").mkfile("/d/a.txt", b"hello").mkfile("/d/b.bin", b"12")
    return base.symlink("a.txt", "/d/link").marshal()


async def refused(work: Any) -> GrpcError:
    with pytest.raises(GrpcError) as caught:
        await work
    return caught.value


def test_a_ref_is_read_without_being_returned(daemon: Chantierd) -> None:
    async def run() -> None:
        async with driven(daemon) as build:
            ref = await build.make(tree())
            read = await build.bridge.unary("ReadFile", pb.ReadFileRequest(Ref=ref, FilePath="/d/link"))
            assert read.Data == b"hello"
            part = pb.ReadFileRequest(Ref=ref, FilePath="d/a.txt", Range=pb.FileRange(Offset=1, Length=3))
            assert (await build.bridge.unary("ReadFile", part)).Data == b"ell"
            listed = await build.bridge.unary("ReadDir", pb.ReadDirRequest(Ref=ref, DirPath="/d"))
            assert [(e.path, e.size, e.linkname) for e in listed.entries] == [
                ("a.txt", 5, ""), ("b.bin", 2, ""), ("link", 5, "a.txt"),
            ]  # fmt: skip
            assert listed.entries[2].mode == 1 << 27 | 0o777
            some = await build.bridge.unary("ReadDir", pb.ReadDirRequest(Ref=ref, DirPath="/d", IncludePattern="*.txt"))
            assert [e.path for e in some.entries] == ["a.txt"]
            stat = await build.bridge.unary("StatFile", pb.StatFileRequest(Ref=ref, Path="/d"))
            assert stat.stat.mode == 1 << 31 | 0o755
            missing = await refused(build.bridge.unary("ReadFile", pb.ReadFileRequest(Ref=ref, FilePath="/nope")))
            assert (missing.code, missing.message) == (2, "open /nope: no such file or directory")
            await build.returns(ref)

    asyncio.run(run())


def test_a_definition_runs_only_when_it_is_looked_at(daemon: Chantierd) -> None:
    async def run() -> None:
        failing = image("alpine").run(args=["/bin/sh", "-c", "exit 9"]).root.marshal()
        async with driven(daemon) as build:
            ref = await build.make(failing)
            error = await refused(build.bridge.unary("Evaluate", pb.EvaluateRequest(Ref=ref)))
            assert error.message == 'process "/bin/sh -c exit 9" did not complete successfully: exit code: 9'
            details = {detail.name: detail.json() for detail in error.details}
            assert details["gatewayapi.ExitMessage"] == {"Code": 9}
            assert details["errdefs.Solve"]["op"]["exec"]["meta"]["args"] == ["/bin/sh", "-c", "exit 9"]
            assert details["errdefs.Vertex"]["digest"].startswith("sha256:")
            again = await refused(build.make(failing, evaluate=True))
            assert again.code == 2
            await build.returns()
            names = {v.name: v for m in await build.status for v in m.vertexes if v.HasField("completed")}
        assert names["/bin/sh -c exit 9"].error.endswith("exit code: 9")

    asyncio.run(run())


def test_what_the_client_returns_is_the_builds_end(daemon: Chantierd) -> None:
    async def run() -> None:
        async with driven(daemon) as build:
            status = common_pb2.Status(code=2, message="the frontend failed")
            status.details.add(type_url="github.com/moby/buildkit/errdefs.Solve+json", value=b'{"inputIDs":["x"]}')
            await build.bridge.unary("Return", pb.ReturnRequest(error=status))
            second = await refused(build.bridge.unary("Return", pb.ReturnRequest(result=pb.Result(ref=pb.Ref()))))
            error = await refused(build.solve)
            assert (error.code, error.message) == (2, "the frontend failed")
            assert [(d.name, d.json()) for d in error.details] == [("errdefs.Solve", {"inputIDs": ["x"]})]
            assert "already set" in second.message or "no such job" in second.message
        async with driven(daemon) as build:
            both = await refused(build.bridge.unary("Return", pb.ReturnRequest()))
            assert both.message == "gateway return must be either result or err"
            unknown = await refused(build.bridge.unary("Return", pb.ReturnRequest(result=pb.Result(ref=pb.Ref(id="nope")))))
            assert "nope" in unknown.message
            assert not (await build.returns()).ExporterResponse

    asyncio.run(run())


def test_a_call_that_comes_while_the_engine_is_opened_waits_for_it(start_daemon: Start, tmp_path: Path) -> None:
    """However long that takes: only then is the build, which was asked for at the same time, known."""
    gate, runtime = tmp_path / "gate", tmp_path / "runtime"
    runtime.write_text(
        f'#!/bin/sh\nn=0; until test -e {gate} || test $n = 600; do sleep 0.1; n=$((n + 1)); done\nexec runc "$@"\n'
    )
    runtime.chmod(0o755)

    async def run() -> None:
        async with driven(start_daemon(f'[worker.oci]\nbinary = "{runtime}"')) as build:
            ping = asyncio.create_task(build.bridge.unary("Ping", pb.PingRequest()))
            await asyncio.sleep(8)  # longer than a build is waited for once it could be there
            assert not ping.done()
            gate.touch()
            await ping
            await build.returns()

    asyncio.run(run())


def test_calls_name_their_build(daemon: Chantierd) -> None:
    async def run() -> None:
        async with daemon.client() as channel:
            nobody = await refused(Stub(channel, BRIDGE).unary("Ping", pb.PingRequest()))
            assert (nobody.code, nobody.message) == (2, "forwarding Ping: no buildid found in context")
            other = Stub(channel, BRIDGE, metadata={"buildkit-controlapi-buildid": "xyz"})
            unknown = await refused(other.unary("Ping", pb.PingRequest()))
            assert (unknown.code, unknown.message) == (5, "forwarding Ping: no such job xyz")

    asyncio.run(run())


def test_ping_lists_what_works(daemon: Chantierd) -> None:
    async def run() -> None:
        async with driven(daemon) as build:
            pong = await build.bridge.unary("Ping", pb.PingRequest())
            frontend = [cap.ID for cap in pong.FrontendAPICaps]
            llb = [cap.ID for cap in pong.LLBCaps]
            assert frontend == sorted(frontend)
            assert llb == sorted(llb)
            assert all(cap.Enabled for cap in [*pong.FrontendAPICaps, *pong.LLBCaps])
            assert {"return", "returnmap", "proto.refarray", "gateway.exec"} <= set(frontend)
            assert {"file.base", "exec.meta.base", "source.local", "exporter.multiple"} <= set(llb)
            assert pong.Workers[0].platforms[0].OS == "linux"
            assert {"source.imageblob", "source.git.bundle", "source.git.checkoutbundle", "exec.meta.cdi"} <= set(llb)
            assert "exec.meta.network.proxy" not in llb
            asked = image("alpine").marshal()
            for metadata in asked.metadata.values():
                metadata.caps["exec.meta.network.proxy"] = True
            error = await refused(build.make(asked))
            assert "exec.meta.network.proxy" in error.message
            await build.returns()

    asyncio.run(run())


@asynccontextmanager
async def container(daemon: Chantierd, **more: Any) -> AsyncIterator[tuple[Any, Any]]:
    async with driven(daemon) as build:
        ref = await build.make(image("alpine").marshal())
        mounts = [ops_pb2.Mount(dest="/", resultID=ref)]
        await build.bridge.unary("NewContainer", pb.NewContainerRequest(ContainerID="c", Mounts=mounts, **more))
        async with build.bridge.stream("ExecProcess") as call:
            yield build, call
        await build.bridge.unary("ReleaseContainer", pb.ReleaseContainerRequest(ContainerID="c"))
        await build.returns()


def init(id: str, *args: str, fds: tuple[int, ...] = (0, 1, 2), **more: Any) -> pb.ExecMessage:
    meta = ops_pb2.Meta(args=args, cwd="/", env=["PATH=/bin"])
    return pb.ExecMessage(ProcessID=id, Init=pb.InitMessage(ContainerID="c", Meta=meta, Fds=fds, **more))


async def outcome(call: Any, id: str) -> tuple[bytes, Any]:
    """All that a process wrote, and its exit."""
    out, ended = b"", None
    while True:
        message = await asyncio.wait_for(call.read(), 60)
        assert message is not None
        if message.ProcessID != id:
            continue
        kind = message.WhichOneof("Input")
        if kind == "File":
            out += message.File.Data
        elif kind == "Exit":
            ended = message.Exit
        elif kind == "Done":
            return out, ended


def test_processes_in_a_container(daemon: Chantierd) -> None:
    async def run() -> None:
        async with container(daemon, hostname="box") as (build, call):
            await call.send(init("main", "sh", "-c", "hostname; read line; echo got $line > /f; sleep 100"))
            first = await call.read()
            assert first.WhichOneof("Input") == "Started"
            await call.send(pb.ExecMessage(ProcessID="main", File=pb.FdMessage(Fd=0, Data=b"word\n")))
            await call.send(init("other", "sh", "-c", "while ! test -s /f; do sleep 0.02; done; cat /f; echo err >&2; exit 3"))
            out, ended = await outcome(call, "other")
            assert out in (b"got word\nerr\n", b"err\ngot word\n")
            assert ended.Code == 3
            assert ended.Error.message == "exit code: 3"
            assert json.loads(ended.Error.details[0].value) == {"Code": 3}
            read = pb.ReadFileRequest(Ref="c", FilePath="/f")
            assert (await build.bridge.unary("ReadFileContainer", read)).Data == b"got word\n"
            await call.send(pb.ExecMessage(ProcessID="main", Signal=pb.SignalMessage(Name="KILL")))
            _, ended = await outcome(call, "main")
            assert ended.Code == 137

    asyncio.run(run())


def test_a_terminal_has_the_clients_size(daemon: Chantierd) -> None:
    async def run() -> None:
        async with container(daemon) as (_, call):
            resized = "while test \"$(stty size)\" != '33 77'; do sleep 0.02; done"
            script = f"{resized}; read x; stty size; test -t 1 && echo tty"
            await call.send(init("t", "sh", "-c", script, Tty=True, fds=(0, 1)))
            await call.send(pb.ExecMessage(ProcessID="t", Resize=pb.ResizeMessage(Rows=33, Cols=77)))
            await call.send(pb.ExecMessage(ProcessID="t", File=pb.FdMessage(Fd=0, Data=b"\n")))
            out, ended = await outcome(call, "t")
            assert b"33 77" in out
            assert b"tty" in out
            assert ended.Code == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("system", "path"),
    [
        ("", b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("linux", b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("windows", rb"c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0"),
    ],
)
def test_the_platform_of_a_container_says_where_programs_are(daemon: Chantierd, system: str, path: bytes) -> None:
    async def run() -> None:
        more = {"platform": ops_pb2.Platform(OS=system)} if system else {}
        async with container(daemon, **more) as (_, call):
            asked = init("p", "/bin/sh", "-c", "echo -n $PATH")
            del asked.Init.Meta.env[:]
            await call.send(asked)
            out, ended = await outcome(call, "p")
            assert (out, ended.Code) == (path, 0)

    asyncio.run(run())


def test_a_failed_step_can_be_looked_into(daemon: Chantierd) -> None:
    async def run() -> None:
        script = "echo changed > /etc/motd; exit 4"
        failing = image("alpine").run(args=["/bin/sh", "-c", script], mounts=[Mount(target="/empty")]).root.marshal()
        async with driven(daemon) as build:
            error = await refused(build.make(failing, evaluate=True))
            detail = next(d.json() for d in error.details if d.name == "errdefs.Solve")
            # One of each for every mount, also of one that nothing was given to.
            assert len(detail["inputIDs"]) == len(detail["mountIDs"]) == len(detail["op"]["exec"]["mounts"]) == 2
            assert detail["inputIDs"][1] == ""
            for id, wanted in ((detail["mountIDs"][0], b"changed\n"), (detail["inputIDs"][0], b"")):
                mounts = [ops_pb2.Mount(dest="/", resultID=id)]
                await build.bridge.unary("NewContainer", pb.NewContainerRequest(ContainerID=f"c{id}", Mounts=mounts))
                async with build.bridge.stream("ExecProcess") as call:
                    look = init("p", "sh", "-c", "cat /etc/motd 2>/dev/null; true")
                    look.Init.ContainerID = f"c{id}"
                    await call.send(look)
                    out, ended = await outcome(call, "p")
                    assert ended.Code == 0
                    assert out == wanted
            await build.returns()

    asyncio.run(run())


def solve_detail(error: GrpcError) -> Any:
    return next(d.json() for d in error.details if d.name == "errdefs.Solve")


async def content(build: Any, id: str, path: str) -> bytes:
    return bytes((await build.bridge.unary("ReadFile", pb.ReadFileRequest(Ref=id, FilePath=path))).Data)


def three_files() -> State:
    return scratch().file(mkdir("/found", 0o700).mkfile("/found/foo", b"here", 0o600).mkfile("/notfound/foo", b"here"))


def copied() -> State:
    return scratch().mkfile("/base", b"old").file(copy(scratch().mkfile("/bar", b"here"), "/bar", "/notfound/baz"))


def copied_of_an_action() -> State:
    made = mkdir("/foo", 0o700).mkfile("/foo/bar", b"here").on(scratch())
    return scratch().mkfile("/base", b"old").file(copy(made, "/foo/bar", "/notfound/baz"))


def owned_by_nobody() -> State:
    return scratch().file(mkfile("/base", b"old").mkfile("/x", b"", owner=Owner.parse("nobody-there")))


@pytest.mark.parametrize(
    ("state", "index", "inputs", "mounts", "seen"),
    [
        # What is seen where: (list of ids, number in it, path, content).
        (three_files, 2, 0, (False, False, True), [("mountIDs", 2, "/found/foo", b"here")]),
        (copied, 0, 2, (True,), [("inputIDs", 1, "/bar", b"here"), ("mountIDs", 0, "/base", b"old")]),
        (
            copied_of_an_action,
            2,
            1,
            (False, True, True),
            [("mountIDs", 1, "/foo/bar", b"here"), ("mountIDs", 2, "/base", b"old")],
        ),
        (owned_by_nobody, 1, 0, (True, True), [("mountIDs", 1, "/base", b"old")]),
    ],
)
def test_a_failed_file_action_can_be_looked_into(
    daemon: Chantierd, state: Any, index: int, inputs: int, mounts: tuple[bool, ...], seen: list[tuple[str, int, str, bytes]]
) -> None:
    async def run() -> None:
        async with driven(daemon) as build:
            detail = solve_detail(await refused(build.make(state().marshal(), evaluate=True)))
            assert int(detail["file"].get("index", 0)) == index
            assert len(detail.get("inputIDs", ())) == inputs
            assert tuple(bool(id) for id in detail["mountIDs"]) == mounts
            for kind, number, path, data in seen:
                assert await content(build, detail[kind][number], path) == data
            await build.returns()

    asyncio.run(run())


def test_a_missing_file_of_a_mount_can_be_looked_for(daemon: Chantierd) -> None:
    async def run() -> None:
        given = scratch().mkdir("/found").mkfile("/found/data", b"here")
        mount = Mount(target="/src", source=given, path="/notfound", readonly=True)
        failing = image("alpine").run(args=["true"], mounts=[mount]).root.marshal()
        async with driven(daemon) as build:
            error = await refused(build.make(failing, evaluate=True))
            assert '"/notfound": not found' in error.message
            detail = solve_detail(error)
            assert detail["op"]["exec"]["meta"]["args"] == ["true"]
            assert detail["cache"] == {"index": "1"}
            assert len(detail["inputIDs"]) == 1
            assert not detail.get("mountIDs")
            assert await content(build, detail["inputIDs"][0], "/found/data") == b"here"
            await build.returns()

    asyncio.run(run())


def test_what_failed_is_given_back_when_the_build_ends(start_daemon: Start) -> None:
    async def run() -> list[Any]:
        daemon = start_daemon()
        async with driven(daemon) as build:
            for state in (three_files, copied, copied_of_an_action):
                await refused(build.make(state().marshal(), evaluate=True))
            held = await build.control.unary("DiskUsage", control_pb2.DiskUsageRequest())
            assert held.record
            await build.returns()
        async with driven(daemon) as build:
            await build.returns()
            await read_all(build.control, "Prune", control_pb2.PruneRequest(all=True))
            return list((await build.control.unary("DiskUsage", control_pb2.DiskUsageRequest())).record)

    assert asyncio.run(run()) == []


def test_releasing_a_container_ends_the_processes_in_it(daemon: Chantierd) -> None:
    async def run() -> None:
        async with driven(daemon) as build:
            ref = await build.make(image("alpine").marshal())
            mounts = [ops_pb2.Mount(dest="/", resultID=ref)]
            await build.bridge.unary("NewContainer", pb.NewContainerRequest(ContainerID="c", Mounts=mounts))
            async with build.bridge.stream("ExecProcess") as call:
                await call.send(init("p", "sleep", "60"))
                assert (await call.read()).WhichOneof("Input") == "Started"
                # As the stock daemon answers when it had to stop something.
                error = await refused(build.bridge.unary("ReleaseContainer", pb.ReleaseContainerRequest(ContainerID="c")))
                assert (error.code, error.message) == (1, "context canceled")
                _, ended = await outcome(call, "p")
                assert ended.Error.message == "context canceled"
            await build.returns()

    asyncio.run(run())


def test_a_frontend_given_nothing_for_an_input_says_so(daemon: Chantierd) -> None:
    async def run() -> None:
        async with driven(daemon) as build:
            nothing = {name: ops_pb2.Definition() for name in ("context", "dockerfile")}
            error = await refused(build.bridge.unary("Solve", pb.SolveRequest(Frontend="dockerfile.v0", FrontendInputs=nothing)))
            assert "invalid nil input definition to definition op" in error.message
            await build.returns()

    asyncio.run(run())


def test_a_client_without_directories_needs_none(daemon: Chantierd) -> None:
    """A Dockerfile that copies nothing is built from an input alone: the client offers no context to look for an ignore file in."""

    async def run() -> None:
        async with driven(daemon) as build:
            text = scratch().mkfile("/Dockerfile", b"FROM scratch\n").marshal()
            asked = pb.SolveRequest(
                Frontend="dockerfile.v0",
                FrontendInputs={"dockerfile": text},
                FrontendOpt={"platform": "linux/amd64,linux/arm64"},
                allowResultReturn=True,
                allowResultArrayRef=True,
            )
            answer = await build.bridge.unary("Solve", asked)
            assert set(answer.result.refs.refs) == {"linux/amd64", "linux/arm64"}
            await build.returns()

    asyncio.run(run())


def test_mistakes_of_a_client_end_its_stream(daemon: Chantierd) -> None:
    async def fails(message: pb.ExecMessage, code: int) -> None:
        async with driven(daemon) as build:
            ref = await build.make(image("alpine").marshal())
            request = pb.NewContainerRequest(ContainerID="c", Mounts=[ops_pb2.Mount(dest="/", resultID=ref)])
            await build.bridge.unary("NewContainer", request)
            twice = await refused(build.bridge.unary("NewContainer", request))
            assert twice.code == 6
            async with build.bridge.stream("ExecProcess") as call:
                await call.send(message)
                error = await refused(call.read())
            assert error.code == code, error
            await build.returns()

    async def run() -> None:
        await fails(pb.ExecMessage(), 3)
        unknown = init("p", "true")
        unknown.Init.ContainerID = "other"
        await fails(unknown, 5)

    asyncio.run(run())


def test_a_process_that_may_not_be_is_told_as_one_that_failed(daemon: Chantierd) -> None:
    """Stock clients wait for their process: the end of the stream alone leaves them waiting."""

    async def run() -> None:
        async with driven(daemon) as build:
            ref = await build.make(image("alpine").marshal())
            mounts = [ops_pb2.Mount(dest="/", resultID=ref)]
            await build.bridge.unary("NewContainer", pb.NewContainerRequest(ContainerID="c", Mounts=mounts))
            async with build.bridge.stream("ExecProcess") as call:
                for mode, wanted in ((1, "security.insecure is not allowed"), (2, "invalid security mode 2")):
                    asked = init(f"p{mode}", "true")
                    asked.Init.Security = mode  # type: ignore[assignment]  # one of them is none
                    await call.send(asked)
                    _, ended = await outcome(call, f"p{mode}")
                    assert wanted in ended.Error.message
            request = pb.NewContainerRequest(ContainerID="h", Mounts=mounts, Network=ops_pb2.HOST)
            await build.bridge.unary("NewContainer", request)
            async with build.bridge.stream("ExecProcess") as call:
                asked = init("h1", "true")
                asked.Init.ContainerID = "h"
                await call.send(asked)
                _, ended = await outcome(call, "h1")
                assert "network.host is not allowed" in ended.Error.message
            await build.returns()

    asyncio.run(run())


def test_a_client_that_goes_takes_its_processes_along(daemon: Chantierd) -> None:
    command = mark()

    async def run() -> None:
        async with driven(daemon) as build:
            ref = await build.make(image("alpine").marshal())
            mounts = [ops_pb2.Mount(dest="/", resultID=ref)]
            await build.bridge.unary("NewContainer", pb.NewContainerRequest(ContainerID="c", Mounts=mounts))
            async with build.bridge.stream("ExecProcess") as call:
                await call.send(init("p", *command.split()))
                await call.read()
        await until_gone(command)

    asyncio.run(run())


def test_inputs_and_warnings(daemon: Chantierd) -> None:
    async def run() -> None:
        given = scratch().file(mkfile("/x", b"x")).marshal()
        async with driven(daemon, FrontendInputs={"in": given}) as build:
            inputs = await build.bridge.unary("Inputs", pb.InputsRequest())
            assert inputs.Definitions["in"] == given
            warning = pb.WarnRequest(
                digest="sha256:" + "0" * 64, level=1, short=b"careful", detail=[b"why"], url="https://x.test"
            )
            await build.bridge.unary("Warn", warning)
            await build.returns()
            found = [w for m in await build.status for w in m.warnings]
            assert [(w.short, list(w.detail), w.url) for w in found] == [(b"careful", [b"why"], "https://x.test")]

    asyncio.run(run())


def test_what_is_known_of_sources(daemon: Chantierd, tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@x.test"]
    run_ok("git", "init", "-q", "-b", "main", repository)
    (repository / "f").write_text("x")
    run_ok(*git, "add", "f")
    run_ok(*git, "commit", "-q", "-m", "first")
    run_ok(*git, "tag", "-a", "-m", "annotated", "v1")
    commit = run_ok(*git, "rev-parse", "main").strip()
    tag = run_ok(*git, "rev-parse", "v1").strip()

    async def run() -> None:
        async with driven(daemon) as build:

            async def meta(identifier: str, *, objects: bool = False, **attrs: str) -> Any:
                source = ops_pb2.SourceOp(identifier=identifier, attrs={key.replace("_", "."): v for key, v in attrs.items()})
                request = pb.ResolveSourceMetaRequest(Source=source)
                if objects:
                    request.Git.ReturnObject = True
                return await build.bridge.unary("ResolveSourceMeta", request, timeout_s=60)

            url = f"file://{repository}"
            branch = await meta("git://x.test/r#main", git_fullurl=url)
            assert (branch.Git.Checksum, branch.Git.Ref, branch.Git.CommitChecksum) == (commit, "refs/heads/main", "")
            annotated = await meta("git://x.test/r#v1", git_fullurl=url, objects=True)
            assert (annotated.Git.Checksum, annotated.Git.Ref, annotated.Git.CommitChecksum) == (tag, "refs/tags/v1", commit)
            assert annotated.Git.TagObject.startswith(f"object {commit}".encode())
            assert annotated.Git.CommitObject.startswith(b"tree ")
            served = await asyncio.start_server(_serve, "127.0.0.1", 0)
            port = served.sockets[0].getsockname()[1]
            file = await meta(f"http://127.0.0.1:{port}/some/name.txt")
            assert file.HTTP.Checksum == "sha256:" + hashlib.sha256(b"content").hexdigest()
            assert file.HTTP.Filename == "name.txt"
            assert file.HTTP.LastModified.ToSeconds() == 784111777
            served.close()
            await build.returns()

    asyncio.run(run())


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: close\r\n\r\n"
    )
    if not head.startswith(b"HEAD"):
        writer.write(b"content")
    await writer.drain()
    writer.close()
