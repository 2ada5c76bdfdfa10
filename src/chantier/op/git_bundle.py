# SPDX-License-Identifier: Apache-2.0
"""Git bundles (git-bundle(1)): a history read from a blob in place of a remote, and a commit with its history as one file.

A bundle is imported into a repository of its own first. What follows is a fetch from there, as from any remote.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.errors import FetchError, NotFoundError

from .blob import fetch_blob
from .git_command import Git, GitError, scratch
from .git_fetch import has, have, local_ref, pinned, repository, resolve
from .git_source import SHA, Commit, GitSource
from .one_file import FileWriter
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import Ref

_NAME = "bundle"
_REF = "refs/heads/main"  # of a commit that was not asked for by a name: a bundle has none without


@asynccontextmanager
async def remote_of(worker: Worker, source: GitSource, git: Git, sessions: Sequence[Any]) -> AsyncIterator[str]:
    """Where to fetch from: the source's remote, or a repository with what its bundle holds."""
    place = source.bundle
    if place is None:
        yield source.remote
        return
    async with scratch(worker, "bundle") as home:
        path, repo = home / "bundle", home / "repo.git"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            await fetch_blob(worker, place, FileWriter(fd, "the git bundle", place.digest.algorithm), sessions)
        finally:
            os.close(fd)
        repo.mkdir()
        inside = git.within(repo)
        try:
            await inside("init", "--bare", "--quiet", f"--object-format={await _format(git, path)}")
            await inside("fetch", "--quiet", "--", str(path), "+refs/*:refs/*")
        except GitError as err:
            raise FetchError(f"failed to import git bundle {place.ref}: {err}") from err
        if not await has(inside, source.checksum):
            raise NotFoundError(f"commit {source.checksum} not found in bundle {place.ref}")
        yield f"file://{repo}"


async def _format(git: Git, bundle: Path) -> str:
    for line in (await git("ls-remote", "--", str(bundle))).decode(errors="replace").splitlines():
        sha = line.partition("\t")[0]
        if SHA.match(sha):
            return "sha256" if len(sha) == 64 else "sha1"
    return "sha1"


async def commit_of(worker: Worker, source: GitSource, git: Git, asks: Any) -> Commit:
    """What a source means. A bundle that had to be read for that leaves the commit in the shared repository."""
    known = pinned(source)
    if known is not None:
        return known
    async with remote_of(worker, source, git, asks.sessions) as remote:
        commit = await resolve(git, source, asks, remote)
        if source.bundle is not None:
            async with repository(worker, source, git, commit) as bare:
                await have(git.within(bare), source, commit, remote)
        return commit


async def bring(worker: Worker, source: GitSource, git: Git, commit: Commit, sessions: Sequence[Any]) -> None:
    """Have the commit in the shared repository, which `git` runs in."""
    if source.bundle is not None and not await has(git, commit.sha):
        async with remote_of(worker, source, git, sessions) as remote:
            await have(git, source, commit, remote)
    else:
        await have(git, source, commit, source.remote)


async def bundled(worker: Worker, source: GitSource, git: Git, bare: Path, commit: Commit) -> Ref:
    """A result with the file `bundle`: the commit under the name it was asked for by, and all its history."""
    target = _target(source.ref)
    async with scratch(worker, "bundle") as home:
        repo, made = home / "repo.git", home / "made"
        repo.mkdir()
        inside = git.within(repo)
        try:
            await inside("init", "--bare", "--quiet", f"--object-format={commit.format}")
            await inside("fetch", "--quiet", "--no-tags", "--", f"file://{bare}", f"+{local_ref(commit)}:{target}")
            # One thread: the same history is then the same file.
            await inside("-c", "pack.threads=1", "bundle", "create", "--quiet", str(made), target)
        except GitError as err:
            raise FetchError(f"failed to create git bundle for {commit.sha}: {err}") from err
        return await worker.threaded(lambda _: _result(worker, source, made), lambda ref: ref.release())


def _result(worker: Worker, source: GitSource, made: Path) -> Ref:
    mutable = worker.cache.new(None, description=f"git bundle checkout for {source.shown}#{source.ref}")
    try:
        with mutable.mounted() as root:
            shutil.copyfile(made, root / _NAME)
            os.chmod(root / _NAME, 0o644)
            os.utime(root / _NAME, ns=(0, 0))
        return mutable.commit()
    finally:
        mutable.release()  # has no effect on one that was committed


def _target(ref: str) -> str:
    """The name in the bundle. A short name may be a branch or a tag: who reads the bundle asks for it as a branch."""
    if not ref or SHA.match(ref):
        return _REF
    if ref.startswith("refs/tags/"):
        return ref
    return "refs/heads/" + ref.removeprefix("refs/").removeprefix("heads/")


__all__ = ["bring", "bundled", "commit_of", "remote_of"]
