# SPDX-License-Identifier: Apache-2.0
"""The solver's words: vertices and edges, what an operation must offer, what a result and a key store are.

The solver knows no containers: an `Op` is generic in its result, so that it can be tested with integers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from chantier.progress import Group, Step
from chantier.values import dataclass, field


@runtime_checkable
class Result(Protocol):
    """Something an operation made. Each holder has its own handle: `clone` gives one more, `release` ends this one."""

    @property
    def id(self) -> str: ...
    def clone(self) -> Self: ...
    def release(self) -> None: ...


R = TypeVar("R", bound=Result)


@dataclass(frozen=True, slots=True)
class Edge:
    """One output of one vertex."""

    vertex: Vertex
    index: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Vertex:
    """One operation of a graph that is asked for. Equal digests are the same work, whichever build asks."""

    digest: str
    name: str
    inputs: tuple[Edge, ...] = field(repr=False)  # a deep graph would not print
    sys: Any  # what the resolver turns into an Op: a pb.Op with its platform, or an integer in tests
    ignore_cache: bool = False
    export_cache: bool | None = None
    group: Group | None = None
    description: Mapping[str, str] = field(default_factory=dict)


class JobContext(Protocol):
    """What an operation may use while it works; shared by all builds that wait for the same vertex."""

    step: Step  # report statuses and logs of this vertex here

    @property
    def sessions(self) -> Sequence[Any]:
        """Sessions of all builds that want the vertex now, first asked first (session.Session in the engine)."""

    @property
    def jobs(self) -> Sequence[Any]:
        """The builds themselves (`Job`)."""


ContentKey = Callable[[Any, Any], Awaitable[str]]
"""(job, result) -> digest of the content: the slow key. Further digests by which caches made elsewhere know the same content
follow it, parted by spaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dep:
    """How one input enters the cache key."""

    selector: str = ""  # digest of the paths used of the input, "" for all of it
    content: ContentKey | None = None
    prepare: Callable[[Any, Any], Awaitable[None]] | None = None  # run before `run`, outside of the parallelism slot (unlazy)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheMap:
    digest: str  # `random:…` instead of `sha256:…`: never saved, never exported
    deps: tuple[Dep, ...] = ()
    detail: bytes = b""  # what `digest` was made of, kept with the key so that a later miss can say what changed
    also: tuple[str, ...] = ()  # further digests of the same work, by which caches made elsewhere know it; not of sources


class Op(Protocol[R]):
    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        """The index-th cache map (first 0) and whether it is the last. Has no effect; may be called twice.

        Only sources have more than one: a cheap key first (an image's manifest), one that more may share later (its layers).
        """

    async def run(self, job: JobContext, inputs: Sequence[R]) -> Sequence[R | None]:
        """Do the work; one result an output, None for an empty one (scratch). Once per vertex at a time.

        Inputs stay the caller's. Inputs may be None for scratch.
        """

    def acquire(self) -> AbstractAsyncContextManager[None]:
        """Held around `run`: the parallelism slot. Ops that need none return contextlib.nullcontext()."""


Resolve = Callable[[Vertex], Op[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRecord:
    """One stored result of a key: `result` is an id that ResultStore.load understands."""

    key: str
    result: str
    created_at: int  # nanoseconds
    priority: int = 0  # among equally new records the lowest is taken
    source: int = 0  # which of several combined key stores holds it, 0 for the main one


class ResultStore(Protocol[R]):
    def save(self, result: R) -> str:
        """Make the result outlive this build as far as the GC allows; returns its id."""

    def load(self, id: str) -> R | None:
        """None when it is gone: the record is then dropped."""

    def exists(self, id: str) -> bool: ...

    def lost(self, result: R) -> str:
        """Why a result that was loaded or made can no longer be used: of a lazy one that shows at its first use. "" if it can."""


__all__ = [
    "CacheMap",
    "CacheRecord",
    "ContentKey",
    "Dep",
    "Edge",
    "JobContext",
    "Op",
    "Resolve",
    "Result",
    "ResultStore",
    "Vertex",
]
