# SPDX-License-Identifier: Apache-2.0
"""Control and Content: builds, their status for early and late listeners, history, the cache, the worker."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from chantier.display.trace import read_spans
from chantier.llb import Mount, image, scratch
from chantier.pb import content_pb2, health_pb2, trace_pb2
from chantier.pb import control_pb2 as pb
from chantier.spec import new_id
from chantier.wire import GrpcError, Stub

from ..conftest import RealRegistry, run_ok
from .conftest import CONTENT, CONTROL, Chantierd, Start, driven, mark, read_all, until_gone

pytestmark = [pytest.mark.root, pytest.mark.runc, pytest.mark.registry]


def logged(text: str) -> Any:
    return image("alpine").run(args=["/bin/sh", "-c", f"echo {text}; echo err >&2"]).root.marshal()


async def solve(daemon: Chantierd, ref: str, **more: Any) -> Any:
    async with daemon.client() as channel:
        return await Stub(channel, CONTROL).unary("Solve", pb.SolveRequest(Ref=ref, **more), timeout_s=60)


async def status(daemon: Chantierd, ref: str) -> list[Any]:
    async with daemon.client() as channel:
        return await read_all(Stub(channel, CONTROL), "Status", pb.StatusRequest(Ref=ref))


async def history(daemon: Chantierd, **more: Any) -> list[Any]:
    async with daemon.client() as channel:
        return await read_all(Stub(channel, CONTROL), "ListenBuildHistory", pb.BuildHistoryRequest(EarlyExit=True, **more))


async def blob(daemon: Chantierd, digest: str, **more: Any) -> bytes:
    async with daemon.client() as channel:
        found = await read_all(Stub(channel, CONTENT), "Read", content_pb2.ReadContentRequest(digest=digest, **more))
    return b"".join(message.data for message in found)


async def refused(work: Any) -> GrpcError:
    with pytest.raises(GrpcError) as caught:
        await work
    return caught.value


def test_a_listener_of_an_internal_build_may_come_when_it_has_ended(daemon: Chantierd) -> None:
    """Stock clients ask for the status beside Solve; what they probe a daemon with takes milliseconds, and is in no history."""

    async def run() -> None:
        ref = new_id()
        await solve(daemon, ref, Definition=logged("a probe"), Internal=True)
        found = await status(daemon, ref)
        assert any(log.msg == b"a probe\n" for message in found for log in message.logs)

    asyncio.run(run())


def test_a_listener_may_come_before_during_and_after(daemon: Chantierd) -> None:
    async def run() -> None:
        ref = new_id()
        early = asyncio.create_task(status(daemon, ref))
        await asyncio.sleep(0.2)
        await solve(daemon, ref, Definition=logged("words"))
        first = await early
        late = await status(daemon, ref)
        assert first == late
        vertices = [v for m in first for v in m.vertexes]
        digest = next(v.digest for v in vertices if "echo words" in v.name)
        out = b"".join(entry.msg for m in first for entry in m.logs if entry.vertex == digest and entry.stream == 1)
        assert out == b"words\n"
        seen: set[str] = set()
        for message in first:
            seen |= {v.digest for v in message.vertexes}
            assert {s.vertex for s in message.statuses} | {entry.vertex for entry in message.logs} <= seen
        open_ones = {v.digest for v in vertices if v.HasField("started")} - {
            v.digest for v in vertices if v.HasField("completed")
        }
        assert not open_ones

    asyncio.run(run())


def test_the_log_in_history_is_whole_and_readable(daemon: Chantierd) -> None:
    async def run() -> None:
        ref = new_id()
        big = image("alpine").run(args=["/bin/sh", "-c", "yes 0123456789abcdef | head -n 300000"]).root.marshal()
        await solve(daemon, ref, Definition=big)
        shown = sum(len(entry.msg) for m in await status(daemon, ref) for entry in m.logs)
        assert shown < 3 << 20
        record = (await history(daemon, Ref=ref))[0].record
        data = await blob(daemon, record.logs.digest)
        assert len(data) == record.logs.size
        kept, at = 0, 0
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            message = pb.StatusResponse.FromString(data[at + 4 : at + 4 + length])
            kept += sum(len(entry.msg) for entry in message.logs)
            at += 4 + length
        assert kept == 17 * 300000

    asyncio.run(run())


def test_history_tells_how_builds_ended(daemon: Chantierd) -> None:
    async def run() -> None:
        good, bad, hidden = new_id(), new_id(), new_id()
        await solve(daemon, good, Definition=logged("one"))
        failing = image("alpine").run(args=["/bin/false"]).root.marshal()
        error = await refused(solve(daemon, bad, Definition=failing))
        await solve(daemon, hidden, Definition=logged("one"), Internal=True)
        records = {e.record.Ref: e.record for e in await history(daemon)}
        assert hidden not in records
        assert not records[good].HasField("error")
        assert records[good].numCachedSteps < records[good].numTotalSteps == records[good].numCompletedSteps
        assert records[bad].error.message == error.message
        assert records[bad].externalError.size == len(await blob(daemon, records[bad].externalError.digest))
        only = await history(daemon, Filter=["status==error,ref==" + bad])
        assert [e.record.Ref for e in only] == [bad]
        newest = await history(daemon, Limit=1)
        assert [e.record.Ref for e in newest] == [bad]
        assert not await history(daemon, Filter=["startedAt>1h"])
        unknown = new_id()
        missing = await refused(status(daemon, unknown))
        assert (missing.code, missing.message) == (5, f"no such job {unknown}")

    asyncio.run(run())


def test_records_are_pinned_and_deleted(daemon: Chantierd) -> None:
    async def run() -> None:
        ref = new_id()
        await solve(daemon, ref, Definition=logged("two"))
        record = (await history(daemon, Ref=ref))[0].record
        async with daemon.client() as channel:
            control, content = Stub(channel, CONTROL), Stub(channel, CONTENT)
            listening = control.stream("ListenBuildHistory")
            async with listening as call:
                await call.send(pb.BuildHistoryRequest(Ref=ref))
                call.close_send()
                assert (await call.read()).type == pb.COMPLETE
                await control.unary("UpdateBuildHistory", pb.UpdateBuildHistoryRequest(Ref=ref, Pinned=True))
                assert (await call.read()).record.pinned
                await control.unary("UpdateBuildHistory", pb.UpdateBuildHistoryRequest(Ref=ref, Delete=True))
                assert (await call.read()).type == pb.DELETED
                assert (await refused(call.read())).message == f"ref {ref} is deleted"
            gone = await refused(content.unary("Info", content_pb2.InfoRequest(digest=record.logs.digest)))
            assert gone.code == 5
        assert not await history(daemon, Ref=ref)

    asyncio.run(run())


def test_a_trace_is_there_once_it_is_asked_for(daemon: Chantierd) -> None:
    async def run() -> None:
        ref = new_id()
        await solve(daemon, ref, Definition=logged("traced"))
        async with daemon.client() as channel:
            control, content = Stub(channel, CONTROL), Stub(channel, CONTENT)
            for asked in (ref, ref, "no-such-build"):  # what cannot be made is nothing to be told of
                await control.unary("UpdateBuildHistory", pb.UpdateBuildHistoryRequest(Ref=asked, Finalize=True))
            (mine,) = [event.record for event in await history(daemon) if event.record.Ref == ref]
            assert mine.trace.media_type == "application/vnd.buildkit.otlp.json.v0"
            data = b"".join(
                m.data for m in await read_all(content, "Read", content_pb2.ReadContentRequest(digest=mine.trace.digest))
            )
            assert len(data) == mine.trace.size
            spans = read_spans(data)
            assert spans[0]["Name"] == "build graph"
            assert any(span["Name"].startswith("/bin/sh -c echo traced") for span in spans)
            assert {one["Value"]["Value"] for span in spans[1:] for one in span["Attributes"] if one["Key"] == "vertex"}
        other = new_id()
        await solve(daemon, other, Definition=logged("not asked"))
        assert (await history(daemon, Ref=other))[0].record.trace.digest  # clients that do not ask look for it by name

    asyncio.run(run())


def test_a_build_that_runs_has_no_trace(daemon: Chantierd) -> None:
    async def run() -> None:
        async with driven(daemon) as build:
            await build.make(logged("runs"), evaluate=True)
            await build.control.unary("UpdateBuildHistory", pb.UpdateBuildHistoryRequest(Ref=build.ref, Finalize=True))
            (mine,) = await history(daemon, Ref=build.ref)
            assert mine.type == pb.STARTED
            assert not mine.record.trace.digest
            await build.returns()

    asyncio.run(run())


def test_buildx_probes_history(daemon: Chantierd) -> None:
    assert asyncio.run(history(daemon, ActiveOnly=True, Ref="buildx-test-history-api-feature")) == []


def test_requests_that_cannot_be_meant_fail_at_once(daemon: Chantierd) -> None:
    async def run() -> None:
        unknown = await refused(solve(daemon, new_id(), Exporters=[pb.Exporter(Type="nope")]))
        assert unknown.message == 'exporter "nope" could not be found'
        both = await refused(solve(daemon, new_id(), Definition=logged("x"), Frontend="dockerfile.v0"))
        assert both.message == "cannot solve with both Definition and Frontend specified"
        proxied = await refused(solve(daemon, new_id(), Definition=logged("x"), ProxyNetwork=True))
        assert "not supported by this engine" in proxied.message
        frontend = await refused(solve(daemon, new_id(), Frontend="nope.v0"))
        assert frontend.message == "invalid frontend: nope.v0"
        entitlement = await refused(solve(daemon, new_id(), Entitlements=["network.host"]))
        assert entitlement.message == "granting entitlement network.host is not allowed by build daemon configuration"
        async with driven(daemon) as build:
            await build.make(scratch().mkdir("/x").marshal())
            twice = await refused(solve(daemon, build.ref))
            assert twice.message == f"job ID {build.ref} exists"
            await build.returns()

    asyncio.run(run())


def test_an_error_points_at_its_source(daemon: Chantierd) -> None:
    async def run() -> None:
        definition = image("alpine").run(args=["/bin/false"]).root.marshal()
        from chantier.llb import load

        graph = load(definition)
        failing = next(digest for digest, vertex in graph.vertices.items() if vertex.op.HasField("exec"))
        info = definition.Source.infos.add(filename="Dockerfile", data=b"FROM alpine\nRUN false\n", language="Dockerfile")
        assert info.filename
        place = definition.Source.locations[failing].locations.add(sourceIndex=0).ranges.add()
        place.start.line = place.end.line = 2
        error = await refused(solve(daemon, new_id(), Definition=definition))
        details = {detail.name: detail.json() for detail in error.details}
        assert details["errdefs.Source"]["info"]["filename"] == "Dockerfile"
        assert details["errdefs.Source"]["ranges"] == [{"start": {"line": 2}, "end": {"line": 2}}]
        assert details["errdefs.Vertex"]["digest"] == failing
        assert details["gatewayapi.ExitMessage"] == {"Code": 1}
        assert "errdefs.Solve" not in details
        # Where in the daemon it was raised, for `buildctl --debug`.
        frames = details["stack.Stack"]["frames"]
        assert any(frame["Name"].startswith("chantier.") for frame in frames)
        assert all(Path(frame["File"]).is_file() and frame["Line"] for frame in frames if frame["Name"].startswith("chantier."))

    asyncio.run(run())


def test_a_client_that_cancels_stops_its_step(daemon: Chantierd) -> None:
    command = mark()

    async def run() -> None:
        ref = new_id()
        sleeping = image("alpine").run(args=["/bin/sh", "-c", f"echo started; {command}"]).root.marshal()
        task = asyncio.create_task(solve(daemon, ref, Definition=sleeping))
        async with daemon.client() as channel, Stub(channel, CONTROL).stream("Status") as call:
            await call.send(pb.StatusRequest(Ref=ref))
            call.close_send()
            async for message in call:
                if any(entry.msg == b"started\n" for entry in message.logs):
                    break
        task.cancel()
        await until_gone(command)
        while not (record := (await history(daemon, Ref=ref))[0].record).HasField("CompletedAt"):
            await asyncio.sleep(0.05)
        assert record.error.message == "context canceled"
        ends = [v for m in await status(daemon, ref) for v in m.vertexes if command in v.name]
        assert ends[-1].error.endswith("context canceled")

    asyncio.run(run())


def test_everything_can_be_released(start_daemon: Any) -> None:
    """What BuildKit's own tests ask after each case: no history, nothing in use, nothing stored."""
    daemon = start_daemon("[worker.oci]\ngc = false")

    async def run() -> None:
        await solve(daemon, new_id(), Definition=logged("three"))
        async with driven(daemon) as build:
            ref = await build.make(logged("four"), evaluate=True)
            await build.returns(ref)
        async with daemon.client() as channel:
            control, content = Stub(channel, CONTROL), Stub(channel, CONTENT)
            for event in await history(daemon):
                await control.unary("UpdateBuildHistory", pb.UpdateBuildHistoryRequest(Ref=event.record.Ref, Delete=True))
            usage = await control.unary("DiskUsage", pb.DiskUsageRequest())
            assert usage.record
            assert not [r.ID for r in usage.record if r.InUse]
            assert sum(r.Size for r in usage.record) > 1 << 20
            gone = await read_all(control, "Prune", pb.PruneRequest(all=True))
            assert {r.ID for r in gone} == {r.ID for r in usage.record}
            assert not (await control.unary("DiskUsage", pb.DiskUsageRequest())).record
            left = [info.digest for m in await read_all(content, "List", content_pb2.ListContentRequest()) for info in m.info]
            assert not left

    asyncio.run(run())


