# SPDX-License-Identifier: Apache-2.0
"""What a file costs through the session's tunnel, both ends ours: `python bench/session.py [--files 20000] [--bytes 800]`.

Two processes over a unix socket, files in memory. `first` makes every file, `again` compares them, `wire` takes the same
packets without touching the disk. CPU is that of the daemon's half.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from chantier.cache.file_digest import small_digest
from chantier.session.fsutil import Packet
from chantier.session.local import LocalSession
from chantier.session.remote import RemoteSession, Sessions
from chantier.session.serve import Offered, attach
from chantier.session.types import FilesRequest
from chantier.wire import Channel, Server, Service

T = TypeVar("T")
_CONTROL = "moby.buildkit.v1.Control"
_FILES = "/moby.filesync.v1.FileSync/DiffCopy"


async def offer(source: Path, place: Path, id: str) -> None:
    session = LocalSession(directories={"context": source})
    session.id = id
    async with attach(Channel.unix(f"{place}/s"), Offered(session)) as attached:
        await attached.lost


async def measure(what: str, count: int, work: Awaitable[T]) -> T:
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    done = await work
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what:6} {wall / count * 1e6:7.1f} us a file, {cpu / count * 1e6:6.1f} us of CPU")
    return done


async def bare(session: RemoteSession, count: int) -> None:
    async with session.channel.stream(_FILES, Packet, metadata={"dir-name": "context"}) as call:
        id = done = 0
        while packets := await call.read_many():
            for packet in packets:
                if packet.type == Packet.PACKET_STAT and packet.HasField("stat"):
                    if not packet.stat.mode >> 31:
                        call.send_nowait(Packet(type=Packet.PACKET_REQ, ID=id))
                    id += 1
                elif packet.type == Packet.PACKET_DATA and not packet.data:
                    done += 1
                    if done == count:
                        call.send_nowait(Packet(type=Packet.PACKET_FIN))


async def main(count: int, size: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        place = Path(name)
        source, into = place / "source", place / "into"
        into.mkdir()
        for n in range(count):
            path = source / f"d{n // 200}/f{n}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(size))
        sessions = Sessions()
        server = Server([Service(_CONTROL, {"Session": sessions.handle})])
        await server.listen(f"unix://{place}/s")
        client = subprocess.Popen([sys.executable, __file__, "--offer", str(source), str(place), "bench"])
        session = await sessions.get("bench", timeout_s=30)
        index: bytes | None = None
        for what in ("first", "again"):
            work = session.follow(FilesRequest(name="context"), into, index, digest=small_digest, changing=lambda: None)
            index = (await measure(what, count, work)).index
        await measure("wire", count, bare(session, count))
        await server.close(0)
        client.wait(10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=800)
    parser.add_argument("--offer", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.offer:
        asyncio.run(offer(Path(args.offer[0]), Path(args.offer[1]), args.offer[2]))
    else:
        asyncio.run(main(args.files, args.bytes))
