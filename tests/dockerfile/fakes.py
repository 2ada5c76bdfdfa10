# SPDX-License-Identifier: Apache-2.0
"""A bridge that runs nothing: directories are read in place, images are configs in a dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chantier.dockerfile.bridge import CacheImport, FrontendResult, OciStore, ResolvedImage, SourceMeta
from chantier.errors import NotFoundError, UnsupportedError
from chantier.llb import caps, load
from chantier.pb import ops_pb2 as pb
from chantier.progress import Warning
from chantier.spec import Digest, Platform, Reference, digest_of, dumps

AMD64 = Platform("linux", "amd64")

BASE = dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "BASE=yes"],
            "Cmd": ["/bin/sh"],
            "Labels": {"golden.base": "1"},
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64]},
        "history": [{"created_by": "umoci insert"}],
    }
)


@dataclass
class TreeRef:
    """What `solve` gives: files of a directory, or nothing."""

    root: Path | None
    files: Mapping[str, bytes] = field(default_factory=dict)

    async def read_file(self, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        data = self.files.get(path)
        if data is None and self.root is not None and (self.root / path).is_file():
            data = (self.root / path).read_bytes()
        if data is None:
            raise NotFoundError(f"open {path}: no such file or directory")
        return data[offset : offset + length if length else None]


@dataclass
class FakeBridge:
    locals: Mapping[str, Path] = field(default_factory=dict)
    images: Mapping[str, bytes] = field(default_factory=dict)  # full reference -> config
    web: Mapping[str, bytes] = field(default_factory=dict)  # source identifier -> the file it gives
    meta: Mapping[str, SourceMeta] = field(default_factory=dict)
    platforms: Sequence[Platform] = (AMD64,)
    caps: frozenset[str] = caps.ALL
    session_id: str = "s1"
    own_frontends: tuple[str, ...] = ("docker/dockerfile", "docker/dockerfile-upstream")
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # (ref, platform, log name)
    solved: list[pb.Definition] = field(default_factory=list)
    warnings: list[Warning] = field(default_factory=list)
    forwarded: list[tuple[str, str]] = field(default_factory=list)

    async def solve(
        self, definition: pb.Definition, *, evaluate: bool = False, cache_imports: Sequence[CacheImport] = ()
    ) -> TreeRef:
        self.solved.append(definition)
        graph = load(definition, known_caps=self.caps)
        if graph.root is None:
            return TreeRef(None)
        op = graph.vertices[graph.root[0]].op
        identifier = op.source.identifier if op.WhichOneof("op") == "source" else ""
        if identifier in self.web:
            return TreeRef(None, {op.source.attrs["http.filename"]: self.web[identifier]})
        return TreeRef(self.locals.get(identifier.removeprefix("local://")))

    async def resolve_image(
        self,
        ref: str,
        *,
        platform: Platform | None = None,
        mode: str = "default",
        log_name: str = "",
        store: OciStore | None = None,
    ) -> ResolvedImage:
        self.asked.append((ref, str(platform), log_name))
        config = self.images.get(ref)
        if config is None:
            raise NotFoundError(f"failed to resolve source metadata for {ref}: {ref}: not found")
        digest = Digest(Reference.parse(ref).digest) or digest_of(config)
        return ResolvedImage(ref=ref, digest=digest, config=config)

    async def resolve_source(self, source: pb.SourceOp, *, log_name: str = "", return_object: bool = False) -> SourceMeta:
        self.asked.append((source.identifier, "", log_name))
        return self.meta.get(source.identifier, SourceMeta())

    async def warn(self, warning: Warning) -> None:
        self.warnings.append(warning)

    async def forward(
        self, source: str, cmdline: str, opts: Mapping[str, str], inputs: Mapping[str, pb.Definition]
    ) -> FrontendResult:
        self.forwarded.append((source, cmdline))
        raise UnsupportedError(f"frontend image {source} cannot be run here")
