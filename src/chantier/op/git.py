# SPDX-License-Identifier: Apache-2.0
"""Git repositories as sources (semantics.md 3.11), by the `git` command.

A reference is resolved to a commit first: that is the key. Objects are kept in one bare repository for each remote, shared
between builds; a checkout is a result of its own. Git runs without the user's or the machine's configuration, without
prompts, and with credentials in its environment only, so that they stand in no argument list and in no result.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from chantier.errors import FetchError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from chantier.llb.definition import LoadedVertex
from chantier.pb import ops_pb2 as pb
from chantier.snapshot import mounted
from chantier.solver.types import CacheMap
from chantier.spec import new_id

from .agent import agent_socket
from .image import source_key
from .resolved import recall, remember
from .signature import check_name, signed_commit, signed_tag, verify, wanted_of
from .trust import git_settings, registries_of
from .worker import Worker, ask

if TYPE_CHECKING:
    from chantier.cache import MutableRef, Ref
    from chantier.progress import Step
    from chantier.registry import RetryPolicy
    from chantier.session.types import Session
    from chantier.solver.types import JobContext

_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_PASSED_ON = ("PATH", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")  # fmt: skip
_UNSUPPORTED = ("git.bundle", "git.checkoutbundle")
_HEX = re.compile(r"[0-9a-fA-F]+\Z")
_NO_DEPTH = "does not support shallow capabilities"  # what git says of servers that only serve files
_STOP_S = 5.0


class GitOp:
    """Implements `solver.types.Op`. Knows the commit it resolved for the key when it is run."""

    def __init__(self, vertex: LoadedVertex, worker: Worker) -> None:
        self._worker = worker
        self._source = _Source(vertex.op.source)
        self._commit: _Commit | None = None

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
            async with _opened(self._worker, source, job) as git, _repository(self._worker, source, git, commit) as bare:
                await _check_signature(self._worker, source, git.within(bare), commit)
        key = commit.sha
        if source.keep_git_dir:
            key += f".git#{commit.ref}"
        if source.subdir:
            key += f":{source.subdir}"
        if source.skip_submodules:
            key += "(skip-submodules)"
        if source.mtime_commit:
            key += "(mtime=commit)"
        return CacheMap(digest=source_key(key), detail=key.encode()), True

    async def run(self, job: JobContext, inputs: Sequence[Ref | None]) -> Sequence[Ref | None]:
        commit = await self._resolved(job)
        async with _opened(self._worker, self._source, job) as git, _repository(self._worker, self._source, git, commit) as bare:
            await _fetch(git.within(bare), self._source, commit)
            return [await _Checkout(self._worker, self._source, git, bare, commit).run()]

    async def _resolved(self, job: JobContext) -> _Commit:
        if self._commit is None:
            async with _opened(self._worker, self._source, job) as git:
                self._commit = await _resolve(git, self._source, job)
        return self._commit


async def named(source: pb.SourceOp, worker: Worker, sessions: Sequence[Any], *, job: Any) -> tuple[str, str, str]:
    """The object that a source's reference names, the reference's full name, and the commit if the object is a tag.

    The reference means that for the build `job` from now on.
    """
    whole = pb.SourceOp()
    whole.CopyFrom(source)
    whole.attrs["git.keepgitdir"] = "true"  # a tag object is told apart then
    parsed = _Source(whole)
    parsed.keep_git_dir = True
    asking = _NoJob(sessions, job)
    async with _opened(worker, parsed, asking) as git:
        found = await _resolve(git, parsed, asking)
        if parsed.signature is not None:
            async with _repository(worker, parsed, git, found) as bare:
                await _check_signature(worker, parsed, git.within(bare), found)
    return found.sha, found.ref, found.commit if found.commit != found.sha else ""


async def raw_object(source: pb.SourceOp, worker: Worker, sessions: Sequence[Any], sha: str, *, job: Any) -> bytes:
    """A tag object as git stores it, fetched if it is not here yet."""
    parsed = _Source(source)
    asking = _NoJob(sessions, job)
    async with _opened(worker, parsed, asking) as git:
        commit = await _resolve(git, parsed, asking)
        async with _repository(worker, parsed, git, commit) as bare:
            inside = git.within(bare)
            await _fetch(inside, parsed, commit)
            return await _tag(inside, parsed, commit, sha)


async def _tag(git: _Git, source: _Source, commit: _Commit, sha: str) -> bytes:
    if not await _has(git, sha):
        local = f"refs/chantier/tags/{sha}"
        await git.remotely("fetch", "--quiet", "--depth=1", "--no-tags", "--force", "--", source.remote, f"{commit.ref}:{local}")
    return await git("cat-file", "tag", sha)


async def _check_signature(worker: Worker, source: _Source, git: _Git, commit: _Commit) -> None:
    """Of the tag that was named, if it has one of its own that counts; else of the commit. Raises IntegrityError."""
    wanted = source.signature
    assert wanted is not None
    await _fetch(git, source, commit)
    of_tag: IntegrityError | None = None
    async with _scratch(worker, "signature") as home:
        if commit.tag and not wanted.ignore_signed_tag:
            raw = await _tag(git, source, commit, commit.tag)
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
    async with _scratch(worker, "signature") as home:
        await verify(f"commit {sha} of {source.shown}", signed_commit(raw, sha256=len(sha) == 64), wanted, home)


@asynccontextmanager
async def _scratch(worker: Worker, what: str) -> AsyncIterator[Path]:
    """A directory for a while."""
    path = worker.tmp / f"{what}-{new_id()}"
    await worker.threaded(lambda _: path.mkdir(mode=0o700))
    try:
        yield path
    finally:
        await worker.threaded(lambda _: shutil.rmtree(path, ignore_errors=True))


async def commit_object(source: pb.SourceOp, worker: Worker, sessions: Sequence[Any], *, job: Any) -> bytes:
    """The raw commit that a source means, fetched if it is not here yet."""
    parsed = _Source(source)
    asking = _NoJob(sessions, job)
    async with _opened(worker, parsed, asking) as git:
        commit = await _resolve(git, parsed, asking)
        async with _repository(worker, parsed, git, commit) as bare:
            inside = git.within(bare)
            await _fetch(inside, parsed, commit)
            return await inside("cat-file", "commit", commit.sha + "^{commit}")


class _NoJob:
    """What asks when there is no vertex: a question for metadata."""

    def __init__(self, sessions: Sequence[Any], job: Any) -> None:
        self.sessions = tuple(sessions)
        self.jobs = (job,)
        self.step: Any = None


class _Commit:
    """What a source resolved to: the commit (or the tag object where `.git` is kept) and the full name it had."""

    def __init__(self, sha: str, ref: str, commit: str = "", tag: str = "") -> None:
        self.sha = sha
        self.ref = ref
        self.tag = tag  # the object of an annotated tag
        self.commit = commit  # of an annotated tag

    @property
    def format(self) -> str:
        """What names objects. A server that only serves files does not say it, and a repository has to have it from the start."""
        return "sha256" if len(self.sha) == 64 else "sha1"


class _Source:
    """The vertex's identifier and attributes, checked."""

    def __init__(self, source: pb.SourceOp) -> None:
        attrs = source.attrs
        rest, _, fragment = source.identifier.removeprefix("git://").partition("#")
        self.ref, _, subdir = fragment.partition(":")
        self.subdir = "" if subdir.strip("/.") == "" else os.path.normpath("/" + subdir).lstrip("/")
        self.remote = attrs.get("git.fullurl") or f"https://{rest}"
        if self.remote.startswith("-") or self.ref.startswith("-"):
            raise UsageError(f"invalid git address {self.shown}#{self.ref}")
        self.keep_git_dir = attrs.get("git.keepgitdir") == "true" and not self.subdir
        self.skip_submodules = attrs.get("git.skipsubmodules") == "true"
        self.mtime_commit = attrs.get("git.mtime") == "commit"
        self.by_commit = attrs.get("git.fetchbycommit") == "true"
        self.checksum = attrs.get("git.checksum", "")
        if self.checksum and not _HEX.match(self.checksum):
            raise UsageError(f"invalid checksum {self.checksum} for Git URL, expected hex commit hash")
        self.token_secret = attrs.get("git.authtokensecret", "GIT_AUTH_TOKEN")
        self.header_secret = attrs.get("git.authheadersecret", "GIT_AUTH_HEADER")
        self.known_hosts = attrs.get("git.knownsshhosts", "")
        self.agent = attrs.get("git.mountsshsock", "")
        self.signature = wanted_of(attrs)
        for name in _UNSUPPORTED:
            if attrs.get(name):
                raise UnsupportedError(f"failed to load {self.shown}: {name} is not supported by this engine")

    @property
    def shown(self) -> str:
        """The address without a password."""
        return redacted(self.remote)