def test_content_is_read_in_parts_and_never_written(daemon: Chantierd) -> None:
    async def run() -> None:
        ref = new_id()
        await solve(daemon, ref, Definition=logged("five"))
        digest = (await history(daemon, Ref=ref))[0].record.logs.digest
        whole = await blob(daemon, digest)
        assert await blob(daemon, digest, offset=4, size=10) == whole[4:14]
        assert (await refused(blob(daemon, digest, offset=len(whole) + 1))).code == 11
        assert (await refused(blob(daemon, "nonsense"))).code == 3
        async with daemon.client() as channel:
            content = Stub(channel, CONTENT)
            refusal = await refused(content.unary("Delete", content_pb2.DeleteContentRequest(digest=digest)))
            assert refusal.message == "read-only content store"

    asyncio.run(run())


def test_what_is_said_of_the_worker(daemon: Chantierd) -> None:
    async def run() -> None:
        async with daemon.client() as channel:
            control = Stub(channel, CONTROL)
            (worker,) = (await control.unary("ListWorkers", pb.ListWorkersRequest())).record
            assert worker.Labels["org.mobyproject.buildkit.worker.executor"] == "oci"
            assert worker.BuildkitVersion.dockerfileVersion
            assert worker.GCPolicy
            none = await control.unary("ListWorkers", pb.ListWorkersRequest(filter=["id==other"]))
            assert not none.record
            label = 'labels."org.mobyproject.buildkit.worker.executor"==oci'
            assert (await control.unary("ListWorkers", pb.ListWorkersRequest(filter=[label]))).record
            info = await control.unary("Info", pb.InfoRequest())
            assert info.buildkitVersion.version.startswith("v")
            health = Stub(channel, "grpc.health.v1.Health")
            assert (await health.unary("Check", health_pb2.HealthCheckRequest())).status == 1
            traces = Stub(channel, "opentelemetry.proto.collector.trace.v1.TraceService")
            await traces.unary("Export", trace_pb2.ExportTraceServiceRequest(resource_spans=[b"x"]))

    asyncio.run(run())


