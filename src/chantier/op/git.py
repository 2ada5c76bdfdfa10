# SPDX-License-Identifier: Apache-2.0
"""Git repositories as sources (semantics.md 3.11), by the `git` command.

A reference is resolved to a commit first: that is the key. Objects are kept in one bare repository for each remote, shared
between builds; a checkout is a result of its own. Git runs without the user's or the machine's configuration, without
prompts, and with credentials in its environment only, so that they stand in no argument list and in no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from chantier.errors import IntegrityError
from chantier.llb.definition import LoadedVertex
from chantier.pb import ops_pb2 as pb
from chantier.solver.types import CacheMap

from .git_bundle import bring, bundled, commit_of, remote_of
from .git_checkout import Checkout
from .git_command import Git, opened, scratch
from .git_fetch import has, repository
from .git_source import Commit, GitSource, redacted
from .image import source_key
from .signature import check_name, signed_commit, signed_tag, verify
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import Ref
    from chantier.solver.types import JobContext


class GitOp:
    """Implements `solver.types.Op`. Knows the commit it resolved for the key when it is run."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        self._worker = worker
        self._source = GitSource(vertex.op.source)
        self._commit: Commit | None = None

    @property
    def pin(self) -> str:
        """The object that the ref names, once that is known."""
        return self._commit.sha if self._commit is not None else ""

    def acquire(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def cache_map(self, job: JobContext, index: int) -> tuple[CacheMap, bool]:
        """The remote's address is no part of the key: a mirror gives the same commit. Nor is a signature: it is always checked."""
        commit = await self._resolved(job)
        source = self._source
        if source.signature is not None:
            async with opened(self._worker, source, job) as git, repository(self._worker, source, git, commit) as bare:
                await _check_signature(self._worker, source, git.within(bare), commit, job.sessions)
        key = commit.sha
        if source.keep_git_dir:
            key += f".git#{commit.ref}"
        if source.subdir:
            key += f":{source.subdir}"
        if source.skip_submodules:
            key += "(skip-submodules)"
        if source.mtime_commit:
            key += "(mtime=commit)"
        if source.checkout_bundle:
            key += "(bundle)"
        return CacheMap(digest=source_key(key), detail=key.encode()), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        commit = await self._resolved(job)
        worker, source = self._worker, self._source
        async with opened(worker, source, job) as git, repository(worker, source, git, commit) as bare:
            await bring(worker, source, git.within(bare), commit, job.sessions)
            if source.checkout_bundle:
                return [await bundled(worker, source, git, bare, commit)]
            return [await Checkout(worker, source, git, bare, commit).run()]

    async def _resolved(self, job: JobContext) -> Commit:
        if self._commit is None:
            async with opened(self._worker, self._source, job) as git:
                self._commit = await commit_of(self._worker, self._source, git, job)
        return self._commit


async def named(source: pb.SourceOp, worker: Worker, sessions: Sequence[Any], *, job: Any) -> tuple[str, str, str]:
    """The object that a source's reference names, the reference's full name, and the commit if the object is a tag.

    The reference means that for the build `job` from now on.
    """
    whole = pb.SourceOp()
    whole.CopyFrom(source)
    whole.attrs["git.keepgitdir"] = "true"  # a tag object is told apart then
    parsed = GitSource(whole)
    parsed.keep_git_dir = True
    asking = _NoJob(sessions, job)
    async with opened(worker, parsed, asking) as git:
        found = await commit_of(worker, parsed, git, asking)
        if parsed.signature is not None:
            async with repository(worker, parsed, git, found) as bare:
                await _check_signature(worker, parsed, git.within(bare), found, asking.sessions)
    return found.sha, found.ref, found.commit if found.commit != found.sha else ""


async def raw_object(source: pb.SourceOp, worker: Worker, sessions: Sequence[Any], sha: str, *, job: Any) -> bytes:
    """A tag object as git stores it, fetched if it is not here yet."""
    parsed = GitSource(source)
    asking = _NoJob(sessions, job)
    async with opened(worker, parsed, asking) as git:
        commit = await commit_of(worker, parsed, git, asking)
        async with repository(worker, parsed, git, commit) as bare:
            inside = git.within(bare)
            await bring(worker, parsed, inside, commit, asking.sessions)
            return await _tag(worker, parsed, inside, commit, sha, asking.sessions)


async def _tag(worker: Worker, source: GitSource, git: Git, commit: Commit, sha: str, sessions: Sequence[Any]) -> bytes:
    if not await has(git, sha):
        async with remote_of(worker, source, git, sessions) as remote:
            names = f"{commit.ref}:refs/chantier/tags/{sha}"
            await git.remotely("fetch", "--quiet", "--depth=1", "--no-tags", "--force", "--", remote, names)
    return await git("cat-file", "tag", sha)


async def _check_signature(worker: Worker, source: GitSource, git: Git, commit: Commit, sessions: Sequence[Any]) -> None:
    """Of the tag that was named, if it has one of its own that counts; else of the commit. Raises IntegrityError."""
    wanted = source.signature
    assert wanted is not None
    await bring(worker, source, git, commit, sessions)
    of_tag: IntegrityError | None = None
    async with scratch(worker, "signature") as home:
        if commit.tag and not wanted.ignore_signed_tag:
            raw = await _tag(worker, source, git, commit, commit.tag, sessions)
            check_name("tag", raw, commit.tag)
            try:
                await verify(f"tag {commit.ref} of {source.shown}", signed_tag(raw), wanted, home)
                return
            except IntegrityError as err:
                of_tag = err
    if wanted.require_signed_tag:
        raise of_tag or IntegrityError(f"signed tag required but no signed tag found: {source.shown}#{source.ref}")
    sha = commit.commit or commit.sha
    raw = await git("cat-file", "commit", sha)
    check_name("commit", raw, sha)
    async with scratch(worker, "signature") as home:
        await verify(f"commit {sha} of {source.shown}", signed_commit(raw, sha256=len(sha) == 64), wanted, home)


async def commit_object(source: pb.SourceOp, worker: Worker, sessions: Sequence[Any], *, job: Any) -> bytes:
    """The raw commit that a source means, fetched if it is not here yet."""
    parsed = GitSource(source)
    asking = _NoJob(sessions, job)
    async with opened(worker, parsed, asking) as git:
        commit = await commit_of(worker, parsed, git, asking)
        async with repository(worker, parsed, git, commit) as bare:
            inside = git.within(bare)
            await bring(worker, parsed, inside, commit, asking.sessions)
            return await inside("cat-file", "commit", commit.sha + "^{commit}")


class _NoJob:
    """What asks when there is no vertex: a question for metadata."""

    def __init__(self, sessions: Sequence[Any], job: Any) -> None:
        self.sessions = tuple(sessions)
        self.jobs = (job,)
        self.step: Any = None


__all__ = ["GitOp", "commit_object", "named", "raw_object", "redacted"]
