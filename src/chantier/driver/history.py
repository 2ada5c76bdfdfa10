# SPDX-License-Identifier: Apache-2.0
"""The history of a builder elsewhere, asked as the history of a root on this machine is (`engine.history.History`).

A builder of several nodes has the builds of all of them; what is asked of one build goes to the node that knows it.
"""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from chantier.client import history
from chantier.errors import UnsupportedError, UsageError
from chantier.progress import Event, Silent
from chantier.record import RUNNING, TRACE_TYPE, BuildRecord, choose, load_record
from chantier.values import asdict

if TYPE_CHECKING:
    from chantier.client.client import Client

    from .builder import Builder
    from .node import Driver

T = TypeVar("T")


class RemoteHistory:
    """Sync; opens its connections for each question."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

    def records(self) -> list[BuildRecord]:
        """Newest first."""
        return self._run(self._records)

    def get(self, ref: str = "") -> BuildRecord:
        """As `record.choose`; from chantierd with all that its engine knows. Raises NotFoundError, UsageError."""

        async def ask() -> BuildRecord:
            record = choose(await self._records(), ref)
            return await self._of(record.ref, lambda client: _whole(client, record))

        return self._run(ask)

    def events(self, ref: str) -> Iterator[Event]:
        """All that a build said; of one that runs, until it ends."""

        async def read(client: Client) -> list[Event]:
            return [event async for event in history.events(client, ref)]

        yield from self._run(lambda: self._of(ref, read))

    def blob(self, ref: str, digest: str) -> bytes:
        """The bytes of an attachment. Raises NotFoundError."""
        return self._run(lambda: self._of(ref, lambda client: _blob(client, digest)))

    def trace(self, ref: str = "") -> BuildRecord:
        """The record of a build with its trace, where the daemon keeps one. Raises NotFoundError, UsageError for one that runs."""
        record = self.get(ref)
        if record.status == RUNNING:
            raise UsageError(f"build {record.ref} has no trace yet: it is running")
        if record.attached(TRACE_TYPE) is None:
            self._run(lambda: self._of(record.ref, lambda client: history.finalize(client, record.ref)))
            record = self._soon(record.ref)
        return record

    def _soon(self, ref: str) -> BuildRecord:
        """A stock daemon answers before it has written what was asked for."""
        for wait_s in (0.1, 0.2, 0.4, 0.8, 1.6, 0.0):
            record = self.get(ref)
            if record.attached(TRACE_TYPE) is not None or not wait_s:
                break
            time.sleep(wait_s)
        return record

    def remove(self, ref: str) -> None:
        found = self.get(ref).ref
        self._run(lambda: self._of(found, lambda client: history.remove(client, found)))

    def export(self, refs: Sequence[str], out: BinaryIO) -> None:
        """A tar.gz of these builds, as the history of a root takes it in."""
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            for wanted in refs:
                record = self.get(wanted)
                if record.status == RUNNING:
                    raise UsageError(f"cannot export build {record.ref}: it is running")
                _add(tar, f"{record.ref}/record.json", json.dumps(asdict(record), separators=(",", ":")).encode())
                for one in record.attachments:
                    data = self.blob(record.ref, one.digest)
                    _add(tar, f"{record.ref}/blobs/{one.digest.removeprefix('sha256:')}", data)

    def import_(self, source: BinaryIO) -> list[str]:
        raise UnsupportedError(
            "builds cannot be imported into the history of a daemon", hint="import them into a root: --builder embedded"
        )

    # Inside

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def main() -> T:
            try:
                return await work()
            finally:
                await self._builder.aclose()

        return asyncio.run(main())

    async def _records(self) -> list[BuildRecord]:
        found: list[BuildRecord] = []
        for driver in self._builder.drivers:
            async with self._client(driver) as client:
                found += await history.records(client)
        return sorted(found, key=lambda record: (-record.started, record.ref))

    async def _of(self, ref: str, ask: Callable[[Client], Awaitable[T]]) -> T:
        """Ask the node that has the build."""
        for driver in self._builder.drivers:
            async with self._client(driver) as client:
                if len(self._builder.drivers) == 1 or await history.records(client, ref):
                    return await ask(client)
        raise history.missing(ref)

    @asynccontextmanager
    async def _client(self, driver: Driver) -> AsyncIterator[Client]:
        async with await self._builder.reach(driver, Silent()) as client:
            yield client


async def _whole(client: Client, record: BuildRecord) -> BuildRecord:
    """The record as chantierd keeps it; a stock daemon's as it was sent."""
    try:
        document = await client.build_record(record.ref)
    except UnsupportedError:
        return record
    return load_record(document) or record


async def _blob(client: Client, digest: str) -> bytes:
    return b"".join([data async for data in history.blob(client, digest)])


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


__all__ = ["RemoteHistory"]
