# SPDX-License-Identifier: Apache-2.0
"""A commit's files as a result, with `.git` or without (semantics.md 3.11)."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from chantier.errors import FetchError, NotFoundError, UsageError
from chantier.spec import new_id

from .git_command import Git, GitError
from .git_fetch import local_ref
from .git_source import Commit, GitSource
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import Ref

_NO_DEPTH = "does not support shallow capabilities"  # what git says of servers that only serve files


class Checkout:
    """A new result with the commit's files."""

    def __init__(self, worker: Worker, source: GitSource, git: Git, bare: Path, commit: Commit) -> None:
        self._worker = worker
        self._source = source
        self._git = git
        self._bare = bare
        self._commit = commit

    async def run(self) -> Ref:
        worker, source = self._worker, self._source
        name = source.ref or self._commit.ref
        mutable = await worker.threaded(
            lambda _: worker.cache.new(
                None, description=f"git snapshot for {source.shown}#{name}", record_type="source.git.checkout"
            ),
            lambda made: made.release(),
        )
        try:
            context = mutable.mounted()
            root = await worker.threaded(lambda _: context.__enter__())
            try:
                if source.keep_git_dir:
                    await self._with_git_dir(root)
                else:
                    await self._files_only(root)
                if source.mtime_commit:
                    await self._set_times(root)
            finally:
                await worker.threaded(lambda _: context.__exit__(None, None, None))
            return await worker.threaded(lambda _: mutable.commit(), lambda ref: ref.release())
        finally:
            mutable.release()  # has no effect on one that was committed

    async def _files_only(self, root: Path) -> None:
        source = self._source
        into = root / f".git-{new_id()}" if source.subdir else root
        if source.subdir:
            await self._worker.threaded(lambda _: into.mkdir())
        index = self._bare / f"index-{new_id()}"
        git = self._git.within(self._bare, into, GIT_INDEX_FILE=str(index))
        try:
            if await git("ls-tree", "--name-only", self._commit.sha):  # checkout refuses a tree without files
                await git("checkout", "--quiet", "--no-overlay", self._commit.sha, "--", ".")
            if not source.skip_submodules and (into / ".gitmodules").is_file():
                await self._submodules(git, into)
        except GitError as err:
            raise FetchError(f"failed to checkout remote {source.shown}: {err}", transient=err.transient) from err
        finally:
            await self._worker.threaded(lambda _: index.unlink(missing_ok=True))
        if source.subdir:
            await self._worker.threaded(lambda _: _take_subdir(root, into, source.subdir))

    async def _submodules(self, git: Git, into: Path) -> None:
        await _update_submodules(git)
        # Their `.git` files point into the shared repository, which no one who uses the result can reach.
        await self._worker.threaded(lambda _: _drop_git_files(into))

    async def _with_git_dir(self, root: Path) -> None:
        source, commit = self._source, self._commit
        git = self._git.within(root / ".git", root)
        # As BuildKit leaves it: the branch or the tag by its own name, and HEAD detached at it; of a bare commit HEAD alone.
        name = f":{commit.ref}" if commit.ref.startswith("refs/") else ""
        try:
            await git("init", "--quiet", f"--object-format={commit.format}")
            await git("remote", "add", "origin", source.shown)
            local = local_ref(commit)
            await git("-c", "protocol.file.allow=always", "fetch", "--quiet", "-u", "--depth=1", "--no-tags", "--", f"file://{self._bare}", f"+{local}{name}")  # fmt: skip
            await git("checkout", "--quiet", "--detach", commit.sha)
            if not source.skip_submodules and (root / ".gitmodules").is_file():
                await _update_submodules(git)
            await git("reflog", "expire", "--all", "--expire=now")
        except GitError as err:
            raise FetchError(f"failed to checkout remote {source.shown}: {err}", transient=err.transient) from err

        def tidy(_cancelled: Callable[[], bool]) -> None:
            for left in ("FETCH_HEAD", "ORIG_HEAD"):
                (root / ".git" / left).unlink(missing_ok=True)

        await self._worker.threaded(tidy)

    async def _set_times(self, root: Path) -> None:
        out = await self._git.within(self._bare)("show", "-s", "--format=%ct", self._commit.sha + "^{commit}")
        at = int(out.split()[-1]) * 1_000_000_000

        def work(cancelled: Callable[[], bool]) -> None:
            for base, names, files in os.walk(root, topdown=False):
                for name in files + names:
                    os.utime(os.path.join(base, name), ns=(at, at), follow_symlinks=False)
            os.utime(root, ns=(at, at))

        await self._worker.threaded(work)


async def _update_submodules(git: Git) -> None:
    update = ("submodule", "--quiet", "update", "--init", "--recursive")
    try:
        await git.remotely(*update, "--depth=1")
    except GitError as err:
        if _NO_DEPTH not in err.said:
            raise
        await git.remotely(*update)


def _take_subdir(root: Path, whole: Path, subdir: str) -> None:
    """Move a directory of the checkout up to the root. No link may stand in its path: it could lead anywhere."""
    where = whole
    for part in subdir.split("/"):
        where = where / part
        try:
            mode = os.lstat(where).st_mode
        except FileNotFoundError as err:
            raise NotFoundError(f"invalid subdir {subdir}: no such file or directory") from err
        if not stat.S_ISDIR(mode):
            raise UsageError(f"invalid subdir {subdir}: {part} is not a directory")
    for name in os.listdir(where):
        os.rename(where / name, root / name)
    shutil.rmtree(whole)


def _drop_git_files(root: Path) -> None:
    for base, _, files in os.walk(root):
        if base != str(root) and ".git" in files:
            os.unlink(os.path.join(base, ".git"))


__all__ = ["Checkout"]
