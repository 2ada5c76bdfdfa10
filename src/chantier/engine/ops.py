# SPDX-License-Identifier: Apache-2.0
"""Which operation does a vertex's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chantier.errors import UnsupportedError
from chantier.llb.definition import LoadedVertex
from chantier.op import Worker
from chantier.op.image import ImageOp, ImageResolver
from chantier.op.layout import LayoutOp, LayoutResolver
from chantier.solver.types import Op, Vertex


class Ops:
    def __init__(self, worker: Worker, images: ImageResolver, layouts: LayoutResolver) -> None:
        self._worker = worker
        self._images = images
        self._layouts = layouts

    def resolve(self, vertex: Vertex) -> Op[Any]:
        """Raises UnsupportedError for a source scheme or an operation that this engine has not."""
        loaded: LoadedVertex = vertex.sys
        kind = loaded.op.WhichOneof("op") or ""
        if kind == "source":
            return self._source(loaded)
        return _make(kind)(loaded, self._worker)

    def _source(self, loaded: LoadedVertex) -> Op[Any]:
        scheme = loaded.op.source.identifier.partition("://")[0]
        if scheme == "docker-image":
            return ImageOp(loaded, self._worker, self._images)
        if scheme == "oci-layout":
            return LayoutOp(loaded, self._worker, self._layouts)
        if scheme in ("http", "https"):
            scheme = "http"
        if scheme in ("docker-image+blob", "oci-layout+blob"):
            scheme = "blob"
        if scheme not in ("local", "git", "http", "blob"):
            raise UnsupportedError(f"unsupported source scheme {scheme}")
        return _make(scheme)(loaded, self._worker)


def _make(kind: str) -> Callable[[LoadedVertex, Worker], Op[Any]]:
    """Imported when first needed: a build without git never loads git."""
    from importlib import import_module

    module, name = {
        "exec": ("run", "RunOp"),
        "file": ("file", "FileOp"),
        "merge": ("merge", "MergeOp"),
        "diff": ("diff", "DiffOp"),
        "build": ("build", "BuildOp"),
        "passthrough": ("passthrough", "PassthroughOp"),
        "local": ("local", "LocalOp"),
        "git": ("git", "GitOp"),
        "http": ("http", "HttpOp"),
        "blob": ("blob", "BlobOp"),
    }[kind]
    made: Callable[[LoadedVertex, Worker], Op[Any]] = getattr(import_module(f"chantier.op.{module}"), name)
    return made