def redacted(remote: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(remote)
        if parts.scheme and parts.password is not None:
            user = quote(parts.username or "", safe="")
            return urlunsplit(parts._replace(netloc=f"{user}:xxxxx@{parts.netloc.rpartition('@')[2]}"))
    return remote


# -- the command -------------------------------------------------------------------------------------------------------


class _Git:
    """How to run git for one source: environment, directory, where its output goes."""

    def __init__(
        self,
        env: Mapping[str, str],
        log: Callable[[bytes, int], None],
        *,
        policy: RetryPolicy | None = None,
        repository: Path | None = None,
        tree: Path | None = None,
    ) -> None:
        self._env = env
        self._log = log
        self._policy = policy
        self._repository = repository
        self._tree = tree

    def within(self, repository: Path, tree: Path | None = None, **env: str) -> _Git:
        return _Git({**self._env, **env}, self._log, policy=self._policy, repository=repository, tree=tree)

    async def remotely(self, *args: str, show: bool = False) -> bytes:
        """A command that talks to a remote: trouble that passes is waited out."""
        attempt = 0
        while True:
            try:
                return await self(*args, show=show)
            except _GitError as err:
                attempt += 1
                delay = self._policy.delay_s(attempt) if self._policy is not None and err.transient else None
                if delay is None:
                    raise
                await asyncio.sleep(delay)

    async def __call__(self, *args: str, show: bool = False) -> bytes:
        """Standard output. Raises ChantierError with what git said. `show` also logs the output."""
        command = ["git", "-c", "protocol.file.allow=user", "-c", "init.defaultBranch=main", "-c", "gc.auto=0", "-c", "advice.detachedHead=false"]  # fmt: skip
        if self._repository is not None:
            command.append(f"--git-dir={self._repository}")
        if self._tree is not None:
            command.append(f"--work-tree={self._tree}")
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *args,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self._tree or self._repository or "/",
                env=dict(self._env),
                umask=0o022,  # modes of a checkout must not depend on who runs the engine
                start_new_session=True,
            )
        except FileNotFoundError as err:
            raise UnsupportedError("failed to run git: no such program", hint="install git where the engine runs") from err
        try:
            out, said = await process.communicate()
        except asyncio.CancelledError:
            await _stop(process)
            raise
        if show and out:
            self._log(out, 1)
        if process.returncode != 0:
            text = said.decode(errors="replace").strip()
            raise _GitError(f"git stderr:\n{text}\n: exit status {process.returncode}", text)
        return out


