# SPDX-License-Identifier: Apache-2.0
"""What is known of a git or HTTP source before its content is needed (LLBBridge.ResolveSourceMeta)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chantier.dockerfile.bridge import SourceMeta
from chantier.op import Worker
from chantier.pb import ops_pb2 as pb


async def source_meta(worker: Worker, source: pb.SourceOp, sessions: Sequence[Any], *, return_object: bool) -> SourceMeta:
    """Git answers with the raw commit if it is asked for, HTTP with the time of Last-Modified; others with nothing."""
    scheme = source.identifier.partition("://")[0]
    if scheme == "git" and return_object:
        from chantier.op.git import commit_object

        return SourceMeta(commit_object=await commit_object(source, worker, sessions))
    if scheme in ("http", "https"):
        from chantier.op.http import last_modified

        return SourceMeta(last_modified=await last_modified(source, worker, sessions))
    return SourceMeta()
