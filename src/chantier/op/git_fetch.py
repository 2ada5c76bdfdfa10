# SPDX-License-Identifier: Apache-2.0
"""From a reference to a commit, and the commit into the repository that is kept for its remote (semantics.md 3.11)."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.errors import FetchError, NotFoundError, UsageError

from .git_command import Git, GitError
from .git_source import SHA, Commit, GitSource
from .resolved import recall, remember
from .worker import Worker

if TYPE_CHECKING:
    from chantier.cache import MutableRef


def pinned(source: GitSource) -> Commit | None:
    """The commit of a source that names it itself. Raises UsageError if the checksum is another's."""
    if SHA.match(source.ref):
        return _checked(Commit(source.ref, source.ref), source)
    if source.bundle is not None and not source.ref:
        return Commit(source.checksum, source.checksum)
    return None


async def resolve(git: Git, source: GitSource, asks: Any, remote: str) -> Commit:
    """What a name means at a remote. Raises NotFoundError where it has it not, UsageError if the checksum is another's."""
    key = f"git:{source.remote}#{source.ref}" + (f"@{source.bundle}" if source.bundle is not None else "")
    found: Commit | None = recall(asks, key)
    if found is None:
        try:
            found = await _ask_remote(git, source, remote)
        except GitError as err:
            raise FetchError(f"failed to fetch remote {source.shown}: {err}", transient=err.transient) from err
        remember(asks, key, found)
    # An annotated tag is an object of its own. Only who keeps `.git` can tell it from its commit.
    made = found if source.keep_git_dir or not found.commit else Commit(found.commit, found.ref, found.commit, found.tag)
    return _checked(made, source, also=found.commit)


async def _ask_remote(git: Git, source: GitSource, remote: str) -> Commit:
    """What a reference names, whether that is a commit or a tag."""
    if not source.ref:
        return await _default_branch(git, source)
    ref = source.ref
    out = await git.remotely("ls-remote", "--", remote, ref, ref + "^{}", show=True)
    found: dict[str, str] = {}
    for line in out.decode(errors="replace").splitlines():
        sha, tab, name = line.partition("\t")
        if tab:
            found[name] = sha
    short = ref.removeprefix("refs/")
    for name in (f"refs/{short}", f"refs/heads/{short}", f"refs/tags/{short}"):
        if name in found:
            commit = found.get(name + "^{}", "")
            return Commit(found[name], name, commit, found[name] if commit else "")
    raise NotFoundError(f'repository does not contain ref {source.ref}, output: "{out.decode(errors="replace").strip()}"')


async def _default_branch(git: Git, source: GitSource) -> Commit:
    out = (await git.remotely("ls-remote", "--symref", "--", source.remote, "HEAD", show=True)).decode(errors="replace")
    sha = re.search(r"^([0-9a-f]{40,64})\tHEAD$", out, re.MULTILINE)
    if sha is None:
        raise NotFoundError(f"could not find default branch for repository: {source.shown}")
    name = re.search(r"^ref: (refs/\S+)\tHEAD$", out, re.MULTILINE)
    return Commit(sha[1], name[1] if name else "HEAD")


def _checked(commit: Commit, source: GitSource, also: str = "") -> Commit:
    want = source.checksum
    if want and not commit.sha.startswith(want) and not (also and also.startswith(want)):
        raise UsageError(f"expected checksum to match {want}, got {also or commit.sha}")
    return commit


@asynccontextmanager
async def repository(worker: Worker, source: GitSource, git: Git, commit: Commit) -> AsyncIterator[Path]:
    """The bare repository that is kept for the source's remote, for this use alone."""
    locks: dict[str, asyncio.Lock] = worker.kept("git.locks", dict)
    async with locks.setdefault(source.remote, asyncio.Lock()):
        mutable = await worker.threaded(lambda _: _kept_repository(worker, source, commit.format), lambda made: made.release())
        async with AsyncExitStack() as stack:
            stack.push_async_callback(worker.threaded, lambda _: mutable.release())
            context = mutable.mounted()
            path = await worker.threaded(lambda _: context.__enter__())
            stack.push_async_callback(worker.threaded, lambda _: context.__exit__(None, None, None))
            if not (path / "HEAD").exists():
                await git.within(path)("init", "--bare", "--quiet", f"--object-format={commit.format}")
            # Submodules with relative addresses are found from here; the address has no password.
            await git.within(path)("config", "remote.origin.url", source.shown)
            yield path


def _kept_repository(worker: Worker, source: GitSource, format: str) -> MutableRef:
    name = source.remote if format == "sha1" else f"{source.remote}\0{format}"
    index = "git-remote:" + hashlib.sha256(name.encode()).hexdigest()
    for id in worker.cache.find(index):
        kept = worker.cache.get_mutable(id)
        if kept is not None:
            return kept
    return worker.cache.new(None, description=f"shared git repo for {source.shown}", index=index)


def local_ref(commit: Commit) -> str:
    """Where the shared repository keeps what a name of the remote stood for; names of its own could clash."""
    return "refs/chantier/" + hashlib.sha256(f"{commit.ref}\0{commit.sha}".encode()).hexdigest()[:40]


async def have(git: Git, source: GitSource, commit: Commit, remote: str) -> None:
    """Have the commit in the shared repository, with as little history as the server allows, or with all of it for a bundle."""
    local = local_ref(commit)
    shallow = source.checkout_bundle and await _is_shallow(git)
    if await has(git, commit.sha) and not shallow:
        await git("update-ref", local, commit.sha)
        return
    depth = (["--unshallow"] if shallow else []) if source.checkout_bundle else ["--depth=1"]
    named = not SHA.match(commit.ref)
    tries = [[*depth, "--no-tags", "--force", "--", remote, f"{commit.ref}:{local}"]] if named and not source.by_commit else []
    # A server may refuse a commit that no reference names; then all that it names is fetched.
    tries.append([*depth, "--no-tags", "--force", "--", remote, f"{commit.sha}:{local}"])
    whole = ["--tags", "--force", "--", remote, "+refs/heads/*:refs/remotes/origin/*"]
    failed: GitError | None = None
    for args in [*tries, whole]:
        if args is whole and await _is_shallow(git):
            args = ["--unshallow", *whole]
        try:
            await git.remotely("fetch", "--quiet", *args)
        except GitError as err:
            failed = failed or err
            if err.transient:  # waited out already: asking for more will not do better
                break
            continue
        # The name may have moved on since it was resolved.
        if await has(git, commit.sha):
            await git("update-ref", local, commit.sha)
            return
    if failed is not None:
        raise FetchError(f"failed to fetch remote {source.shown}: {failed}", transient=failed.transient) from failed
    raise NotFoundError(f"failed to fetch remote {source.shown}: it does not have commit {commit.sha}")


async def has(git: Git, sha: str) -> bool:
    try:
        await git("cat-file", "-e", sha + "^{commit}")
    except GitError:
        return False
    return True


async def _is_shallow(git: Git) -> bool:
    return (await git("rev-parse", "--is-shallow-repository")).strip() == b"true"


__all__ = ["has", "have", "local_ref", "pinned", "repository", "resolve"]