_PASSING = re.compile(
    r"could not resolve host|failed to connect|couldn't connect|connection (?:timed out|refused|reset)|operation timed out"
    r"|timeout was reached|early eof|unexpected disconnect|the remote end hung up|rpc failed|gnutls recv error|recv failure"
    r"|ssl_error_syscall|unexpected eof while reading|requested url returned error: (?:408|425|429|5\d\d)"
    r"|connection closed by|connection unexpectedly closed|temporary failure in name resolution",
    re.IGNORECASE,
)
"""What git and its helpers say of trouble that may pass (libcurl's and OpenSSH's words; the locale is C)."""


class _GitError(FetchError):
    def __init__(self, brief: str, said: str) -> None:
        super().__init__(brief, transient=_PASSING.search(said) is not None)
        self.said = said


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End git and the helpers it started: they are a session of their own."""
    import signal

    for number, wait_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            await asyncio.wait_for(process.wait(), wait_s)
        except TimeoutError:
            continue
        return


@asynccontextmanager
async def _opened(worker: Worker, source: _Source, job: Any) -> AsyncIterator[_Git]:
    """Git with the client's credentials, for a while."""
    step: Step | None = job.step

    def log(data: bytes, stream: int) -> None:
        if step is not None:
            step.log(data, stream)

    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env |= {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "HOME": "/dev/null",
        "XDG_CONFIG_HOME": "/dev/null",
        "GIT_ASKPASS": "/bin/false",
        "LC_ALL": "C",
    }
    async with AsyncExitStack() as stack:
        header = await _authorization(source, job)
        scratch = await stack.enter_async_context(_scratch(worker, "git"))
        more, settings = await worker.threaded(lambda _: git_settings(source.remote, worker, job.sessions, scratch))
        if header:
            parts = urlsplit(source.remote)
            place = f"http.{parts.scheme}://{parts.netloc.rpartition('@')[2]}/.extraheader"
            settings.append((place, f"Authorization: {header}"))
        env |= more | _settings(settings)
        env["GIT_SSH_COMMAND"] = _ssh_command(source, scratch)
        session = await _agent_session(source, job)
        if session is not None:
            path = await stack.enter_async_context(
                agent_socket(session, source.agent, scratch / "agent", uid=os.geteuid(), gid=os.getegid(), mode=0o600)
            )
            env["SSH_AUTH_SOCK"] = str(path)
        yield _Git(env, log, policy=registries_of(worker).retry)


