# SPDX-License-Identifier: Apache-2.0
"""What is known of a git or HTTP source before its content is needed (LLBBridge.ResolveSourceMeta)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chantier.cache import Ref
from chantier.dockerfile.bridge import SourceMeta
from chantier.op import Worker
from chantier.pb import ops_pb2 as pb
from chantier.values import replace


async def source_meta(
    worker: Worker, source: pb.SourceOp, sessions: Sequence[Any], *, return_object: bool, job: Any
) -> SourceMeta:
    """Git answers with the raw commit if it is asked for, HTTP with the time of Last-Modified; others with nothing."""
    scheme = source.identifier.partition("://")[0]
    if scheme == "git" and return_object:
        from chantier.op.git import commit_object

        return SourceMeta(commit_object=await commit_object(source, worker, sessions, job=job))
    if scheme in ("http", "https"):
        from chantier.op.http import last_modified

        return SourceMeta(last_modified=await last_modified(source, worker, sessions))
    return SourceMeta()


async def whole_meta(
    worker: Worker,
    source: pb.SourceOp,
    sessions: Sequence[Any],
    *,
    return_object: bool,
    suffixed: tuple[str, bytes] | None = None,
    job: Any,
    hold: Callable[[Ref], None],
) -> SourceMeta:
    """All there is to know: names and checksums too, for which a file of the web is fetched.

    The build `job` sees the same from now on; `hold` is given results to release at its end.
    """
    scheme = source.identifier.partition("://")[0]
    if scheme == "git":
        from chantier.op.git import commit_object, named, raw_object

        object, ref, commit = await named(source, worker, sessions, job=job)
        meta = SourceMeta(checksum=object, ref=ref, commit_checksum=commit)
        if not return_object:
            return meta
        tag = await raw_object(source, worker, sessions, object, job=job) if commit else None
        return replace(meta, commit_object=await commit_object(source, worker, sessions, job=job), tag_object=tag)
    if scheme in ("http", "https"):
        from chantier.op.http import fetched

        found = await fetched(source, worker, sessions, job=job, hold=hold, suffixed=suffixed)
        return SourceMeta(
            checksum=found.digest, filename=found.name, last_modified=found.modified, suffixed_checksum=found.suffixed
        )
    return SourceMeta()
