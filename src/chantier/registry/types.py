# SPDX-License-Identifier: Apache-2.0
"""The values and protocols of the room's border."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from chantier.spec import Descriptor, Digest, digest_of
from chantier.values import dataclass


class Credentials(Protocol):
    """Of one host. An empty `username` with a `secret` is an identity (refresh) token."""

    @property
    def username(self) -> str: ...
    @property
    def secret(self) -> str: ...


CredentialsFor = Callable[[str], Credentials | None]
"""Asked with a host (`registry-1.docker.io`, `mirror.test:5000`); may wait for a peer. None: anonymous."""

TokenFor = Callable[[str, str, str, Sequence[str]], str | None]
"""Asked with host, realm, service, scopes: a bearer token the client fetched, or None where it leaves that to us."""

Cancelled = Callable[[], bool]


def never() -> bool:
    return False


def anonymous(host: str) -> Credentials | None:
    return None


class BlobWriter(Protocol):
    """Where a blob goes: `store.Writer`. `digest` is of all bytes so far; `restart` drops them."""

    @property
    def offset(self) -> int: ...
    def write(self, data: bytes, /) -> object: ...
    def digest(self) -> Digest: ...
    def restart(self) -> None: ...


class MemoryWriter:
    """A BlobWriter that keeps the bytes, for blobs that are small."""

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def offset(self) -> int:
        return len(self.data)

    def write(self, data: bytes, /) -> None:
        self.data += data

    def digest(self) -> Digest:
        return digest_of(bytes(self.data))

    def restart(self) -> None:
        self.data.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a reference names now. `data` is the manifest itself where it had to be fetched to know its digest."""

    descriptor: Descriptor
    host: str
    data: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """How a blob came: the host that served its last byte, bytes received, seconds, and how often it broke off."""

    host: str
    received: int
    seconds: float
    resumed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Which host served a document or a blob to a build, and how long it took."""

    digest: str
    media_type: str
    repository: str
    host: str
    size: int
    seconds: float
    resumed: int = 0


OnServed = Callable[[Served], None]
