# SPDX-License-Identifier: Apache-2.0
"""What a fake registry holds, what it was asked, and how it is told to misbehave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chantier.values import dataclass, field

KINDS = frozenset(
    ["status", "reset", "eof", "wrong", "short", "long", "hang", "slow", "lost", "redirect", "no-digest", "ignore-range"]
)


@dataclass(kw_only=True)
class Fault:
    """One way to misbehave. Matches a request by method and by a part of its path, `times` times (-1: always).

    status        answer `status` with `headers` and `body`
    reset, eof    break the connection: before an answer, or after `after` bytes of the body
    lost          do what was asked, then break the connection in place of an answer
    wrong         a body of the right length with a wrong byte
    short, long   a body that is too short or too long, and a Content-Length that agrees with it
    hang          no answer for `seconds`
    slow          `seconds` between pieces of the body
    redirect      307 to `location`
    no-digest     no Docker-Content-Digest
    ignore-range  200 and all of a blob, where a part was asked for
    """

    kind: str
    method: str = ""
    path: str = ""
    times: int = 1
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    after: int = -1
    seconds: float = 0.0
    location: str = ""
    chance: float = 1.0

    def matches(self, method: str, path: str) -> bool:
        return self.times != 0 and (not self.method or self.method == method) and self.path in path


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A request as it came, and the status it got (0: the connection was broken without one)."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    status: int


@dataclass
class Repository:
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Upload:
    """One that is not finished."""

    name: str
    data: bytearray = field(default_factory=bytearray)


def single_scopes(scopes: Iterable[str]) -> list[str]:
    """`repository:a:pull,push` as one scope an action."""
    single = []
    for scope in scopes:
        resource, _, actions = scope.rpartition(":")
        single += [f"{resource}:{action}" for action in actions.split(",")]
    return single


__all__ = ["KINDS", "Fault", "Recorded", "Repository", "Upload", "single_scopes"]
