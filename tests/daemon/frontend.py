# SPDX-License-Identifier: Apache-2.0
"""A frontend as an image holds it: what it is asked on standard streams, in a few lines. Put into an image by test_frontends."""

from __future__ import annotations

import asyncio
import os
import sys

from chantier.llb import from_definition, local
from chantier.pb import common_pb2, ops_pb2
from chantier.pb import gateway_pb2 as pb
from chantier.wire import Channel, Stub


class Streams:
    async def read(self) -> bytes:
        return await asyncio.to_thread(os.read, 0, 65536)

    async def write(self, data: bytes) -> None:
        def work() -> None:
            left = data
            while left:
                left = left[os.write(1, left) :]

        await asyncio.to_thread(work)

    async def close(self) -> None:
        return None


def options() -> dict[str, str]:
    given = [value for key, value in os.environ.items() if key.startswith("BUILDKIT_FRONTEND_OPT_")]
    return dict(text.partition("=")[::2] for text in given)


async def serve(bridge: Stub, opts: dict[str, str]) -> pb.ReturnRequest:
    with open("/run/config/buildkit/metadata/frontend.bin", "rb") as file:
        own = ops_pb2.Definition.FromString(file.read())
    pong = await bridge.unary("Ping", pb.PingRequest())
    inputs = (await bridge.unary("Inputs", pb.InputsRequest())).Definitions
    if "input" in inputs:
        base = from_definition(inputs["input"])
    else:
        read = local("dockerfile", follow=["Dockerfile"], session=os.environ["BUILDKIT_SESSION_ID"]).marshal()
        request = pb.SolveRequest(Definition=read, allowResultReturn=True, allowResultArrayRef=True)
        solved = await bridge.unary("Solve", request)
        text = await bridge.unary("ReadFile", pb.ReadFileRequest(Ref=solved.result.ref.id, FilePath="Dockerfile"))
        base = from_definition(ops_pb2.Definition()).mkfile("/Dockerfile", text.Data)
    told = "\n".join([*(f"{k}={v}" for k, v in sorted(opts.items())), f"caps={len(pong.LLBCaps)}", f"argv={sys.argv[1:]}"])
    if "fail" in opts.get("build-arg:MODE", ""):
        return pb.ReturnRequest(error=common_pb2.Status(code=2, message="the frontend does not like it"))
    if "exit" in opts.get("build-arg:MODE", ""):
        sys.stderr.write("giving up\n")
        sys.stderr.flush()
        os._exit(5)
    state = base.mkfile("/told", told.encode()).mkfile("/own", str(len(own.SerializeToString())).encode())
    request = pb.SolveRequest(Definition=state.marshal(), allowResultReturn=True, allowResultArrayRef=True)
    solved = await bridge.unary("Solve", request)
    return pb.ReturnRequest(result=solved.result)


async def main() -> None:
    async def connect() -> Streams:
        return Streams()

    async with Channel.over(connect, name="the daemon") as channel:
        bridge = Stub(channel, "moby.buildkit.v1.frontend.LLBBridge")
        await bridge.unary("Return", await serve(bridge, options()))
    os._exit(0)  # a thread may still wait on standard input


asyncio.run(main())
