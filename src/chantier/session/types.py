# SPDX-License-Identifier: Apache-2.0
"""What the engine may ask of the user's machine: files, secrets, credentials, agents, places for results.

Two implementations: `session.local` (same process: the library and the embedded command) and `session.remote` (a client
behind Control.Session). Every call may wait for a peer, has a deadline of its own, and raises SessionError if the client
is gone. "Not there" is None, not an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from chantier.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Of one registry host. `username` is empty when `secret` is an identity (refresh) token."""

    username: str
    secret: str

    def __repr__(self) -> str:  # never the secret
        return f"Credentials(username={self.username!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesRequest:
    """Which files of a named directory of the client to send (protocol.md 2.4).

    Patterns are those of .dockerignore. `follow` are paths whose symlinks are resolved and whose targets are sent too.
    """

    name: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SentTree:
    """A directory of a result: where it is, the folder of the output it goes to, the time (seconds) all its files get."""

    root: Path
    below: str = ""
    epoch: int | None = None


class FileSink(Protocol):
    """A file on the client's machine that a result is written to. Nothing is left there unless `close` returns."""

    async def write(self, data: bytes | memoryview, /) -> None: ...
    async def close(self) -> None: ...
    async def abort(self) -> None: ...


@runtime_checkable
class KnowingSink(FileSink, Protocol):
    """A sink whose place may hold already what would be written, as the metadata named it: then only `close` is needed."""

    async def has_it(self) -> bool: ...

    async def has_layers(self, diff_ids: Sequence[str]) -> int:
        """How many of an image's layers, from the first, the place has: their blobs may be left out of the archive."""


class Stream(Protocol):
    """Bytes both ways (an ssh agent's socket)."""

    async def read(self) -> bytes: ...
    async def write(self, data: bytes, /) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """`index` is for the next time, None if nothing changed. `changed` are the paths of what is new, other or gone; `digests` are
    those of the new small files, by path.
    """

    index: bytes | None
    changed: Sequence[bytes] = ()
    digests: dict[bytes, bytes]


class Session(Protocol):
    id: str
    shared_key: str  # the same for two builds of one directory by one user; local sources are reused by it

    async def locate(self, name: str) -> Path | None:
        """The directory `name` itself, if it lies on this machine and may be read in place; else None (then use `receive`).

        Raises NotFoundError if the client offers no such name.
        """

    async def receive(
        self,
        request: FilesRequest,
        into: Path,
        *,
        known: dict[str, bytes] | None = None,
        wants: Callable[[Any], bool] | None = None,
        on_bytes: Callable[[int], None] = lambda _n: None,
        on_stat: Callable[[bytes], None] | None = None,
        on_file: Callable[[Any, int, bytes], None] | None = None,
    ) -> dict[str, bytes]:
        """Make `into` hold exactly the requested files, transferring only what differs from what is there.

        Owner is 0:0, mode and mtime are the client's. Raises NotFoundError if the client offers no such name. Where only
        `locate` answers None: `known` is what an earlier call gave and nobody has touched since, `wants` leaves contents
        of files out, `on_bytes` counts what is transferred, `on_stat` is given each entry as fsutil's Stat,
        `on_file` may be given the bytes of files as they come, with their inodes. Gives what is there now, for the next call.
        """

    async def follow(
        self,
        request: FilesRequest,
        into: Path,
        index: bytes | None,
        *,
        digest: Callable[[int, bytes], bytes],
        changing: Callable[[], None],
        on_bytes: Callable[[int], None] = lambda _n: None,
    ) -> Followed:
        """`receive` for a tree that is kept: `into` is as it was when `index` was given (None: empty). As `session.follow.follow`."""

    async def secret(self, id: str) -> bytes | None: ...

    async def credentials(self, host: str) -> Credentials | None: ...

    async def token(self, host: str, realm: str, service: str, scopes: Sequence[str]) -> str | None:
        """A bearer token fetched by the client, or None where the client leaves that to us."""

    async def has_agent(self, id: str) -> bool: ...

    async def agent(self, id: str) -> Stream:
        """Connect to the client's ssh agent `id`. Raises NotFoundError."""

    async def upload(self, id: str) -> AsyncIterator[bytes]:
        """The bytes of a stream the client offers (`http://buildkit-session/ID`: a context on standard input)."""

    async def send_file(self, exporter: int, metadata: Mapping[str, str]) -> FileSink:
        """Open output number `exporter` of the build as a file (tar, oci, docker)."""

    async def known_layers(self, exporter: int, metadata: Mapping[str, str], diff_ids: Sequence[str]) -> int:
        """How many of these layers, from the first, whoever gets output number `exporter` has; 0 where nobody can tell.

        Only what was true just now: an archive without them may be refused.
        """

    async def send_trees(self, exporter: int, trees: Sequence[SentTree], *, remove_others: bool = False) -> None:
        """Copy the trees to output number `exporter` (local). Owners are the user's own.

        `remove_others` deletes what none of the trees has.
        """

    async def blob(self, store: str, digest: str) -> AsyncIterator[bytes]:
        """A blob of the client's content store `store` (oci-layout contexts, cache directories). Raises NotFoundError."""

    async def blob_size(self, store: str, digest: str) -> int | None:
        """The size of such a blob; None if the store has it not."""

    async def write_blob(
        self, store: str, digest: str, size: int, chunks: AsyncIterator[bytes] | Iterable[bytes], *, ref: str = ""
    ) -> bool:
        """Put a blob into such a store, verified; False if it was there."""


__all__ = ["Credentials", "FileSink", "FilesRequest", "KnowingSink", "SentTree", "Session", "Stream"]
