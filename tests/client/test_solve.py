# SPDX-License-Identifier: Apache-2.0
"""Driving one build on a daemon: who is asked what, in which order, and what becomes of every way it can end.

The daemon is a real server with our wire; its answers are written down here, after protocol.md 0.1, 1.5 and 3.1.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chantier.client.call import CacheSpec, SolveCall
from chantier.client.solve import BRIDGE, CONTROL, Answer, Solving
from chantier.errors import UnsupportedError
from chantier.pb import control_pb2 as control
from chantier.pb import gateway_pb2 as pb
from chantier.progress import Recorder, Vertex
from chantier.wire import Channel, GrpcError, Server, ServerCall, Service, json_detail

_UNKNOWN, _NOT_FOUND, _CANCELLED = 2, 5, 1


@dataclass
class Daemon:
    """What a daemon does of one build: Solve waits for Return, Status tells events until Solve is over."""

    caps: tuple[str, ...] = ("exporter.multiple",)
    frontend: GrpcError | pb.Result | None = None  # what the frontend's Solve comes to; None: it never ends
    refused: GrpcError | None = None  # Solve's own answer, before anything is driven
    events: list[control.StatusResponse] = field(default_factory=list)
    after: list[control.StatusResponse] = field(default_factory=list)  # told once Solve has answered
    asked: list[tuple[str, Any]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    driven: asyncio.Event = field(default_factory=asyncio.Event)  # the frontend was asked
    returned: asyncio.Future[pb.ReturnRequest] | None = None
    cancelled: bool = False

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]

    def request(self, name: str) -> Any:
        (found,) = (request for asked, request in self.asked if asked == name)
        return found

    async def solve(self, request: control.SolveRequest, call: ServerCall) -> control.SolveResponse:
        self.asked.append(("Solve", request))
        try:
            if self.refused is not None:
                raise self.refused
            self.returned = asyncio.get_running_loop().create_future()
            done = await self.returned
            if done.HasField("error"):
                raise GrpcError(done.error.code, done.error.message)
            return control.SolveResponse(ExporterResponse={"containerimage.digest": "sha256:d"})
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.ended.set()

    async def status(self, request: control.StatusRequest, call: ServerCall) -> None:
        self.asked.append(("Status", request))
        for event in self.events:
            await call.send(event)
        await self.ended.wait()
        for event in self.after:
            await call.send(event)

    async def ping(self, request: pb.PingRequest, call: ServerCall) -> pb.PongResponse:
        self.asked.append(("Ping", call.metadata.text("buildkit-controlapi-buildid")))
        answer = pb.PongResponse()
        for name in self.caps:
            answer.LLBCaps.add(ID=name, Enabled=True)
        return answer

    async def frontend_solve(self, request: pb.SolveRequest, call: ServerCall) -> pb.SolveResponse:
        self.asked.append(("frontend", request))
        self.driven.set()
        if isinstance(self.frontend, GrpcError):
            raise self.frontend
        if self.frontend is None:
            await asyncio.Event().wait()
        return pb.SolveResponse(result=self.frontend)

    async def give(self, request: pb.ReturnRequest, call: ServerCall) -> pb.ReturnResponse:
        self.asked.append(("Return", request))
        assert self.returned is not None
        self.returned.set_result(request)
        return pb.ReturnResponse()

    def services(self) -> list[Service]:
        return [
            Service(CONTROL, {"Solve": self.solve, "Status": self.status}),
            Service(BRIDGE, {"Ping": self.ping, "Solve": self.frontend_solve, "Return": self.give}),
        ]


@asynccontextmanager
async def served(path: Path, daemon: Daemon) -> AsyncIterator[Channel]:
    server = Server(daemon.services())
    await server.listen(f"unix://{path}/s")
    channel = Channel.unix(f"{path}/s")
    try:
        yield channel
    finally:
        await channel.close()
        await server.close(0.5)


def ran(path: Path, daemon: Daemon, call: SolveCall, recorder: Recorder | None = None, **more: Any) -> Answer:
    async def run() -> Answer:
        async with served(path, daemon) as channel:
            return await asyncio.wait_for(Solving(channel, call, "session", recorder or Recorder(), **more).run(), 60)

    return asyncio.run(run())


def called(**more: Any) -> SolveCall:
    return SolveCall(ref="build", attrs={"target": "x"}, **more)


def vertex(digest: str) -> control.StatusResponse:
    made = control.StatusResponse()
    made.vertexes.add(digest=digest, name=digest).started.FromNanoseconds(1)
    return made


def result() -> pb.Result:
    made = pb.Result(metadata={"containerimage.config": b"{}"})
    made.ref.id = "r"
    return made


def test_a_build_that_goes_well(tmp_path: Path) -> None:
    daemon = Daemon(frontend=result(), events=[vertex("sha256:a")], after=[vertex("sha256:b")])
    recorder = Recorder()
    imports = (CacheSpec(type="registry", attrs={"ref": "r/c"}),)
    exporters: tuple[tuple[str, dict[str, str]], ...] = (("image", {"name": "n"}), ("oci", {}))
    answer = ran(tmp_path, daemon, called(exporters=exporters, cache_imports=imports, entitlements=("network.host",)), recorder)
    assert answer.response == {"containerimage.digest": "sha256:d"}
    assert answer.metadata == {"containerimage.config": b"{}"}

    solve = daemon.request("Solve")
    assert (solve.Ref, solve.Session, solve.Frontend, list(solve.Entitlements)) == ("build", "session", "", ["network.host"])
    assert not solve.HasField("Definition")
    assert dict(solve.FrontendAttrs) == {"target": "x"}
    assert [(one.Type, dict(one.Attrs)) for one in solve.Exporters] == [("image", {"name": "n"}), ("oci", {})]
    # Daemons before v0.13 read these.
    assert (solve.ExporterDeprecated, dict(solve.ExporterAttrsDeprecated)) == ("image", {"name": "n"})
    assert daemon.request("Status").Ref == "build"

    assert daemon.request("Ping") == "build"  # the calls of the bridge name their build
    asked = daemon.request("frontend")
    assert asked.Frontend == "dockerfile.v0" and asked.allowResultReturn and asked.allowResultArrayRef and not asked.Evaluate
    assert asked.FrontendOpt["target"] == "x"
    assert json.loads(asked.FrontendOpt["cache-imports"]) == [{"Type": "registry", "Attrs": {"ref": "r/c"}}]
    assert daemon.request("Return").result.ref.id == "r"
    # The last events count: they come when Solve has answered.
    assert [event.digest for event in recorder.events if isinstance(event, Vertex)] == ["sha256:a", "sha256:b"]


def test_the_error_of_the_frontend_is_returned_with_its_details(tmp_path: Path) -> None:
    detail = json_detail("errdefs.Source", {"info": {"filename": "Dockerfile"}})
    daemon = Daemon(frontend=GrpcError(_NOT_FOUND, "no such stage", [detail]))
    with pytest.raises(GrpcError, match="no such stage"):
        ran(tmp_path, daemon, called())
    assert daemon.names().count("Return") == 1  # exactly once, also of a failure
    returned = daemon.request("Return").error
    assert (returned.code, returned.message) == (_NOT_FOUND, "no such stage")
    assert [(d.type_url, d.value) for d in returned.details] == [(detail.type_url, detail.value)]


def test_a_daemon_that_refuses_is_believed(tmp_path: Path) -> None:
    """Solve fails before anything is driven: that is the build's error, not what comes of driving it further."""
    daemon = Daemon(refused=GrpcError(_UNKNOWN, "the daemon is shutting down"))
    with pytest.raises(GrpcError, match="the daemon is shutting down"):
        ran(tmp_path, daemon, called())
    assert "Return" not in daemon.names()