def _settings(settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Configuration by the environment: in no argument list, for this process and its children alone (git-config(1))."""
    env = {"GIT_CONFIG_COUNT": str(len(settings))} if settings else {}
    for number, (key, value) in enumerate(settings):
        env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return env


def _ssh_command(source: _Source, scratch: Path) -> str:
    if not source.known_hosts:
        return "ssh -F /dev/null -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR"
    path = scratch / "known_hosts"
    path.write_text(source.known_hosts)
    return f"ssh -F /dev/null -o UserKnownHostsFile={path} -o StrictHostKeyChecking=yes"


async def _agent_session(source: _Source, job: Any) -> Session | None:
    if not source.agent:
        return None
    for session in tuple(job.sessions):
        if await session.has_agent(source.agent):
            return session  # type: ignore[no-any-return]
    return None


async def _authorization(source: _Source, job: Any) -> str:
    """The first that a client has: a header as it stands, a token as GitHub and its like take it."""
    parts = urlsplit(source.remote) if "://" in source.remote else None
    if parts is None or parts.scheme not in ("http", "https"):
        return ""
    host = parts.netloc.rpartition("@")[2]
    for id, is_token in (
        (f"{source.header_secret}.{host}", False),
        (f"{source.token_secret}.{host}", True),
        (source.header_secret, False),
        (source.token_secret, True),
    ):
        value = await _secret(job, id)
        if value:
            return "basic " + base64.b64encode(f"x-access-token:{value}".encode()).decode() if is_token else value
    return ""


async def _secret(job: Any, id: str) -> str | None:
    async def question(session: Session) -> bytes | None:
        return await session.secret(id)

    value = await ask(job, question)
    return value.decode("latin-1").strip() if value is not None else None


# -- resolving and fetching --------------------------------------------------------------------------------------------


async def _resolve(git: _Git, source: _Source, asks: Any) -> _Commit:
    """Raises NotFoundError for a reference that the remote has not, UsageError if the checksum is another's."""
    if _SHA.match(source.ref):
        return _checked(_Commit(source.ref, source.ref), source)
    key = f"git:{source.remote}#{source.ref}"
    found: _Commit | None = recall(asks, key)
    if found is None:
        try:
            found = await _ask_remote(git, source)
        except _GitError as err:
            raise FetchError(f"failed to fetch remote {source.shown}: {err}", transient=err.transient) from err
        remember(asks, key, found)
    # An annotated tag is an object of its own. Only who keeps `.git` can tell it from its commit.
    made = found if source.keep_git_dir or not found.commit else _Commit(found.commit, found.ref, found.commit, found.tag)
    return _checked(made, source, also=found.commit)


async def _ask_remote(git: _Git, source: _Source) -> _Commit:
    """What a reference names, whether that is a commit or a tag."""
    if not source.ref:
        return await _default_branch(git, source)
    ref = source.ref
    out = await git.remotely("ls-remote", "--", source.remote, ref, ref + "^{}", show=True)
    found: dict[str, str] = {}
    for line in out.decode(errors="replace").splitlines():
        sha, tab, name = line.partition("\t")
        if tab:
            found[name] = sha
    short = ref.removeprefix("refs/")
    for name in (f"refs/{short}", f"refs/heads/{short}", f"refs/tags/{short}"):
        if name in found:
            commit = found.get(name + "^{}", "")
            return _Commit(found[name], name, commit, found[name] if commit else "")
    raise NotFoundError(f'repository does not contain ref {source.ref}, output: "{out.decode(errors="replace").strip()}"')


async def _default_branch(git: _Git, source: _Source) -> _Commit:
    out = (await git.remotely("ls-remote", "--symref", "--", source.remote, "HEAD", show=True)).decode(errors="replace")
    sha = re.search(r"^([0-9a-f]{40,64})\tHEAD$", out, re.MULTILINE)
    if sha is None:
        raise NotFoundError(f"could not find default branch for repository: {source.shown}")
    name = re.search(r"^ref: (refs/\S+)\tHEAD$", out, re.MULTILINE)
    return _Commit(sha[1], name[1] if name else "HEAD")


def _checked(commit: _Commit, source: _Source, also: str = "") -> _Commit:
    want = source.checksum
    if want and not commit.sha.startswith(want) and not (also and also.startswith(want)):
        raise UsageError(f"expected checksum to match {want}, got {also or commit.sha}")
    return commit


@asynccontextmanager
async def _repository(worker: Worker, source: _Source, git: _Git, commit: _Commit) -> AsyncIterator[Path]:
    """The bare repository that is kept for the remote, for this use alone."""
    locks: dict[str, asyncio.Lock] = worker.kept("git.locks", dict)
    async with locks.setdefault(source.remote, asyncio.Lock()):
        mutable = await worker.threaded(lambda _: _kept_repository(worker, source, commit.format), lambda made: made.release())
        async with AsyncExitStack() as stack:
            stack.push_async_callback(worker.threaded, lambda _: mutable.release())
            context = mounted(mutable.mounts())
            path = await worker.threaded(lambda _: context.__enter__())
            stack.push_async_callback(worker.threaded, lambda _: context.__exit__(None, None, None))
            if not (path / "HEAD").exists():
                await git.within(path)("init", "--bare", "--quiet", f"--object-format={commit.format}")
            # Submodules with relative addresses are found from here; the address has no password.
            await git.within(path)("config", "remote.origin.url", source.shown)
            yield path


def _kept_repository(worker: Worker, source: _Source, format: str) -> MutableRef:
    name = source.remote if format == "sha1" else f"{source.remote}\0{format}"
    index = "git-remote:" + hashlib.sha256(name.encode()).hexdigest()
    for id in worker.cache.find(index):
        kept = worker.cache.get_mutable(id)
        if kept is not None:
            return kept
    return worker.cache.new(None, description=f"shared git repo for {source.shown}", index=index)


def _local_ref(commit: _Commit) -> str:
    """Where the shared repository keeps what a name of the remote stood for; names of its own could clash."""
    return "refs/chantier/" + hashlib.sha256(f"{commit.ref}\0{commit.sha}".encode()).hexdigest()[:40]


async def _fetch(git: _Git, source: _Source, commit: _Commit) -> None:
    """Have the commit in the shared repository, with as little history as the server allows."""
    local = _local_ref(commit)
    if await _has(git, commit.sha):
        await git("update-ref", local, commit.sha)
        return
    named = not _SHA.match(commit.ref)
    tries = (
        [["--depth=1", "--no-tags", "--force", "--", source.remote, f"{commit.ref}:{local}"]]
        if named and not source.by_commit
        else []
    )
    # A server may refuse a commit that no reference names; then all that it names is fetched.
    tries.append(["--depth=1", "--no-tags", "--force", "--", source.remote, f"{commit.sha}:{local}"])
    whole = ["--tags", "--force", "--", source.remote, "+refs/heads/*:refs/remotes/origin/*"]
    failed: _GitError | None = None
    for args in [*tries, whole]:
        if args is whole and await _is_shallow(git):
            args = ["--unshallow", *whole]
        try:
            await git.remotely("fetch", "--quiet", *args)
        except _GitError as err:
            failed = failed or err
            if err.transient:  # waited out already: asking for more will not do better
                break
            continue
        # The name may have moved on since it was resolved.
        if await _has(git, commit.sha):
            await git("update-ref", local, commit.sha)
            return
    if failed is not None:
        raise FetchError(f"failed to fetch remote {source.shown}: {failed}", transient=failed.transient) from failed
    raise NotFoundError(f"failed to fetch remote {source.shown}: it does not have commit {commit.sha}")


async def _has(git: _Git, sha: str) -> bool:
    try:
        await git("cat-file", "-e", sha + "^{commit}")
    except _GitError:
        return False
    return True


async def _is_shallow(git: _Git) -> bool:
    return (await git("rev-parse", "--is-shallow-repository")).strip() == b"true"


# -- checking out ------------------------------------------------------------------------------------------------------


class _Checkout:
    """A new result with the commit's files."""

    def __init__(self, worker: Worker, source: _Source, git: _Git, bare: Path, commit: _Commit) -> None:
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
            context = mounted(mutable.mounts())
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
        except _GitError as err:
            raise FetchError(f"failed to checkout remote {source.shown}: {err}", transient=err.transient) from err
        finally:
            await self._worker.threaded(lambda _: index.unlink(missing_ok=True))
        if source.subdir:
            await self._worker.threaded(lambda _: _take_subdir(root, into, source.subdir))

    async def _submodules(self, git: _Git, into: Path) -> None:
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
            local = _local_ref(commit)
            await git("-c", "protocol.file.allow=always", "fetch", "--quiet", "-u", "--depth=1", "--no-tags", "--", f"file://{self._bare}", f"+{local}{name}")  # fmt: skip
            await git("checkout", "--quiet", "--detach", commit.sha)
            if not source.skip_submodules and (root / ".gitmodules").is_file():
                await _update_submodules(git)
            await git("reflog", "expire", "--all", "--expire=now")
        except _GitError as err:
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


async def _update_submodules(git: _Git) -> None:
    update = ("submodule", "--quiet", "update", "--init", "--recursive")
    try:
        await git.remotely(*update, "--depth=1")
    except _GitError as err:
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


__all__ = ["GitOp", "commit_object", "redacted"]
