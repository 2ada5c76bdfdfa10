# SPDX-License-Identifier: Apache-2.0
"""What a frontend may ask of an engine, and what it answers with.

`Bridge` is implemented by the embedded engine, by the daemon for its own builds, and by a client that runs a frontend
itself. Nothing here runs a step by itself: `solve` gives a handle, and only reading from it makes the engine work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from chantier.errors import UnsupportedError
from chantier.pb import ops_pb2 as pb
from chantier.progress import Warning
from chantier.spec import Platform
from chantier.values import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """`ref` may differ from what was asked (source policy); `digest` is that of the manifest or index.

    Where a policy made something else of the image, `ref` is that source's identifier, scheme and all, and the rest is empty.
    """

    ref: str
    digest: str
    config: bytes

    def of(self, asked: str) -> ResolvedImage:
        """Itself, for who can do with nothing but an image. Raises UnsupportedError for something else."""
        if "://" in self.ref:
            raise UnsupportedError(f"the source policy turns the image {asked} into {self.ref}, which has no image config")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class OciStore:
    """A content store of the client: where `oci-layout://` contexts are looked up."""

    session: str
    store: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMeta:
    """What is known of a git or HTTP source before its content is needed; None where it is not known."""

    commit_object: bytes | None = None  # git: the raw commit
    tag_object: bytes | None = None  # git: the raw annotated tag
    checksum: str = ""  # git: the object that the ref names; http: digest of the content
    suffixed_checksum: str = ""  # http: digest of the content and then of bytes that were asked for
    commit_checksum: str = ""  # git: the commit, if the ref names a tag object
    ref: str = ""  # git: the full name of the ref
    filename: str = ""  # http
    last_modified: int | None = None  # http: seconds since the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheImport:
    type: str
    attrs: Mapping[str, str]


class SolvedRef(Protocol):
    """A tree that the engine knows how to make. Reading makes it."""

    async def read_file(self, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        """Length 0 is all. Raises NotFoundError("open PATH: no such file or directory")."""


class Resolver(Protocol):
    """All that a conversion asks by itself: what base images are. Files are asked for through `Contexts`."""

    @property
    def platforms(self) -> Sequence[Platform]:
        """Of the first worker, its own first."""

    @property
    def caps(self) -> frozenset[str]:
        """LLB capabilities of the engine (protocol.md 5.3)."""

    async def resolve_image(
        self,
        ref: str,
        *,
        platform: Platform | None = None,
        mode: str = "default",
        log_name: str = "",
        store: OciStore | None = None,
    ) -> ResolvedImage:
        """Raises NotFoundError and the like with the text that follows `<name as written>: `."""


class Bridge(Resolver, Protocol):
    """What a whole frontend asks, reading files and handing on results included."""

    @property
    def session_id(self) -> str: ...

    @property
    def own_frontends(self) -> Sequence[str]:
        """Repositories of frontend images that are not run but served by this very frontend; `*` is any."""

    async def solve(
        self, definition: pb.Definition, *, evaluate: bool = False, cache_imports: Sequence[CacheImport] = ()
    ) -> SolvedRef:
        """A handle on the definition's result; an empty definition is an empty tree."""

    async def resolve_source(self, source: pb.SourceOp, *, log_name: str = "", return_object: bool = False) -> SourceMeta: ...

    async def warn(self, warning: Warning) -> None: ...

    async def forward(
        self, source: str, cmdline: str, opts: Mapping[str, str], inputs: Mapping[str, pb.Definition]
    ) -> FrontendResult:
        """Run a frontend image (`gateway.v0`). Raises UnsupportedError where that cannot be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a statement is about: the result itself, or (`raw`) something with digests of its own."""

    raw: bool = False
    name: str = ""
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """A statement about a result, made by a frontend (protocol.md 1.5): the file `path` of `ref`, or a directory of a bundle."""

    kind: Literal["in-toto", "bundle"] = "in-toto"
    ref: SolvedRef | None = None
    path: str = ""
    predicate_type: str = ""
    subjects: Sequence[Subject] = ()
    metadata: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendResult:
    """What a frontend made. `refs` is keyed by platform id, or holds the single result under "".

    `definitions` has the same keys. A subrequest has neither, only metadata (`result.json` and the like).
    """

    refs: Mapping[str, SolvedRef] = field(default_factory=dict)
    definitions: Mapping[str, pb.Definition] = field(default_factory=dict)
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    attestations: Mapping[str, Sequence[Attestation]] = field(default_factory=dict)

    @property
    def multi(self) -> bool:
        return "" not in self.definitions and bool(self.definitions)


__all__ = [
    "Attestation",
    "Bridge",
    "CacheImport",
    "FrontendResult",
    "OciStore",
    "ResolvedImage",
    "Resolver",
    "SolvedRef",
    "SourceMeta",
    "Subject",
]