def test_an_inline_cache_is_exported_as_it_was_imported(start_daemon: Start, registry: RealRegistry) -> None:
    """Keys of what was taken from a cache are those that it had: the same image again, to the byte."""
    first = image("alpine").run(args=["sh", "-c", "echo -n foobar > const"], cwd="/wd", mounts=[Mount(target="/wd")])
    unique = ["sh", "-c", "head -c 100 /dev/urandom | sha256sum > unique"]
    definition = image("alpine").run(args=unique, cwd="/wd", mounts=[Mount(target="/wd", source=first.mount("/wd"))]).mount("/wd")
    name = f"{registry.host}/cache/inline-mount:1"
    inline = [pb.CacheOptionsEntry(Type="inline")]
    imported = [pb.CacheOptionsEntry(Type="registry", Attrs={"ref": name})]
    export = [pb.Exporter(Type="image", Attrs={"name": name, "push": "true"})]

    async def run(daemon: Chantierd, **cache: Any) -> tuple[str, Any]:
        ref = new_id()
        options = pb.CacheOptions(Exports=inline, **cache)
        answer = await solve(daemon, ref, Definition=definition.marshal(), Exporters=export, Cache=options)
        found = json.loads(run_ok("skopeo", "inspect", "--config", "--raw", "--tls-verify=false", f"docker://{name}"))
        return answer.ExporterResponse["containerimage.digest"], json.loads(base64.b64decode(found["moby.buildkit.cache.v0"]))

    digest, keys = asyncio.run(run(start_daemon(name="one")))
    again, keys_again = asyncio.run(run(start_daemon(name="two"), Imports=imported))
    assert keys_again == keys
    assert again == digest
