# SPDX-License-Identifier: Apache-2.0
"""The `git` command for one source: without the user's or the machine's configuration, with the client's credentials in its environment."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from chantier.errors import FetchError, UnsupportedError
from chantier.spec import new_id

from .agent import agent_socket
from .git_source import GitSource
from .trust import git_settings, registries_of
from .worker import Worker, secret_text

if TYPE_CHECKING:
    from chantier.progress import Step
    from chantier.registry import RetryPolicy
    from chantier.session.types import Session

_PASSED_ON = ("PATH", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")  # fmt: skip
_STOP_S = 5.0
_MOST_PATH = 107


class Git:
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

    def within(self, repository: Path, tree: Path | None = None, **env: str) -> Git:
        return Git({**self._env, **env}, self._log, policy=self._policy, repository=repository, tree=tree)

    async def remotely(self, *args: str, show: bool = False) -> bytes:
        """A command that talks to a remote: trouble that passes is waited out."""
        attempt = 0
        while True:
            try:
                return await self(*args, show=show)
            except GitError as err:
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
            raise GitError(f"git stderr:\n{text}\n: exit status {process.returncode}", text)
        return out


_PASSING = re.compile(
    r"could not resolve host|failed to connect|couldn't connect|connection (?:timed out|refused|reset)|operation timed out"
    r"|timeout was reached|early eof|unexpected disconnect|the remote end hung up|rpc failed|gnutls recv error|recv failure"
    r"|ssl_error_syscall|unexpected eof while reading|requested url returned error: (?:408|425|429|5\d\d)"
    r"|connection closed by|connection unexpectedly closed|temporary failure in name resolution",
    re.IGNORECASE,
)
"""What git and its helpers say of trouble that may pass (libcurl's and OpenSSH's words; the locale is C)."""


class GitError(FetchError):
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
async def opened(worker: Worker, source: GitSource, job: Any) -> AsyncIterator[Git]:
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
        home = await stack.enter_async_context(scratch(worker, "git"))
        more, settings = await worker.threaded(lambda _: git_settings(source.remote, worker, job.sessions, home))
        if header:
            parts = urlsplit(source.remote)
            place = f"http.{parts.scheme}://{parts.netloc.rpartition('@')[2]}/.extraheader"
            settings.append((place, f"Authorization: {header}"))
        env |= more | _settings(settings)
        env["GIT_SSH_COMMAND"] = _ssh_command(source, home)
        session = await _agent_session(source, job)
        if session is not None:
            path = await stack.enter_async_context(
                agent_socket(session, source.agent, home / "agent", uid=os.geteuid(), gid=os.getegid(), mode=0o600)
            )
            env["SSH_AUTH_SOCK"] = stack.enter_context(_reachable(path))
        yield Git(env, log, policy=registries_of(worker).retry)


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for a socket that ssh can connect to: sun_path holds 107 bytes (unix(7)), and the state may lie deep."""
    name = os.fspath(path)
    if len(os.fsencode(name)) <= _MOST_PATH:
        yield name
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/{os.getpid()}/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _settings(settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Configuration by the environment: in no argument list, for this process and its children alone (git-config(1))."""
    env = {"GIT_CONFIG_COUNT": str(len(settings))} if settings else {}
    for number, (key, value) in enumerate(settings):
        env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return env


def _ssh_command(source: GitSource, scratch: Path) -> str:
    if not source.known_hosts:
        return "ssh -F /dev/null -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR"
    path = scratch / "known_hosts"
    path.write_text(source.known_hosts)
    return f"ssh -F /dev/null -o UserKnownHostsFile={path} -o StrictHostKeyChecking=yes"


async def _agent_session(source: GitSource, job: Any) -> Session | None:
    if not source.agent:
        return None
    for session in tuple(job.sessions):
        if await session.has_agent(source.agent):
            return session  # type: ignore[no-any-return]
    return None


async def _authorization(source: GitSource, job: Any) -> str:
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
        value = await secret_text(job, id)
        if value:
            return "basic " + base64.b64encode(f"x-access-token:{value}".encode()).decode() if is_token else value
    return ""


@asynccontextmanager
async def scratch(worker: Worker, what: str) -> AsyncIterator[Path]:
    """A directory for a while."""
    path = worker.tmp / f"{what}-{new_id()[:12]}"
    await worker.threaded(lambda _: path.mkdir(mode=0o700))
    try:
        yield path
    finally:
        await worker.threaded(lambda _: shutil.rmtree(path, ignore_errors=True))


__all__ = ["Git", "GitError", "opened", "scratch"]