def test_several_outputs_need_a_daemon_that_can(tmp_path: Path) -> None:
    daemon = Daemon(caps=(), frontend=result())
    with pytest.raises((UnsupportedError, GrpcError), match="multiple outputs currently unsupported"):
        ran(tmp_path, daemon, called(exporters=(("image", {}), ("oci", {}))))
    assert "frontend" not in daemon.names()
    assert "multiple outputs" in daemon.request("Return").error.message  # the daemon does not wait for a result
    one = Daemon(caps=(), frontend=result())
    assert ran(tmp_path, one, called(exporters=(("image", {}),))).response


def test_an_empty_result_is_returned_as_one(tmp_path: Path) -> None:
    daemon = Daemon(frontend=pb.Result(metadata={"result.json": b"[]"}))
    assert ran(tmp_path, daemon, called()).metadata == {"result.json": b"[]"}
    assert daemon.request("Return").result.WhichOneof("result") == "ref"


def test_conversion_keeps_the_graphs_and_makes_nothing(tmp_path: Path) -> None:
    given = pb.Result()
    for platform in ("linux/amd64", "linux/arm64"):
        getattr(given.refs.refs[platform], "def").metadata[platform].SetInParent()
    daemon = Daemon(frontend=given)
    answer = ran(tmp_path, daemon, called(), convert=True)
    assert {name: list(found.metadata) for name, found in answer.definitions.items()} == {
        "linux/amd64": ["linux/amd64"],
        "linux/arm64": ["linux/arm64"],
    }
    returned = daemon.request("Return").result
    assert (returned.WhichOneof("result"), returned.ref.id) == ("ref", "")


def test_cancelling_cancels_the_daemons_build(tmp_path: Path) -> None:
    daemon = Daemon()

    async def run() -> None:
        async with served(tmp_path, daemon) as channel:
            build = asyncio.create_task(Solving(channel, called(), "session", Recorder()).run())
            await asyncio.wait_for(daemon.driven.wait(), 60)
            build.cancel()
            with pytest.raises(asyncio.CancelledError):
                await build
            await asyncio.wait_for(daemon.ended.wait(), 60)

    asyncio.run(run())
    assert daemon.cancelled
    assert "Return" not in daemon.names()
